"""Constants of onnxruntime's MatMulNBits (com.microsoft), a weight in blocks of 2, 4 or 8 bits."""

import numpy as np

from ..errors import ArgumentError, FormatError, UnsupportedError
from ..formats import IntWeight
from ..formats.bits import pack_rows, row_bytes, unpack_rows
from ._codes import FLOATS, Parts, array, checked_bits, group_count, reals, weight_of

BITS = (2, 4, 8)
BLOCKS = (16, 32, 64, 128, 256)


def from_matmul_nbits(b, scales, zero_points=None, in_features=None, bits=4, block_size=32):
    """IntWeight (N, K): ``W[n, k] = scales[n, g] * (u[n, k] - zero[n, g])``, ``g = k // block_size`` (MatMulNBits).

    Layout: a block is block_size * bits / 8 bytes, codes least significant first; the last one is padded. Zero points
    are packed the same way along the blocks of a row.

    Exact with integer zero points; scales become float32. Real ones, and those of 8-bit groups other than 128, become
    the ``offset`` -scale * (zero - 2**(bits - 1)), rounded to float32: such a weight is weight-only.

    Args:
        b: uint8 (N, blocks, block_size * bits / 8). scales: floats (N, blocks) or (N * blocks,).
        zero_points: uint8 (N, ceil(blocks * bits / 8)), floats (N, blocks), either of them flat; None: 2**(bits - 1).
        in_features: K, attribute of the node; None: blocks * block_size.
        bits: 2, 4 or 8. block_size: 16, 32, 64, 128 or 256.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout. UnsupportedError: other bits.
    """
    where = "interop.from_matmul_nbits"
    bits, size = checked_bits(where, bits, BITS), _checked_block(where, block_size)
    q = array(where, "b", b, ("uint8",), (None, None, size * bits // 8))
    n, count = q.shape[:2]
    k = count * size if in_features is None else in_features
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1 or group_count(k, size) != count:
        raise FormatError(
            f"{where}: in_features is {k!r}; b has {count} blocks of {size}, which hold a K of "
            f"{max(count - 1, 0) * size + 1} to {count * size}."
        )
    s = _rows(where, "scales", reals(where, "scales", scales), n, count)
    u = unpack_rows(q.reshape(n, -1), count * size, bits)[:, :k]
    half = zero = 2 ** (bits - 1)
    offset = None
    if zero_points is not None and str(getattr(zero_points, "dtype", "")).removeprefix("torch.") in FLOATS:
        z = _rows(where, "zero_points", reals(where, "zero_points", zero_points), n, count)
        offset = -(s * (z - half))
    elif zero_points is not None:
        width = row_bytes(count, bits)
        packed = array(where, "zero_points", zero_points, ("uint8", *FLOATS))
        packed = _rows(where, "zero_points", packed, n, width)
        zero = unpack_rows(packed, count, bits).astype(np.int16)
    return weight_of(where, b, u, s, zero, bits, size, offset)


def to_matmul_nbits(w, block_size=None):
    """The constants of a MatMulNBits node and its attributes, as from_matmul_nbits takes them.

    Args:
        w: IntWeight (N, K) of 2, 4 or 8 bits. Zero points that are all 2**(bits - 1) are left out; those of an offset
            are float32.
        block_size: None: the largest that divides w.group_size, or for one scale a row the smallest that holds K, at
            most 256. Groups are split into blocks.

    Returns:
        ``{"b": uint8 (N, blocks, bytes), "scales": float32 (N, blocks), "zero_points": or absent, "in_features": K,
        "bits", "block_size"}``. Codes past K are the zero point.

    Raises:
        UnsupportedError: what the layout cannot hold: other bits or group sizes, an input_scale, zero points outside of
            0..2**bits - 1, an offset that is no float32 zero point times the scale.
    """
    where = "interop.to_matmul_nbits"
    if block_size is None and isinstance(w, IntWeight):
        fits = [b for b in BLOCKS if (w.group_size % b == 0 if w.is_grouped else b < 2 * w.shape[-1])]
        block_size = max(fits, default=BLOCKS[0])
    size = BLOCKS[0] if block_size is None else _checked_block(where, block_size)
    p = Parts(where, w, BITS, group_size=size, offsets=True)
    n, k = p.shape
    if not k:
        raise UnsupportedError(f"{where}: w has K = 0; the layout has at least one block.")
    count = group_count(k, size)
    zero = p.zero_points()
    u = np.repeat(zero, size, axis=1)
    u[:, :k] = p.u
    b = pack_rows(u, p.bits).reshape(n, count, size * p.bits // 8)
    out = {"b": p.out(b), "scales": p.out(p.scale)}
    if p.offset is not None:
        out["zero_points"] = p.out(_real_zero_points(p))
    elif (zero != 2 ** (p.bits - 1)).any():
        out["zero_points"] = p.out(pack_rows(zero, p.bits))
    return {**out, "in_features": k, "bits": p.bits, "block_size": size}


def _real_zero_points(p):
    """float32 z with -(scale * (z - half)) == offset, of which there may be none."""
    half = np.float32(2 ** (p.bits - 1))
    p.symmetric(int(half))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        near = (half - p.offset.astype(np.float64) / p.scale).astype(np.float32)
        found = np.where(p.offset == 0, half, near)
        for z in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
            found = np.where(-(p.scale * (z - half)) == p.offset, z, found)
        good = np.isfinite(found) & (-(p.scale * (found - half)) == p.offset)
    if not good.all():
        n, g = np.argwhere(~good)[0]
        raise UnsupportedError(
            f"{p.where}: offset[{n}, {g}] is {p.offset[n, g]!r}, which no float32 zero point gives with scale "
            f"{p.scale[n, g]!r}; the layout has zero points. Layouts with a minimum: gguf's Q4_1 and Q5_1."
        )
    return found


def _rows(where, name, a, n, width):
    """(N, width) as it is or flat."""
    if a.shape not in ((n, width), (n * width,)):
        raise FormatError(f"{where}: {name} has shape {a.shape}; accepted: ({n}, {width}) or ({n * width},).")
    return a.reshape(n, width)


def _checked_block(where, size):
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size not in BLOCKS:
        raise ArgumentError(f"{where}: block_size is {size!r}; accepted: {', '.join(map(str, BLOCKS))}.")
    return int(size)
