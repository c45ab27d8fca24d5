"""Activations to codes, and accumulators to codes."""

import numpy as np

from .. import registry
from .._arrays import as_float32, as_numpy, first_bad, is_torch
from ..cpu import FLOATS, dtype_name
from ..errors import ArgumentError, DTypeError
from ..quant import InputQuant
from .request import Request, check_array, check_requant, name_of_dtype


def requantize(acc, requant, out_dtype=None, backend=None):
    """``clip(round(acc * multiplier * 2**-(31 + shift)) + zero_point)`` in the rounding of ``requant``. Exact.

    Args:
        acc: (..., N) int32.
        requant: Requant, for the tensor or per channel of the last dimension.
        out_dtype: int8 (None) or uint8.

    Returns:
        int8 or uint8, shaped like acc.
    """
    r = requantize_request(acc, requant, out_dtype, backend)
    return registry.pick(r).run(r)


def requantize_request(acc, requant, out_dtype=None, backend=None):
    op = "requantize"
    check_array(op, "acc", acc, ("int32",))
    name = name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = check_requant(op, requant, acc.shape[-1]).limits(None, np.dtype(name))
    return Request(op, acc, None, None, name, backend, requant=requant, limits=limits)


def quantize_activations(x, input_quant, backend=None):
    """Codes and scales of activations (thesis eq. 3.9, 3.10), the same that ``linear`` computes inside.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        input_quant: InputQuant; granularity "channel" needs its scale here.

    Returns:
        codes, int8 or uint8 (..., K); scale, float32: (..., 1) per token, 1s per tensor, (1, K) per channel.

    Raises:
        ArgumentError: x is not finite, or there is no scale for granularity "channel".
    """
    r = quantize_activations_request(x, input_quant, backend)
    return registry.pick(r).run(r)


def quantize_activations_request(x, input_quant, backend=None):
    op = "quantize_activations"
    check_array(op, "x", x, tuple(FLOATS))
    if not isinstance(input_quant, InputQuant):
        raise DTypeError(
            f"{op}: input_quant is a {type(input_quant).__name__}; accepted: qkernels.InputQuant."
        )
    if input_quant.bits == 1:
        raise ArgumentError(
            f"{op}: input_quant has bits=1; accepted: 8. qkernels.pack_signs makes sign bits."
        )
    if input_quant.granularity == "channel":
        input_quant.channel_scale(op, None, x.shape[-1])
    return Request(op, x, None, None, None, backend, input_quant=input_quant)


def power_dequantize(codes, scale, exponent=0.5, bits=8, out_dtype=None, backend=None):
    """``sign(q) * |q|**(1 / exponent) * scale``: what power codes stand for (the inverse of thesis eq. 3.13).

    The power comes from a table of 256 float32 entries, computed in float64 and rounded; one float32 product and the
    rounding to out_dtype follow. Exact: every kernel gives these bits. The codes of ``quantize_activations`` with
    InputQuant(power=0.5) have exponent 0.5 and its scale; those of PowerWeight.pack their weight's.

    Args:
        codes: (..., K) int8, -2**(bits - 1)..2**(bits - 1) - 1, or uint8, 0..2**bits - 1.
        scale: finite; a number, or one for each row, (..., 1).
        exponent: 1/16 to 4.
        bits: 2 to 8.
        out_dtype: float32 (None), bfloat16 or float16.

    Returns:
        (..., K), of the kind that codes is.

    Raises:
        ArgumentError: codes or values outside of the above.
        DTypeError: other dtypes.
    """
    r = power_dequantize_request(codes, scale, exponent, bits, out_dtype, backend)
    return registry.pick(r).run(r)


def power_dequantize_request(codes, scale, exponent=0.5, bits=8, out_dtype=None, backend=None):
    op = "power_dequantize"
    check_array(op, "codes", codes, ("int8", "uint8"))
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        raise ArgumentError(f"{op}: bits is {bits!r}; accepted: 2 to 8.")
    real = isinstance(exponent, int | float | np.integer | np.floating) and not isinstance(exponent, bool)
    if not real or not 1 / 16 <= exponent <= 4:
        raise ArgumentError(f"{op}: exponent is {exponent!r}; accepted: a number from 1/16 to 4.")
    if bits < 8:
        q = as_numpy(codes, op, "codes")
        lo, hi = (
            (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dtype_name(codes) == "int8" else (0, 2**bits - 1)
        )
        if q.size and (q.min() < lo or q.max() > hi):
            raise ArgumentError(
                f"{op}: codes span {q.min()}..{q.max()}; accepted with bits={bits}: {lo}..{hi}."
            )
    s = as_float32(scale, op, "scale")
    if s.size != 1 and s.shape != (*codes.shape[:-1], 1):
        raise ArgumentError(
            f"{op}: scale has shape {s.shape}, codes {tuple(codes.shape)}; accepted: one number, or "
            f"{(*codes.shape[:-1], 1)}, one for each row."
        )
    bad = first_bad(~np.isfinite(s))
    if bad is not None:
        raise ArgumentError(f"{op}: scale is {s[bad]} at {bad}; accepted: finite.")
    floats = tuple(FLOATS) if is_torch(codes) else ("float32", "float16")
    name = name_of_dtype(op, out_dtype, "float32", floats)
    scale = np.ascontiguousarray(s).reshape(-1)
    return Request(op, codes, None, None, name, backend, scale=scale, exponent=float(exponent))
