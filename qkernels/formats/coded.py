"""What the formats whose codes index a table have in common: PowerWeight, LogWeight, FloatWeight, CodebookWeight."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._arrays import as_float32, as_kind, as_numpy, first_bad
from ..errors import ArgumentError, FormatError
from .base import WeightFormat
from .bits import pack_rows, unpack_rows
from .checks import (
    TINY,
    as_column,
    as_matrix,
    check_granularity,
    check_input_scale,
    check_packed,
    check_scale,
    checked_arrays,
    checked_bits,
    checked_group,
    checked_shape,
    groups_of,
    integers,
)
from .lookup import Lookup


class CodedWeight(WeightFormat):
    """``W[n, k] ~ scale[n, g] * table[t, code[n, k]] / input_scale[k]``, ``g = k // group_size``.

    packed is a bitstream of rows as in IntWeight, whose bits past K must be 0 here; scale and input_scale are
    IntWeight's. A format has the fields packed, scale, bits, group_size, shape and input_scale, and says what its
    codes stand for by ``table()``.
    """

    DTYPES: ClassVar = {"packed": "uint8", "scale": "float32", "input_scale": "float32"}
    REQUIRED = ("packed", "scale")
    LEAST_BITS = 2

    zero_point = None  # what integer cores ask of every weight with codes

    def __post_init__(self):
        where, put = type(self).__name__, lambda name, value: object.__setattr__(self, name, value)
        if "bits" in self.__dataclass_fields__:
            put("bits", checked_bits(where, self.bits, self.LEAST_BITS))
        put("group_size", checked_group(where, self.group_size))
        w = checked_arrays(where, self, self.DTYPES, self.REQUIRED)
        if self.shape is None and self.bits != 8:
            raise FormatError(f"{where}: shape is None; accepted with {self.bits} bits: (N, K).")
        put("shape", checked_shape(where, w["packed"].shape if self.shape is None else self.shape))
        n, k = self.matrix_shape
        check_packed(where, w["packed"], self.shape, self.bits)
        check_padding_bits(where, w["packed"], k * self.bits)
        self._check_scale(where, w, n, k)
        if "input_scale" in w:
            check_input_scale(where, w["input_scale"], self.shape[1])
        self._check(where, w)

    def _check_scale(self, where, arrays, n, k):
        check_scale(where, "scale", arrays["scale"], n, k, self.group_size)

    def _check(self, where, arrays):
        """What a format has to check beside."""

    @property
    def is_grouped(self):
        """Whether a row has more than one scale."""
        return self.group_size is not None and self.group_size < self.matrix_shape[1]

    def index(self):
        """The codes as they are stored, unsigned: uint8 (N, K), NumPy's."""
        packed = as_numpy(self.packed, type(self).__name__, "packed")
        return unpack_rows(packed, self.matrix_shape[1], self.bits)

    def codes(self):
        """The codes as ``pack`` takes them, unsigned: uint8 (N, K)."""
        return as_kind(self.index(), self.packed)

    def table(self):
        """What each code stands for: float32 (T, 2**bits) as in Lookup, NumPy's."""
        raise NotImplementedError

    def float_scale(self):
        """The scales as float32 numbers, NumPy's."""
        return as_numpy(self.scale, type(self).__name__, "scale")

    def lookup(self):
        """As the float core reads it."""
        group_size = self.group_size if self.is_grouped else None
        scale, input_scale = self.float_scale(), self.flat_input_scale()
        return Lookup(self.bits, self.index(), self.table(), scale, None, group_size, input_scale)

    def dense(self):
        """``scale * table[code] / input_scale``: float32, shaped like the weight, each operation rounded."""
        w = self.lookup()
        values = w.values() * w.per_code(w.scale)
        values = values if w.input_scale is None else values / w.input_scale
        return as_kind(values.reshape(self.shape), self.packed)

    def per_code(self, a):
        """A NumPy array shaped like scale, repeated so that it broadcasts against (N, K)."""
        return np.repeat(a, self.group_size, axis=1)[:, : self.matrix_shape[1]] if self.is_grouped else a


@dataclass(frozen=True, eq=False)
class Parts:
    """A float matrix cut into what shares a scale.

    values  float32 (N, G, size), zeros after the end of a short last group
    amax    float32 (N, G, 1), or (1, 1, 1) per tensor: max|w| of each part, 0 where it is below 2**-100
    """

    values: np.ndarray
    amax: np.ndarray
    shape: tuple
    input_scale: object

    @property
    def scale_shape(self):
        return self.amax.shape[:2]

    def matrix(self, a):
        """(N, G, size) as (N, K)."""
        n, k = self.shape[0], math.prod(self.shape[1:])
        return a.reshape(n, math.prod(a.shape[1:]))[:, :k]


def cut(where, W, group_size, granularity, input_scale=None, accepted=("channel", "tensor")):
    """Parts of W times input_scale.

    Raises:
        ArgumentError, FormatError: as IntWeight.quantize.
    """
    check_granularity(where, granularity, group_size, accepted)
    w, shape = as_matrix(W, where, input_scale)
    k = w.shape[1]
    parts = groups_of(w, group_size if group_size is not None and group_size < k else max(k, 1))
    axis = None if granularity == "tensor" else 2
    amax = np.max(np.abs(parts), axis=axis, initial=0, keepdims=True)
    if not np.isfinite(amax).all():
        raise ArgumentError(f"{where}: W times input_scale leaves float32; rescale it.")
    if input_scale is not None:
        input_scale = as_float32(input_scale, where, "input_scale")
    return Parts(parts, np.where(amax < TINY, np.float32(0), amax), shape, input_scale)


def scale_of(where, amax, largest, hint=""):
    """float32 amax / largest in float64, 1 where amax is 0; refused below the normal numbers, which lose precision.

    Raises:
        ArgumentError: a scale below 2**-126.
    """
    scale = np.where(amax == 0, 1.0, amax.astype(np.float64) / largest)
    if scale.size and scale.min() < 2.0**-126:
        raise ArgumentError(
            f"{where}: max|W| = {amax[scale < 2.0**-126].min()} of a channel or group needs a scale below 2**-126; "
            f"rescale W{hint}."
        )
    return scale.astype(np.float32)


def check_padding_bits(where, packed, used):
    """Bits past K are 0, so that equal weights have equal bytes."""
    if used % 8 and packed.size:
        bad = first_bad(packed[:, -1] >> (used % 8))
        if bad is not None:
            raise FormatError(
                f"{where}: packed[{bad[0]}] has bits set past its last code; accepted: the {8 - used % 8} highest bits "
                "of a row's last byte are 0."
            )


def unsigned_codes(where, codes, bits):
    """Codes 0..2**bits - 1 as uint8 (N, K), and the shape that was given.

    Raises:
        DTypeError: codes that are not integers.
        FormatError: codes out of range, or of another number of dimensions.
    """
    q = integers(where, "codes", codes, np.uint8, "", (0, 2**bits - 1))
    shape = checked_shape(where, q.shape, "codes have shape")
    return q.reshape(shape[0], math.prod(shape[1:])), shape


def wrap(like, q, bits, *arrays):
    """Unsigned codes (N, K) packed, and other arrays or None, contiguous and of the kind that ``like`` is."""
    arrays = (pack_rows(q, bits), *arrays)
    return [None if a is None else as_kind(np.ascontiguousarray(a), like) for a in arrays]


def given_scale(where, scale, q, group_size):
    """A caller's scale as float32 (N, G), (N, 1) or (1, 1)."""
    s = as_column(as_float32(scale, where, "scale"))
    check_scale(where, "scale", s, *q.shape, group_size)
    return s


def nearest(values, x):
    """The index of the nearest of ascending float32 values; halfway, the even index. uint8, shaped like x."""
    middle = (values[1:].astype(np.float64) + values[:-1]) / 2
    edges = middle.astype(np.float32)  # the largest number that still belongs to the lower value
    odd = np.arange(edges.size) % 2 == 1
    below = (edges > middle) | (odd & (edges == middle))
    edges[below] = np.nextafter(edges[below], np.float32(-np.inf))
    return np.searchsorted(np.maximum.accumulate(edges), x, side="left").astype(np.uint8)


def small_int_table(table, multiplier):
    """``(ints, multiplier)`` as WeightFormat.int_table says, or None."""
    if table.shape[0] != 1 or table.shape[1] > 16:
        return None
    ints = np.rint(table[0] / multiplier)
    if np.abs(ints + 0.5).max() > 128 or (ints * multiplier != table[0]).any():
        return None
    return ints.astype(np.int8), float(multiplier)
