"""Uniform integer weights."""

import operator
import sys
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .._arrays import as_float32, as_kind, as_numpy, first_bad, is_torch
from ..errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from ..quant import SCALE_MAX, SCALE_MIN
from .base import WeightFormat

INT32_MAX = 2**31 - 1
DTYPES = {"packed": "uint8", "scale": "float32", "zero_point": "int16", "input_scale": "float32"}
TINY = np.float32(2.0**-100)  # a channel whose max|w| is below this counts as all zero


@dataclass(frozen=True, eq=False, repr=False)
class IntWeight(WeightFormat):
    """Integer codes with a scale and an optional zero point per output channel or per tensor.

    ``W[n, k] ~ scale[n] * (code[n, k] - zero_point[n]) / input_scale[k]``

    Portable layout (version 1)
        packed       uint8 (N, ceil(K * bits / 8)): two's complement codes as a bitstream aligned to rows,
                     least significant bit first. With bits=8, byte k of a row is code k.
        scale        float32 (N, 1) per channel or (1, 1) per tensor, finite and >= 0.
        zero_point   int16, shaped like scale, or None (all zero).
        input_scale  float32 (K,), in 2**-126..2**126, or None: the codes are those of W * diag(input_scale)
                     (SPIQ, thesis eq. 3.10-3.11), and dense() divides it out again.

        bits = 8, codes -128, -1, 0, 127   ->   bytes 0x80 0xff 0x00 0x7f

    The arrays are NumPy arrays or CPU torch tensors, as the caller gave them.

    Raises:
        FormatError: shapes, dtypes or values that contradict the layout, or a K so large that an int32
            accumulator could overflow: K * 128 * max|code - zero_point| > 2**31 - 1 (plain int8: K > 131071).
        UnsupportedError: bits other than 8, or a group_size.
    """

    packed: object
    scale: object
    zero_point: object = None
    bits: int = 8
    group_size: object = None
    shape: tuple = None
    input_scale: object = None

    options = ("bits", "group_size")

    def __post_init__(self):
        where, put = "IntWeight", lambda name, value: object.__setattr__(self, name, value)
        _supported(where, self.bits, self.group_size)
        put("bits", int(self.bits))
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
        n, k = _shape(where, w["packed"].shape if self.shape is None else self.shape)
        put("shape", (n, k))
        if w["packed"].shape != (n, k):
            raise FormatError(
                f"{where}: packed has shape {w['packed'].shape}; shape {(n, k)} needs {(n, k)}."
            )
        _check_scale(where, "scale", w["scale"], n, k)
        if "zero_point" in w and w["zero_point"].shape != w["scale"].shape:
            raise FormatError(
                f"{where}: zero_point has shape {w['zero_point'].shape}; it must be shaped like scale, "
                f"{w['scale'].shape}."
            )
        if "input_scale" in w:
            check_input_scale(where, w["input_scale"], k)
        if k * 128 * self.code_extreme > INT32_MAX:
            most = INT32_MAX // (128 * self.code_extreme)
            raise FormatError(
                f"{where}: K = {k} with max|code - zero_point| = {self.code_extreme} could overflow the "
                f"int32 accumulator; accepted: K <= {most}. Split the layer along K and add the results."
            )

    @classmethod
    def quantize(cls, W, bits=8, group_size=None, granularity="channel", input_scale=None, symmetric=True):
        """Round a float matrix to the nearest codes, ties to even (thesis eq. 1.7), in float32.

        symmetric:  scale = max|w| / 127, code = rint(w / scale), in -127..127
        otherwise:  scale = (max(w, 0) - min(w, 0)) / 255, zero_point = rint(-128 - min(w, 0) / scale),
                    code = rint(w / scale) + zero_point, in -128..127

        Channels whose range is below 2**-100 (all zero) get scale 1 and codes equal to the zero point, 0.

        Args:
            W: (N, K) floats, NumPy or torch; upcast or rounded to float32 first.
            granularity: "channel", one scale per row, or "tensor", one scale.
            input_scale: (K,) positive; quantizes ``W * diag(input_scale)`` and keeps it.

        Raises:
            ArgumentError: W is not 2-D or not finite, or an option has an unknown value.
            FormatError: see the class.
            UnsupportedError: see the class.
        """
        where = "IntWeight.quantize"
        _supported(where, bits, group_size)
        if not isinstance(granularity, str) or granularity not in ("channel", "tensor"):
            raise ArgumentError(f"{where}: granularity is {granularity!r}; accepted: 'channel', 'tensor'.")
        if not isinstance(symmetric, bool | np.bool_):
            raise ArgumentError(f"{where}: symmetric is {symmetric!r}; accepted: True, False.")
        w = as_float32(W, where, "W")
        if w.ndim != 2:
            raise ArgumentError(
                f"{where}: W has shape {w.shape}; accepted: (N, K), out features by in features."
            )
        if input_scale is not None:
            input_scale = as_float32(input_scale, where, "input_scale")
            check_input_scale(where, input_scale, w.shape[1])
        bad = first_bad(~np.isfinite(w))
        if bad is not None:
            raise ArgumentError(
                f"{where}: W[{bad[0]}, {bad[1]}] is {w[bad]}; accepted: finite float32 numbers."
            )
        axis = 1 if granularity == "channel" else None
        with np.errstate(over="ignore"):
            w = w if input_scale is None else w * input_scale
            hi = np.max(w, axis=axis, initial=0, keepdims=True)
            lo = np.min(w, axis=axis, initial=0, keepdims=True)
            span = np.maximum(hi, -lo) if symmetric else hi - lo
        if not np.isfinite(span).all():
            raise ArgumentError(f"{where}: W (times input_scale) spans more than float32 holds; rescale it.")
        zero = span < TINY
        scale = np.where(zero, np.float32(1), span / np.float32(127 if symmetric else 255))
        zp = np.zeros_like(scale) if symmetric else np.rint(np.where(zero, 0, -128 - lo / scale))
        codes = np.clip(np.rint(w / scale) + zp, -127 if symmetric else -128, 127).astype(np.int8)
        zp = None if symmetric else zp.astype(np.int16)
        arrays = (codes.view(np.uint8), scale, zp, input_scale)
        packed, scale, zp, input_scale = (as_kind(a, W) for a in arrays)
        return cls(packed, scale, zp, bits, group_size, codes.shape, input_scale)

    @classmethod
    def pack(cls, codes, scale, zero_point=None, bits=8, group_size=None, input_scale=None):
        """Wrap a compressor's own codes, without rounding anything.

        Args:
            codes: (N, K) integers in -128..127; int8 arrays are not copied.
            scale: a number or (1, 1) per tensor; (N,) or (N, 1) per channel; rounded to float32.
            zero_point: None, an integer for all, or integers shaped like scale. Formats with unsigned codes
                subtract 128 from codes and zero points.
            input_scale: (K,) positive, that the codes have folded in.

        Raises:
            DTypeError: codes or zero points that are not integers.
            FormatError: see the class.
            UnsupportedError: see the class.
        """
        where = "IntWeight.pack"
        _supported(where, bits, group_size)
        q = _integers(
            where, "codes", codes, np.int8, "For unsigned codes subtract 128 from codes and zero points."
        )
        if q.ndim != 2:
            raise FormatError(f"{where}: codes have shape {q.shape}; accepted: (N, K).")
        n, k = q.shape
        s = _as_column(as_float32(scale, where, "scale"))
        _check_scale(where, "scale", s, n, k)
        zp = zero_point
        if zp is not None:
            zp = _as_column(_integers(where, "zero_point", zp, np.int16, ""))
            zp = np.full(s.shape, zp, np.int16) if zp.shape == (1, 1) else zp
        if input_scale is not None:
            input_scale = as_float32(input_scale, where, "input_scale")
        arrays = (q.view(np.uint8), s, zp, input_scale)
        arrays = (None if a is None else np.ascontiguousarray(a) for a in arrays)
        packed, s, zp, input_scale = (as_kind(a, codes) for a in arrays)
        return cls(packed, s, zp, bits, group_size, (n, k), input_scale)

    def codes(self):
        """The codes, int8 (N, K), on the same memory."""
        return self.packed.view(_int8(self.packed))

    def dense(self):
        """``scale * (code - zero_point) / input_scale``: float32 (N, K), each operation rounded to it."""
        w = self.numpy()
        q = w.codes().astype(np.float32)
        q = q if w.zero_point is None else q - w.zero_point.astype(np.float32)
        q = q * w.scale
        return as_kind(q if w.input_scale is None else q / w.input_scale, self.packed)

    def numpy(self):
        """The same weight with NumPy fields on the same memory."""
        if not is_torch(self.packed):
            return self
        return replace(
            self, **{name: as_numpy(a, "IntWeight.numpy", name) for name, a in self.arrays().items()}
        )

    @cached_property
    def code_extreme(self):
        """max |code - zero_point| over all codes that int8 can hold: 128 without zero points."""
        zp = self.zero_point
        if zp is None or min(zp.shape) == 0:
            return 128
        return max(127 - int(zp.min()), 128 + int(zp.max()))


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


def _check_scale(where, name, s, n, k):
    if s.shape not in ((n, 1), (1, 1)):
        raise FormatError(
            f"{where}: {name} has shape {s.shape}; the codes are ({n}, {k}), so {name} must be ({n}, 1) per "
            "channel or (1, 1) per tensor."
        )
    bad = first_bad(~(np.isfinite(s) & (s >= 0)))
    if bad is not None:
        raise FormatError(f"{where}: {name}[{bad[0]}, 0] is {s[bad]}; accepted: finite and not negative.")


def _shape(where, shape):
    try:
        n, k = (operator.index(d) for d in shape)
        if n >= 0 and k >= 0:
            return n, k
    except (TypeError, ValueError):
        pass
    raise FormatError(f"{where}: shape is {shape!r}; accepted: (N, K), two counts.")


def _supported(where, bits, group_size):
    if not isinstance(bits, int | np.integer) or bits != 8:
        raise UnsupportedError(f"{where}: bits is {bits!r}; accepted: 8 (bits 4, 3, 2 come later).")
    if group_size is not None:
        raise UnsupportedError(
            f"{where}: group_size is {group_size!r}; accepted: None (groups come with bits 4, 3, 2)."
        )


def _integers(where, name, x, dtype, hint):
    a = as_numpy(x, where, name)
    if a.dtype.kind not in "iu":
        raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: integers. Round before packing.")
    info = np.iinfo(dtype)
    if a.dtype != dtype and a.size and (a.min() < info.min or a.max() > info.max):
        raise FormatError(
            f"{where}: {name} spans {a.min()}..{a.max()}; accepted: {info.min}..{info.max}. {hint}".rstrip()
        )
    return a.astype(dtype, copy=False)


def _as_column(a):
    """A number as (1, 1), a vector (N,) as (N, 1)."""
    return a.reshape(-1, 1) if a.ndim < 2 else a


def _int8(a):
    return sys.modules["torch"].int8 if is_torch(a) else np.int8
