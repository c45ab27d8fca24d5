"""Binary weights."""

from dataclasses import dataclass

import numpy as np

from .._arrays import as_kind
from ..errors import ArgumentError
from .lookup import Lookup
from .planes import BitsWeight, alpha_vector, code_matrix, float_matrix, pack_bits, unpack_bits


@dataclass(frozen=True, eq=False, repr=False)
class BinaryWeight(BitsWeight):
    """Sign bits with one scale per output channel: ``W[n, k] ~ alpha[n] * (2 * bit[n, k] - 1)``.

    Portable layout (version 1)
        packed  uint8 (N, ceil(K / 8)): bit ``k % 8`` of byte ``k // 8`` is 1 where ``W[n, k] >= 0``,
                least significant first; the bits past K are 0.
        alpha   float32 (N,), finite and >= 0: mean of ``|W[n, :]|`` (Rastegari et al. 2016, eq. 6).

        K = 10, signs + - - + + + - +   - +   ->   bytes 0b10111001 0b00000010

    A convolution weight (O, I, kh, kw) keeps its shape; K = I * kh * kw in this order.

    The arrays are NumPy arrays or CPU torch tensors, as the caller gave them. Integer accumulators are exact.

    Raises:
        DTypeError: arrays of other dtypes.
        FormatError: shapes or values that contradict the layout.
    """

    packed: object
    alpha: object
    shape: tuple

    bits = 1
    code_extreme = 1

    @classmethod
    def quantize(cls, W):
        """The nearest ``alpha * sign``: bits of ``w >= 0``, alpha = mean|w| of a row in float64, rounded once.

        Args:
            W: (N, K), or (O, I, kh, kw), floats, NumPy or torch.

        Raises:
            ArgumentError: another number of dimensions, or W is not finite.
        """
        w, shape = float_matrix("BinaryWeight.quantize", W)
        k = max(w.shape[1], 1)
        alpha = (np.abs(w).sum(1, dtype=np.float64) / k).astype(np.float32)
        return cls(as_kind(pack_bits(w >= 0), W), as_kind(alpha, W), shape)

    @classmethod
    def pack(cls, codes, alpha=1.0):
        """A compressor's own signs.

        Args:
            codes: (N, K) or (O, I, kh, kw), every one +1 or -1.
            alpha: a number, (N,) or (N, 1); rounded to float32.

        Raises:
            DTypeError, FormatError: other codes, or see the class.
        """
        where = "BinaryWeight.pack"
        q, shape = code_matrix(where, codes, (-1, 1))
        a = alpha_vector(where, alpha, q.shape[0])
        return cls(as_kind(pack_bits(q > 0), codes), as_kind(a, codes), shape)

    def codes(self):
        """int8 (N, K) of +1 and -1."""
        w = self.numpy()
        q = unpack_bits(w.packed, self.matrix_shape[1]).astype(np.int8)
        return as_kind(q * np.int8(2) - np.int8(1), self.packed)

    def lookup(self):
        """As the float core reads it: index the bits, table -1 and +1."""
        index = unpack_bits(self.numpy().packed, self.matrix_shape[1])
        return Lookup(1, index, np.array([[-1, 1]], np.float32), self.numpy().scale)

    def repeat(self, times):
        """Rows duplicated: row n stands ``|times[n]|`` times, with its signs flipped where times[n] < 0.

        A proper binary network of a layer whose neurons have integer multiplicities (thesis eq. 3.41).

        Args:
            times: (N,) integers.

        Raises:
            ArgumentError: another shape or no integers, or a convolution weight.
        """
        times = np.asarray(times)
        if len(self.shape) != 2 or times.shape != (self.shape[0],) or times.dtype.kind not in "iu":
            raise ArgumentError(
                f"BinaryWeight.repeat: times has shape {times.shape}, dtype {times.dtype}, the weight {self.shape}; "
                f"accepted: integers (N,) with a weight (N, K)."
            )
        w = self.numpy()
        count = np.abs(times.astype(np.int64))
        codes = np.repeat(w.codes() * np.where(times < 0, np.int8(-1), np.int8(1))[:, None], count, axis=0)
        again = BinaryWeight.pack(codes.reshape(-1, self.shape[1]), np.repeat(w.alpha, count))
        return BinaryWeight(
            as_kind(again.packed, self.packed), as_kind(again.alpha, self.packed), again.shape
        )
