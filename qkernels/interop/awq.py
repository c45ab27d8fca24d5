"""AWQ checkpoints (Lin et al. 2023), as AutoAWQ's "gemm" version stores a linear layer."""

import numpy as np

from ..errors import UnsupportedError
from ._codes import Parts, array, checked_group, group_count, pack_words, reals, unpack_words, weight_of

BITS = 4
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight output channels each nibble of a word holds


def from_awq(qweight, qzeros, scales, group_size=128):
    """IntWeight (N, K) of an AWQ layer: ``W[n, k] = scales[g, n] * (u[n, k] - zero[g, n])``, ``g = k // group_size``.

    Layout: nibble i of word j of a row, least significant first, belongs to output channel 8 * j + ORDER[i], in qweight
    and in qzeros (AutoAWQ's WQLinear_GEMM).

    Exact; scales become float32. A negative scale turns its codes over.

    Args:
        qweight: int32 (K, N / 8). qzeros: int32 (G, N / 8), or None: all 8. scales: float16, bfloat16 or float32
            (G, N). group_size: of the checkpoint's configuration; None or -1 for whole rows.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout.
    """
    where = "interop.from_awq"
    size = checked_group(where, group_size)
    q = array(where, "qweight", qweight, ("int32",), (None, None))
    k, n = q.shape[0], q.shape[1] * 8
    count = group_count(k, size)
    s = reals(where, "scales", scales, (count, n)).T
    zero = 8
    if qzeros is not None:
        zero = _unpack(array(where, "qzeros", qzeros, ("int32",), (count, q.shape[1])), n)
    return weight_of(where, qweight, _unpack(q, n), s, zero, BITS, size)


def to_awq(w, round_scale=False):
    """The arrays of an AWQ layer: ``{"qweight", "qzeros", "scales"}``, as from_awq takes them.

    Args:
        w: IntWeight (N, K) of 4 bits, N a multiple of 8, its zero points in -8..7.
        round_scale: scales are float16 in the layout; True rounds those that are not.

    Raises:
        UnsupportedError: what the layout cannot hold: other bits, another N, an input_scale, an offset that is no zero
            point, scales that float16 changes.
    """
    where = "interop.to_awq"
    p = Parts(where, w, (BITS,))
    if p.shape[0] % 8:
        raise UnsupportedError(f"{where}: w has N = {p.shape[0]}; the layout holds multiples of 8.")
    arrays = {
        "qweight": _pack(p.u),
        "qzeros": _pack(p.zero_points()),
        "scales": p.half("scale", p.scale, round_scale).T,
    }
    return {name: p.out(a) for name, a in arrays.items()}


def _unpack(words, n):
    """int32 (R, N / 8) to uint8 (N, R)."""
    nibbles = unpack_words(words, n, BITS).reshape(len(words), n // 8, 8)
    return np.ascontiguousarray(nibbles[..., np.argsort(ORDER)].reshape(len(words), n).T)


def _pack(u):
    """uint8 (N, R) to int32 (R, N / 8)."""
    n, rows = u.shape
    nibbles = u.T.reshape(rows, n // 8, 8)[..., ORDER].reshape(rows, n)
    return pack_words(nibbles, BITS, n // 8)
