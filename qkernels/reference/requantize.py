"""Accumulators to 8-bit codes by fixed-point or float multipliers."""

import numpy as np


def requantize(acc, r, lo, hi):
    """``clip(round(acc * multiplier * 2**-(31 + shift)) + zero_point, lo, hi)`` (thesis 1.4.2).

    single  (acc * m + 2**(t-1)) >> t with t = 31 + shift, in int64 (no addend if t = 0): ties up.
    double  saturating left shift, high half of the doubled product (ties up), rounding right shift (ties away
            from zero): gemmlowp and CMSIS-NN.
    float   rint(float32(acc) * float32(m * 2**-(31 + shift))): ties to even.

    Args:
        acc: int32 (M, N).
        r: a Requant, multiplier and shift int32 (N,) or (1,).

    Returns:
        int64 (M, N) within lo..hi.
    """
    acc = acc.astype(np.int64)
    m, shift = r.multiplier.astype(np.int64), r.shift.astype(np.int64)
    if r.rounding == "single":
        t = 31 + shift
        y = (acc * m + ((np.int64(1) << t) >> 1)) >> t
    elif r.rounding == "double":
        left, right = np.maximum(-shift, 0), np.maximum(shift, 0)
        y = rounding_shift(doubling_high_multiply(np.clip(acc << left, -(2**31), 2**31 - 1), m), right)
    else:
        y = np.rint(acc.astype(np.float32) * r.scale).astype(np.int64)
    return np.clip(y + r.zero_point, lo, hi)


def doubling_high_multiply(a, m):
    """a * m / 2**31, ties up: gemmlowp's SaturatingRoundingDoublingHighMul (m >= 0 never saturates)."""
    return (a * m + 2**30) >> 31


def rounding_shift(x, right):
    """x / 2**right, ties away from zero: gemmlowp's RoundingDivideByPOT."""
    half = (np.int64(1) << right) >> 1
    return np.sign(x) * ((np.abs(x) + half) >> right)
