"""Integer-only elementwise operations, pooling, and the constructions of I-BERT (Kim et al. 2021, thesis 1.4.3).

Integer arithmetic only; ``>>`` is the arithmetic shift, so dividing by a power of two rounds down and adding half
of it first rounds half up. How far each result may be from its float definition is in docs/numerics.md.
"""

import numpy as np

from .requantize import requantize

EXP_BITS, EXP_FRACTION = 23, 14  # exponentials in units of 2**-23, exponents of two in units of 2**-14
# I-BERT's exp(p) ~ 0.3585 (p + 1.353)**2 + 0.344 on (-ln 2, 0], for p = -f * ln 2: A (B - f)**2 + C
EXP_A = 5644  # 0.3585 * ln(2)**2 * 2**15
EXP_B = 31981  # 1.353 / ln(2) * 2**14
EXP_C = 184683594  # 0.344 * 2**29
# I-BERT's erf(x) ~ sgn(x) (1 - 0.2888 (min(|x|, 1.769) - 1.769)**2)
ERF_A = 302829  # 0.2888 * 2**20
ERF_B = 115933  # 1.769 * 2**16


def rounding_right_shift(x, shift):
    """x / 2**shift, half up; shift >= 0."""
    return (x + ((np.int64(1) << shift) >> 1)) >> shift


def add_requant(a, b, r, lo, hi):
    """``clip(((a - za) * Ma + (b - zb) * Mb + 2**(t-1) >> t) + zo, lo, hi)``: one rounding, half up.

    Args:
        a, b: int8 or uint8, of one shape. r: AddRequant with multipliers Ma, Mb and shift t.

    Returns:
        int64 within lo..hi.
    """
    acc = (a.astype(np.int64) - r.zero_point_a) * r.multiplier_a
    acc += (b.astype(np.int64) - r.zero_point_b) * r.multiplier_b
    return np.clip(rounding_right_shift(acc, r.shift) + r.zero_point, lo, hi)


def lookup_int8(q, table):
    """``table[q - lowest code of q's dtype]``: table has 256 entries in the order of the codes' values."""
    return table[q.astype(np.int64) - np.iinfo(q.dtype).min]


def requant_table(dtype, zero_point, requant, lo, hi):
    """int64 (256,): ``requantize(q - zero_point)`` of every code of an 8-bit dtype."""
    info = np.iinfo(dtype)
    return requantize(np.arange(info.min, info.max + 1) - zero_point, requant, lo, hi)


def concat_requant(xs, zero_points, requants, lo, hi, axis):
    """Each input rescaled, ``requantize(x - zero_point)``, or kept where its requant is None; joined along axis."""
    parts = [
        x.astype(np.int64) if r is None else requantize(x.astype(np.int64) - zp, r, lo, hi)
        for x, zp, r in zip(xs, zero_points, requants)
    ]
    return np.concatenate(parts, axis)


def pool_windows(x, window):
    """Yields (row, column, values (N, C, rows, columns), divisor) for each output position of a PoolWindow."""
    for i, (r0, rn, rd) in enumerate(zip(*window.rows)):
        for j, (c0, cn, cd) in enumerate(zip(*window.columns)):
            rows = r0 + window.dilation[0] * np.arange(rn)
            columns = c0 + window.dilation[1] * np.arange(cn)
            yield i, j, x[:, :, rows[:, None], columns], int(rd * cd)


def max_pool2d(x, window):
    """Largest code of each window; the padding never wins (it is the lowest code where a window has nothing else).

    Args:
        x: int8 or uint8 (N, C, H, W). window: PoolWindow.

    Returns:
        the dtype of x, (N, C, OH, OW).
    """
    out = np.empty((*x.shape[:2], *window.shape), x.dtype)
    for i, j, v, _ in pool_windows(x, window):
        out[:, :, i, j] = v.max((2, 3), initial=np.iinfo(x.dtype).min)
    return out


def avg_pool2d(x, window, zero_point, requants, lo, hi):
    """Mean of each window, the padding being zero_point where the divisor counts it; one rounding, half up.

    same scale   floor((2 * sum + D) / (2 * D)) with sum over the codes and D - valid codes of the padding
    new scale    requantize(sum (x - zero_point), requants[D]), rounding "single"

    Args:
        x: int8 or uint8 (N, C, H, W). requants: {divisor: Requant}, or None for the same scale.

    Returns:
        int64 (N, C, OH, OW) within lo..hi.
    """
    out = np.empty((*x.shape[:2], *window.shape), np.int64)
    for i, j, v, d in pool_windows(x, window):
        acc = (v.astype(np.int64) - zero_point).sum((2, 3))
        if requants is None:
            out[:, :, i, j] = (2 * acc + d) // (2 * d) + zero_point
        else:
            out[:, :, i, j] = requantize(acc, requants[d], lo, hi)
    return np.clip(out, lo, hi)


def erf_int(x):
    """I-BERT's erf of x / 2**16, in units of 2**-20."""
    t = np.minimum(np.abs(x), ERF_B) - ERF_B
    return np.sign(x) * (2**20 - rounding_right_shift(ERF_A * (t * t), 32))


def gelu_int(q, zero_point, to_erf, requant, lo, hi):
    """``x / 2 * (1 + erf(x / sqrt(2)))`` of x = q - zero_point in units of the input scale.

    Args:
        q: int8 or uint8. to_erf: Requant of scale / sqrt(2) * 2**16. requant: of scale / 2 / output_scale * 2**-20.

    Returns:
        int64 within lo..hi.
    """
    x = q.astype(np.int64) - zero_point
    acc = x * (2**20 + erf_int(requantize(x, to_erf, -ERF_B, ERF_B)))
    return requantize(acc, requant, lo, hi)


def exp_int(d, to_exponent):
    """``exp(-d * scale)`` in units of 2**-23, at most 1 - 2**-23; d >= 0 int64 below 2**32.

    u = d * scale / ln 2 is the exponent of two; its integer part shifts, its fraction goes through I-BERT's polynomial.
    (I-BERT divides by floor(ln 2 / scale), which a coarse scale such as that of int8 codes makes a bad ln 2.)

    Args:
        to_exponent: Requant of scale / ln(2) * 2**14, one multiplier, rounding "single".
    """
    m, t = np.uint64(to_exponent.multiplier[0]), np.uint64(31 + to_exponent.shift[0])
    half = np.uint64((1 << int(t)) >> 1)
    u = np.minimum((d.astype(np.uint64) * m + half) >> t, np.uint64(31 << EXP_FRACTION)).astype(np.int64)
    f = EXP_B - (u & ((1 << EXP_FRACTION) - 1))
    e = ((f * f >> 14) * EXP_A + EXP_C) >> (29 - EXP_BITS)
    return np.minimum(e, 2**EXP_BITS - 1) >> (u >> EXP_FRACTION)


def bit_length(v):
    """Bits of non-negative int64 values."""
    return sum((v >> i > 0).astype(np.int64) for i in range(63))


def softmax_int(x, to_exponent):
    """Softmax of each row in units of 1/256, at most 255.

    e = exp(x - max) as integers, S = sum e of b bits, r = floor(2**(15 + b) / S) of 16 bits,
    y = round((e >> 8) * r / 2**(b - 1))

    Args:
        x: int8, uint8 or int32 (M, K), K from 1 to 2**24. to_exponent: see ``exp_int``.

    Returns:
        int64 (M, K) within 0..255.
    """
    x = x.astype(np.int64)
    e = exp_int(x.max(1, keepdims=True) - x, to_exponent)
    total = e.sum(1, keepdims=True)
    bits = bit_length(total)
    inverse = np.minimum((np.int64(1) << (15 + bits)) // total, 65535)
    return np.minimum(rounding_right_shift((e >> 8) * inverse, bits - 1), 255)


def isqrt(v):
    """floor(sqrt(v)) of int64 values in [2**60, 2**62): Newton's iteration from above."""
    r = np.full_like(v, 2**31)
    while True:
        better = (r + v // r) >> 1
        if (better >= r).all():
            return r
        r = np.minimum(r, better)


def layer_norm_int(x, norm, lo, hi):
    """``clip(round((x - mean) / sqrt(var + eps) * weight / s_out + bias / s_out) + zero_point)`` of each row.

    With n values of x, of sum s and sum of squares q: c = n x - s is exact, and n q - s**2 = n**2 var as well, so
    c / sqrt(n q - s**2 + E) is the normalized value, E = n**2 eps / scale**2. Neither mean nor variance is rounded.

    range > 255   the row is first shifted to x - min, and right, rounding half up, until it has 15 bits
    w             (n q - s**2) * 4**j + E * 4**j, j = 8 for rows within 255 and else 0
    k             the shift that brings w * 4**k to [2**60, 2**62);  r = isqrt(w * 4**k);  v = floor(2**61 / r)
    z             c * 2**(j + k - 9) * v / 2**32, each division rounding down, in units of 2**-20
    y             (z * weight[i] >> 32) + bias[i] >> shift, the bias holding zero point and rounding half

    Args:
        x: int8, uint8 or int32 (M, n), n from 1 to 32768. norm: LayerNormInt.

    Returns:
        int64 (M, n) within lo..hi.
    """
    x = x.astype(np.int64)
    n = x.shape[1]
    low = x.min(1, keepdims=True)
    span = x.max(1, keepdims=True) - low
    wide = span > 255
    right = np.where(wide, np.maximum(bit_length(span) - 15, 0), 0)
    x = rounding_right_shift(x - low, right)
    j = np.where(wide, 0, 8)
    total = x.sum(1, keepdims=True)
    eps = norm.eps >> np.minimum(16 - 2 * j + 2 * right, 63)
    w = np.maximum(((n * (x * x).sum(1, keepdims=True) - total * total) << (2 * j)) + eps, 1)
    k = (62 - bit_length(w)) >> 1
    v = np.minimum(2**61 // isqrt(w << (2 * k)), 2**31 - 1)
    up = j + k - 9
    z = ((n * x - total) << np.maximum(up, 0) >> np.maximum(-up, 0)) * v >> 32
    return np.clip(((z * norm.weight >> 32) + norm.bias) >> norm.shift, lo, hi)
