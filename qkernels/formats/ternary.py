"""Ternary weights."""

from dataclasses import dataclass

import numpy as np

from .._arrays import as_kind, as_numpy, first_bad
from ..errors import FormatError
from .bits import to_unsigned
from .lookup import Lookup
from .planes import BitsWeight, alpha_vector, code_matrix, float_matrix, pack_bits, unpack_bits


@dataclass(frozen=True, eq=False, repr=False)
class TernaryWeight(BitsWeight):
    """Weights -1, 0 and +1 in two bit planes, with one scale per output channel: ``W[n, k] ~ alpha[n] * code[n, k]``.

    Portable layout (version 1)
        packed   uint8 (N, ceil(K / 8)): bit ``k % 8`` of byte ``k // 8`` is 1 where the code is +1.
        nonzero  uint8 (N, ceil(K / 8)): the same bit is 1 where the code is not 0. ``packed`` is a subset of it.
        alpha    float32 (N,), finite and >= 0.

        K = 10, codes + 0 - + + 0 0 +   - +   ->   packed  0b10011001 0b00000010
                                                   nonzero 0b10011101 0b00000011

    Bits past K are 0. A convolution weight (O, I, kh, kw) keeps its shape; K = I * kh * kw in this order.

    Raises:
        DTypeError: arrays of other dtypes.
        FormatError: shapes or values that contradict the layout.
    """

    packed: object
    nonzero: object
    alpha: object
    shape: tuple

    planes = ("packed", "nonzero")
    bits = 2
    code_extreme = 1

    def __post_init__(self):
        super().__post_init__()
        bad = first_bad(
            as_numpy(self.packed, "TernaryWeight", "packed")
            & ~as_numpy(self.nonzero, "TernaryWeight", "nonzero")
        )
        if bad is not None:
            raise FormatError(
                f"TernaryWeight: packed{list(bad)} has a bit set that nonzero has not; accepted: bits of packed that "
                "are set in nonzero, too."
            )

    @classmethod
    def quantize(cls, W, threshold=0.7):
        """Ternary weight networks (Li et al. 2016, eq. 6): 0 where ``|w| <= threshold * mean|w|`` of the row, else the
        sign; alpha = mean of the kept ``|w|``. In float64, alpha rounded once.

        Args:
            W: (N, K), or (O, I, kh, kw), floats, NumPy or torch.
            threshold: a number >= 0.

        Raises:
            ArgumentError: another number of dimensions, or W is not finite.
        """
        where = "TernaryWeight.quantize"
        w, shape = float_matrix(where, W)
        t = alpha_vector(where, threshold, 1)[0] if not isinstance(threshold, float) else threshold
        size = np.abs(w.astype(np.float64))
        delta = t * size.sum(1, keepdims=True) / max(w.shape[1], 1)
        kept = size > delta
        alpha = np.where(kept, size, 0).sum(1) / np.maximum(kept.sum(1), 1)
        arrays = pack_bits(kept & (w > 0)), pack_bits(kept), alpha.astype(np.float32)
        return cls(*(as_kind(a, W) for a in arrays), shape)

    @classmethod
    def pack(cls, codes, alpha=1.0):
        """A compressor's own codes.

        Args:
            codes: (N, K) or (O, I, kh, kw), every one -1, 0 or +1.
            alpha: a number, (N,) or (N, 1); rounded to float32.

        Raises:
            DTypeError, FormatError: other codes, or see the class.
        """
        where = "TernaryWeight.pack"
        q, shape = code_matrix(where, codes, (-1, 0, 1))
        arrays = pack_bits(q > 0), pack_bits(q != 0), alpha_vector(where, alpha, q.shape[0])
        return cls(*(as_kind(a, codes) for a in arrays), shape)

    def codes(self):
        """int8 (N, K) of -1, 0 and +1."""
        w, k = self.numpy(), self.matrix_shape[1]
        plus, there = (unpack_bits(a, k).astype(np.int8) for a in (w.packed, w.nonzero))
        return as_kind(plus * np.int8(2) - there, self.packed)

    def lookup(self):
        """As the float core reads it: index 0, 1 and 3 for 0, +1 and -1 (two's complement; 2 is 0, too)."""
        w = self.numpy()
        return Lookup(2, to_unsigned(w.codes(), 2), np.array([[0, 1, 0, -1]], np.float32), w.scale)
