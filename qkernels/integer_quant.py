"""The constants of the integer-only elementwise operations, made once from real scales."""

import functools
import math
import operator
from dataclasses import dataclass, field

import numpy as np

from ._arrays import as_float32, as_numpy, first_bad
from .errors import ArgumentError, DTypeError
from .quant import Requant

INT16_MAX = 2**15 - 1
LONGEST_SHIFT = 22  # of AddRequant: 2**22 times a code still fits int32 beside the products
MOST_AVERAGED = 2**19  # values of a window: sums times a 30-bit reciprocal are exact up to there
MOST_NORMALIZED = 2**15  # values of a layer norm row
MOST_EXPONENTS = 2**24  # values of a softmax row


def positive(where, name, value):
    """``value`` as a float, finite and above 0."""
    if type(value) is not float:
        a = as_numpy(value, where, name)
        if a.size != 1 or a.dtype.kind not in "iuf":
            raise DTypeError(
                f"{where}: {name} has dtype {a.dtype}, shape {a.shape}; accepted: one real number."
            )
        value = a.reshape(())
    number = float(value)
    if not 0 < number < math.inf:
        raise ArgumentError(f"{where}: {name} is {number}; accepted: finite numbers above 0.")
    return number


def integer(where, name, value, lo, hi):
    """``value`` as an int within lo..hi."""
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except (TypeError, RuntimeError):
        raise DTypeError(f"{where}: {name} is {value!r}; accepted: one integer.") from None
    if not lo <= number <= hi:
        raise ArgumentError(f"{where}: {name} is {number}; accepted: {lo}..{hi}.")
    return number


@dataclass(frozen=True)
class AddRequant:
    """How two tensors of 8-bit codes add up to codes of a third scale, in integers with a single rounding:

    ``y = clip(((a - zero_point_a) * multiplier_a + (b - zero_point_b) * multiplier_b + 2**(shift-1) >> shift)
    + zero_point)``

    Multipliers have 16 bits, so that one ``vpmaddwd`` makes both products and their sum (TFLite's quantized ADD rounds
    three times, with 31-bit multipliers).

    Error. Let A = scale_a / output_scale and B likewise. ``from_scales`` takes the largest shift up to 22 with which
    both multipliers stay below 2**15, so each is within 1/2 of A * 2**shift, B * 2**shift; |a - zero_point_a| <= 255.
    Hence ``|y - (A (a - zero_point_a) + B (b - zero_point_b) + zero_point)| <= 1/2 + 255 * 2**-shift`` before clipping:
    1/2 + 0.0078 for the larger of A and B in [1/2, 1); twice that per octave above, half of it per octave below.

    Args:
        multiplier_a, multiplier_b: -32767..32767. shift: 0..22.
        zero_point_a, zero_point_b, zero_point: the codes of 0 of both inputs and of the result.
        output_scale: the real value of one step of the result; only ReLU6 needs it.

    Raises:
        ArgumentError, DTypeError: a value outside of the above.
    """

    multiplier_a: int
    multiplier_b: int
    shift: int
    zero_point_a: int = 0
    zero_point_b: int = 0
    zero_point: int = 0
    output_scale: object = None
    _native: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self):
        where, put = "AddRequant", lambda name, value: object.__setattr__(self, name, value)
        for name in ("multiplier_a", "multiplier_b"):
            put(name, integer(where, name, getattr(self, name), -INT16_MAX, INT16_MAX))
        put("shift", integer(where, "shift", self.shift, 0, LONGEST_SHIFT))
        for name in ("zero_point_a", "zero_point_b", "zero_point"):
            put(name, integer(where, name, getattr(self, name), -128, 255))
        if self.output_scale is not None:
            put("output_scale", positive(where, "output_scale", self.output_scale))

    @classmethod
    def from_scales(
        cls, scale_a, zero_point_a, scale_b, zero_point_b, output_scale, zero_point=0, subtract=False
    ):
        """The multipliers and shift nearest to real scales; ``subtract`` negates b.

        Raises:
            ArgumentError: a scale that is not finite and above 0, or more than 32767 times the output's.
        """
        where = "AddRequant.from_scales"
        out = positive(where, "output_scale", output_scale)
        a, b = (positive(where, n, s) / out for n, s in (("scale_a", scale_a), ("scale_b", scale_b)))
        shift = LONGEST_SHIFT
        while shift >= 0 and math.floor(max(a, b) * 2.0**shift + 0.5) > INT16_MAX:
            shift -= 1
        if shift < 0:
            raise ArgumentError(
                f"{where}: an input scale is {max(a, b):.3g} times output_scale; accepted: up to 32767."
            )
        ma, mb = (math.floor(s * 2.0**shift + 0.5) for s in (a, b))
        return cls(ma, -mb if subtract else mb, shift, zero_point_a, zero_point_b, zero_point, out)

    @property
    def error_bound(self):
        """Most code steps between a result and the float definition, before clipping: 1/2 + 255 * 2**-shift."""
        return 0.5 + 255 * 2.0**-self.shift

    def __reduce__(self):  # without what a backend attaches
        names = (
            "multiplier_a",
            "multiplier_b",
            "shift",
            "zero_point_a",
            "zero_point_b",
            "zero_point",
            "output_scale",
        )
        return AddRequant, tuple(getattr(self, name) for name in names)

    def limits(self, activation, out_dtype):
        """The range (lo, hi) of codes, as in ``Requant.limits``."""
        return code_limits("add_requant", self.zero_point, activation, out_dtype, self.output_scale)


def code_limits(where, zero_point, activation, out_dtype, output_scale=None):
    """The range (lo, hi) of 8-bit codes: the dtype's, and what "relu" or "relu6" leave of it."""
    if activation is not None and (not isinstance(activation, str) or activation not in ("relu", "relu6")):
        raise ArgumentError(f"{where}: activation is {activation!r}; accepted: None, 'relu', 'relu6'.")
    if activation == "relu6" and output_scale is None:
        raise ArgumentError(f"{where}: activation 'relu6' needs an output_scale; it is None.")
    info = np.iinfo(out_dtype)
    if not info.min <= zero_point <= info.max:
        raise ArgumentError(
            f"{where}: the output's zero point is {zero_point}; accepted: {info.min}..{info.max} for {info.dtype}."
        )
    return Requant(0, 0, zero_point, "single", output_scale).limits(activation, info.dtype)


def scale_requant(where, scale, zero_point=0):
    """Requant.from_scale with one multiplier, naming who asked."""
    try:
        return Requant.from_scale(scale, zero_point)
    except ArgumentError as e:
        raise ArgumentError(f"{where}: a ratio of scales is out of range: {e}") from None


# ---- I-BERT ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def gelu_requants(scale, output_scale, zero_point):
    """(to_erf, requant) of ``reference.gelu_int``."""
    return (
        scale_requant("gelu_int", scale / math.sqrt(2) * 2**16),
        scale_requant("gelu_int", scale / 2 / output_scale * 2.0**-20, zero_point),
    )


@functools.lru_cache(maxsize=256)
def exponent_requant(scale):
    """The ``to_exponent`` of ``reference.exp_int``."""
    return scale_requant("softmax_int", scale / math.log(2) * 2**14)


@dataclass(frozen=True, eq=False)
class LayerNormInt:
    """The constants of an integer layer norm over rows of n values; the arithmetic is in ``reference.layer_norm_int``.

    Args:
        weight: int32 (n,), below 2**30 in size: one normalized unit in the output's steps, times 2**(shift + 12).
        bias: int32 (n,), below 2**30: what is added, times 2**shift, with the zero point and the rounding half in it.
        shift: 1..18. eps: n**2 * eps / scale**2 in units of 2**-16, 0..2**60.
        zero_point: the output's code of 0.
    """

    weight: np.ndarray
    bias: np.ndarray
    shift: int
    eps: int
    zero_point: int = 0
    _native: dict = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self):
        where, put = "LayerNormInt", lambda name, value: object.__setattr__(self, name, value)
        weight, bias = np.asarray(self.weight), np.asarray(self.bias)
        if weight.dtype.kind != "i" or bias.dtype.kind != "i":
            raise DTypeError(f"{where}: weight is {weight.dtype}, bias {bias.dtype}; accepted: integers.")
        if weight.ndim != 1 or weight.shape != bias.shape or not 1 <= len(weight) <= MOST_NORMALIZED:
            raise ArgumentError(
                f"{where}: weight has shape {weight.shape}, bias {bias.shape}; accepted: (n,) both, n from 1 to 32768."
            )
        for name, a, bits in (("weight", weight, 30), ("bias", bias, 30)):
            bad = first_bad((a <= -(2**bits)) | (a >= 2**bits))
            if bad is not None:
                raise ArgumentError(
                    f"{where}: {name}[{bad[0]}] is {a[bad]}; accepted: below 2**{bits} in size."
                )
        put("weight", np.ascontiguousarray(weight, np.int32))
        put("bias", np.ascontiguousarray(bias, np.int32))
        put("shift", integer(where, "shift", self.shift, 1, 18))
        put("eps", integer(where, "eps", self.eps, 0, 2**60))
        put("zero_point", integer(where, "zero_point", self.zero_point, -128, 255))

    @classmethod
    def from_float(cls, weight, bias, scale, output_scale, zero_point=0, eps=1e-5):
        """From a float layer norm: weight and bias (n,), or None for a bias of 0.

        Args:
            scale: the real value of one step of the input; it matters only beside eps: normalizing divides it out.
            output_scale, zero_point: of the 8-bit result. eps: what is added to the variance.

        Raises:
            ArgumentError: lengths that differ, n above 32768, or numbers out of range.
        """
        where = "LayerNormInt.from_float"
        s, out = positive(where, "scale", scale), positive(where, "output_scale", output_scale)
        w = as_float32(weight, where, "weight").astype(np.float64) / out
        b = 0 * w if bias is None else as_float32(bias, where, "bias").astype(np.float64) / out
        if w.ndim != 1 or w.shape != b.shape or not 1 <= len(w) <= MOST_NORMALIZED:
            raise ArgumentError(
                f"{where}: weight has shape {w.shape}, bias {b.shape}; accepted: (n,) both, n from 1 to 32768."
            )
        largest = max(float(np.abs(w).max()), float(np.abs(b).max()) / 1024, 0.5)
        if not largest <= 2**16:
            raise ArgumentError(
                f"{where}: weight / output_scale reaches {np.abs(w).max():.3g}, bias / output_scale "
                f"{np.abs(b).max():.3g}; accepted: finite, up to 2**16 and 2**26."
            )
        bits = 29 - math.ceil(math.log2(largest))  # of the weights after the point, 13 to 30
        eps_steps = len(w) ** 2 * float(eps) / s**2 * 2.0**16 if isinstance(eps, int | float) else math.nan
        if not 0 <= eps_steps <= 2.0**60:
            raise ArgumentError(
                f"{where}: eps is {eps!r} at scale {s:.3g}; accepted: eps >= 0 with n**2 * eps / scale**2 up to 2**44."
            )
        zp = integer(where, "zero_point", zero_point, -128, 255)
        shift = bits - 12
        steps = np.rint(b * 2.0**shift).astype(np.int64) + (zp << shift) + (1 << (shift - 1))
        return cls(np.rint(w * 2.0**bits).astype(np.int64), steps, shift, round(eps_steps), zp)

    def __reduce__(self):  # without what a backend attaches
        return LayerNormInt, (self.weight, self.bias, self.shift, self.eps, self.zero_point)


# ---- pooling -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PoolWindow:
    """Which rows and columns each output position of a pooling sees, padding cut off.

    ``rows`` and ``columns``: int64 arrays (start, count, divisor), one entry for each output row or column: start of
    what is inside the input, how many lie inside, and the extent that an average divides by. ``dilation`` is (rows,
    columns).
    """

    rows: tuple
    columns: tuple
    dilation: tuple

    @property
    def shape(self):
        return len(self.rows[0]), len(self.columns[0])


@functools.lru_cache(maxsize=1024)
def pool_window(size, kernel, stride, padding, dilation, ceil_mode, count_include_pad):
    """The PoolWindow of torch's pooling; every argument but the last two a pair (rows, columns)."""
    sides = [
        _pool_side(*side, ceil_mode, count_include_pad)
        for side in zip(size, kernel, stride, padding, dilation)
    ]
    return PoolWindow(*sides, dilation)


def _pool_side(size, kernel, stride, padding, dilation, ceil_mode, count_include_pad):
    reach = dilation * (kernel - 1) + 1
    free = size + 2 * padding - reach
    count = max((-(-free // stride) if ceil_mode else free // stride) + 1, 0)
    if ceil_mode and count and (count - 1) * stride >= size + padding:
        count -= 1  # the last window must start inside the input or its left padding
    first = np.arange(count, dtype=np.int64) * stride - padding
    skipped = np.maximum(-(first // dilation), 0)  # of the window's values, before the input begins
    inside = np.clip(-((first - size) // dilation), 0, kernel)  # those before the input ends
    inside = np.maximum(inside - skipped, 0)
    padded = np.minimum(first + reach, size + padding) - first
    return first + skipped * dilation, inside, padded if count_include_pad else inside


@functools.lru_cache(maxsize=1024)
def average_requant(ratio, divisor, zero_point):
    """The Requant of a mean of ``divisor`` values that moves to another scale: ratio / divisor.

    Raises:
        ArgumentError: a ratio / divisor below 2**-24.
    """
    requant = scale_requant("avg_pool2d_int", ratio / divisor, zero_point)
    if requant.shift[0] > 23 or requant.multiplier[0] == 0:
        raise ArgumentError(
            f"avg_pool2d_int: scale / output_scale is {ratio:.3g} for windows of {divisor} values; accepted: "
            "a ratio of at least 2**-24 times the window."
        )
    return requant
