"""What the layouts share: unsigned codes in words on one side, IntWeight on the other."""

import numpy as np

from .._arrays import as_kind, as_numpy, first_bad, is_torch
from ..errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from ..formats import IntWeight
from ..formats.bits import pack_rows, row_bytes, to_unsigned, unpack_rows

FLOATS = ("float16", "float32", "bfloat16")


def array(where, name, x, dtypes, shape=None):
    """``x`` as a NumPy array of one of the dtypes; ``shape`` has None for what may be any size."""
    if not (is_torch(x) or isinstance(x, np.ndarray)):
        raise DTypeError(
            f"{where}: {name} is a {type(x).__name__}; accepted: a NumPy array or torch tensor of "
            f"{' or '.join(dtypes)}."
        )
    dtype = str(x.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise DTypeError(f"{where}: {name} has dtype {dtype}; accepted: {' or '.join(dtypes)}.")
    a = as_numpy(x, where, name)
    if shape is not None and (
        a.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, a.shape))
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise FormatError(f"{where}: {name} has shape {a.shape}; accepted: ({wanted}).")
    return np.ascontiguousarray(a)


def reals(where, name, x, shape=None, dtypes=FLOATS):
    """``x`` as a finite float32 array."""
    a = array(where, name, x, dtypes, shape).astype(np.float32)
    bad = first_bad(~np.isfinite(a))
    if bad is not None:
        raise FormatError(f"{where}: {name}{list(bad)} is {a[bad]}; accepted: finite numbers.")
    return a


def checked_bits(where, bits, accepted):
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or bits not in accepted:
        raise UnsupportedError(
            f"{where}: bits is {bits!r}; the layout has {', '.join(map(str, accepted))} bits."
        )
    return int(bits)


def checked_group(where, size):
    """A group size, None for a whole row, which configurations write as -1."""
    if size is None or (isinstance(size, int | np.integer) and size == -1):
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 16:
        raise UnsupportedError(
            f"{where}: group_size is {size!r}; accepted: an integer from 16 on; None or -1 for whole rows."
        )
    return int(size)


def group_count(k, size):
    """Groups in a row of k codes: at least one."""
    return 1 if size is None else max(1, -(-k // size))


def unpack_words(words, count, bits):
    """int32 (R, W), each row a bitstream of codes, least significant first: uint8 (R, count)."""
    return unpack_rows(words.view(np.uint8)[:, : row_bytes(count, bits)], count, bits)


def pack_words(u, bits, width):
    """The inverse of unpack_words: int32 (R, width), 0 after the last code."""
    stream = pack_rows(u, bits)
    out = np.zeros((len(u), width * 4), np.uint8)
    out[:, : stream.shape[1]] = stream
    return out.view(np.int32)


def per_code(a, size, k):
    """(N, G) as it broadcasts against codes (N, K)."""
    return a if a.shape[1] == 1 else np.repeat(a, size, axis=1)[:, :k]


def weight_of(where, like, u, scale, zero, bits, group_size, offset=None):
    """IntWeight of ``scale * (u - zero) + offset`` in the kind of array that ``like`` is.

    u: uint8 (N, K) below 2**bits. scale: float32 (N, G). zero: integers in 0..2**bits - 1, shaped like scale, or one.
    A negative scale turns over: s * (u - z) = |s| * ((top - u) - (top - z)), top = 2**bits - 1. Zero points that 8-bit
    groups cannot have as integers become the offset -scale * zero, rounded to float32.
    """
    half, top = 2 ** (bits - 1), 2**bits - 1
    n, k = u.shape
    group_size = group_size if group_size is not None and group_size < k else None
    zero = np.broadcast_to(zero, scale.shape).astype(np.int16)
    turn = np.signbit(scale)
    if turn.any():
        u = np.where(per_code(turn, group_size, k), top - u, u).astype(np.uint8)
        zero, scale = np.where(turn, top - zero, zero), np.abs(scale)
    zp = (zero - half).astype(np.int16)
    if bits == 8 and group_size is not None and zp.any():
        added = -(scale * zp.astype(np.float32))
        offset = added if offset is None else added + offset
    if not zp.any() or (bits == 8 and group_size is not None):
        zp = None
    arrays = pack_rows(u ^ np.uint8(half), bits), scale, zp
    packed, scale, zp, offset = (
        as_kind(None if a is None else np.ascontiguousarray(a), like) for a in (*arrays, offset)
    )
    return IntWeight(packed, scale, zp, bits, group_size, (n, k), None, offset)


class Parts:
    """An IntWeight (N, K) as a layout takes it: NumPy codes ``u`` from 0 on, ``scale`` and ``zero`` (N, G).

    ``offset`` is float32 (N, G), or None where there is none or where it is -scale * an integer, which then is in zero.
    """

    def __init__(self, where, w, bits, group_size=None, offsets=False):
        """``group_size``: of a layout that has only that one; groups that are multiples of it are split."""
        if not isinstance(w, IntWeight):
            raise DTypeError(f"{where}: w is a {type(w).__name__}; accepted: qkernels.IntWeight.")
        if w.bits not in bits:
            raise UnsupportedError(
                f"{where}: w has {w.bits} bits; the layout has {', '.join(map(str, bits))}."
            )
        if len(w.shape) != 2:
            raise UnsupportedError(
                f"{where}: w has shape {w.shape}, a convolution's; the layout holds matrices."
            )
        if w.input_scale is not None:
            raise UnsupportedError(
                f"{where}: w has an input_scale; the layout has no place for it. Fold it into the layer before: pass "
                "x / input_scale and export the weight without it."
            )
        self.where, self.like, self.bits = where, w.packed, w.bits
        w = w.numpy()
        n, k = self.shape = w.shape
        self.group_size = w.group_size if w.is_grouped else None
        self.u = to_unsigned(w.codes(), w.bits) ^ np.uint8(2 ** (w.bits - 1))
        zp = np.zeros(w.scale.shape, np.int32) if w.zero_point is None else w.zero_point.astype(np.int32)
        offset = w.offset
        if offset is not None and w.zero_point is None:
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                whole = np.rint(-offset.astype(np.float64) / w.scale)
            whole = np.where(np.isfinite(whole) & (np.abs(whole) < 2**15), whole, 0).astype(np.int32)
            if np.array_equal(-(w.scale * whole.astype(np.float32)), offset):
                zp, offset = whole, None
        if offset is not None and not offsets:
            raise UnsupportedError(
                f"{where}: w has an offset that is no integer zero point; the layout has integer zero points only. "
                "Layouts with a minimum: gguf's Q4_1 and Q5_1, MatMulNBits."
            )
        zero = zp + 2 ** (w.bits - 1)
        arrays = {"scale": w.scale, "zero": zero, "offset": offset}
        for name, a in arrays.items():
            setattr(self, name, None if a is None else self._spread(a, n, k, group_size))
        self.group_size = group_size or self.group_size

    def _spread(self, a, n, k, size):
        a = np.broadcast_to(a, (n, a.shape[1]))
        if size is None or size == self.group_size:
            return np.ascontiguousarray(a)
        if self.group_size is None:
            return np.repeat(a, group_count(k, size), axis=1)
        if self.group_size % size:
            raise UnsupportedError(
                f"{self.where}: w has group_size={self.group_size}; the layout has groups of {size}, of which that "
                "must be a multiple."
            )
        return np.repeat(a, self.group_size // size, axis=1)[:, : group_count(k, size)]

    def zero_points(self):
        """``zero`` as uint8, refused where the layout's unsigned codes have no such zero point."""
        top = 2**self.bits - 1
        bad = first_bad((self.zero < 0) | (self.zero > top))
        if bad is not None:
            raise UnsupportedError(
                f"{self.where}: the zero point of row {bad[0]}, group {bad[1]} is {self.zero[bad]} of codes from 0 on; "
                f"the layout holds 0..{top}."
            )
        return self.zero.astype(np.uint8)

    def symmetric(self, zero):
        """Refuse zero points other than the layout's fixed one."""
        bad = first_bad(self.zero != zero)
        if bad is not None:
            raise UnsupportedError(
                f"{self.where}: row {bad[0]}, group {bad[1]} has a zero point, {self.zero[bad]} of codes from 0 on; "
                f"the layout has none but {zero}."
            )

    def half(self, name, a, round_scale):
        """float16, exact unless the caller asks for rounding."""
        checked_flag(self.where, "round_scale", round_scale)
        with np.errstate(over="ignore"):
            out = a.astype(np.float16)
        bad = first_bad(~np.isfinite(out))
        if bad is None and not round_scale:
            bad = first_bad(out.astype(np.float32) != a)
        if bad is not None:
            raise UnsupportedError(
                f"{self.where}: {name}[{bad[0]}, {bad[1]}] is {a[bad]!r}, which float16 would make {out[bad]!r}; the "
                "layout has float16. round_scale=True rounds what is in range."
            )
        return out

    def out(self, a):
        """An array of the layout in the weight's kind."""
        return as_kind(np.ascontiguousarray(a), self.like)


def checked_flag(where, name, value):
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{where}: {name} is {value!r}; accepted: True, False.")
