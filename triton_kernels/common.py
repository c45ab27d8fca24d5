"""What the kernels share: rounding, activation codes, activations, requantization, the order of tiles.

Every float32 operation rounds once (the kernels are compiled without contraction to fused multiply-adds, and divide by
``div_rn``), so what the reference computes in float32 comes out bit for bit.
"""

import triton
import triton.language as tl

from qkernels.triton_backend import is_interpreted

if is_interpreted():
    from . import interpreter  # noqa: F401  (corrects what Triton's interpreter computes otherwise than a GPU)

LIMIT = tl.constexpr(3.4028234663852886e38)  # the largest float32


@triton.jit
def rint(x):
    """Half to even, for |x| <= 2**22: adding 1.5 * 2**23 leaves no bits behind the point."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def finite_or_zero(x):
    """x, and 0 where it is infinite or NaN."""
    return tl.where(tl.abs(x) <= LIMIT, x, 0.0)


@triton.jit
def to_codes(x, inverse, zero, lo, hi, POWER: tl.constexpr, SIGNED: tl.constexpr):
    """Codes of finite x as float32: ``clip(rint(x * inverse) + zero, lo, hi)``, or of ``sqrt(|x| * inverse)`` with the
    sign of x, and then squared, which is what the product multiplies."""
    if POWER:
        magnitude = tl.abs(x) if SIGNED else tl.maximum(x, 0.0)
        root = tl.sqrt_rn(tl.minimum(magnitude * inverse, LIMIT))
        q = rint(tl.minimum(root, hi))
        q = tl.where(x < 0.0, -q, q)
    else:
        q = rint(tl.minimum(tl.maximum(x * inverse, lo - zero), hi - zero)) + zero
    return q


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """float32 to float32; NaN stays NaN."""
    if ACTIVATION == "relu":
        y = tl.where(y < 0.0, 0.0, y)
    elif ACTIVATION == "relu6":
        y = tl.where(y < 0.0, 0.0, y)
        y = tl.where(y > 6.0, 6.0, y)
    elif ACTIVATION == "gelu":
        y = (0.5 * y) * (1.0 + tl.erf(y * 0.7071067811865476))
    elif ACTIVATION == "silu":
        y = tl.div_rn(y, 1.0 + tl.exp(-y))
    return y


@triton.jit
def fixed_point(acc, m, shift, scale, zero, lo, hi, ROUNDING: tl.constexpr):
    """qkernels.reference.requantize: int32 accumulators to codes within lo..hi, int32.

    Args:
        m, shift: int32. scale: float32, only for ROUNDING "float".
    """
    if ROUNDING == "float":
        y = acc.to(tl.float32) * scale
        y = rint(tl.minimum(tl.maximum(y, -65536.0), 65536.0)).to(tl.int64)  # codes are within 512 of 0
    else:
        a, m64, s = acc.to(tl.int64), m.to(tl.int64), shift.to(tl.int64)
        one = tl.full(s.shape, 1, tl.int64)
        if ROUNDING == "single":
            t = s + 31
            y = (a * m64 + ((one << t) >> 1)) >> t
        else:
            left, right = tl.maximum(-s, 0), tl.maximum(s, 0)
            a = tl.minimum(tl.maximum(a << left, -2147483648), 2147483647)
            high = (a * m64 + 1073741824) >> 31
            half = (one << right) >> 1
            y = (tl.abs(high) + half) >> right
            y = tl.where(high < 0, -y, y)
    return tl.minimum(tl.maximum(y + zero, lo), hi).to(tl.int32)


@triton.jit
def tile_of(pid, tiles_n, tiles_m, TOGETHER: tl.constexpr):
    """Tile (n, m) of a program: TOGETHER rows of tiles at a time, so that what they read stays in L2."""
    width = TOGETHER * tiles_m
    first = (pid // width) * TOGETHER
    high = tl.minimum(tiles_n - first, TOGETHER)
    return first + (pid % width) % high, (pid % width) // high
