"""Triton kernels of qkernels, installed as ``qkernels.triton_kernels``. Importable without a GPU and without Triton.

One file per core: ``linear_int`` (int8 and 4-bit codes times int8 codes), ``linear_float`` (codes times floats),
``quantize`` (activations to codes, accumulators to codes); ``fuse`` is what quantizes activations inside linear_int.
``layout`` makes their compute layouts, ``tuned`` reads the block shapes that are shipped in ``configs/``, ``tune``
measures them anew. docs/gpu.md says what has run where.
"""
