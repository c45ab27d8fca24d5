"""Uniform integer weights."""

import math
import operator
import sys
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._arrays import as_float32, as_kind, as_numpy, first_bad, is_torch
from ..errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from ..quant import SCALE_MAX, SCALE_MIN
from .base import WeightFormat
from .bits import pack_rows, row_bytes, to_signed, to_unsigned, unpack_rows
from .lookup import Lookup

INT32_MAX = 2**31 - 1
DTYPES = {"packed": "uint8", "scale": "float32", "zero_point": "int16", "input_scale": "float32"}
DTYPES["offset"] = "float32"
TINY = np.float32(2.0**-100)  # a channel whose max|w| is below this counts as all zero
LEAST_GROUP = 16


@dataclass(frozen=True, eq=False, repr=False)
class IntWeight(WeightFormat):
    """Integer codes of 2 to 8 bits with a scale and an optional zero point per group, output channel or tensor.

    ``W[n, k] ~ (scale[n, g] * (code[n, k] - zero_point[n, g]) + offset[n, g]) / input_scale[k]``,
    ``g = k // group_size``

    Portable layout (version 1)
        packed       uint8 (N, ceil(K * bits / 8)): two's complement codes as a bitstream aligned to rows, least
                     significant bit first: code k is bits k * bits ... k * bits + bits - 1. With bits=8, byte k of
                     a row is code k; with bits=4, even k is the low nibble. The bits past K are 0.
        scale        float32 (N, ceil(K / group_size)), (N, 1) per channel or (1, 1) per tensor, finite and >= 0.
                     A short last group is a group.
        zero_point   int16, shaped like scale, or None (all zero). With fewer than 8 bits, code - zero_point must fit
                     int8 for all codes; with 8 bits, zero points and groups exclude each other.
        input_scale  float32 (K,), in 2**-126..2**126, or None: the codes are those of W * diag(input_scale)
                     (SPIQ, thesis eq. 3.10-3.11), and dense() divides it out again. Of a convolution: (I,).
        offset       float32, shaped like scale and finite, or None: a real minimum (gguf's Q4_1), or a zero point that
                     int8 cannot hold. Weight-only: whatever multiplies integers refuses a weight that has one.

        bits = 8, codes -128, -1, 0, 127       ->   bytes 0x80 0xff 0x00 0x7f
        bits = 4, codes -8, -1, 0, 7, 3        ->   bytes 0xf8 0x70 0x03
        bits = 3, codes -4, -1, 0, 3, 2        ->   bytes 0x3c 0x26         (bits 100 111 000 011 010, low first)
        bits = 2, codes -2, -1, 0, 1, 1        ->   bytes 0x4e 0x01

    The arrays are NumPy arrays or CPU torch tensors, as the caller gave them. ``shape`` is (N, K), or (O, I, kh, kw) of
    a convolution, whose rows are flattened in the order (I, kh, kw).

    Raises:
        FormatError: shapes, dtypes or values that contradict the layout, or a K so large that an int32
            accumulator could overflow: K * 128 * max|code - zero_point| > 2**31 - 1 (plain int8: K > 131071;
            grouped weights: group_size in place of K).
        UnsupportedError: bits outside of 2..8, a group_size below 16, or 8-bit groups with zero points.
    """

    OPTIONS = ("bits", "group_size")

    packed: object
    scale: object
    zero_point: object = None
    bits: int = 8
    group_size: object = None
    shape: tuple = None
    input_scale: object = None
    offset: object = None

    def __post_init__(self):
        where, put = "IntWeight", lambda name, value: object.__setattr__(self, name, value)
        put("bits", _checked_bits(where, self.bits))
        put("group_size", _checked_group(where, self.group_size))
        given = {name: getattr(self, name) for name in DTYPES if getattr(self, name) is not None}
        for name in ("packed", "scale"):
            if name not in given:
                raise DTypeError(f"{where}: {name} is None; accepted: an array or tensor of {DTYPES[name]}.")
        w = {name: as_numpy(a, where, name) for name, a in given.items()}
        for name, a in w.items():
            if a.dtype != DTYPES[name] or not hasattr(given[name], "dtype"):
                raise DTypeError(
                    f"{where}: {name} has dtype {a.dtype}; accepted: an array of {DTYPES[name]}."
                )
        if len({is_torch(a) for a in given.values()}) > 1:
            raise DTypeError(
                f"{where}: arrays of NumPy and of torch; accepted: one kind. Use IntWeight.pack."
            )
        packed = w["packed"]
        if self.shape is None and self.bits != 8:
            raise FormatError(f"{where}: shape is None; accepted with {self.bits} bits: (N, K).")
        put("shape", checked_shape(where, packed.shape if self.shape is None else self.shape))
        n, k = self.matrix_shape
        if packed.shape != (n, row_bytes(k, self.bits)):
            raise FormatError(
                f"{where}: packed has shape {packed.shape}; shape {self.shape} with {self.bits} bits needs "
                f"{(n, row_bytes(k, self.bits))}."
            )
        check_scale(where, "scale", w["scale"], n, k, self.group_size)
        if "zero_point" in w:
            self._check_zero_point(where, w["zero_point"], w["scale"].shape)
        if "input_scale" in w:
            check_input_scale(where, w["input_scale"], self.shape[1])
        if "offset" in w:
            _check_offset(where, w["offset"], w["scale"].shape)
        terms = self.group_size if self.is_grouped else k
        if terms * 128 * self.code_extreme > INT32_MAX:
            most = INT32_MAX // (128 * self.code_extreme)
            raise FormatError(
                f"{where}: K = {terms} with max|code - zero_point| = {self.code_extreme} could overflow the "
                f"int32 accumulator; accepted: K <= {most}. Split the layer along K and add the results."
            )

    def _check_zero_point(self, where, zp, shape):
        if zp.shape != shape:
            raise FormatError(
                f"{where}: zero_point has shape {zp.shape}; it must be shaped like scale, {shape}."
            )
        if self.bits == 8:
            if self.is_grouped:
                raise UnsupportedError(
                    f"{where}: zero_point is given with bits=8 and group_size={self.group_size}; accepted: one of "
                    "them, or fewer bits."
                )
            return
        half = 2 ** (self.bits - 1)
        bad = first_bad((zp > 128 - half) | (zp < half - 128))
        if bad is not None:
            raise FormatError(
                f"{where}: zero_point[{bad[0]}, {bad[1]}] is {zp[bad]}; accepted with {self.bits} bits: "
                f"{half - 128}..{128 - half}, so that code - zero_point fits int8."
            )

    @classmethod
    def quantize(cls, W, bits=8, group_size=None, granularity="channel", input_scale=None, symmetric=True):
        """Round a float matrix to the nearest codes, ties to even (thesis eq. 1.7), in float32.

        symmetric:  scale = max|w| / q, code = rint(w / scale), in -q..q, q = 2**(bits - 1) - 1
        otherwise:  scale = (max(w, 0) - min(w, 0)) / (2**bits - 1), zero_point = rint(-2**(bits - 1) - min(w, 0) /
                    scale), code = rint(w / scale) + zero_point, in -2**(bits - 1)..q

        Groups, channels or tensors whose range is below 2**-100 (all zero) get scale 1 and codes equal to the zero
        point, 0.

        Args:
            W: (N, K) floats, or (O, I, kh, kw) of a convolution; NumPy or torch; rounded to float32 first.
            bits: 2 to 8.
            group_size: codes along K that share a scale; None for a whole row. From K on it is a whole row.
            granularity: "channel", one scale per row (and group), or "tensor", one scale.
            input_scale: (K,) positive, (I,) of a convolution; quantizes ``W * diag(input_scale)`` and keeps it.

        Raises:
            ArgumentError: W has another number of dimensions or is not finite, or an option has an unknown value.
            FormatError, UnsupportedError: see the class.
        """
        where = "IntWeight.quantize"
        bits, group_size = _checked_bits(where, bits), _checked_group(where, group_size)
        if not isinstance(granularity, str) or granularity not in ("channel", "tensor"):
            raise ArgumentError(f"{where}: granularity is {granularity!r}; accepted: 'channel', 'tensor'.")
        if granularity == "tensor" and group_size is not None:
            raise ArgumentError(
                f"{where}: granularity is 'tensor' with group_size={group_size}; accepted: 'channel'."
            )
        if not isinstance(symmetric, bool | np.bool_):
            raise ArgumentError(f"{where}: symmetric is {symmetric!r}; accepted: True, False.")
        w, shape = as_matrix(W, where, input_scale)
        if input_scale is not None:
            input_scale = as_float32(input_scale, where, "input_scale")
        n, k = w.shape
        grouped = group_size is not None and group_size < k
        parts = groups_of(w, group_size if grouped else max(k, 1))  # (N, G, size), short groups padded with 0
        axis = 2 if granularity == "channel" else None
        qmax, levels = 2 ** (bits - 1) - 1, 2**bits - 1
        with np.errstate(over="ignore"):
            hi = np.max(parts, axis=axis, initial=0, keepdims=True)
            lo = np.min(parts, axis=axis, initial=0, keepdims=True)
            span = np.maximum(hi, -lo) if symmetric else hi - lo
        if not np.isfinite(span).all():
            raise ArgumentError(f"{where}: W (times input_scale) spans more than float32 holds; rescale it.")
        zero = span < TINY
        scale = np.where(zero, np.float32(1), span / np.float32(qmax if symmetric else levels))
        zp = np.zeros_like(scale) if symmetric else np.rint(np.where(zero, 0, -(qmax + 1) - lo / scale))
        least = -qmax if symmetric else -qmax - 1
        codes = np.clip(np.rint(parts / scale) + zp, least, qmax).astype(np.int8)
        codes = codes.reshape(n, math.prod(codes.shape[1:]))[:, :k]
        flat = (n, scale.shape[1]) if granularity == "channel" else (1, 1)
        zp = None if symmetric else zp.astype(np.int16).reshape(flat)
        packed = pack_rows(to_unsigned(codes, bits), bits)
        arrays = (as_kind(a, W) for a in (packed, scale.reshape(flat), zp, input_scale))
        packed, scale, zp, input_scale = arrays
        return cls(packed, scale, zp, bits, group_size, shape, input_scale)

    @classmethod
    def pack(cls, codes, scale, zero_point=None, bits=8, group_size=None, input_scale=None, offset=None):
        """Wrap a compressor's own codes, without rounding anything.

        Args:
            codes: (N, K) or (O, I, kh, kw) integers in -2**(bits - 1)..2**(bits - 1) - 1; int8 arrays of 8-bit codes
                are not copied.
            scale: a number or (1, 1) per tensor; (N,) or (N, 1) per channel; (N, ceil(K / group_size)) per group;
                rounded to float32.
            zero_point: None, an integer for all, or integers shaped like scale. Formats with unsigned codes
                subtract 2**(bits - 1) from codes and zero points.
            input_scale: (K,) positive, that the codes have folded in.
            offset: None, a number for all, or numbers shaped like scale, added to the scaled codes; rounded to float32.

        Raises:
            DTypeError: codes or zero points that are not integers.
            FormatError, UnsupportedError: see the class.
        """
        where = "IntWeight.pack"
        bits, group_size = _checked_bits(where, bits), _checked_group(where, group_size)
        half = 2 ** (bits - 1)
        hint = f"For unsigned codes subtract {half} from codes and zero points."
        q = _integers(where, "codes", codes, np.int8, hint, (-half, half - 1))
        shape = checked_shape(where, q.shape, "codes have shape")
        q = q.reshape(shape[0], math.prod(shape[1:]))
        n, k = q.shape
        s = _as_column(as_float32(scale, where, "scale"))
        check_scale(where, "scale", s, n, k, group_size)
        zp = zero_point
        if zp is not None:
            zp = _as_column(_integers(where, "zero_point", zp, np.int16, ""))
            zp = np.full(s.shape, zp, np.int16) if zp.shape == (1, 1) else zp
        if input_scale is not None:
            input_scale = as_float32(input_scale, where, "input_scale")
        if offset is not None:
            offset = _as_column(as_float32(offset, where, "offset"))
            offset = np.full(s.shape, offset, np.float32) if offset.shape == (1, 1) else offset
        packed = (
            np.ascontiguousarray(q).view(np.uint8) if bits == 8 else pack_rows(to_unsigned(q, bits), bits)
        )
        arrays = (packed, s, zp, input_scale, offset)
        arrays = (None if a is None else np.ascontiguousarray(a) for a in arrays)
        packed, s, zp, input_scale, offset = (as_kind(a, codes) for a in arrays)
        return cls(packed, s, zp, bits, group_size, shape, input_scale, offset)

    @property
    def is_grouped(self):
        """Whether a row has more than one scale."""
        return self.group_size is not None and self.group_size < self.matrix_shape[1]

    def codes(self):
        """The codes, int8 (N, K); with 8 bits on the same memory."""
        if self.bits == 8:
            return self.packed.view(_int8(self.packed))
        packed = as_numpy(self.packed, "IntWeight.codes", "packed")
        return as_kind(
            to_signed(unpack_rows(packed, self.matrix_shape[1], self.bits), self.bits), self.packed
        )

    def lookup(self):
        """As the float core reads it: index the low bits of a code, table the codes in that order."""
        w, count = self.numpy(), 2**self.bits
        index = to_unsigned(w.codes(), self.bits)
        table = to_signed(np.arange(count, dtype=np.uint8), self.bits).astype(np.float32)[None]
        offset = w.offset
        if w.zero_point is not None:
            zero = -(w.scale * w.zero_point.astype(np.float32))
            offset = zero if offset is None else zero + offset
        group_size = self.group_size if self.is_grouped else None
        return Lookup(self.bits, index, table, w.scale, offset, group_size, w.input_scale)

    def dense(self):
        """The class's formula: float32, shaped like the weight, each operation rounded."""
        w = self.numpy()
        q = w.codes().astype(np.float32)
        q = q if w.zero_point is None else q - w.per_code(w.zero_point.astype(np.float32))
        q = q * w.per_code(w.scale)
        q = (q if w.offset is None else q + w.per_code(w.offset)).reshape(self.shape)
        if w.input_scale is not None:
            q = q / w.input_scale.reshape(1, -1, *(1,) * (len(self.shape) - 2))
        return as_kind(q, self.packed)

    def per_code(self, a):
        """A NumPy array shaped like scale, repeated so that it broadcasts against (N, K)."""
        return np.repeat(a, self.group_size, axis=1)[:, : self.matrix_shape[1]] if self.is_grouped else a

    def numpy(self):
        """The same weight with NumPy fields on the same memory."""
        if not is_torch(self.packed):
            return self
        return replace(
            self, **{name: as_numpy(a, "IntWeight.numpy", name) for name, a in self.arrays().items()}
        )

    @cached_property
    def code_extreme(self):
        """max |code - zero_point| over all codes that ``bits`` can hold: 2**(bits - 1) without zero points."""
        half, zp = 2 ** (self.bits - 1), self.zero_point
        if zp is None or min(zp.shape) == 0:
            return half
        return max(half - 1 - int(zp.min()), half + int(zp.max()))


def as_matrix(W, where, input_scale=None):
    """Floats (N, K), or (O, I, kh, kw) flattened, times input_scale; and the shape that was given.

    Raises:
        ArgumentError: another number of dimensions, or a value that is not finite.
        FormatError: an input_scale of another length.
    """
    w = as_float32(W, where, "W")
    if w.ndim not in (2, 4):
        raise ArgumentError(
            f"{where}: W has shape {w.shape}; accepted: (N, K), out features by in features, or (O, I, kh, kw)."
        )
    bad = first_bad(~np.isfinite(w))
    if bad is not None:
        at = ", ".join(map(str, bad))
        raise ArgumentError(f"{where}: W[{at}] is {w[bad]}; accepted: finite float32 numbers.")
    if input_scale is not None:
        s = as_float32(input_scale, where, "input_scale")
        check_input_scale(where, s, w.shape[1])
        with np.errstate(over="ignore"):
            w = w * s.reshape(1, -1, *(1,) * (w.ndim - 2))
    return w.reshape(w.shape[0], math.prod(w.shape[1:])), w.shape


def groups_of(w, size):
    """(N, K) as (N, ceil(K / size), size), zeros after the end of a short last group."""
    n, k = w.shape
    count = max(1, -(-k // size))
    if k == count * size:
        return w.reshape(n, count, size)
    out = np.zeros((n, count * size), w.dtype)
    out[:, :k] = w
    return out.reshape(n, count, size)


def check_input_scale(where, s, k):
    """Refuse an input scale that is not (K,), or whose reciprocal is not a normal float32."""
    if s.shape != (k,):
        raise FormatError(
            f"{where}: input_scale has shape {s.shape}; the weight has K = {k}, so it must be ({k},)."
        )
    bad = first_bad(~((s >= SCALE_MIN) & (s <= SCALE_MAX)))
    if bad is not None:
        raise FormatError(
            f"{where}: input_scale[{bad[0]}] is {s[bad]}; accepted: between 2**-126 and 2**126. Give unused "
            "inputs the scale 1."
        )


def check_scale(where, name, s, n, k, group_size=None):
    """Refuse scales that are not one per group, channel or tensor, or not finite and >= 0."""
    if group_size is not None and group_size < k:
        count = -(-k // group_size)
        if s.shape != (n, count):
            raise FormatError(
                f"{where}: {name} has shape {s.shape}; codes are ({n}, {k}) with group_size={group_size}, so {name} "
                f"must be ({n}, {count}). If K is not a multiple of group_size the last group is short: use ceil(K / "
                "group_size)."
            )
    elif s.shape not in ((n, 1), (1, 1)):
        raise FormatError(
            f"{where}: {name} has shape {s.shape}; the codes are ({n}, {k}), so {name} must be ({n}, 1) per "
            "channel or (1, 1) per tensor."
        )
    bad = first_bad(~(np.isfinite(s) & (s >= 0)))
    if bad is not None:
        raise FormatError(
            f"{where}: {name}[{bad[0]}, {bad[1]}] is {s[bad]}; accepted: finite and not negative."
        )


def _check_offset(where, offset, shape):
    if offset.shape != shape:
        raise FormatError(f"{where}: offset has shape {offset.shape}; it must be shaped like scale, {shape}.")
    bad = first_bad(~np.isfinite(offset))
    if bad is not None:
        raise FormatError(f"{where}: offset[{bad[0]}, {bad[1]}] is {offset[bad]}; accepted: finite numbers.")


def checked_shape(where, shape, what="shape is"):
    """A weight's shape as a tuple of counts: (N, K) or (O, I, kh, kw)."""
    try:
        sizes = tuple(operator.index(d) for d in shape)
        if len(sizes) in (2, 4) and min(sizes) >= 0:
            return sizes
    except (TypeError, ValueError):
        pass
    raise FormatError(f"{where}: {what} {shape!r}; accepted: (N, K), or (O, I, kh, kw) of a convolution.")


def _checked_bits(where, bits):
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not 2 <= bits <= 8:
        raise UnsupportedError(f"{where}: bits is {bits!r}; accepted: 2 to 8 (1: BinaryWeight).")
    return int(bits)


def _checked_group(where, size):
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < LEAST_GROUP:
        raise UnsupportedError(
            f"{where}: group_size is {size!r}; accepted: None or an integer from {LEAST_GROUP} on."
        )
    return int(size)


def _integers(where, name, x, dtype, hint, span=None):
    a = as_numpy(x, where, name)
    if a.dtype.kind not in "iu":
        raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: integers. Round before packing.")
    lo, hi = span or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if a.size and (a.dtype != dtype or span) and (a.min() < lo or a.max() > hi):
        raise FormatError(
            f"{where}: {name} spans {a.min()}..{a.max()}; accepted: {lo}..{hi}. {hint}".rstrip()
        )
    return a.astype(dtype, copy=False)


def _as_column(a):
    """A number as (1, 1), a vector (N,) as (N, 1)."""
    return a.reshape(-1, 1) if a.ndim < 2 else a


def _int8(a):
    return sys.modules["torch"].int8 if is_torch(a) else np.int8
