"""Weights that are 8-bit and 4-bit floating-point numbers."""

from dataclasses import dataclass

import numpy as np

from .._arrays import as_float32, as_numpy, first_bad
from ..errors import ArgumentError, DTypeError, FormatError
from .checks import as_column, check_scale, checked_group, integers
from .coded import CodedWeight, cut, given_scale, nearest, scale_of, small_int_table, unsigned_codes, wrap


@dataclass(frozen=True)
class Minifloat:
    """Sign, exponent and mantissa bits, subnormal numbers as in IEEE 754."""

    exponent: int
    mantissa: int
    bias: int
    last: int  # code of the largest finite number
    emax: int  # its exponent: floor(log2)

    @property
    def bits(self):
        return 1 + self.exponent + self.mantissa

    def magnitudes(self):
        """The finite numbers >= 0 in the order of their codes: float32 (last + 1,)."""
        code = np.arange(self.last + 1)
        e, m = code >> self.mantissa, code & (2**self.mantissa - 1)
        m = np.where(e > 0, m + 2**self.mantissa, m).astype(np.float32)
        return np.ldexp(m, np.maximum(e, 1) - self.bias - self.mantissa)

    def table(self):
        """The value of each code; 0 for what is not finite: float32 (1, 2**bits)."""
        half = np.zeros(2 ** (self.bits - 1), np.float32)
        half[: self.last + 1] = self.magnitudes()
        return np.concatenate([half, -half])[None]

    def encode(self, x):
        """Codes of float32 x: to nearest, halfway to even, saturating; uint8."""
        sign = np.signbit(x).astype(np.uint8) << np.uint8(self.bits - 1)
        return nearest(self.magnitudes(), np.abs(x)) | sign


KINDS = {
    "e4m3": Minifloat(4, 3, 7, 0x7E, 8),
    "e5m2": Minifloat(5, 2, 15, 0x7B, 15),
    "e2m1": Minifloat(2, 1, 1, 0x7, 2),
}
SCALE_KINDS = ("float32", "e8m0", "e4m3")
GROUPS = {"float32": None, "e8m0": 32, "e4m3": 16}  # what MX and NVFP4 take
E4M3 = KINDS["e4m3"]


@dataclass(frozen=True, eq=False, repr=False)
class FloatWeight(CodedWeight):
    """Floating-point codes of 8 or 4 bits: ``W[n, k] ~ s[n, g] * value(code[n, k]) / input_scale[k]``.

    kind "e4m3"  OCP FP8, 4 exponent and 3 mantissa bits, bias 7, to 448; 0x7f and 0xff are NaN
         "e5m2"  OCP FP8, 5 and 2, bias 15, to 57344; exponent 31 is infinity and NaN
         "e2m1"  OCP MX FP4, 2 and 1, bias 1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives

    Portable layout (version 1)
        packed        uint8 (N, ceil(K * bits / 8)): the bit patterns, a bitstream as in IntWeight; two e2m1 codes a
                      byte, even k in the low nibble. No NaN or infinity; the bits past K are 0.
        scale         (N, ceil(K / group_size)), (N, 1) per channel or (1, 1) per tensor, by scale_kind:
                      "float32"  float32, finite and >= 0: s = scale
                      "e8m0"     uint8, not 255: s = 2**(scale - 127) (OCP MX)
                      "e4m3"     uint8, 0..0x7e: s = float32(tensor_scale * value(scale)) (NVFP4)
        tensor_scale  float32 (1, 1), finite and >= 0, with scale_kind "e4m3"; else None.
        input_scale   float32 (K,), (I,) of a convolution, in 2**-126..2**126, or None: as in IntWeight.

        e2m1, values 6, -0.5, 1, 0, -3              ->   codes 7, 9, 2, 0, 13   ->   bytes 0x97 0x02 0x0d
        e4m3, values 448, 1, -0.001953125, 0        ->   bytes 0x7e 0x38 0x81 0x00
        e5m2, values 57344, 1, -0.0000152587890625  ->   bytes 0x7b 0x3c 0x81

    Raises:
        FormatError: shapes or values that contradict the layout, NaN and infinite codes or scales.
        DTypeError: arrays of other dtypes.
        ArgumentError: an unknown kind or scale_kind.
        UnsupportedError: a group_size below 16.
    """

    OPTIONS = ("kind", "group_size", "scale_kind")

    packed: object
    scale: object
    kind: str = "e4m3"
    group_size: object = None
    shape: tuple = None
    input_scale: object = None
    scale_kind: str = "float32"
    tensor_scale: object = None

    def __post_init__(self):
        _check_kinds("FloatWeight", self.kind, self.scale_kind)
        super().__post_init__()

    @property
    def bits(self):
        """8, or 4 of e2m1."""
        return KINDS[self.kind].bits

    @property
    def DTYPES(self):
        scale = "float32" if self.scale_kind == "float32" else "uint8"
        return {"packed": "uint8", "scale": scale, "input_scale": "float32", "tensor_scale": "float32"}

    def _check_scale(self, where, arrays, n, k):
        check_scale(where, "scale", arrays["scale"], n, k, self.group_size)
        most = {"float32": np.inf, "e8m0": 254, "e4m3": E4M3.last}[self.scale_kind]
        bad = first_bad(arrays["scale"] > most)
        if bad is not None:
            raise FormatError(
                f"{where}: scale[{bad[0]}, {bad[1]}] is {arrays['scale'][bad]:#04x}; accepted as {self.scale_kind}: "
                f"0..{most:#04x}."
            )
        if ("tensor_scale" in arrays) != (self.scale_kind == "e4m3"):
            raise FormatError(
                f"{where}: tensor_scale is {self.tensor_scale} with scale_kind={self.scale_kind!r}; accepted: a (1, 1) "
                "float32 array with 'e4m3', None otherwise."
            )
        if self.scale_kind == "e4m3":
            _check_tensor_scale(where, arrays["tensor_scale"])

    def _check(self, where, arrays):
        last, half = KINDS[self.kind].last, 2 ** (self.bits - 1)
        if last < half - 1:
            codes = self.index()
            bad = first_bad((codes & (half - 1)) > last)
            if bad is not None:
                raise FormatError(
                    f"{where}: code [{bad[0]}, {bad[1]}] is {codes[bad]:#04x}, infinite or NaN in {self.kind}; "
                    f"accepted: finite numbers, {last:#04x} at most without the sign."
                )

    @classmethod
    def quantize(
        cls,
        W,
        kind="e4m3",
        group_size=None,
        granularity="channel",
        input_scale=None,
        scale_kind="float32",
    ):
        """Round w / s to the nearest code, halfway to even, saturating, in float32; L is the kind's largest number.

        scale_kind "float32"  s = max|w| / L of the group, channel or tensor
                   "e8m0"     s = 2**(floor(log2(max|w|)) - floor(log2(L))) (OCP MX 1.0, section 6.3); what lies above
                              L * s saturates
                   "e4m3"     s = tensor_scale * e4m3(max|w| / L / tensor_scale), tensor_scale = max|W| / (448 * L)

        Parts whose max|w| is below 2**-100 get s = 1 and codes 0 ("e4m3": whatever scale, and codes 0).

        Args:
            W: (N, K) floats, or (O, I, kh, kw) of a convolution; NumPy or torch; rounded to float32 first.
            kind, scale_kind: see the class.
            group_size: None with granularity "channel" is 32 for "e8m0" and 16 for "e4m3" scales, else a whole row.
            granularity, input_scale: as in IntWeight.quantize.

        Raises:
            ArgumentError, FormatError, UnsupportedError: as IntWeight.quantize, or an unknown kind.
        """
        where = "FloatWeight.quantize"
        _check_kinds(where, kind, scale_kind)
        group_size = checked_group(where, group_size)
        if group_size is None and isinstance(granularity, str) and granularity == "channel":
            group_size = GROUPS[scale_kind]
        number = KINDS[kind]
        parts = cut(where, W, group_size, granularity, input_scale)
        amax, largest, tensor = parts.amax, number.magnitudes()[-1], None
        if scale_kind == "float32":
            scale = s = scale_of(where, amax, largest)
        elif scale_kind == "e8m0":
            e = np.where(amax == 0, 0, np.frexp(amax)[1] - 1 - number.emax)
            scale, s = (e + 127).astype(np.uint8), np.ldexp(np.float32(1), e)
        else:
            tensor = scale_of(where, np.max(amax, initial=0), largest * 448.0).reshape(1, 1)
            scale = E4M3.encode(amax / largest / tensor[0])
            s = E4M3.table()[0][scale] * tensor[0]
        none = (amax == 0) | (s == 0)
        codes = number.encode(parts.values / np.where(none, np.float32(1), s))
        codes = parts.matrix(np.where(none, np.uint8(0), codes))
        scale = scale.reshape(parts.scale_shape)
        packed, scale, si, tensor = wrap(W, codes, number.bits, scale, parts.input_scale, tensor)
        return cls(packed, scale, kind, group_size, parts.shape, si, scale_kind, tensor)

    @classmethod
    def pack(
        cls,
        codes,
        scale,
        kind="e4m3",
        group_size=None,
        input_scale=None,
        scale_kind="float32",
        tensor_scale=None,
    ):
        """Wrap a compressor's own codes, without rounding anything.

        Args:
            codes: (N, K) or (O, I, kh, kw) bit patterns, integers 0..2**bits - 1; of a torch.float8_e4m3fn tensor t,
                t.view(torch.uint8).
            scale: a number or (1, 1) per tensor; (N,) or (N, 1) per channel; (N, ceil(K / group_size)) per group:
                floats, or the bit patterns with scale_kind "e8m0" and "e4m3".
            tensor_scale: a number, with scale_kind "e4m3".

        Raises:
            DTypeError, ArgumentError, FormatError, UnsupportedError: see the class.
        """
        where = "FloatWeight.pack"
        _check_kinds(where, kind, scale_kind)
        group_size, bits = checked_group(where, group_size), KINDS[kind].bits
        q, shape = unsigned_codes(where, codes, bits)
        if scale_kind == "float32":
            s = given_scale(where, scale, q, group_size)
        else:
            s = as_column(integers(where, "scale", scale, np.uint8, f"They are the bits of {scale_kind}."))
        si = None if input_scale is None else as_float32(input_scale, where, "input_scale")
        if tensor_scale is not None:
            tensor_scale = as_column(as_float32(tensor_scale, where, "tensor_scale"))
        packed, s, si, tensor_scale = wrap(codes, q, bits, s, si, tensor_scale)
        return cls(packed, s, kind, group_size, shape, si, scale_kind, tensor_scale)

    def table(self):
        """The value of each code; 0 for the codes that are refused: float32 (1, 2**bits)."""
        return KINDS[self.kind].table()

    def float_scale(self):
        """s as above, float32."""
        scale = as_numpy(self.scale, "FloatWeight", "scale")
        if self.scale_kind == "float32":
            return scale
        if self.scale_kind == "e8m0":
            return np.ldexp(np.float32(1), scale.astype(np.int32) - 127)
        return E4M3.table()[0][scale] * as_numpy(self.tensor_scale, "FloatWeight", "tensor_scale")

    def int_table(self):
        """Twice the values of e2m1; None of the others."""
        return small_int_table(self.table(), 0.5)


def _check_kinds(where, kind, scale_kind):
    for name, value, accepted in (("kind", kind, KINDS), ("scale_kind", scale_kind, SCALE_KINDS)):
        if not isinstance(value, str):
            raise DTypeError(f"{where}: {name} is {value!r}; accepted: {', '.join(map(repr, accepted))}.")
        if value not in accepted:
            raise ArgumentError(f"{where}: {name} is {value!r}; accepted: {', '.join(map(repr, accepted))}.")


def _check_tensor_scale(where, t):
    if t.shape != (1, 1) or not (np.isfinite(t) & (t >= 0)).all():
        raise FormatError(
            f"{where}: tensor_scale has shape {t.shape}, values {t.ravel()[:1]}; accepted: (1, 1), finite and not "
            "negative."
        )
