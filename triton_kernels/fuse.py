"""Activations quantized inside the integer core: float tiles become codes in registers, bit for bit quantize.py's.

A launch less a call, and no codes in memory. What that costs, a program of the core each:

    dynamic scales   a pass over its rows before the loop, ``rows * K`` numbers from L2. A row of 4096 bfloat16 is
                     8 KiB; 256 programs read 2 MiB, 0.4 us at 5.5 TB/s and one latency more, of 4 rows 1.5 us. The
                     launch that is saved takes 2 to 3 us. So a row of the tables names the MiB that all programs
                     together may read ("fuse", 0: never); above it the quantizing kernel runs.
    static scales    no pass: numbers that are not finite are found in the loop.
    the loop         2 or 4 bytes a number instead of 1, and 8 instructions, in every tile of channels.

Separate stay: power codes (a rounded square root a number in every tile), padded groups (code k is not number k of
the row, so loads of a tile would be single numbers), and "tensor" scales of more rows than a tile has.
"""

import triton
import triton.language as tl

from .common import finite_or_zero, to_codes
from .quantize import code_arguments, load_floats, magnitude, rows_amax, scale_of

MIB = 1 << 20
PASS = 8192  # numbers of a step of the pass: 64 a thread, so that a row of 4096 waits for L2 once


@triton.jit
def row_scales(
    x, tm, M, pitch, inverse, K, static_scale, largest, FUSE: tl.constexpr, HAS_INPUT_SCALE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """(scale, max|x|) (BM,) of the rows of tile tm, the first ROWS of which are read; a static scale: max|x| is 0."""
    most = tl.zeros((BM,), tl.float32)
    if FUSE == "static":
        s = most + static_scale
    else:
        r = tl.arange(0, ROWS)
        found = rows_amax(x, tm * BM + r, M, pitch, inverse, K, HAS_INPUT_SCALE, ROWS, BLOCK)
        if FUSE == "tensor":
            most += tl.max(found, axis=0)
        elif ROWS == BM:
            most += found
        else:
            own = tl.arange(0, BM)[:, None] == r[None, :]
            most = tl.max(tl.where(own, found[None, :], 0.0), axis=1)
        s = scale_of(most, largest)
    return s, most


@triton.jit
def x_tile(
    x, at, j, K, in_m, by, inverse, code_zero, code_lo, code_hi, most, sums,
    FUSE: tl.constexpr, SHIFT: tl.constexpr, HAS_INPUT_SCALE: tl.constexpr, HAS_W_ZERO: tl.constexpr,
    EVEN_K: tl.constexpr,
):  # fmt: skip
    """Codes int8 (Q, BM) of the numbers at + j of rows x (1, BM), and what was seen of them, |x| (FUSE "static") and
    sums of codes (HAS_W_ZERO), added to most and sums (Q, BM). Not FUSE: loaded."""
    k = at + j[:, None]
    if FUSE == "none":
        q = tl.load(x + k) if EVEN_K else tl.load(x + k, mask=k < K, other=0)
    else:
        inside = in_m[None, :] if EVEN_K else in_m[None, :] & (k < K)
        v = load_floats(x + k, inverse + k, inside, k < K, HAS_INPUT_SCALE)
        q = to_codes(finite_or_zero(v), by[None, :], code_zero, code_lo, code_hi, False, True)
        q = q.to(tl.int32) - SHIFT
        if not EVEN_K:  # padding codes of nibbles are not 0
            q = tl.where(k < K, q, 0)
        if FUSE == "static":
            most = tl.maximum(most, magnitude(v))
        if HAS_W_ZERO:
            sums += q
        q = q.to(tl.int8)
    return q, most, sums


def pass_bytes(x, row, n, splits):
    """What all programs together read to find dynamic scales."""
    m, k = x.shape
    programs = triton.cdiv(n, row["BN"]) * triton.cdiv(m, row["BM"]) * splits
    return programs * min(m, row["BM"]) * k * x.element_size()


def fuses(x, w, quant, row, splits):
    """Whether the core quantizes x (M, K) itself; row: of the tables, w: device.IntArrays."""
    if not row["fuse"] or quant.power is not None or not w.units.is_plain:
        return False
    if quant.granularity == "channel" or quant.scale is not None:
        return True
    if quant.granularity == "tensor" and x.shape[0] > row["BM"]:
        return False
    return pass_bytes(x, row, w.shape[0], splits) <= row["fuse"] * MIB


def arguments(x, quant, row):
    """What the core is launched with where it quantizes x by an InputQuant; None: x is codes."""
    if quant is None:
        given, rows, block = ("none", 0.0, 0.0, 0.0, 0.0), 1, 16
    else:
        given = code_arguments(quant)
        rows = min(row["BM"], triton.next_power_of_2(max(x.shape[0], 1)))
        block = min(triton.next_power_of_2(max(x.shape[1], 16)), PASS // rows)
    names = "FUSE", "static_scale", "code_zero", "code_lo", "code_hi"
    shift = 0 if quant is None or quant.signed else 128
    return dict(zip(names, given, strict=True), SHIFT=shift, ROWS=rows, BLOCK=block)
