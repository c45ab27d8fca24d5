"""What the backend calls: weights prepacked, block shapes chosen, kernels launched. x is (M, K), unit stride in a row.

Every function takes ``config`` and ``splits`` to override what the tables say, for tests and tuning.
"""

import functools

import torch

from qkernels.cuda import channel_scales
from qkernels.cuda_float import half_holds
from qkernels.triton_backend import is_interpreted

from . import fuse, quantize, tuned
from . import linear_float as core_float
from . import linear_int as core_int
from .device import float_arrays, int_arrays, requant_arrays


@functools.cache
def properties(device):
    """(name, capability, multiprocessors) of a CUDA device."""
    p = torch.cuda.get_device_properties(device)
    return p.name, (p.major, p.minor), p.multi_processor_count


def chosen(kernel, device, m, n, steps):
    """The row of the table for a kernel and shape, and the number of splits."""
    if is_interpreted():
        row, count = tuned.INTERPRETED, 4
    else:
        name, capability, count = properties(device)
        row = tuned.row_of(tuned.table(name, capability)[kernel], m)
    return row, tuned.splits_of(row, m, n, steps, count)


def _shape_of(x, w, config, splits):
    """The row and the splits of the integer core, those that are given first."""
    if config is not None and splits is not None:
        return config, splits
    row, best = chosen(tuned.name_of("int", w.units), x.device, x.shape[0], w.shape[0], w.units.steps)
    return config or row, splits or best


def linear_int(x, w, quant, bias, activation, out, config=None, splits=None, fused=None):
    """``qkernels.reference.linear_int``; bit for bit without GELU and SiLU. fused: whether the core quantizes x."""
    arrays = int_arrays(w, x.device)
    row, splits = _shape_of(x, arrays, config, splits)
    zero = (quant.zero_point or 0) - (0 if quant.signed else 128)
    rest = {"x_zero": zero, "bias": bias, "activation": activation}
    if fuse.fuses(x, arrays, quant, row, splits) if fused is None else fused:
        return core_int.launch(x, arrays, out, row, splits, "float", quant, **rest)
    codes, scale, sums = quantize.quantize_rows(
        x, quant, arrays.units, arrays.input_inverse, arrays.w_zero is not None
    )
    return core_int.launch(codes, arrays, out, row, splits, "float", x_scale=scale, x_sums=sums, **rest)


def signed(x, zero):
    """int8 codes and their zero point: uint8 less 128."""
    if x.dtype is torch.uint8:
        return (x ^ 128).view(torch.int8), zero - 128
    return x, zero


def _codes(x, arrays, x_zero_point):
    codes, zero = signed(x, x_zero_point)
    sums = codes.sum(dim=1, dtype=torch.int32) if arrays.w_zero is not None else None
    return codes, {"x_zero": zero, "x_sums": sums}


def matmul_int(x, w, x_zero_point, out, config=None, splits=None):
    """``qkernels.reference.matmul_int``, exact."""
    arrays = int_arrays(w, x.device)
    codes, zeros = _codes(x, arrays, x_zero_point)
    shape = _shape_of(x, arrays, config, splits)
    return core_int.launch(codes, arrays, out, *shape, "int32", **zeros)


def linear_requant(x, w, x_zero_point, bias, requant, limits, out, config=None, splits=None):
    """``qkernels.reference.linear_requant``, exact."""
    arrays = int_arrays(w, x.device)
    codes, zeros = _codes(x, arrays, x_zero_point)
    rest = {"bias": bias, "requant": requant_arrays(requant, x.device), "limits": limits}
    shape = _shape_of(x, arrays, config, splits)
    return core_int.launch(codes, arrays, out, *shape, "requant", **zeros, **rest)


def requantize(acc, requant, limits, out):
    """``qkernels.reference.requantize``, exact."""
    return quantize.requantize(acc, requant_arrays(requant, acc.device), limits, out)


def quantize_activations(x, quant):
    """``qkernels.reference.quantize_activations``: codes (M, K); scale (M,), (1,), or (K,) of granularity "channel"."""
    given = quant.granularity == "channel"
    channel, inverse = channel_scales(quant, x.shape[1], x.device) if given else (None, None)
    codes, scale, _ = quantize.quantize_rows(x, quant, None, inverse, squared=False)
    if not quant.signed:
        codes = codes.view(torch.uint8) ^ 128
    if quant.granularity == "tensor":
        scale = scale[:1] if scale.numel() else torch.ones(1, dtype=torch.float32, device=x.device)
        if quant.scale is not None:
            scale = torch.full_like(scale, quant.scale)
    return codes, scale if channel is None else channel


def float16_holds(w):
    """Whether float16 operands serve a weight: entries of its table lose no more than their last bits."""
    if "_triton_float16" not in w.__dict__:
        q = w.numpy().lookup()
        w.__dict__["_triton_float16"] = bool(half_holds(q.table)) and q.input_scale is None
    return w.__dict__["_triton_float16"]


def product_dtype(x, w, compute_dtype):
    """Of the products: as named, else float16 for float16 x where it serves the weight, else bfloat16."""
    if compute_dtype is not None:
        return getattr(torch, compute_dtype)
    return torch.float16 if x.dtype is torch.float16 and float16_holds(w) else torch.bfloat16


def spread(x, u):
    """Activations (M, K) in padded groups (M, length): zeros where the weight has padding."""
    out = x.new_zeros((x.shape[0], u.groups, u.padded))
    for g in range(-(-u.k // u.size)):
        part = x[:, g * u.size : (g + 1) * u.size]
        out[:, g, : part.shape[1]] = part
    return out.reshape(x.shape[0], u.length)


def linear_float(x, w, bias, activation, compute_dtype, out, config=None, splits=None):
    """``qkernels.reference.linear_float``, within the tolerance of docs/numerics.md."""
    dtype = product_dtype(x, w, compute_dtype)
    arrays = float_arrays(w, x.device, dtype)
    if arrays.input_inverse is not None:
        x = x.float() * arrays.input_inverse
    x = x.to(dtype)
    u = arrays.units
    if u.is_grouped and not (u.is_plain and u.length == u.k):
        x = spread(x, u)
    name = tuned.name_of("float", u, str(dtype).removeprefix("torch."))
    row, best = chosen(name, x.device, x.shape[0], w.shape[0], u.steps)
    return core_float.launch(x, arrays, out, config or row, splits or best, bias, activation)
