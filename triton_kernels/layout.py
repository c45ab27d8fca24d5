"""Compute layouts of the Triton kernels, made on the host with NumPy.

A row of the weight is cut into groups (one, the whole row, where there is one scale), and each group is padded to whole
**units** of U codes, a unit being what one step of a kernel's loop multiplies.

    bits 5 to 8    a byte per code. U is 128 (a row), or the largest of 128, 64, 32, 16 that divides the group.
    bits 1 to 4    P codes in a word: bytes (P = 2) for the integer core, 16-bit words (P = 4) for the float core, as
                   wide as what they are decoded to. Word j of a unit holds code j of each of the P **planes** of
                   Q = U / P codes, plane p in bits 4 p ... 4 p + 3: planes are contiguous runs of K, so a tile of words
                   becomes P tiles of operands by a mask and a shift, and no lane exchanges anything.

    group      > 64     <= 64    <= 32    <= 16
    P = 2      U = 128  U = 128  U = 64   as 32      groups in a unit: 1, 2, 2
    P = 4      U = 128  U = 128  U = 128  U = 64     groups in a unit: 1, 2, 4, 4

    P = 2, U = 64, codes c0 ... c63    ->   bytes  c0 | c32 << 4,  c1 | c33 << 4,  ...  c31 | c63 << 4
    P = 4, U = 64, codes c0 ... c63    ->   words  c0 | c16 << 4 | c32 << 8 | c48 << 12,  ...

Nibbles are code + 2**(bits - 1), or table indices as they are. Bytes are int8 codes for the integer core (zero points
of fewer than 8 bits subtracted), code + 128 or table indices for the float core. Scales, zero points and offsets are
(G, N): neighbouring lanes are neighbouring channels. Padding codes meet activations that are 0.
"""

from dataclasses import dataclass

import numpy as np

from qkernels._arrays import is_half, reciprocal
from qkernels.formats.operand import TableOperand, integer_operand


@dataclass(frozen=True, eq=False)
class Units:
    """How K is cut: ``groups`` of ``size`` codes, each padded to ``padded``, in units of ``unit`` codes."""

    k: int
    size: int
    groups: int  # as stored: a multiple of together
    padded: int
    unit: int
    planes: int = 1  # codes in a word
    together: int = 1  # groups in a unit

    @property
    def is_grouped(self):
        return self.groups > 1

    @property
    def units(self):
        return self.groups * self.padded // self.unit

    @property
    def length(self):
        """Codes in a padded row."""
        return self.groups * self.padded

    @property
    def words(self):
        """Words of a unit."""
        return self.unit // self.planes

    @property
    def per_group(self):
        """Units of a group; 1 where a unit holds several, or all units are one group's."""
        return max(1, self.padded // self.unit) if self.is_grouped else 1

    @property
    def steps(self):
        """What K may be split into: units of the one group, else groups, or units of several groups."""
        return self.units // self.per_group

    @property
    def is_plain(self):
        """Whether code k of a padded row is code k of the row, up to padding at its end."""
        return not self.is_grouped or self.size == self.padded


def cut_units(k, group_size, planes, least=32):
    """Units of rows of K codes; ``least`` is the smallest K of a tensor core's product."""
    if group_size is None or group_size >= k:
        return Units(k, max(k, 1), 1, -(-max(k, 1) // 128) * 128, 128, planes)
    groups = -(-k // group_size)
    if planes == 1:
        unit = next((u for u in (128, 64, 32, 16) if u >= least and group_size % u == 0), least)
        return Units(k, group_size, groups, -(-group_size // unit) * unit, unit)
    padded = next((p for p in (least, 32, 64) if group_size <= p), -(-group_size // 128) * 128)
    unit = min(128, planes * padded)
    together = max(1, unit // padded)
    return Units(k, group_size, -(-groups // together) * together, padded, unit, planes, together)


def spread(a, u):
    """(N, K) as padded rows (N, length), zeros in the padding."""
    n = a.shape[0]
    out = np.zeros((n, u.groups, u.padded), a.dtype)
    for g in range(-(-u.k // u.size)):
        part = a[:, g * u.size : (g + 1) * u.size]
        out[:, g, : part.shape[1]] = part
    return out.reshape(n, u.length)


def pack(a, u):
    """Unsigned codes or int8 bytes (N, K) to the words of a kernel, (N, length / planes)."""
    rows = spread(a, u)
    if u.planes == 1:
        return np.ascontiguousarray(rows)
    planes = rows.reshape(a.shape[0], u.units, u.planes, u.words)
    words = np.zeros((a.shape[0], u.units, u.words), np.uint8 if u.planes == 2 else np.uint16)
    for p in range(u.planes):
        words |= planes[:, :, p].astype(words.dtype) << 4 * p
    words = words.reshape(a.shape[0], u.units * u.words)
    return words if u.planes == 2 else words.view(np.int16)


def per_group(a, n, u, fill=0):
    """What is shaped like a scale, (N, G), (N, 1) or (1, 1), as contiguous (groups, N)."""
    out = np.full((u.groups, n), fill, a.dtype)
    groups = u.groups if a.shape[1] == 1 else a.shape[1]
    out[:groups] = np.broadcast_to(a, (n, groups)).T
    return out


@dataclass(frozen=True, eq=False)
class IntLayout:
    """A weight for the integer core; NumPy arrays.

    codes    uint8 or int8 (N, words)
    scale    float32 (groups, N)
    zero     uint8 (groups, N): 128 - what is subtracted from a nibble, or None
    table    int8 (16,): what a nibble stands for, or None. ``square``: sign(q) * q * q, q = nibble - 8
    sums     int32 (groups, N): sums of the decoded codes over a group
    w_zero   int32 (N,): zero points of 8-bit codes, or None
    input_inverse   float32 (K,): what activations are multiplied by first, or None
    """

    units: Units
    shape: tuple
    codes: np.ndarray
    scale: np.ndarray
    sums: np.ndarray
    zero: object = None
    table: object = None
    square: bool = False
    w_zero: object = None
    input_inverse: object = None


def squares(bits):
    """sign(q) * q * q in the order of the nibbles q + 2**(bits - 1)."""
    q = np.arange(2**bits) - 2 ** (bits - 1)
    return np.sign(q) * q * q


def int_layout(w):
    """The layout of a weight that the integer core takes (formats/operand.py)."""
    q = integer_operand(w)
    n, k = q.matrix_shape
    group_size = q.group_size if q.is_grouped else None
    zp, table, square, zero, w_zero = q.zero_point, None, False, None, None
    values = q.codes()
    if isinstance(q, TableOperand):
        u = cut_units(k, group_size, 2)
        half = 2 ** (q.bits - 1)
        index = q.index ^ np.uint8(half)  # two's complement codes ascend so
        square = q.bits == 4 and np.array_equal(q.table[np.arange(16) ^ 8], squares(4))
        if not square:
            index, table = q.index, np.zeros(16, np.int8)
            table[: q.table.size] = q.table
        stored = index
    else:
        bits = _width(q, values)
        u = cut_units(k, group_size, 2 if bits <= 4 else 1)
        if u.planes > 1:
            half = 2 ** (bits - 1)
            stored = (values + np.int8(half)).view(np.uint8)
            zero = np.full((1, 1), half, np.int16) if zp is None else zp + np.int16(half)
        elif q.bits < 8 and zp is not None:
            stored = values = (values - _per_code(zp, q)).astype(np.int8)
        else:
            stored, w_zero = values, None if zp is None else np.broadcast_to(zp, (n, 1)).astype(np.int32)
        if u.planes > 1 and zp is not None:
            values = (values - _per_code(zp, q)).astype(np.int8)
    sums = spread(values, u).reshape(n, u.groups, u.padded).sum(axis=2, dtype=np.int32)
    return IntLayout(
        u,
        (n, k),
        pack(stored, u),
        per_group(q.scale, n, u),
        np.ascontiguousarray(sums.T),
        None if zero is None else per_group((128 - zero).astype(np.uint8), n, u, 128),
        table,
        bool(square),
        None if w_zero is None else np.ascontiguousarray(w_zero[:, 0]),
        reciprocal(q.input_scale),
    )


def _width(q, values):
    """Bits of a code: of signs and mixed rows what the largest needs."""
    if type(q).__name__ == "IntWeight":
        return q.bits
    return 4 if not values.size or (values.min() >= -8 and values.max() <= 7) else 8


def _per_code(a, q):
    a = a.astype(np.int16)
    return np.repeat(a, q.group_size, axis=1)[:, : q.matrix_shape[1]] if q.is_grouped else a


@dataclass(frozen=True, eq=False)
class FloatLayout:
    """A weight for the float core; NumPy arrays.

    codes         uint8 or int16 (N, words)
    scale         float32, or float16 where that holds every one exactly, (groups, N)
    offset        float32 (groups, N) times the group's sum of activations, or None
    zero          float32 (groups, N): what is subtracted from a code, or None
    table         float32 (T, 16) or (T, 256), or None: codes are integers
    square        codes stand for sign(q) * q * q, q = code - 8
    input_inverse float32 (K,): what activations are multiplied by first, or None
    """

    units: Units
    shape: tuple
    codes: np.ndarray
    scale: np.ndarray
    offset: object = None
    zero: object = None
    table: object = None
    square: bool = False
    input_inverse: object = None


def float_layout(w):
    """The layout of any weight that ``lookup()`` describes."""
    w = w.numpy()
    q = w.lookup()
    n, k = q.index.shape
    nibbles = q.bits <= 4
    u = cut_units(k, q.group_size if q.is_grouped else None, 4 if nibbles else 1, least=16)
    width, offset, zero, table = 16 if nibbles else 256, q.offset, None, None
    half = 2 ** (q.bits - 1)
    ascending = q.table[0][np.arange(2**q.bits) ^ half]
    one = q.table.shape[0] == 1
    uniform = one and np.array_equal(ascending, np.arange(-half, half))
    square = one and q.bits == 4 and np.array_equal(ascending, squares(4))
    if uniform or square:
        index = q.index ^ np.uint8(half)
        zero = np.full((1, 1), half, np.float32)
        zp = getattr(w, "zero_point", None)
        if uniform and zp is not None and q.bits < 8 and w.offset is None:
            offset, zero = None, zero + zp.astype(np.float32)  # exact in bfloat16, so no sum is needed
    else:
        index, table = q.index, np.zeros((q.table.shape[0], width), np.float32)
        table[:, : q.table.shape[1]] = q.table
        if table.shape[0] > n and u.groups > q.groups:
            more = np.zeros((n, u.groups - q.groups, width), np.float32)
            table = np.concatenate([table.reshape(n, q.groups, width), more], 1).reshape(-1, width)
    scale = per_group(q.scale.astype(np.float32), n, u)
    scale = scale.astype(np.float16) if is_half(scale) else scale
    return FloatLayout(
        u,
        (n, k),
        pack(index, u),
        scale,
        None if offset is None else per_group(offset, n, u),
        None if zero is None else per_group(zero, n, u),
        table,
        bool(square),
        reciprocal(q.input_scale),
    )
