"""Weights that are powers of two."""

from dataclasses import dataclass

import numpy as np

from .._arrays import as_float32
from .checks import checked_bits, checked_group
from .coded import CodedWeight, cut, given_scale, nearest, scale_of, small_int_table, unsigned_codes, wrap


@dataclass(frozen=True, eq=False, repr=False)
class LogWeight(CodedWeight):
    """Signed powers of two: ``W[n, k] ~ scale[n, g] * value(code[n, k]) / input_scale[k]``, ``g = k // group_size``.

    A code is a sign (its highest bit) and a magnitude m of bits - 1 bits: m = 0 stands for 0, otherwise the value is
    ``+-2**(m - M)``, ``M = 2**(bits - 1) - 1``. With 4 bits: 1, 1/2, ... 1/64 and 0. All values are bfloat16 numbers.

    Portable layout (version 1)
        packed       uint8 (N, ceil(K * bits / 8)): the codes, a bitstream as in IntWeight. The bits past K are 0.
        scale        float32 (N, ceil(K / group_size)), (N, 1) per channel or (1, 1) per tensor, finite and >= 0.
        input_scale  float32 (K,), (I,) of a convolution, in 2**-126..2**126, or None: as in IntWeight.

        bits = 4, scale 2, values 1, -1, 1/64, 0, -1/2   ->   codes 7, 15, 1, 0, 14   ->   bytes 0xf7 0x01 0x0e

    Raises:
        FormatError: shapes or values that contradict the layout.
        DTypeError: arrays of other dtypes.
        UnsupportedError: bits outside of 2..8, or a group_size below 16.
    """

    OPTIONS = ("bits", "group_size")

    packed: object
    scale: object
    bits: int = 4
    group_size: object = None
    shape: tuple = None
    input_scale: object = None

    @classmethod
    def quantize(cls, W, bits=4, group_size=None, granularity="channel", input_scale=None):
        """The nearest value to ``w / scale``, in linear space (not in the logarithm), halfway the even m; float32.

        scale = max|w| of the group, channel or tensor; 1 (and codes 0) where that is below 2**-100.

        Args:
            W: (N, K) floats, or (O, I, kh, kw) of a convolution; NumPy or torch; rounded to float32 first.
            bits: 2 to 8.
            group_size, granularity, input_scale: as in IntWeight.quantize.

        Raises:
            ArgumentError, FormatError, UnsupportedError: as IntWeight.quantize.
        """
        where = "LogWeight.quantize"
        bits, group_size = checked_bits(where, bits), checked_group(where, group_size)
        parts = cut(where, W, group_size, granularity, input_scale)
        scale, most = scale_of(where, parts.amax, 1.0), np.uint8(2 ** (bits - 1))
        m = nearest(_magnitudes(bits), np.abs(parts.values) / scale)
        codes = np.where((parts.values < 0) & (m > 0), m | most, m)
        codes = parts.matrix(np.where(parts.amax == 0, np.uint8(0), codes))
        packed, s, si = wrap(W, codes, bits, scale.reshape(parts.scale_shape), parts.input_scale)
        return cls(packed, s, bits, group_size, parts.shape, si)

    @classmethod
    def pack(cls, codes, scale, bits=4, group_size=None, input_scale=None):
        """Wrap a compressor's own codes, without rounding anything.

        Args:
            codes: (N, K) or (O, I, kh, kw) integers 0..2**bits - 1: sign * 2**(bits - 1) + m.
            scale, group_size, input_scale: as in IntWeight.pack; scale is what the largest magnitude stands for.

        Raises:
            DTypeError, FormatError, UnsupportedError: see the class.
        """
        where = "LogWeight.pack"
        bits, group_size = checked_bits(where, bits), checked_group(where, group_size)
        q, shape = unsigned_codes(where, codes, bits)
        s = given_scale(where, scale, q, group_size)
        si = None if input_scale is None else as_float32(input_scale, where, "input_scale")
        packed, s, si = wrap(codes, q, bits, s, si)
        return cls(packed, s, bits, group_size, shape, si)

    def table(self):
        """0, 2**(1 - M) ... 1, then the same negated; both zeros are 0: float32 (1, 2**bits)."""
        values = _magnitudes(self.bits)
        return np.concatenate([values, values[:1], -values[1:]])[None]

    def int_table(self):
        """2**(M - 1) times the values, so up to 4 bits; None with more."""
        return small_int_table(self.table(), 2.0 ** (2 - 2 ** (self.bits - 1)))


def _magnitudes(bits):
    """0, 2**(1 - M), ... 1/2, 1: float32 (2**(bits - 1),)."""
    most = 2 ** (bits - 1) - 1
    return np.append(np.float32(0), np.ldexp(np.float32(1), np.arange(1, most + 1) - most)).astype(np.float32)
