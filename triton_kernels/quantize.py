"""Activations to int8 codes, and int32 accumulators to 8-bit codes.

One program a row: |x| is reduced to the row's scale, and the row, still in cache, becomes codes. Bound by memory:
2 or 4 bytes read and 1 written a value. ``tensor`` granularity takes the largest |x| of each row first, by a launch of
its own, since programs cannot wait for each other.

uint8 codes are stored less 128, as int8, because the tensor cores' kernels multiply int8 by int8: their zero point is
128 lower. Rows with a number that is not finite get the scale NaN, which makes every output of the row NaN: to raise an
error as the CPU does, the host would have to wait for the GPU.
"""

import torch
import triton
import triton.language as tl

from .common import LIMIT, finite_or_zero, fixed_point, to_codes

TINY = tl.constexpr(2.0**-100)


@triton.jit
def load_floats(x, inverse, inside, in_k, HAS_INPUT_SCALE: tl.constexpr):
    """Activations as float32, 0 outside, times the inverse input scales; pointers, of shapes that broadcast."""
    v = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    if HAS_INPUT_SCALE:
        v = v * tl.load(inverse, mask=in_k, other=1.0)
    return v


@triton.jit
def magnitude(v):
    """|v|; infinite where v is not finite."""
    v = tl.abs(v)
    return tl.where(v <= LIMIT, v, float("inf"))


@triton.jit
def scale_of(most, largest):
    """The dynamic scale where max|x| is ``most``."""
    return tl.where(most < TINY, 1.0, tl.div_rn(most, largest))


@triton.jit
def valid_scale(s, most):
    """NaN where a number that ``most`` covers is not finite."""
    return tl.where(most <= LIMIT, s, float("nan"))


@triton.jit
def rows_amax(
    x, m, M, pitch, inverse, K, HAS_INPUT_SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """max|x| of the rows m (ROWS,), of those from M on 0; infinite where a number of a row is not finite."""
    most = tl.zeros((ROWS, BLOCK), tl.float32)
    at = x + m.to(tl.int64)[:, None] * pitch
    for k0 in range(0, K, BLOCK):
        k = k0 + tl.arange(0, BLOCK)[None, :]
        v = load_floats(at + k, inverse + k, (m < M)[:, None] & (k < K), k < K, HAS_INPUT_SCALE)
        most = tl.maximum(most, magnitude(v))
    return tl.max(most, axis=1)


@triton.jit
def row_amax(x, m, pitch, inverse, K, HAS_INPUT_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """max|x| of row m, a scalar."""
    most = rows_amax(x, m + tl.arange(0, 1), m + 1, pitch, inverse, K, HAS_INPUT_SCALE, 1, BLOCK)
    return tl.max(most, axis=0)


@triton.jit
def amax_kernel(x, pitch, inverse, amax, K, HAS_INPUT_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    m = tl.program_id(0)
    tl.store(amax + m, row_amax(x, m, pitch, inverse, K, HAS_INPUT_SCALE, BLOCK))


@triton.jit
def quantize_kernel(
    x, pitch, inverse, amax, codes, scale, sums, static_scale, zero, lo, hi, largest, M, K, SIZE, PADDED, LENGTH,
    GRANULARITY: tl.constexpr, HAS_INPUT_SCALE: tl.constexpr, POWER: tl.constexpr, SIGNED: tl.constexpr,
    SQUARE: tl.constexpr, SHIFT: tl.constexpr, HAS_SUMS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Row m of codes, int8 (M, LENGTH): code k at its place in the padded groups, 0 elsewhere.

    ``GRANULARITY`` "token", "tensor" (amax of all rows is given), or "static". ``SQUARE``: sign(q) q**2 is stored.
    scale float32 (M,); sums int32 (M,), of the stored codes.
    """
    m = tl.program_id(0)
    if GRANULARITY == "static":
        s = static_scale + 0.0
        most = row_amax(x, m, pitch, inverse, K, HAS_INPUT_SCALE, BLOCK)
    else:
        if GRANULARITY == "token":
            most = row_amax(x, m, pitch, inverse, K, HAS_INPUT_SCALE, BLOCK)
        else:
            rows = tl.zeros((BLOCK,), tl.float32)
            for m0 in range(0, M, BLOCK):
                r = m0 + tl.arange(0, BLOCK)
                rows = tl.maximum(rows, tl.load(amax + r, mask=r < M, other=0.0))
            most = tl.max(rows, axis=0)
        s = scale_of(most, largest)
    tl.store(scale + m, valid_scale(s, most))
    by = tl.div_rn(1.0, s)
    total = tl.zeros((BLOCK,), tl.int32)
    for k0 in range(0, LENGTH, BLOCK):
        place = k0 + tl.arange(0, BLOCK)
        k = (place // PADDED) * SIZE + place % PADDED
        there = (place % PADDED < SIZE) & (k < K)
        v = load_floats(x + m.to(tl.int64) * pitch + k, inverse + k, there, there, HAS_INPUT_SCALE)
        q = to_codes(finite_or_zero(v), by, zero, lo, hi, POWER, SIGNED).to(tl.int32)
        if SQUARE:
            q = q * tl.abs(q)
        q = tl.where(there, q - SHIFT, 0)
        total += q
        tl.store(codes + m.to(tl.int64) * LENGTH + place, q.to(tl.int8), mask=place < LENGTH)
    if HAS_SUMS:
        tl.store(sums + m, tl.sum(total, axis=0))


@triton.jit
def requantize_kernel(
    acc, pitch, out, m, shift, scale, zero, lo, hi, N, PER_CHANNEL: tl.constexpr, ROUNDING: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One row of int32 (M, N) to codes, by columns of BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = n if PER_CHANNEL else n * 0
    inside = n < N
    a = tl.load(acc + row * pitch + n, mask=inside, other=0)
    mm, ss = tl.load(m + at, mask=inside, other=0), tl.load(shift + at, mask=inside, other=0)
    f = tl.load(scale + at, mask=inside, other=0.0)
    y = fixed_point(a, mm, ss, f, zero, lo, hi, ROUNDING)
    tl.store(out + row * N + n, y.to(out.dtype.element_ty), mask=inside)


def block_of(k, most=4096):
    """A power of two that holds a row, within limits."""
    return min(most, max(16, triton.next_power_of_2(max(k, 1))))


def warps_of(block):
    return 8 if block >= 4096 else 4


def code_arguments(quant):
    """(granularity of the kernels, static scale, zero point, lo, hi) of an InputQuant; floats."""
    lo, hi = quant.limits
    kind, static = quant.granularity, 1.0
    if kind == "channel" or quant.scale is not None:
        kind, static = "static", 1.0 if kind == "channel" else quant.scale
    else:
        lo = -hi if quant.signed else 0
    return kind, float(static), float(quant.zero_point or 0), float(lo), float(hi)


def quantize_rows(x, quant, units=None, inverse=None, with_sums=False, squared=True):
    """Codes of x (M, K) with unit stride in a row, as the integer core reads them.

    Args:
        quant: an InputQuant of 2 to 8 bits, not split.
        units: layout.Units that the codes are padded for; None: none are, (M, K).
        inverse: float32 (K,), 1 / the input scales (granularity "channel": its scales), by which x is multiplied.
        with_sums: the sums of the stored codes too.
        squared: power codes are stored as their squares.

    Returns:
        codes int8 (M, length), less 128 if unsigned; scale float32 (M,), NaN for rows that are not finite; sums int32
        (M,) or None.
    """
    m, k = x.shape
    size, padded, length = (max(k, 1), k, k) if units is None else (units.size, units.padded, units.length)
    codes = torch.empty((m, length), dtype=torch.int8, device=x.device)
    scale = torch.empty(m, dtype=torch.float32, device=x.device)
    sums = torch.empty(m if with_sums else 1, dtype=torch.int32, device=x.device)
    kind, static, zero, lo, hi = code_arguments(quant)
    power = quant.power is not None
    block = block_of(length)
    pitch, has = x.stride(0) if m > 1 else k, inverse is not None
    given = inverse if has else scale
    options = {"BLOCK": block, "num_warps": warps_of(block), "enable_fp_fusion": False}
    if not m:
        return codes, scale, sums if with_sums else None
    amax = scale
    if kind == "tensor":
        amax = torch.empty(m, dtype=torch.float32, device=x.device)
        amax_kernel[(m,)](x, pitch, given, amax, k, HAS_INPUT_SCALE=has, **options)
    quantize_kernel[(m,)](
        *(x, pitch, given, amax, codes, scale, sums, static, zero, lo, hi),
        *(hi * hi if power else hi, m, k, size, max(padded, 1), length),
        GRANULARITY=kind,
        HAS_INPUT_SCALE=has,
        POWER=power,
        SIGNED=quant.signed,
        SQUARE=power and squared,
        SHIFT=0 if quant.signed else 128,
        HAS_SUMS=with_sums,
        **options,
    )
    return codes, scale, sums if with_sums else None


def requantize(acc, requant, limits, out):
    """int32 (M, N) with unit stride in a row to the 8-bit ``out`` (M, N); requant: device_requant's arrays."""
    m, n = acc.shape
    if not m or not n:
        return out
    block = block_of(n, 1024)
    requantize_kernel[(m, triton.cdiv(n, block))](
        *(acc, acc.stride(0) if m > 1 else n, out, requant.multiplier, requant.shift, requant.scale),
        *(requant.zero_point, *limits, n),
        PER_CHANNEL=requant.multiplier.shape[0] > 1,
        ROUNDING=requant.rounding,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=False,
    )
    return out
