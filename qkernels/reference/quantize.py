"""Activations to integer codes."""

import numpy as np

from .._arrays import first_bad
from ..errors import ArgumentError


def quantize_activations(x, iq, input_scale=None):
    """Codes and scales of activations: ``x ~ scale * (codes - zero_point)``, all arithmetic in float32.

    dynamic (thesis eq. 3.9)   s = amax / hi over a row ("token") or all x ("tensor"); 1 if amax < 2**-100
                               q = clip(rint(x * (1 / s)), -hi, hi), or 0, hi if unsigned
    static, "tensor"           q = clip(rint(x * (1 / s)) + zero_point, lo, hi)
    static, "channel" (3.10)   q = clip(rint(x * (1 / s[k])), lo, hi); s is ``input_scale``

    power 0.5 (3.13)           s = amax / hi**2, or static; q = sign(x) * min(rint(sqrt(|x| * (1 / s))), hi), 0 for
                               x < 0 if unsigned; then x ~ s * sign(q) * q**2, and hi is 127 or 255 (8 bits)

    lo, hi are -128, 127 with 8 bits, -8, 7 with 4; unsigned 0, 255 and 0, 15. amax is max|x|; rint rounds half to even.

    Args:
        x: float32 (M, K).
        iq: an InputQuant.
        input_scale: float32 (K,), the weight's, for granularity "channel".

    Returns:
        codes (M, K), int8 or uint8; scale float32, "token" (M, 1), "tensor" (1, 1), "channel" (1, K).

    Raises:
        ArgumentError: x is not finite; granularity "channel" without a scale, or with two that differ.
    """
    bad = first_bad(~np.isfinite(x))
    if bad is not None:
        raise ArgumentError(
            f"quantize_activations: x[{bad[0]}, {bad[1]}] is {x[bad]} (row {bad[0]}); accepted: finite."
        )
    dtype = np.int8 if iq.signed else np.uint8
    lo, hi = iq.limits
    if iq.granularity == "channel":
        scale = iq.channel_scale("quantize_activations", input_scale, x.shape[1]).reshape(1, -1)
    elif iq.scale is not None:
        scale = np.full((1, 1), iq.scale, np.float32)
    else:
        axis = 1 if iq.granularity == "token" else None
        amax = np.max(np.abs(x), axis=axis, keepdims=True, initial=0)
        largest = np.float32(hi if iq.power is None else hi * hi)
        scale = np.where(amax < np.float32(2.0**-100), np.float32(1), amax / largest)
        lo = -hi if iq.signed else 0
    with np.errstate(over="ignore"):
        if iq.power is not None:
            magnitude = np.abs(x) if iq.signed else np.maximum(x, np.float32(0))
            q = np.minimum(np.rint(np.sqrt(magnitude * (np.float32(1) / scale))), np.float32(hi))
            return np.copysign(q, x if iq.signed else q).astype(dtype), scale
        q = np.rint(x * (np.float32(1) / scale)) + np.float32(iq.zero_point or 0)
    return np.clip(q, lo, hi).astype(dtype), scale


def power_values(codes):
    """What power codes of exponent 1/2 stand for, before their scale: ``sign(q) * q**2``, int32."""
    q = codes.astype(np.int32)
    return np.sign(q) * q * q


def split_power(values, signed):
    """Values of power codes as two bytes: (high, low, factor) with ``values = factor * high + low``.

    signed: 128, -64 <= low <= 63, |high| <= 126; unsigned: 256, both in 0..255.
    """
    if signed:
        high = (values + 64) >> 7
        return high, values - 128 * high, 128
    return values >> 8, values & 255, 256


def power_table(exponent):
    """``sign(q) * |q|**(1 / exponent)`` of the bytes 0..255, read as int8 or uint8: two float32 (256,), computed in
    float64 and rounded."""
    q = np.arange(256.0)
    signed = np.where(q < 128, q, q - 256)
    return tuple((np.sign(v) * np.abs(v) ** (1 / exponent)).astype(np.float32) for v in (signed, q))


def power_dequantize(codes, scale, exponent=0.5):
    """``(sign(q) * |q|**(1 / exponent)) * scale``: the power by a table, then one float32 product.

    Args:
        codes: int8 or uint8 (M, K). scale: float32 (M, 1) or (1, 1).

    Returns:
        float32 (M, K).
    """
    table = power_table(exponent)[0 if codes.dtype == np.int8 else 1]
    with np.errstate(over="ignore"):
        return table[codes.view(np.uint8)] * scale
