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
        scale = np.where(amax < np.float32(2.0**-100), np.float32(1), amax / np.float32(hi))
        lo = -hi if iq.signed else 0
    with np.errstate(over="ignore"):
        q = np.rint(x * (np.float32(1) / scale)) + np.float32(iq.zero_point or 0)
    return np.clip(q, lo, hi).astype(dtype), scale
