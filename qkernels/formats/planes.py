"""What the formats of single bits, BinaryWeight and TernaryWeight, have in common."""

import math

import numpy as np

from .._arrays import as_float32, as_kind, as_numpy, first_bad
from ..errors import ArgumentError, DTypeError, FormatError
from .base import WeightFormat
from .checks import checked_arrays, checked_shape

MAX_K = 2**30 - 64  # bits of a row: accumulators and what they pass through stay in int32


class BitsWeight(WeightFormat):
    """Bit planes of rows, least significant bit first, with one scale ``alpha`` per output channel.

    Of a convolution, K is I * kh * kw in this order, as in ``weight.reshape(O, -1)``.
    """

    planes = ("packed",)

    # What integer cores ask of every weight with codes.
    group_size = None
    zero_point = None
    input_scale = None

    def __post_init__(self):
        where, put = type(self).__name__, lambda name, value: object.__setattr__(self, name, value)
        dtypes = {**dict.fromkeys(self.planes, "uint8"), "alpha": "float32"}
        arrays = checked_arrays(where, self, dtypes, dtypes)
        put("shape", checked_shape(where, self.shape))
        n, k = self.matrix_shape
        check_length(where, k)
        for name in self.planes:
            if arrays[name].shape != (n, -(-k // 8)):
                raise FormatError(
                    f"{where}: {name} has shape {arrays[name].shape}; shape {self.shape} needs {(n, -(-k // 8))}: "
                    "ceil(K / 8) bytes a row."
                )
            check_padding(where, name, arrays[name], k)
        check_alpha(where, arrays["alpha"], n)

    @property
    def scale(self):
        """float32 (N, 1): alpha as IntWeight has its scale."""
        return self.alpha.reshape(-1, 1)

    def per_code(self, values):
        """Numbers of rows, (N, 1), as they meet codes (N, K)."""
        return values

    def dense(self):
        """``alpha * code``: float32, shaped like the weight."""
        w = self.numpy()
        return as_kind((w.codes() * w.scale).reshape(self.shape), self.packed)


def check_length(where, k):
    if k > MAX_K:
        raise FormatError(f"{where}: K = {k}; accepted: up to {MAX_K}.")


def check_padding(where, name, plane, k):
    """Bits past K are 0, so that equal weights have equal bytes."""
    if k % 8 and plane.size:
        bad = first_bad(plane[:, -1] >> (k % 8))
        if bad is not None:
            raise FormatError(
                f"{where}: {name}[{bad[0]}] has bits set past K = {k}; accepted: the {8 - k % 8} highest bits of a "
                "row's last byte are 0."
            )


def check_alpha(where, alpha, n):
    if alpha.shape != (n,):
        raise FormatError(
            f"{where}: alpha has shape {alpha.shape}; there are {n} rows, so it must be ({n},)."
        )
    bad = first_bad(~(np.isfinite(alpha) & (alpha >= 0)))
    if bad is not None:
        raise FormatError(f"{where}: alpha[{bad[0]}] is {alpha[bad]}; accepted: finite and not negative.")


def float_matrix(where, W):
    """A float32 (N, K) matrix of W, (N, K) or (O, I, kh, kw), and W's shape.

    Raises:
        ArgumentError: another number of dimensions, or numbers that are not finite.
    """
    w = as_float32(W, where, "W")
    if w.ndim not in (2, 4):
        raise ArgumentError(f"{where}: W has shape {w.shape}; accepted: (N, K) or (O, I, kh, kw).")
    bad = first_bad(~np.isfinite(w))
    if bad is not None:
        raise ArgumentError(f"{where}: W{list(bad)} is {w[bad]}; accepted: finite float32 numbers.")
    return w.reshape(w.shape[0], math.prod(w.shape[1:])), w.shape


def code_matrix(where, codes, accepted):
    """Codes as (N, K), and their shape; every one must be among ``accepted``."""
    q = as_numpy(codes, where, "codes")
    if q.dtype.kind not in "iuf":
        raise DTypeError(f"{where}: codes have dtype {q.dtype}; accepted: numbers.")
    if q.ndim not in (2, 4):
        raise FormatError(f"{where}: codes have shape {q.shape}; accepted: (N, K) or (O, I, kh, kw).")
    bad = first_bad(~np.isin(q, accepted))
    if bad is not None:
        raise FormatError(
            f"{where}: codes{list(bad)} is {q[bad]}; accepted: {', '.join(f'{c:+d}' if c else '0' for c in accepted)}."
        )
    return q.reshape(q.shape[0], math.prod(q.shape[1:])), q.shape


def alpha_vector(where, alpha, n):
    """A number for all rows, (N,) or (N, 1), as float32 (N,)."""
    a = as_float32(alpha, where, "alpha")
    if a.size == 1 and a.ndim < 2:
        a = np.full(n, a.reshape(()), np.float32)
    if a.shape == (n, 1):
        a = a.reshape(n)
    check_alpha(where, a, n)
    return a


def pack_bits(flags):
    """Booleans (N, K) to bytes (N, ceil(K / 8)), bit k % 8 of byte k // 8."""
    return np.packbits(flags, axis=-1, bitorder="little")


def unpack_bits(packed, k):
    """Bytes (..., ceil(K / 8)) to 0 and 1, uint8 (..., K)."""
    return np.unpackbits(packed, axis=-1, count=k, bitorder="little")
