"""How activations become codes (InputQuant) and how accumulators become codes again (Requant)."""

import math
from dataclasses import dataclass, field

import numpy as np

from ._arrays import as_float32, as_numpy, first_bad
from .errors import ArgumentError, DTypeError, UnsupportedError

GRANULARITIES = ("tensor", "token", "channel")
ROUNDINGS = ("single", "double", "float")
SCALE_MIN, SCALE_MAX = 2.0**-126, 2.0**126  # 1 / scale stays a normal float32


@dataclass(frozen=True, eq=False)
class InputQuant:
    """How the activations of a linear layer become integer codes: ``x ~ scale * (code - zero_point)``.

    granularity "token"    one dynamic scale per row of x.
                "tensor"   one scale: dynamic, or static where ``scale`` is given.
                "channel"  static, one scale per input channel, folded into the weight (SPIQ, thesis eq.
                           3.10-3.11). The weight's input_scale is used; ``scale`` is None or equals it.

    The arithmetic is in ``qkernels.reference.quantize``. Objects are hashable; arrays compare by identity.

    power=0.5 puts codes on a square root (PowerQuant, thesis eq. 3.13): ``x ~ scale * sign(code) * code**2``, for
    ``linear``; granularity "token" or "tensor", no zero_point. ``linear`` multiplies the squares, exactly: those of
    up to 4 bits fit a byte, others run as two bytes, at twice the products.

    bits=1 binarizes: ``x ~ scale * (+1 where x >= 0, else -1)``, scale = mean|x| of the row or tensor (XNOR-Net;
    ``qkernels.reference.sign_scale``) or static; for the weights BinaryWeight and TernaryWeight.

    Args:
        bits: 1, see above, or 2 to 8: codes span -2**(bits - 1)..2**(bits - 1) - 1, or 0..2**bits - 1 if not signed.
        scale: None (dynamic), a number ("tensor"), float32 (K,) ("channel"); between 2**-126 and 2**126.
        signed: codes are int8, else uint8; dynamic unsigned codes clip negative numbers to 0.
        zero_point: the code of 0, for a static "tensor" scale only; a code itself.
        power: None, or 0.5 with bits 2 to 8: codes span -(2**(bits - 1) - 1)..2**(bits - 1) - 1, or 0..2**bits - 1.

    Raises:
        ArgumentError: a value outside of the above.
        UnsupportedError: bits outside of 1..8, or a power other than 0.5.
    """

    bits: int = 8
    granularity: str = "token"
    scale: object = None
    signed: bool = True
    zero_point: object = None
    power: object = None
    _key: tuple = field(init=False, repr=False)
    _hash: int = field(init=False, repr=False)

    def __post_init__(self):
        where, put = "InputQuant", lambda name, value: object.__setattr__(self, name, value)
        if (
            isinstance(self.bits, bool)
            or not isinstance(self.bits, int | np.integer)
            or not 1 <= self.bits <= 8
        ):
            raise UnsupportedError(f"{where}: bits is {self.bits!r}; accepted: 1 to 8.")
        if not isinstance(self.granularity, str) or self.granularity not in GRANULARITIES:
            raise ArgumentError(
                f"{where}: granularity is {self.granularity!r}; accepted: {', '.join(GRANULARITIES)}."
            )
        if not isinstance(self.signed, bool | np.bool_):
            raise ArgumentError(f"{where}: signed is {self.signed!r}; accepted: True, False.")
        put("bits", int(self.bits))
        put("signed", bool(self.signed))
        if self.bits == 1:
            self._check_binary(where)
        if self.power is not None:
            self._check_power(where)
        if self.scale is not None:
            put("scale", self._checked_scale(where))
        if self.zero_point is not None:
            put("zero_point", self._checked_zero_point(where))
        scale_key = id(self.scale) if isinstance(self.scale, np.ndarray) else self.scale
        put("_key", (self.bits, self.granularity, scale_key, self.signed, self.zero_point, self.power))
        put("_hash", hash(self._key))

    def _check_binary(self, where):
        if self.granularity == "channel" or not self.signed or self.zero_point is not None:
            raise ArgumentError(
                f"{where}: granularity is {self.granularity!r}, signed {self.signed}, zero_point {self.zero_point!r}; "
                "accepted with bits=1: granularity 'token' or 'tensor', signed=True, zero_point=None."
            )

    def _check_power(self, where):
        number = isinstance(self.power, int | float | np.integer | np.floating) and not isinstance(
            self.power, bool
        )
        if not number or self.power != 0.5:
            raise UnsupportedError(
                f"{where}: power is {self.power!r}; accepted: None, 0.5 (whose decoded codes are integers). For other "
                "exponents keep float activations, input_quant=None, with a PowerWeight."
            )
        if self.bits == 1 or self.granularity == "channel" or self.zero_point is not None:
            raise ArgumentError(
                f"{where}: bits is {self.bits}, granularity {self.granularity!r}, zero_point {self.zero_point!r}; "
                "accepted with power=0.5: bits 2 to 8, granularity 'token' or 'tensor', zero_point=None."
            )
        object.__setattr__(self, "power", 0.5)

    def _checked_scale(self, where):
        if self.granularity == "token":
            raise ArgumentError(
                f"{where}: scale is given with granularity 'token', which is dynamic; accepted: scale=None, "
                "or granularity 'tensor' (static) or 'channel'."
            )
        s = as_float32(self.scale, where, "scale")
        per_tensor = self.granularity == "tensor"
        if (s.size != 1) if per_tensor else (s.ndim != 1):
            accepted = "one number" if per_tensor else "(K,), one number per input channel"
            raise ArgumentError(
                f"{where}: scale has shape {s.shape}; granularity {self.granularity!r} takes {accepted}."
            )
        bad = first_bad(~((s >= SCALE_MIN) & (s <= SCALE_MAX)))
        if bad is not None:
            raise ArgumentError(f"{where}: scale is {s[bad]} at {bad}; accepted: between 2**-126 and 2**126.")
        return float(s.reshape(())) if per_tensor else s

    def _checked_zero_point(self, where):
        if self.granularity != "tensor" or self.scale is None:
            raise ArgumentError(
                f"{where}: zero_point is {self.zero_point!r}; accepted: None, unless granularity is 'tensor' "
                "and scale is given (dynamic and per-channel quantization are symmetric)."
            )
        zp = as_numpy(self.zero_point, where, "zero_point")
        if zp.size != 1 or zp.dtype.kind not in "iu":
            raise DTypeError(f"{where}: zero_point is {self.zero_point!r}; accepted: one integer.")
        lo, hi = self.limits
        zp = int(zp.reshape(()))
        if not lo <= zp <= hi:
            raise ArgumentError(
                f"{where}: zero_point is {zp}; accepted: {lo}..{hi} with bits={self.bits}, "
                f"signed={self.signed}."
            )
        return zp

    @property
    def limits(self):
        """The least and the largest code."""
        if self.power is not None:
            most = 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1
            return -most if self.signed else 0, most
        return (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1) if self.signed else (0, 2**self.bits - 1)

    @property
    def is_split(self):
        """Whether the squares of power codes leave a byte, so that each is multiplied as two."""
        return self.power is not None and self.limits[1] ** 2 > (127 if self.signed else 255)

    @property
    def operand_limits(self):
        """The least and the largest integer that is multiplied: codes, their squares, or what those are split into."""
        lo, hi = self.limits
        if self.power is None:
            return lo, hi
        most = hi * hi
        if self.is_split:
            most = max(64, (most + 64) >> 7) if self.signed else 255
        return -most if self.signed else 0, most

    def channel_scale(self, where, input_scale, k):
        """The float32 (K,) scales of granularity "channel": the weight's input_scale, else ``scale``.

        Raises:
            ArgumentError: neither is given, they differ, or they are not (K,).
        """
        s = self.scale if input_scale is None else as_float32(input_scale, where, "input_scale")
        if s is None:
            raise ArgumentError(
                f"{where}: input_quant has granularity 'channel' and there is no scale; accepted: "
                "InputQuant(scale=s), or a weight built with IntWeight.quantize(W, input_scale=s)."
            )
        if self.scale is not None and self.scale is not s and not np.array_equal(self.scale, s):
            raise ArgumentError(
                f"{where}: input_quant.scale {self.scale.shape} is not the weight's input_scale {s.shape}; "
                "accepted: the same numbers, or scale=None to take the weight's."
            )
        if s.shape != (k,):
            raise ArgumentError(f"{where}: scale has shape {s.shape}; x has K = {k}, so it must be ({k},).")
        return s

    def weight_scale(self, where, input_scale):
        """channel_scale where a weight must carry it already: its codes have the scale folded in."""
        if input_scale is None:
            raise ArgumentError(
                f"{where}: input_quant has granularity 'channel' and the weight has no input_scale; build "
                "it with IntWeight.quantize(W, input_scale=s)."
            )
        return self.channel_scale(where, input_scale, input_scale.shape[0])

    def __eq__(self, other):
        return isinstance(other, InputQuant) and self._key == other._key

    def __hash__(self):
        return self._hash

    def __reduce__(self):
        return InputQuant, (self.bits, self.granularity, self.scale, self.signed, self.zero_point, self.power)


@dataclass(frozen=True, eq=False)
class Requant:
    """A real scale as integers: ``code = round(acc * multiplier * 2**-(31 + shift)) + zero_point``.

    The arithmetic is in ``qkernels.reference.requantize``.

    Args:
        multiplier: int32 (N,) or one number, in [2**30, 2**31), or 0. Kept as (N,) or (1,).
        shift: the right shift after the multiply, -31..31, shaped like multiplier.
        zero_point: the code of 0, within int8 or uint8 (the output's dtype is checked at the call).
        rounding: "single", "double" or "float".
        output_scale: the real value of one output code step; only ReLU6 needs it.

    Raises:
        ArgumentError, DTypeError: a value outside of the above.
    """

    multiplier: object
    shift: object
    zero_point: int = 0
    rounding: str = "single"
    output_scale: object = None

    def __post_init__(self):
        where, put = "Requant", lambda name, value: object.__setattr__(self, name, value)
        if not isinstance(self.rounding, str) or self.rounding not in ROUNDINGS:
            raise ArgumentError(f"{where}: rounding is {self.rounding!r}; accepted: {', '.join(ROUNDINGS)}.")
        m = _int_vector(where, "multiplier", self.multiplier)
        shift = _int_vector(where, "shift", self.shift)
        if m.shape != shift.shape:
            raise ArgumentError(
                f"{where}: multiplier has shape {m.shape}, shift {shift.shape}; they must be equal."
            )
        bad = first_bad(~((m == 0) | ((m >= 2**30) & (m < 2**31))))
        if bad is not None:
            raise ArgumentError(
                f"{where}: multiplier[{bad[0]}] is {m[bad]}; accepted: 0, or 2**30 to 2**31 - 1. "
                "Requant.from_scale makes the pair."
            )
        bad = first_bad((shift < -31) | (shift > 31))
        if bad is not None:
            raise ArgumentError(f"{where}: shift[{bad[0]}] is {shift[bad]}; accepted: -31..31.")
        zp = as_numpy(self.zero_point, where, "zero_point")
        if zp.size != 1 or zp.dtype.kind not in "iu":
            raise DTypeError(f"{where}: zero_point is {self.zero_point!r}; accepted: one integer.")
        if not -128 <= int(zp.reshape(())) <= 255:
            raise ArgumentError(
                f"{where}: zero_point is {self.zero_point!r}; accepted: -128..127 (int8), 0..255 (uint8)."
            )
        s_out = self.output_scale
        if s_out is not None:
            s_out = as_numpy(s_out, where, "output_scale")
            if s_out.size != 1 or s_out.dtype.kind not in "iuf" or not 0 < s_out.reshape(()) < math.inf:
                raise ArgumentError(
                    f"{where}: output_scale is {self.output_scale!r}; accepted: None, one finite number > 0."
                )
        put("multiplier", m.astype(np.int32))
        put("shift", shift.astype(np.int32))
        put("zero_point", int(zp.reshape(())))
        put("output_scale", None if s_out is None else float(s_out.reshape(())))

    @classmethod
    def from_scale(cls, scale, zero_point=0, rounding="single", output_scale=None):
        """The multiplier and shift nearest to a real scale, which is x_scale * w_scale / output_scale.

        multiplier = round(f * 2**31), shift = -e where scale = f * 2**e, f in [1/2, 1); a tie rounds up, and
        scales below 2**-32 become 0. float32 scales from there on are represented exactly.

        Args:
            scale: one number or (N,), (N, 1); finite, >= 0, below 2**31.

        Raises:
            ArgumentError: a scale outside of that.
        """
        where = "Requant.from_scale"
        a = as_numpy(scale, where, "scale")
        if a.dtype.kind not in "iuf" or not (a.ndim <= 1 or a.shape == (a.shape[0], 1)):
            raise ArgumentError(
                f"{where}: scale has dtype {a.dtype}, shape {a.shape}; accepted: real numbers, () or (N,)."
            )
        a = a.reshape(-1).astype(np.float64)
        bad = first_bad(~((a >= 0) & (a < math.inf)))
        if bad is not None:
            raise ArgumentError(f"{where}: scale[{bad[0]}] is {a[bad]}; accepted: finite and not negative.")
        fraction, exponent = np.frexp(a)
        m = np.floor(fraction * 2.0**31 + 0.5).astype(np.int64)
        carry = m == 2**31
        m, shift = np.where(carry, 2**30, m), -(exponent.astype(np.int64) + carry)
        m, shift = np.where(shift > 31, 0, m), np.where((shift > 31) | (m == 0), 0, shift)
        bad = first_bad(shift < -31)
        if bad is not None:
            raise ArgumentError(f"{where}: scale[{bad[0]}] is {a[bad]}; accepted: below 2**31.")
        return cls(m, shift, zero_point, rounding, output_scale)

    @property
    def scale(self):
        """float32 (N,) or (1,): multiplier * 2**-(31 + shift), rounded once; what "float" multiplies by."""
        return np.ldexp(self.multiplier.astype(np.float64), -(31 + self.shift)).astype(np.float32)

    def limits(self, activation, out_dtype=np.int8):
        """The range (lo, hi) to clamp codes to: the dtype's, and what the activation leaves of it. ReLU
        starts at the zero point; ReLU6 does too, and ends floor(6 / output_scale + 1/2) above it.

        Raises:
            ArgumentError: an activation that has no integer form, ReLU6 without output_scale, or a zero point
                that out_dtype does not hold.
            DTypeError: out_dtype is neither int8 nor uint8.
        """
        if out_dtype is None:
            out_dtype = np.int8
        dtype = np.dtype(out_dtype)
        if dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
            raise DTypeError(f"requantize: out_dtype is {dtype}; accepted: int8, uint8.")
        lo, hi, zp = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), self.zero_point
        if not lo <= zp <= hi:
            raise ArgumentError(f"requantize: zero_point is {zp}; accepted: {lo}..{hi} for {dtype} output.")
        if activation is None:
            return lo, hi
        if not isinstance(activation, str) or activation not in ("relu", "relu6"):
            raise ArgumentError(
                f"linear_requant: activation is {activation!r}; accepted: None, 'relu', 'relu6'. GELU and "
                "SiLU need a table, which does not exist yet: use linear, or apply them to its floats."
            )
        if activation == "relu6":
            if self.output_scale is None:
                raise ArgumentError(
                    "linear_requant: activation 'relu6' needs Requant(..., output_scale=...); it is None."
                )
            hi = int(min(hi, math.floor(6.0 / self.output_scale + 0.5) + zp))
        return max(lo, zp), hi

    def __reduce__(self):  # without what a backend attaches
        return Requant, (self.multiplier, self.shift, self.zero_point, self.rounding, self.output_scale)


def _int_vector(where, name, x):
    a = as_numpy(x, where, name)
    if a.dtype.kind not in "iu":
        raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: integers.")
    if a.ndim > 1:
        raise ArgumentError(f"{where}: {name} has shape {a.shape}; accepted: one number or (N,).")
    return a.reshape(-1).astype(np.int64)
