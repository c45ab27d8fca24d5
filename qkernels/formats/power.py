"""Weights in the power format of PowerQuant."""

import math
from dataclasses import dataclass

import numpy as np

from .._arrays import as_float32, as_kind
from ..errors import ArgumentError, UnsupportedError
from .bits import to_signed, to_unsigned
from .checks import checked_bits, checked_group, signed_codes
from .coded import CodedWeight, cut, given_scale, scale_of, small_int_table, wrap

EXPONENT_LEAST, EXPONENT_MOST = 1 / 16, 4.0  # 128**16 = 2**112 is the largest entry: float32 holds it
BINS = 65536


@dataclass(frozen=True, eq=False, repr=False)
class PowerWeight(CodedWeight):
    """Codes of 2 to 8 bits on a power curve: finer steps near 0 where exponent < 1 (PowerQuant).

    ``W[n, k] ~ scale[n, g] * sign(q) * |q|**(1 / exponent) / input_scale[k]``, q = code[n, k], g = k // group_size
    (the inverse of thesis eq. 3.13; eq. 3.15 is not its inverse)

    Portable layout (version 1)
        packed       uint8 (N, ceil(K * bits / 8)): two's complement codes, a bitstream as in IntWeight. The bits past
                     K are 0.
        scale        float32 (N, ceil(K / group_size)), (N, 1) per channel or (1, 1) per tensor, finite and >= 0.
        input_scale  float32 (K,), (I,) of a convolution, in 2**-126..2**126, or None: as in IntWeight.
        exponent     a number a in 1/16..4. The table sign(q) * |q|**(1 / a) is computed in float64 and rounded to
                     float32; with a = 0.5 its entries are the exact integers sign(q) * q * q.

        bits = 4, exponent 0.5, scale 2, codes -8, -1, 0, 7, 3   ->   bytes 0xf8 0x70 0x03, values -128, -2, 0, 98, 18

    Raises:
        FormatError: shapes or values that contradict the layout.
        DTypeError: arrays of other dtypes.
        ArgumentError: an exponent outside of 1/16..4.
        UnsupportedError: bits outside of 2..8, or a group_size below 16.
    """

    OPTIONS = ("bits", "exponent", "group_size")
    FITTED = ("exponent",)

    packed: object
    scale: object
    bits: int = 4
    exponent: float = 0.5
    group_size: object = None
    shape: tuple = None
    input_scale: object = None

    def __post_init__(self):
        object.__setattr__(self, "exponent", _checked_exponent("PowerWeight", self.exponent))
        super().__post_init__()

    @classmethod
    def quantize(cls, W, bits=4, exponent=None, group_size=None, granularity="channel", input_scale=None):
        """Round on the power curve (thesis eq. 3.13), half to even, in float64.

        ``q = rint(qmax * sign(w) * (|w| / max|w|)**a)``, in -qmax..qmax, ``qmax = 2**(bits - 1) - 1``,
        ``scale = max|w| / qmax**(1 / a)``, max|w| of the group, channel or tensor

        What is rounded is |w|**a, so the code is not always the nearest in w. Parts whose max|w| is below 2**-100 get
        scale 1 and codes 0.

        Args:
            W: (N, K) floats, or (O, I, kh, kw) of a convolution; NumPy or torch; rounded to float32 first.
            bits: 2 to 8.
            exponent: a in 1/16..4; None: the one whose L2 error on this weight is smallest (``search_exponent``).
            group_size, granularity, input_scale: as in IntWeight.quantize.

        Raises:
            ArgumentError: as IntWeight.quantize; an exponent out of range, or numbers so small that the scale would
                be below 2**-126.
            UnsupportedError: bits, group_size, or exponent=None where scipy is missing.
        """
        where = "PowerWeight.quantize"
        bits, group_size = checked_bits(where, bits), checked_group(where, group_size)
        a = None if exponent is None else _checked_exponent(where, exponent)
        parts = cut(where, W, group_size, granularity, input_scale)
        if a is None:
            a = _search(where, [_histogram(parts)], bits)
        qmax = 2 ** (bits - 1) - 1
        scale = scale_of(where, parts.amax, float(qmax) ** (1 / a), " or take a larger exponent")
        w = parts.values.astype(np.float64)
        q = np.rint(qmax * np.sign(w) * _power(np.abs(w) / _divisor(parts.amax), a)).astype(np.int8)
        q = to_unsigned(parts.matrix(np.where(parts.amax == 0, np.int8(0), q)), bits)
        packed, s, si = wrap(W, q, bits, scale.reshape(parts.scale_shape), parts.input_scale)
        return cls(packed, s, bits, a, group_size, parts.shape, si)

    @classmethod
    def pack(cls, codes, scale, bits=4, exponent=0.5, group_size=None, input_scale=None):
        """Wrap a compressor's own codes, without rounding anything.

        Args:
            codes: (N, K) or (O, I, kh, kw) integers in -2**(bits - 1)..2**(bits - 1) - 1.
            scale: a number or (1, 1) per tensor; (N,) or (N, 1) per channel; (N, ceil(K / group_size)) per group;
                what the table is multiplied with: max|w| / qmax**(1 / exponent) if it stands for max|w|.
            input_scale: (K,) positive, that the codes have folded in.

        Raises:
            DTypeError: codes that are not integers.
            ArgumentError, FormatError, UnsupportedError: see the class.
        """
        where = "PowerWeight.pack"
        bits, group_size = checked_bits(where, bits), checked_group(where, group_size)
        q, shape = signed_codes(where, codes, bits)
        s = given_scale(where, scale, q, group_size)
        si = None if input_scale is None else as_float32(input_scale, where, "input_scale")
        packed, s, si = wrap(codes, to_unsigned(q, bits), bits, s, si)
        return cls(packed, s, bits, exponent, group_size, shape, si)

    def codes(self):
        """The codes, int8 (N, K)."""
        return as_kind(to_signed(self.index(), self.bits), self.packed)

    def table(self):
        """``sign(q) * |q|**(1 / exponent)`` in the order of the codes' low bits: float32 (1, 2**bits)."""
        q = to_signed(np.arange(2**self.bits, dtype=np.uint8), self.bits).astype(np.float64)
        return (np.sign(q) * np.abs(q) ** (1 / self.exponent)).astype(np.float32)[None]

    def int_table(self):
        """sign(q) * q * q where the exponent is 0.5, and likewise wherever int8 holds the whole table; else None."""
        return small_int_table(self.table(), 1.0)


def search_exponent(weights, bits=4, group_size=None, granularity="channel"):
    """The exponent with the smallest error over all weights of a network (thesis eq. 3.14 with p = 2).

    ``argmin_a sum over l of ||W_l - dequantized(quantized(W_l, a))||_2``, a in 1/16..4, by Nelder-Mead from 0.5. Errors
    are taken on a histogram of 65536 bins of sqrt(|w| / max|w|) for each weight, so a weight is read once.

    Args:
        weights: a weight or a sequence of weights, (N, K) or (O, I, kh, kw) floats, NumPy or torch.
        bits, group_size, granularity: as in PowerWeight.quantize.

    Returns:
        float, to 1e-3 or so.

    Raises:
        ArgumentError: no weights, or as IntWeight.quantize.
        UnsupportedError: scipy is missing, bits or group_size.
    """
    where = "search_exponent"
    bits, group_size = checked_bits(where, bits), checked_group(where, group_size)
    weights = list(weights) if isinstance(weights, list | tuple) else [weights]
    if not weights:
        raise ArgumentError(f"{where}: weights is empty; accepted: at least one weight.")
    return _search(where, [_histogram(cut(where, w, group_size, granularity)) for w in weights], bits)


def _search(where, histograms, bits):
    try:
        from scipy.optimize import minimize
    except ImportError as e:
        raise UnsupportedError(
            f"{where}: the search for an exponent needs the package scipy; pip install scipy, or give exponent=0.5."
        ) from e
    bounds, options = [(EXPONENT_LEAST, EXPONENT_MOST)], {"xatol": 1e-3, "fatol": np.inf}

    def objective(x):
        return sum(_error(h, bits, float(x[0])) for h in histograms)

    return float(minimize(objective, [0.5], method="Nelder-Mead", bounds=bounds, options=options).x[0])


def _histogram(parts):
    """For each bin of sqrt(|w| / amax), cumulated: sums of amax**2, amax * |w| and |w|**2. float64 (3, BINS + 2)."""
    w, amax = np.abs(parts.values, dtype=np.float64), parts.amax.astype(np.float64)
    bins = np.rint(BINS * np.sqrt(w / _divisor(parts.amax))).astype(np.int64)
    bins = np.where(parts.amax == 0, 0, bins).ravel()
    sums = [np.broadcast_to(amax**2, w.shape), amax * w, w * w]
    sums = [np.bincount(bins, s.ravel(), BINS + 1) for s in sums]
    return np.concatenate([np.zeros((3, 1)), np.cumsum(sums, axis=1)], axis=1)


def _error(histogram, bits, a):
    """L2 norm of what rounding with exponent a loses: level i holds |w| / amax from ((i - 1/2) / qmax)**(1 / a) on."""
    qmax = 2 ** (bits - 1) - 1
    at = np.rint(BINS * ((np.arange(qmax) + 0.5) / qmax) ** (0.5 / a)).astype(np.int64)
    edges = np.concatenate([[0], at, [BINS + 1]])
    s0, s1, s2 = np.diff(histogram[:, edges], axis=1)
    level = (np.arange(qmax + 1) / qmax) ** (1 / a)
    return math.sqrt(max(float((s2 - 2 * level * s1 + level * level * s0).sum()), 0.0))


def _power(x, a):
    return np.sqrt(x) if a == 0.5 else x**a


def _divisor(amax):
    return np.where(amax == 0, np.float32(1), amax).astype(np.float64)


def _checked_exponent(where, a):
    if isinstance(a, bool) or not isinstance(a, int | float | np.integer | np.floating):
        raise ArgumentError(f"{where}: exponent is {a!r}; accepted: a number in 1/16..4.")
    if not EXPONENT_LEAST <= a <= EXPONENT_MOST:
        raise ArgumentError(f"{where}: exponent is {a}; accepted: 1/16 to 4 (1 is uniform, 0.5 squares).")
    return float(a)
