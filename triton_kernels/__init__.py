"""Triton kernels of qkernels, installed as ``qkernels.triton_kernels``. Importable without a GPU and without Triton.

One file per core: ``linear_int`` (int8 and 4-bit codes times int8 codes), ``linear_float`` (codes times floats),
``quantize`` (activations to codes, accumulators to codes). ``layout`` makes their compute layouts, ``tuned`` reads the
block shapes that are shipped in ``configs/``, ``tune`` measures them anew. docs/gpu.md says what has run where.
"""

import importlib.util
import os
import sys


def is_interpreted():
    """Whether Triton runs kernels in its interpreter, on CPU tensors: TRITON_INTERPRET=1 before Triton's import."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def why_not():
    """None, or why no Triton kernel can run in this process. Imports nothing."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "torch is not imported, and only its tensors lie on a GPU"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (pip install triton)"
    if is_interpreted() or torch.cuda.is_available():
        return None
    return "torch sees no CUDA GPU, and TRITON_INTERPRET is not set to 1"
