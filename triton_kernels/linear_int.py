"""Integer core: int8 codes of activations (M, K) times int8, nibble or table codes of a weight (N, K).

    acc[n, m] = sum_k w[n, k] * x[m, k]                                exact, int32
    linear        y = act(((float32(acc) * w_scale[n]) * x_scale[m]) + bias[n]), groups by fused multiply-adds in order
    requant       codes = fixed_point(acc + bias)
    int32         acc itself

The tile is (BN channels, BM tokens): channels are the rows of the tensor cores' product, so that the decoded weight is
the operand which may lie in registers, and few tokens fill 16 columns instead of wasting 64 rows. A step of the loop
multiplies one unit (layout.py). With few tokens there are fewer tiles than multiprocessors: K is split, every split
writes exact int32 sums (of its range, or of each group), and ``reduce_kernel`` adds them up in a fixed order, so a
result never depends on the split. Bound by memory up to M of about 200 (4 bits: 100), by the tensor cores above.
"""

import torch
import triton
import triton.language as tl

from . import fuse
from .common import activate, fixed_point, tile_of
from .fuse import row_scales, x_tile
from .nibbles import nibble, nibble_codes
from .quantize import valid_scale


@triton.jit
def decode(b, table, s, PLANE: tl.constexpr, DECODER: tl.constexpr):
    """Nibbles of a plane, or bytes ("bytes"), as int8 operands: nibble + s - 128 with "offset", s uint8."""
    if DECODER == "offset":
        w = nibble_codes(b, s, PLANE)
    elif DECODER == "bytes":
        w = b
    else:
        u = nibble(b, PLANE)
        if DECODER == "table":
            w = tl.load(table + u.to(tl.int32))
        else:
            q = u.to(tl.int8) - 8
            w = tl.where(q < 0, -(q * q), q * q).to(tl.int8)
    return w


@triton.jit
def finish(
    acc, n, m, M, N, K, out, w_scale, w_zero, w_sums, row_scale, row_sums, x_zero, bias, rm, rshift, rscale, zero, lo,
    hi, IS_FLOAT: tl.constexpr, EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_X_ZERO: tl.constexpr,
    HAS_W_ZERO: tl.constexpr, PER_CHANNEL: tl.constexpr, ROUNDING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Store a tile: acc (BN, BM) is int32, or float32 sums of scaled groups (IS_FLOAT); n, m its indices; row_scale,
    row_sums (BM,) the scales and sums of the codes of x that are still to be applied."""
    n_in, m_in = n < N, m < M
    inside = n_in[:, None] & m_in[None, :]
    if not IS_FLOAT:
        if HAS_X_ZERO:
            acc -= x_zero * tl.load(w_sums + n, mask=n_in, other=0)[:, None]
        if HAS_W_ZERO:  # sum (x - x_zero)(w - w_zero); wraps modulo 2**32 on the way, the end fits
            by_row = row_sums - x_zero * K
            acc -= tl.load(w_zero + n, mask=n_in, other=0)[:, None] * by_row[None, :]
    at = out + m.to(tl.int64)[None, :] * N + n[:, None]
    if EPILOGUE == "int32":
        tl.store(at, acc, mask=inside)
    elif EPILOGUE == "requant":
        if HAS_BIAS:
            acc += tl.load(bias + n, mask=n_in, other=0)[:, None]
        c = n if PER_CHANNEL else n * 0
        mm, ss = (
            tl.load(rm + c, mask=n_in, other=0)[:, None],
            tl.load(rshift + c, mask=n_in, other=0)[:, None],
        )
        f = tl.load(rscale + c, mask=n_in, other=0.0)[:, None]
        y = fixed_point(acc, mm, ss, f, zero, lo, hi, ROUNDING)
        tl.store(at, y.to(out.dtype.element_ty), mask=inside)
    else:
        if IS_FLOAT:
            y = acc
        else:
            y = acc.to(tl.float32) * tl.load(w_scale + n, mask=n_in, other=0.0)[:, None]
        y = y * row_scale[None, :]
        if HAS_BIAS:
            y = y + tl.load(bias + n, mask=n_in, other=0.0)[:, None]
        tl.store(at, activate(y, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def given_rows(
    x_scale, x_sums, m, M, SCALES, EPILOGUE: tl.constexpr, HAS_W_ZERO: tl.constexpr, FUSE: tl.constexpr
):
    """row_scale and row_sums from memory. SCALES scales (SCALES, M) of a row: NaN where one is (fuse.py)."""
    row_scale, row_sums = tl.zeros(m.shape, tl.float32), tl.zeros(m.shape, tl.int32)
    if EPILOGUE == "float":
        row_scale = tl.load(x_scale + m, mask=m < M, other=0.0)
        for i in range(1, SCALES):
            row_scale = valid_scale(row_scale, tl.load(x_scale + i * M + m, mask=m < M, other=0.0))
    if HAS_W_ZERO and FUSE == "none":
        row_sums = tl.load(x_sums + m, mask=m < M, other=0)
    return row_scale, row_sums


@triton.jit
def linear_kernel(
    x, pitch, w, w_scale, w_zero, w_sums, zeros, table, x_scale, x_sums, x_zero, bias, rm, rshift, rscale, zero, lo, hi,
    out, parts, M, N, K, UNITS, PER_SPLIT, inverse, static_scale, code_zero, code_lo, code_hi,
    FUSE: tl.constexpr, SHIFT: tl.constexpr, HAS_INPUT_SCALE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    U: tl.constexpr, UPG: tl.constexpr, GROUPED: tl.constexpr, TOGETHER: tl.constexpr, PLANES: tl.constexpr,
    DECODER: tl.constexpr, EVEN_K: tl.constexpr, SPLIT: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr,
    TILES: tl.constexpr, EPILOGUE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_X_ZERO: tl.constexpr,
    HAS_W_ZERO: tl.constexpr, PER_CHANNEL: tl.constexpr, ROUNDING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Programs: (tiles, splits). x int8 (M, UNITS * U), or (M, K) if not EVEN_K; with FUSE floats (M, K), quantized
    here. A split is PER_SPLIT groups, or units where TOGETHER groups are one unit, or the row is one group; UPG units
    make a group."""
    tn, tm = tile_of(tl.program_id(0), tl.cdiv(N, BN), tl.cdiv(M, BM), TILES)
    split = tl.program_id(1)
    n, m = tn * BN + tl.arange(0, BN), tm * BM + tl.arange(0, BM)
    nn, mr = n % N, (m % M).to(tl.int64)  # what is past the edge is read again and never stored
    Q: tl.constexpr = U // PLANES
    j = tl.arange(0, Q)
    w_at = w + nn.to(tl.int64)[:, None] * (UNITS * Q) + j[None, :]
    rows = x + mr[None, :] * pitch
    in_m = m < M
    none = tl.zeros((BM,), tl.float32)
    scale, by, row_most = none, none, none
    most, sums = tl.zeros((Q, BM), tl.float32), tl.zeros((Q, BM), tl.int32)
    if FUSE != "none":
        scale, row_most = row_scales(
            x, tm, M, pitch, inverse, K, static_scale, code_hi, FUSE, HAS_INPUT_SCALE, ROWS, BLOCK, BM
        )
        by = tl.div_rn(1.0, scale)
    s = tl.zeros((BN,), tl.uint8)
    first = split * PER_SPLIT
    if not GROUPED:
        acc = tl.zeros((BN, BM), tl.int32)
        if DECODER == "offset":
            s = tl.load(zeros + nn)
        for u in range(first, tl.minimum(first + PER_SPLIT, UNITS)):
            b = tl.load(w_at + u * Q)
            for p in tl.static_range(PLANES):
                xp, most, sums = x_tile(
                    rows, u * U + p * Q, j, K, in_m, by, inverse, code_zero, code_lo, code_hi, most, sums, FUSE, SHIFT,
                    HAS_INPUT_SCALE, HAS_W_ZERO, EVEN_K,
                )  # fmt: skip
                acc = tl.dot(decode(b, table, s[:, None], p, DECODER), xp, acc, out_dtype=tl.int32)
    else:
        acc = tl.zeros((BN, BM), tl.float32)
        for step in range(first, tl.minimum(first + PER_SPLIT, UNITS // UPG)):
            if TOGETHER == 1:
                if DECODER == "offset":
                    s = tl.load(zeros + step * N + nn)
                part = tl.zeros((BN, BM), tl.int32)
                for i in tl.range(0, UPG, loop_unroll_factor=UPG if UPG <= 4 else 1):
                    u = step * UPG + i
                    b = tl.load(w_at + u * Q)
                    for p in tl.static_range(PLANES):
                        xp, most, sums = x_tile(
                            rows, u * U + p * Q, j, K, in_m, by, inverse, code_zero, code_lo, code_hi, most, sums,
                            FUSE, SHIFT, HAS_INPUT_SCALE, HAS_W_ZERO, EVEN_K,
                        )  # fmt: skip
                        part = tl.dot(decode(b, table, s[:, None], p, DECODER), xp, part, out_dtype=tl.int32)
                acc = add_group(
                    part, acc, step, n, m, M, N, w_scale, w_sums, x_zero, parts, HAS_X_ZERO, SPLIT
                )
            else:
                b = tl.load(w_at + step * Q)
                for p in tl.static_range(PLANES):  # as many groups as planes
                    g = step * TOGETHER + p
                    if DECODER == "offset":
                        s = tl.load(zeros + g * N + nn)
                    xp, most, sums = x_tile(
                        rows, step * U + p * Q, j, K, in_m, by, inverse, code_zero, code_lo, code_hi, most, sums, FUSE,
                        SHIFT, HAS_INPUT_SCALE, HAS_W_ZERO, EVEN_K,
                    )  # fmt: skip
                    part = tl.zeros((BN, BM), tl.int32)
                    part = tl.dot(decode(b, table, s[:, None], p, DECODER), xp, part, out_dtype=tl.int32)
                    acc = add_group(
                        part, acc, g, n, m, M, N, w_scale, w_sums, x_zero, parts, HAS_X_ZERO, SPLIT
                    )
    if FUSE == "none":
        row_scale, row_sums = given_rows(x_scale, x_sums, m, M, 1, EPILOGUE, HAS_W_ZERO, FUSE)
    else:
        row_scale = valid_scale(scale, tl.maximum(row_most, tl.max(most, axis=0)))
        row_sums = tl.sum(sums, axis=0)
    if SPLIT:
        if FUSE != "none":
            seen = split if FUSE == "static" else 0  # of static scales each split saw its part of the row
            tl.store(x_scale + seen * M + m, row_scale, mask=in_m & (tn == 0) & (split == seen))
        if not GROUPED:
            if FUSE != "none" and HAS_W_ZERO:
                acc -= tl.load(w_zero + nn)[:, None] * row_sums[None, :]
            place = parts + (split.to(tl.int64) * M + m[None, :]) * N + n[:, None]
            tl.store(place, acc, mask=(n < N)[:, None] & in_m[None, :])
    else:
        finish(
            acc, n, m, M, N, K, out, w_scale, w_zero, w_sums, row_scale, row_sums, x_zero, bias, rm, rshift, rscale,
            zero, lo, hi, GROUPED, EPILOGUE, HAS_BIAS, HAS_X_ZERO, HAS_W_ZERO, PER_CHANNEL, ROUNDING, ACTIVATION,
        )  # fmt: skip


@triton.jit
def add_group(
    acc, y, g, n, m, M, N, w_scale, w_sums, x_zero, parts, HAS_X_ZERO: tl.constexpr, SPLIT: tl.constexpr
):
    """y plus the scaled sum of group g; with SPLIT the sum is stored, for reduce_kernel to scale, and y stays."""
    nn = n % N
    if HAS_X_ZERO:
        acc -= x_zero * tl.load(w_sums + g * N + nn)[:, None]
    if SPLIT:
        place = parts + ((g * M).to(tl.int64) + m[None, :]) * N + n[:, None]
        tl.store(place, acc, mask=(n < N)[:, None] & (m < M)[None, :])
    else:
        y = tl.fma(acc.to(tl.float32), tl.load(w_scale + g * N + nn)[:, None], y)
    return y


@triton.jit
def reduce_kernel(
    parts, PARTS, w_scale, w_zero, w_sums, x_scale, SCALES, x_sums, x_zero, bias, rm, rshift, rscale, zero, lo, hi,
    out, M, N, K,
    FUSE: tl.constexpr, GROUPED: tl.constexpr, BN: tl.constexpr, BM: tl.constexpr, EPILOGUE: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_X_ZERO: tl.constexpr, HAS_W_ZERO: tl.constexpr, PER_CHANNEL: tl.constexpr,
    ROUNDING: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """The sums of all splits (PARTS, M, N) in their order, or the scaled sums of all groups in theirs; then finish."""
    n, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = parts + m.to(tl.int64)[None, :] * N + n[:, None]
    acc = tl.zeros((BN, BM), tl.float32 if GROUPED else tl.int32)
    for s in range(PARTS):
        part = tl.load(at + (s * M).to(tl.int64) * N, mask=inside, other=0)
        if GROUPED:
            scale = tl.load(w_scale + s * N + n, mask=n < N, other=0.0)
            acc = tl.fma(part.to(tl.float32), scale[:, None], acc)
        else:
            acc += part
    row_scale, row_sums = given_rows(x_scale, x_sums, m, M, SCALES, EPILOGUE, HAS_W_ZERO, FUSE)
    finish(
        acc, n, m, M, N, K, out, w_scale, w_zero, w_sums, row_scale, row_sums, x_zero, bias, rm, rshift, rscale, zero,
        lo, hi, GROUPED, EPILOGUE, HAS_BIAS, HAS_X_ZERO, HAS_W_ZERO, PER_CHANNEL, ROUNDING, ACTIVATION,
    )  # fmt: skip


def arguments(x, w, out, config, epilogue, x_scale=None, x_sums=None, x_zero=0, bias=None, activation=None,
              requant=None, limits=(0, 0), quant=None, splits=1):  # fmt: skip
    """What the two kernels are launched with: names to values, arrays that are absent replaced by one that is there.

    Args:
        x: int8 (M, length), or (M, K) where w.units.is_plain; with quant floats (M, K); unit stride in a row.
        w: device.IntArrays. x_zero: that of the stored codes.
        requant: device.RequantArrays, for epilogue "requant".
        quant: the InputQuant by which the kernel quantizes x, see fuse.py; None: x is codes.
        splits: of the units, or groups.
    """
    u = w.units
    any_int, any_float = w.sums, w.scale
    split = splits > 1
    decoder = (
        "table" if w.table is not None else "square" if w.square else "offset" if u.planes > 1 else "bytes"
    )
    return {
        "x": x,
        "pitch": x.stride(0) if x.shape[0] > 1 else x.shape[1],
        "w": w.codes,
        "w_scale": w.scale,
        "w_zero": any_int if w.w_zero is None else w.w_zero,
        "w_sums": w.sums,
        "zeros": w.codes if w.zero is None else w.zero,
        "table": w.codes if w.table is None else w.table,
        "x_scale": any_float if x_scale is None else x_scale,
        "x_sums": any_int if x_sums is None else x_sums,
        "x_zero": x_zero,
        "bias": any_float if bias is None else bias,
        "rm": any_int if requant is None else requant.multiplier,
        "rshift": any_int if requant is None else requant.shift,
        "rscale": any_float if requant is None else requant.scale,
        "zero": 0 if requant is None else requant.zero_point,
        "lo": limits[0],
        "hi": limits[1],
        "out": out,
        "M": x.shape[0],
        "N": w.shape[0],
        "K": w.shape[1],
        "UNITS": u.units,
        "PER_SPLIT": -(-u.steps // splits),
        "U": u.unit,
        "UPG": u.per_group,
        "GROUPED": u.is_grouped,
        "TOGETHER": u.together,
        "PLANES": u.planes,
        "DECODER": decoder,
        "EVEN_K": x.shape[1] == u.length,
        "SPLIT": split,
        "BN": config["BN"],
        "BM": config["BM"],
        "TILES": config["tiles"],
        "EPILOGUE": epilogue,
        "HAS_BIAS": bias is not None,
        "HAS_X_ZERO": bool(x_zero),
        "HAS_W_ZERO": w.w_zero is not None,
        "PER_CHANNEL": requant is not None and requant.multiplier.shape[0] > 1,
        "ROUNDING": "none" if requant is None else requant.rounding,
        "ACTIVATION": activation or "none",
        "inverse": any_float if w.input_inverse is None else w.input_inverse,
        "HAS_INPUT_SCALE": w.input_inverse is not None,
        **fuse.arguments(x, quant, config),
    }


def launch(x, w, out, config, splits, epilogue, quant=None, **rest):
    """``out`` (M, N), contiguous, from codes x, or from floats and their quant: see ``arguments``. Returns out."""
    m, (n, _) = x.shape[0], w.shape
    if not m or not n:
        return out
    args = arguments(x, w, out, config, epilogue, quant=quant, splits=splits, **rest)
    u, parts, scales = w.units, out, 1
    splits = -(-u.steps // args["PER_SPLIT"])
    if args["SPLIT"]:
        count = u.groups if u.is_grouped else splits
        parts = torch.empty((count, m, n), dtype=torch.int32, device=x.device)
        if quant is not None:
            scales = splits if args["FUSE"] == "static" else 1
            args["x_scale"] = torch.empty((scales, m), dtype=torch.float32, device=x.device)
    tiles = triton.cdiv(n, config["BN"]) * triton.cdiv(m, config["BM"])
    options = {"enable_fp_fusion": False, "num_warps": config["warps"], "num_stages": config["stages"]}
    linear_kernel[(tiles, splits)](parts=parts, **args, **options)
    if args["SPLIT"]:
        bn, bm = min(config["BN"], 128), min(config["BM"], 16)
        given = {k: args[k] for k in REDUCED} | {"BN": bn, "BM": bm}
        reduce_kernel[(triton.cdiv(n, bn), triton.cdiv(m, bm))](
            parts=parts, PARTS=count, SCALES=scales, **given, num_warps=8, enable_fp_fusion=False
        )
    return out


REDUCED = [name for name in reduce_kernel.arg_names if name not in ("parts", "PARTS", "SCALES")]
