"""Float core: float activations (M, K) times codes of up to 8 bits of a weight (N, K).

    y[m, n] = act(sum_g (scale[n, g] * sum_k x[m, k] * value(code[n, k]) + offset[n, g] * sum_k x[m, k]) + bias[n])

value() is code - zero point, sign(q) q**2, or an entry of a table of 16 or 256. Operands are bfloat16, float16 or
float32, products are summed in float32. A group's sum meets its scale in the accumulator: codes stay exact in 8
mantissa bits, where a scaled weight would be rounded again, and a scale costs BM multiplications a channel
and group instead of one a code. The tile is (BN channels, BM tokens), as in linear_int.py: the decoded weight is the
operand that lies in registers. Splits of K write float32 sums, which ``reduce_kernel`` adds in their order: the result
depends on the number of splits, never on timing.
"""

import torch
import triton
import triton.language as tl

from .common import activate, tile_of
from .nibbles import nibble, nibble_floats


@triton.jit
def values(
    b, table, z, PLANE: tl.constexpr, PLANES: tl.constexpr, DECODER: tl.constexpr, DTYPE: tl.constexpr
):
    """Operands of words: the nibbles of a plane, or bytes (PLANES 1); z is what nibble_floats or a byte has added."""
    if DECODER == "table":
        at = b if PLANES == 1 else nibble(b, PLANE)
        w = tl.load(table + at.to(tl.int32))
    elif DECODER == "square":
        q = nibble(b, PLANE).to(tl.float32) - 8.0
        w = (q * tl.abs(q)).to(DTYPE)
    elif PLANES > 1:
        w = nibble_floats(b, z, PLANE, DTYPE)
    else:  # 2**23 + code has the code for its last bits
        f = (b.to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
        w = (f + z.to(tl.float32)).to(DTYPE)
    return w


@triton.jit
def finish(y, n, m, M, N, out, bias, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr):
    """Bias, activation and store of a float32 tile (BN, BM)."""
    if HAS_BIAS:
        y = y + tl.load(bias + n, mask=n < N, other=0.0)[:, None]
    at = out + m.to(tl.int64)[None, :] * N + n[:, None]
    inside = (n < N)[:, None] & (m < M)[None, :]
    tl.store(at, activate(y, ACTIVATION).to(out.dtype.element_ty), mask=inside)


@triton.jit
def linear_kernel(
    x, pitch, w, scale, offset, zeros, table, bias, out, parts, M, N, K, UNITS, PER_SPLIT, TABLE_N, TABLE_G,
    U: tl.constexpr, UPG: tl.constexpr, GROUPED: tl.constexpr, TOGETHER: tl.constexpr, PLANES: tl.constexpr,
    DECODER: tl.constexpr, HAS_OFFSET: tl.constexpr, EVEN_K: tl.constexpr, SPLIT: tl.constexpr, BN: tl.constexpr,
    BM: tl.constexpr, TILES: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Programs: (tiles, splits). x (M, UNITS * U), or (M, K) if not EVEN_K, of the dtype of the products. A split is
    PER_SPLIT groups, or units where TOGETHER groups are one unit, or the row is one group; UPG units make a group."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    tn, tm = tile_of(tl.program_id(0), tl.cdiv(N, BN), tl.cdiv(M, BM), TILES)
    split = tl.program_id(1)
    n, m = tn * BN + tl.arange(0, BN), tm * BM + tl.arange(0, BM)
    nn, mr = n % N, (m % M).to(tl.int64)  # what is past the edge is read again and never stored
    Q: tl.constexpr = U // PLANES
    j = tl.arange(0, Q)
    w_at = w + nn.to(tl.int64)[:, None] * (UNITS * Q) + j[None, :]
    x_at = x + mr[None, :] * pitch + j[:, None]
    table_at = table + nn[:, None] * TABLE_N
    z = tl.zeros((BN,), DTYPE)
    y = tl.zeros((BN, BM), tl.float32)
    first = split * PER_SPLIT
    if GROUPED:
        for step in range(first, tl.minimum(first + PER_SPLIT, UNITS // UPG)):
            if TOGETHER == 1:
                if DECODER == "offset":
                    z = tl.load(zeros + step * N + nn)
                part, sums = tl.zeros((BN, BM), tl.float32), tl.zeros((BM,), tl.float32)
                for i in tl.range(0, UPG, loop_unroll_factor=UPG if UPG <= 4 else 1):
                    u = step * UPG + i
                    b = tl.load(w_at + u * Q)
                    for p in tl.static_range(PLANES):
                        xp = tl.load(x_at + (u * U + p * Q))
                        wp = values(b, table_at + step * TABLE_G, z[:, None], p, PLANES, DECODER, DTYPE)
                        part = tl.dot(wp, xp, part, input_precision="ieee")
                        if HAS_OFFSET:
                            sums += tl.sum(xp.to(tl.float32), axis=0)
                y = tl.fma(part, tl.load(scale + step * N + nn).to(tl.float32)[:, None], y)
                if HAS_OFFSET:
                    y = tl.fma(tl.load(offset + step * N + nn)[:, None], sums[None, :], y)
            else:
                b = tl.load(w_at + step * Q)
                for t in tl.static_range(TOGETHER):
                    g = step * TOGETHER + t
                    if DECODER == "offset":
                        z = tl.load(zeros + g * N + nn)
                    part, sums = tl.zeros((BN, BM), tl.float32), tl.zeros((BM,), tl.float32)
                    for p in tl.static_range(t * PLANES // TOGETHER, (t + 1) * PLANES // TOGETHER):
                        xp = tl.load(x_at + (step * U + p * Q))
                        wp = values(b, table_at + g * TABLE_G, z[:, None], p, PLANES, DECODER, DTYPE)
                        part = tl.dot(wp, xp, part, input_precision="ieee")
                        if HAS_OFFSET:
                            sums += tl.sum(xp.to(tl.float32), axis=0)
                    y = tl.fma(part, tl.load(scale + g * N + nn).to(tl.float32)[:, None], y)
                    if HAS_OFFSET:
                        y = tl.fma(tl.load(offset + g * N + nn)[:, None], sums[None, :], y)
    else:
        total = tl.zeros((BM,), tl.float32)
        if DECODER == "offset":
            z = tl.load(zeros + nn)
        for u in range(first, tl.minimum(first + PER_SPLIT, UNITS)):
            b = tl.load(w_at + u * Q)
            for p in tl.static_range(PLANES):
                at = u * U + p * Q
                xp = tl.load(x_at + at) if EVEN_K else tl.load(x_at + at, mask=at + j[:, None] < K, other=0.0)
                wp = values(b, table_at, z[:, None], p, PLANES, DECODER, DTYPE)
                y = tl.dot(wp, xp, y, input_precision="ieee")
                if HAS_OFFSET:
                    total += tl.sum(xp.to(tl.float32), axis=0)
        y = y * tl.load(scale + nn).to(tl.float32)[:, None]
        if HAS_OFFSET:
            y = tl.fma(tl.load(offset + nn)[:, None], total[None, :], y)
    if SPLIT:
        place = parts + (split.to(tl.int64) * M + m[None, :]) * N + n[:, None]
        tl.store(place, y, mask=(n < N)[:, None] & (m < M)[None, :])
    else:
        finish(y, n, m, M, N, out, bias, HAS_BIAS, ACTIVATION)


@triton.jit
def reduce_kernel(
    parts,
    PARTS,
    bias,
    out,
    M,
    N,
    BN: tl.constexpr,
    BM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """The sums of all splits, float32 (PARTS, M, N), in their order."""
    n, m = tl.program_id(0) * BN + tl.arange(0, BN), tl.program_id(1) * BM + tl.arange(0, BM)
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = parts + m.to(tl.int64)[None, :] * N + n[:, None]
    y = tl.zeros((BN, BM), tl.float32)
    for s in range(PARTS):
        y += tl.load(at + (s * M).to(tl.int64) * N, mask=inside, other=0.0)
    finish(y, n, m, M, N, out, bias, HAS_BIAS, ACTIVATION)


def arguments(x, w, out, config, bias=None, activation=None, splits=1):
    """What the kernels are launched with: names to values, absent arrays replaced by one that is there.

    Args:
        x: (M, length), or (M, K) where w.units.is_plain; of the dtype of the products, unit stride in a row.
        w: device.float_arrays of that dtype.
        splits: of the units, or groups.
    """
    u = w.units
    tables = 0 if w.table is None else w.table.shape[0]
    width = 256 if u.planes == 1 else 16
    by_group = u.is_grouped and tables > w.shape[0]
    return {
        "x": x,
        "pitch": x.stride(0) if x.shape[0] > 1 else x.shape[1],
        "w": w.codes,
        "scale": w.scale,
        "offset": w.scale if w.offset is None else w.offset,
        "zeros": w.scale if w.zero is None else w.zero,
        "table": w.codes if w.table is None else w.table,
        "bias": w.scale if bias is None else bias,
        "out": out,
        "M": x.shape[0],
        "N": w.shape[0],
        "K": w.shape[1],
        "UNITS": u.units,
        "PER_SPLIT": -(-u.steps // splits),
        "TABLE_N": 0 if tables <= 1 else width * (u.groups if by_group else 1),
        "TABLE_G": width if by_group else 0,
        "U": u.unit,
        "UPG": u.per_group,
        "GROUPED": u.is_grouped,
        "TOGETHER": u.together,
        "PLANES": u.planes,
        "DECODER": "table" if w.table is not None else "square" if w.square else "offset",
        "HAS_OFFSET": w.offset is not None,
        "EVEN_K": x.shape[1] == u.length,
        "SPLIT": splits > 1,
        "BN": config["BN"],
        "BM": config["BM"],
        "TILES": config["tiles"],
        "HAS_BIAS": bias is not None,
        "ACTIVATION": activation or "none",
    }


def launch(x, w, out, config, splits, bias=None, activation=None):
    """``out`` (M, N), contiguous; see ``arguments``. Returns out."""
    (m, _), (n, _) = x.shape, w.shape
    if not m or not n:
        return out
    args = arguments(x, w, out, config, bias, activation, splits)
    splits = -(-w.units.steps // args["PER_SPLIT"])
    parts = torch.empty((splits, m, n), dtype=torch.float32, device=x.device) if args["SPLIT"] else out
    tiles = triton.cdiv(n, config["BN"]) * triton.cdiv(m, config["BM"])
    linear_kernel[(tiles, splits)](
        parts=parts, **args, num_warps=config["warps"], num_stages=config["stages"]
    )
    if args["SPLIT"]:
        bn, bm = min(config["BN"], 128), min(config["BM"], 16)
        given = {k: args[k] for k in reduce_kernel.arg_names if k in args} | {"BN": bn, "BM": bm}
        reduce_kernel[(triton.cdiv(n, bn), triton.cdiv(m, bm))](
            parts=parts, PARTS=splits, **given, num_warps=8
        )
    return out
