"""Triton kernels of qkernels, installed as ``qkernels.triton_kernels``. Importable without a GPU and without Triton.

There is no kernel here yet: the CPU formats come first, and ``qkernels.capabilities()`` lists what runs.
"""
