"""Blocks of gguf files (ggml): 32 weights with a float16 scale and, in the _1 kinds, a float16 minimum."""

from dataclasses import dataclass

import numpy as np

from ..errors import ArgumentError, FormatError, UnsupportedError
from ..formats.bits import pack_rows
from ._codes import Parts, array, checked_flag, weight_of

SIZE = 32  # weights in a block


@dataclass(frozen=True)
class Kind:
    """A block: scale (2 bytes), minimum (2, or none), high bits (4, of 5-bit codes), codes."""

    bits: int
    minimum: bool
    zero: int  # of the codes as they are stored, from 0 on

    @property
    def nbytes(self):
        return 2 + 2 * self.minimum + SIZE * self.bits // 8


KINDS = {
    "Q4_0": Kind(4, False, 8),
    "Q4_1": Kind(4, True, 0),
    "Q5_0": Kind(5, False, 16),
    "Q5_1": Kind(5, True, 0),
    "Q8_0": Kind(8, False, 128),
}


def from_gguf(data, kind):
    """IntWeight (N, K) of ggml blocks, groups of 32: ``W = d * (u - zero) + m`` (ggml-common.h, block_q4_0 and so on).

    | kind | block | value |
    |---|---|---|
    | Q4_0 | d, 16 bytes: byte j holds codes j (low) and j + 16 | d * (u - 8) |
    | Q4_1 | d, m, 16 bytes | d * u + m |
    | Q5_0 | d, 4 bytes: bit j is bit 4 of code j, 16 bytes | d * (u - 16) |
    | Q5_1 | d, m, 4 bytes, 16 bytes | d * u + m |
    | Q8_0 | d, 32 int8 | d * code |

    Exact: ``dense()`` is what ggml dequantizes to, bit for bit. m becomes the ``offset``, so Q4_1 and Q5_1 are
    weight-only. A negative d, usual in Q4_0 and Q5_0, turns its codes over: d * (u - 8) = |d| * ((7 - u) + 1).

    Args:
        data: uint8 (N, K / 32 * bytes of a block), as ``gguf.GGUFReader`` has it in ``tensor.data``.
        kind: "Q4_0", "Q4_1", "Q5_0", "Q5_1" or "Q8_0", or the ``gguf.GGMLQuantizationType`` of that name.

    Raises:
        DTypeError, FormatError: another dtype or shape, scales or minima that are not finite, a negative Q8_0 scale.
        UnsupportedError: another kind.
    """
    where = "interop.from_gguf"
    name, t = _checked_kind(where, kind)
    a = array(where, "data", data, ("uint8",), (None, None))
    n, width = a.shape
    if width % t.nbytes:
        raise FormatError(
            f"{where}: data has shape {a.shape}; rows of {name} are multiples of {t.nbytes} bytes, one block each."
        )
    blocks = a.reshape(n, width // t.nbytes, t.nbytes)
    at = 2 + 2 * t.minimum
    reals = np.ascontiguousarray(blocks[..., :at]).view(np.float16).astype(np.float32)
    bad = np.argwhere(~np.isfinite(reals))
    if len(bad):
        i, j, which = bad[0]
        raise FormatError(
            f"{where}: the {('scale', 'minimum')[which]} of row {i}, block {j} is {reals[i, j, which]}; accepted: "
            "finite numbers."
        )
    scale, offset = reals[..., 0], np.ascontiguousarray(reals[..., 1]) if t.minimum else None
    u = _unpack(blocks[..., at:], t.bits).reshape(n, -1)
    if t.bits == 8 and (scale < 0).any():
        i, j = np.argwhere(scale < 0)[0]
        raise FormatError(
            f"{where}: the scale of row {i}, block {j} is {scale[i, j]}; accepted in Q8_0: 0 or more, as ggml "
            "writes it."
        )
    scale = np.abs(scale) if t.bits == 8 else scale
    if not blocks.shape[1]:
        scale, offset = np.ones((n, 1), np.float32), None if offset is None else np.zeros((n, 1), np.float32)
    return weight_of(where, data, u, np.ascontiguousarray(scale), t.zero, t.bits, SIZE, offset)


def to_gguf(w, kind, round_scale=False):
    """The blocks of an IntWeight: uint8 (N, K / 32 * bytes of a block), as from_gguf takes them.

    Args:
        w: IntWeight (N, K) of the kind's bits, K a multiple of 32, in groups of a multiple of 32 or none.
        kind: as in from_gguf. Q4_0 and Q5_0 take zero points 0, and -1 as a negative scale; Q8_0 only 0; Q4_1 and Q5_1
            take any zero point without an offset, as m = -scale * zero, and with one -2**(bits - 1).
        round_scale: scales and minima are float16 in the layout; True rounds those that are not.

    Raises:
        UnsupportedError: what the kind cannot hold: other bits, K, groups or zero points, an input_scale, numbers that
            float16 changes.
    """
    where = "interop.to_gguf"
    name, t = _checked_kind(where, kind)
    checked_flag(where, "round_scale", round_scale)
    p = Parts(where, w, (t.bits,), group_size=SIZE, offsets=t.minimum)
    n, k = p.shape
    if k % SIZE:
        raise UnsupportedError(f"{where}: w has K = {k}; {name} holds multiples of {SIZE}.")
    u, scale, top = p.u, p.scale, 2**t.bits - 1
    turn = p.zero == top - t.zero if t.bits < 8 else np.zeros(p.zero.shape, bool)
    if not t.minimum or p.offset is not None:
        bad = np.argwhere((p.zero != t.zero) & ~turn)
        if len(bad):
            i, g = bad[0]
            raise UnsupportedError(
                f"{where}: row {i}, block {g} has the zero point {p.zero[i, g]} of codes from 0 on; {name} holds "
                + str(t.zero)
                + ("." if t.bits == 8 else f" and, as a negative scale, {top - t.zero}.")
            )
        u = np.where(np.repeat(turn, SIZE, axis=1), top - u, u).astype(np.uint8)
        scale, offset = np.where(turn, -scale, scale), p.offset
    else:
        offset = -(scale * p.zero.astype(np.float32))
    blocks = np.empty((n, k // SIZE, t.nbytes), np.uint8)
    reals = [("scale", scale)] + ([("minimum", offset)] if t.minimum else [])
    for i, (what, a) in enumerate(reals):
        half = np.ascontiguousarray(p.half(what, a[:, : k // SIZE], round_scale))
        blocks[..., 2 * i : 2 * i + 2] = half.view(np.uint8).reshape(n, k // SIZE, 2)
    blocks[..., 2 * len(reals) :] = _pack(u.reshape(n, k // SIZE, SIZE), t.bits)
    return p.out(blocks.reshape(n, -1))


def _unpack(body, bits):
    """Codes from 0 on, uint8 (N, blocks, 32)."""
    if bits == 8:
        return body ^ np.uint8(128)
    nibbles = body[..., -SIZE // 2 :]
    u = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1)
    if bits == 5:
        u |= np.unpackbits(body[..., :4], axis=-1, bitorder="little") << 4
    return u


def _pack(u, bits):
    if bits == 8:
        return u ^ np.uint8(128)
    nibbles = u[..., : SIZE // 2] & 15 | u[..., SIZE // 2 :] << 4
    high = [pack_rows(u.reshape(-1, SIZE) >> 4, 1).reshape(*u.shape[:2], 4)] if bits == 5 else []
    return np.concatenate([*high, nibbles], axis=-1)


def _checked_kind(where, kind):
    name = kind if isinstance(kind, str) else getattr(kind, "name", None)
    if not isinstance(name, str):
        raise ArgumentError(
            f"{where}: kind is {kind!r}; accepted: {', '.join(KINDS)}, or a gguf.GGMLQuantizationType."
        )
    if name not in KINDS:
        raise UnsupportedError(f"{where}: kind is {name}; accepted: {', '.join(KINDS)}.")
    return name, KINDS[name]
