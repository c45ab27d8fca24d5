"""Integer weights whose rows have different widths."""

import math
from dataclasses import dataclass, replace

import numpy as np

from .._arrays import as_float32, as_kind, as_numpy, first_bad, is_torch
from ..errors import ArgumentError, DTypeError, FormatError
from .base import WeightFormat
from .bits import pack_rows, row_bytes, to_signed, to_unsigned, unpack_rows
from .checks import (
    TINY,
    as_matrix,
    check_input_scale,
    check_scale,
    checked_arrays,
    checked_shape,
)
from .int import INT32_MAX
from .lookup import Lookup

DTYPES = {"packed": "uint8", "row_bits": "uint8", "scale": "float32", "input_scale": "float32"}
LEAST, MOST = 2, 8


@dataclass(frozen=True, eq=False, repr=False)
class MixedIntWeight(WeightFormat):
    """Integer codes with a width and a scale of its own for each output channel (thesis section 3.2.3).

    ``W[n, k] ~ scale[n] * code[n, k] / input_scale[k]``, code of ``row_bits[n]`` bits

    Portable layout (version 1)
        packed       uint8 (sum over n of ceil(K * row_bits[n] / 8),): the rows one after the other, each a bitstream
                     as in IntWeight that starts at a byte.
        row_bits     uint8 (N,), 2 to 8.
        scale        float32 (N, 1), finite and >= 0.
        input_scale  float32 (K,), in 2**-126..2**126, or None.

        K = 3, row_bits 4, 2, codes -8 -1 3 and 1 -2 0   ->   bytes 0xf8 0x03 0x09

    Raises:
        FormatError: shapes, dtypes or values that contradict the layout, or a K so large that an int32 accumulator
            could overflow.
    """

    RAGGED = ("packed",)

    packed: object
    row_bits: object
    scale: object
    shape: tuple
    input_scale: object = None

    zero_point = None
    group_size = None

    def __post_init__(self):
        where, put = "MixedIntWeight", lambda name, value: object.__setattr__(self, name, value)
        w = checked_arrays(where, self, DTYPES, ("packed", "row_bits", "scale"))
        put("shape", checked_shape(where, self.shape))
        n, k = self.matrix_shape
        bits = w["row_bits"]
        if bits.shape != (n,):
            raise FormatError(f"{where}: row_bits has shape {bits.shape}; shape {self.shape} needs ({n},).")
        bad = first_bad((bits < LEAST) | (bits > MOST))
        if bad is not None:
            raise FormatError(f"{where}: row_bits[{bad[0]}] is {bits[bad]}; accepted: {LEAST} to {MOST}.")
        size = int(row_bytes(k, bits.astype(np.int64)).sum())
        if w["packed"].shape != (size,):
            raise FormatError(
                f"{where}: packed has shape {w['packed'].shape}; these row_bits and K = {k} need ({size},)."
            )
        if w["scale"].shape != (n, 1):
            raise FormatError(f"{where}: scale has shape {w['scale'].shape}; accepted: ({n}, 1).")
        check_scale(where, "scale", w["scale"], n, k)
        if "input_scale" in w:
            check_input_scale(where, w["input_scale"], self.shape[1])
        if k * 128 * self.code_extreme > INT32_MAX:
            raise FormatError(
                f"{where}: K = {k} with {self.bits}-bit rows could overflow the int32 accumulator; accepted: K <= "
                f"{INT32_MAX // (128 * self.code_extreme)}. Split the layer along K and add the results."
            )

    @classmethod
    def quantize(cls, W, bits=4, sensitivity=None, input_scale=None):
        """Give sensitive channels more bits, then round each as IntWeight.quantize(symmetric) does.

        ``b[n] = clip(bits + trunc((g[n] - mean(g)) / std(g)), 2, 8)`` (thesis section 3.2.3; the brackets there round
        towards zero, and g equal everywhere gives ``bits``).

        Args:
            W: (N, K) or (O, I, kh, kw) floats.
            bits: the average to aim at, 2 to 8.
            sensitivity: g, (N,) floats: what a compressor knows of a channel's effect on the output, in the thesis
                its accumulated gradients. None: the L2 norm of the channel's weights.
            input_scale: as in IntWeight.quantize.

        Raises:
            ArgumentError, FormatError: as IntWeight.quantize; a sensitivity that is not (N,) finite numbers.
        """
        where = "MixedIntWeight.quantize"
        if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not LEAST <= bits <= MOST:
            raise ArgumentError(f"{where}: bits is {bits!r}; accepted: {LEAST} to {MOST}.")
        w, shape = as_matrix(W, where, input_scale)
        g = (w.astype(np.float64) ** 2).sum(1) ** 0.5
        if sensitivity is not None:
            g = as_float32(sensitivity, where, "sensitivity").astype(np.float64)
        if g.shape != (w.shape[0],) or not np.isfinite(g).all():
            raise ArgumentError(
                f"{where}: sensitivity has shape {g.shape}; accepted: ({w.shape[0]},) finite numbers."
            )
        spread = g.std() if g.size else 0.0
        steps = np.trunc((g - g.mean()) / spread) if spread > 0 else np.zeros_like(g)
        row_bits = np.clip(bits + steps, LEAST, MOST).astype(np.uint8)
        amax = np.max(np.abs(w), axis=1, initial=0, keepdims=True)
        if not np.isfinite(amax).all():
            raise ArgumentError(f"{where}: W times input_scale leaves float32; rescale it.")
        most = (2.0 ** (row_bits[:, None].astype(np.float32) - 1) - 1).astype(np.float32)
        scale = np.where(amax < TINY, np.float32(1), amax / most).astype(np.float32)
        codes = np.clip(np.rint(w / scale), -most, most).astype(np.int8).reshape(shape)
        weight = cls.pack(codes, scale, row_bits, input_scale)
        return weight if not is_torch(W) else weight._like(W)

    @classmethod
    def pack(cls, codes, scale, row_bits, input_scale=None):
        """Wrap a compressor's own codes: integers (N, K), scales (N,) or (N, 1), widths (N,).

        Raises:
            DTypeError, FormatError: see the class; codes that their row's width does not hold.
        """
        where = "MixedIntWeight.pack"
        q, b = as_numpy(codes, where, "codes"), as_numpy(row_bits, where, "row_bits")
        if q.dtype.kind not in "iu" or b.dtype.kind not in "iu":
            raise DTypeError(
                f"{where}: codes are {q.dtype}, row_bits {b.dtype}; accepted: integers. Round before packing."
            )
        shape = checked_shape(where, q.shape, "codes have shape")
        q = q.reshape(shape[0], math.prod(shape[1:]))
        if b.shape != (shape[0],) or (b.size and (b.min() < LEAST or b.max() > MOST)):
            raise FormatError(
                f"{where}: row_bits must be ({shape[0]},) integers, {LEAST} to {MOST}; it is {b}."
            )
        half = 2 ** (b.astype(np.int64)[:, None] - 1)
        bad = first_bad((q < -half) | (q > half - 1))
        if bad is not None:
            raise FormatError(
                f"{where}: codes[{bad[0]}, {bad[1]}] is {q[bad]}; accepted with {b[bad[0]]} bits: {-half[bad[0], 0]}.."
                f"{half[bad[0], 0] - 1}."
            )
        q = q.astype(np.int8)
        rows = [pack_rows(to_unsigned(row[None], int(bits)), int(bits))[0] for row, bits in zip(q, b)]
        packed = np.concatenate([*rows, np.empty(0, np.uint8)])
        s = as_float32(scale, where, "scale")
        s = np.ascontiguousarray(s.reshape(-1, 1) if s.ndim < 2 else s)
        if input_scale is not None:
            input_scale = np.ascontiguousarray(as_float32(input_scale, where, "input_scale"))
        arrays = (as_kind(a, codes) for a in (packed, b.astype(np.uint8), s))
        return cls(*arrays, shape, as_kind(input_scale, codes))

    @property
    def bits(self):
        """The widest row's bits."""
        return int(max(as_numpy(self.row_bits, "MixedIntWeight", "row_bits"), default=LEAST))

    @property
    def code_extreme(self):
        """max |code| that the widest row can hold."""
        return 2 ** (self.bits - 1)

    def codes(self):
        """The codes, int8 (N, K)."""
        w, (n, k) = self.numpy(), self.matrix_shape
        out, at = np.empty((n, k), np.int8), 0
        for i, bits in enumerate(w.row_bits.tolist()):
            size = row_bytes(k, bits)
            out[i] = to_signed(unpack_rows(w.packed[None, at : at + size], k, bits), bits)[0]
            at += size
        return as_kind(out, self.packed)

    def lookup(self):
        """As the float core reads it: all rows as wide as the widest, index the low bits of a code."""
        w, bits = self.numpy(), self.bits
        table = to_signed(np.arange(2**bits, dtype=np.uint8), bits).astype(np.float32)[None]
        index = to_unsigned(w.codes(), bits)
        return Lookup(bits, index, table, w.scale, input_scale=self.flat_input_scale())

    def dense(self):
        """``scale * code / input_scale``: float32, shaped like the weight, each operation rounded."""
        w = self.numpy()
        q = (w.codes().astype(np.float32) * w.scale).reshape(self.shape)
        if w.input_scale is not None:
            q = q / w.input_scale.reshape(1, -1, *(1,) * (len(self.shape) - 2))
        return as_kind(q, self.packed)

    def per_code(self, a):
        return a

    def _like(self, other):
        return self._map(lambda name, a: as_kind(a, other))

    def _map(self, convert):
        return replace(self, **{name: convert(name, a) for name, a in self.arrays().items()})
