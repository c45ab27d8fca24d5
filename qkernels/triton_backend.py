"""The Triton backend: from checked requests to the kernels in ``qkernels.triton_kernels``, for tensors on a CUDA device.

Nothing here imports torch or Triton before a call: ``why_not`` is what the registry asks. With TRITON_INTERPRET=1 the
kernels run on CPU tensors, slowly, where ``backend="triton"`` is named.
"""

from . import triton_kernels
from ._arrays import is_torch
from .cpu import dtype_name
from .formats.operand import why_no_integers


def why_not(r):
    """None, or why no kernel of this backend can take a request: the process, or where its tensors are."""
    reason = triton_kernels.why_not()
    if reason is not None:
        return reason
    if not is_torch(r.x):
        return "x is a NumPy array; accepted: a torch tensor on a CUDA device"
    if triton_kernels.is_interpreted():
        return None if r.backend == "triton" else "TRITON_INTERPRET=1: it is slow, and runs where it is named"
    if r.x.device.type != "cuda":
        return f"x is on {r.x.device}; accepted: a CUDA device"
    return None


def accepts_integers(r):
    """``linear`` with an input_quant."""
    quant = r.options["input_quant"]
    if quant is None:
        return "input_quant is None (weight-only): that is for the float core"
    if quant.bits == 1:
        return "input_quant has bits=1: there is no binary core in Triton"
    if quant.is_split:
        return f"power codes of {quant.bits} bits are multiplied as two bytes each; accepted: up to 4 bits"
    return why_not(r) or why_no_integers(r.w)


def accepts_floats(r):
    """``linear`` without an input_quant."""
    if r.options["input_quant"] is not None:
        return "input_quant is given: the float core takes float activations"
    return why_not(r)


def accepts_codes(r):
    """``matmul_int`` and ``linear_requant``."""
    return why_not(r) or why_no_integers(r.w)


def accepts_quant(r):
    """``quantize_activations``."""
    return why_not(r)


def _empty(r, name):
    import torch

    return torch.empty((r.m, r.columns), dtype=getattr(torch, name), device=r.x.device)


def _on(r, a, dtype=None):
    """A vector of the caller's on the device of x."""
    return None if a is None else a.detach().resolve_neg().to(device=r.x.device, dtype=dtype).contiguous()


def _device(r):
    """The device of x, made current: Triton launches on the current one."""
    import contextlib

    import torch

    return torch.cuda.device(r.x.device) if r.x.is_cuda else contextlib.nullcontext()


def linear(r):
    """Registry entry of ``linear`` with integer activations."""
    import torch

    from .triton_kernels import run

    bias = _on(r, r.bias, torch.float32)
    with _device(r):
        out = run.linear_int(r.x2, r.w, r.options["input_quant"], bias, r.options["activation"], _empty(r, r.out_name))
    return r.shaped(out)


def matmul_int(r):
    """Registry entry of ``matmul_int``."""
    from .triton_kernels import run

    with _device(r):
        return r.shaped(run.matmul_int(r.x2, r.w, r.options["x_zero_point"], _empty(r, "int32")))


def linear_requant(r):
    """Registry entry of ``linear_requant``."""
    import torch

    from .triton_kernels import run

    o, bias = r.options, _on(r, r.bias, torch.int32)
    with _device(r):
        out = run.linear_requant(
            r.x2, r.w, o["x_zero_point"], bias, o["requant"], o["limits"], _empty(r, r.out_name)
        )
    return r.shaped(out)


def requantize(r):
    """Registry entry of ``requantize``."""
    from .triton_kernels import device, quantize

    o = r.options
    with _device(r):
        arrays = device.requant_arrays(o["requant"], r.x.device)
        return r.shaped(quantize.requantize(r.x2, arrays, o["limits"], _empty(r, r.out_name)))


def quantize_activations(r):
    """Registry entry of ``quantize_activations``: codes of numbers that are not finite are 0, their scales NaN."""
    from .triton_kernels import run

    quant = r.options["input_quant"]
    with _device(r):
        codes, scale = run.quantize_activations(r.x2, quant)
    codes = codes.reshape(r.x.shape)
    if quant.granularity == "token":
        return codes, scale.reshape(*r.batch, 1)
    return codes, scale.reshape((1,) * len(r.batch) + (-1,))


def linear_float(r):
    """Registry entry of ``linear`` with float activations."""
    import torch

    from .triton_kernels import run

    o, bias = r.options, _on(r, r.bias, torch.float32)
    with _device(r):
        out = run.linear_float(r.x2, r.w, bias, o["activation"], o["compute_dtype"], _empty(r, r.out_name))
    return r.shaped(out)


def name_of(r):
    """The dtype of x, as a word."""
    return dtype_name(r.x)
