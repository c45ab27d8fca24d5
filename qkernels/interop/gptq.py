"""GPTQ checkpoints (Frantar et al. 2022), as AutoGPTQ and GPTQModel store a linear layer."""

import numpy as np

from .._arrays import as_kind
from ..errors import ArgumentError, FormatError, UnsupportedError
from ._codes import (
    Parts,
    array,
    checked_bits,
    checked_group,
    group_count,
    pack_words,
    reals,
    unpack_words,
    weight_of,
)

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


def words(count, bits):
    """int32 words of ``count`` codes: 3-bit codes come 32 to three words."""
    return -(-count // 32) * 3 if bits == 3 else -(-count * bits // 32)


def from_gptq(
    qweight, qzeros, scales, g_idx=None, bits=4, group_size=128, checkpoint_format="gptq", in_features=None
):
    """IntWeight (N, K) of a GPTQ layer: ``W[n, k] = scales[g, n] * (u[n, k] - zero[g, n])``, ``g = k // group_size``.

    Layout: columns of ``qweight`` and rows of ``qzeros`` are bitstreams of unsigned codes, least significant first, in
    32-bit words (AutoGPTQ's QuantLinear.pack). "gptq" stores zero - 1, modulo 2**bits; "gptq_v2" stores zero.

    Exact; scales become float32. Groups of 8-bit codes with zero points other than 128 get an ``offset`` instead,
    -scale * (zero - 128) rounded to float32, and are weight-only. A negative scale turns its codes over.

    Args:
        qweight: int32 (words of K, N). qzeros: int32 (G, words of N). scales: float16, bfloat16 or float32 (G, N).
        g_idx: integers (K,), the group of each input; None: k // group_size.
        bits: 2, 3, 4 or 8. group_size: of the checkpoint's configuration; None or -1 for whole rows.
        checkpoint_format: "gptq" or "gptq_v2", as in the configuration.
        in_features: K, where it does not fill the last word; None: len(g_idx), or all codes.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout.
        UnsupportedError: other bits; a g_idx in another order (desc_act): use from_gptq_act_order.
    """
    where = "interop.from_gptq"
    w, order = _read(where, qweight, qzeros, scales, g_idx, bits, group_size, checkpoint_format, in_features)
    if order is not None:
        raise UnsupportedError(
            f"{where}: g_idx is not k // group_size (desc_act, act-order), so groups are not contiguous; accepted "
            "here: contiguous groups. Use from_gptq_act_order, which gives the weight and the order of its columns."
        )
    return w


def from_gptq_act_order(
    qweight, qzeros, scales, g_idx, bits=4, group_size=128, checkpoint_format="gptq", in_features=None
):
    """A GPTQ layer whose groups are scattered over the inputs (desc_act) as ``(w, perm)``.

    ``y = linear(x[..., perm], w)``: the columns of w are those of the layer in the order perm = stable argsort(g_idx),
    in which groups are contiguous. Where the layer before is free to, reorder its outputs instead. Otherwise as
    from_gptq.

    Returns:
        IntWeight (N, K), and int64 (K,) of the kind that qweight is.

    Raises:
        UnsupportedError: groups, in that order, of other sizes than group_size.
    """
    where = "interop.from_gptq_act_order"
    w, perm = _read(where, qweight, qzeros, scales, g_idx, bits, group_size, checkpoint_format, in_features)
    return w, as_kind(np.arange(w.shape[1]) if perm is None else perm, qweight)


def _read(where, qweight, qzeros, scales, g_idx, bits, group_size, checkpoint_format, in_features):
    bits, size = checked_bits(where, bits, BITS), checked_group(where, group_size)
    minus = _minus(where, checkpoint_format)
    q = array(where, "qweight", qweight, ("int32",), (None, None))
    n, most = q.shape[1], q.shape[0] * 32 // bits
    k = most if in_features is None else in_features
    if g_idx is not None:
        g = array(where, "g_idx", g_idx, ("int32", "int64"), (None,)).astype(np.int64)
        k = len(g) if in_features is None else in_features
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0 or words(k, bits) != len(q):
        raise FormatError(
            f"{where}: K is {k!r} (in_features, or the length of g_idx); qweight has {len(q)} words a column, which is "
            f"K = {most}, or a little less."
        )
    count = group_count(k, size)
    perm = None
    if g_idx is not None:
        if len(g) != k or (k and (g.min() < 0 or g.max() >= count)):
            raise FormatError(
                f"{where}: g_idx has shape {g.shape} and values {g.min(initial=0)}..{g.max(initial=0)}; accepted: "
                f"({k},), 0..{count - 1} with group_size={group_size}."
            )
        contiguous = np.zeros(k, np.int64) if size is None else np.arange(k) // size
        if not np.array_equal(g, contiguous):
            perm = np.argsort(g, kind="stable")
            if not np.array_equal(g[perm], contiguous):
                raise UnsupportedError(
                    f"{where}: g_idx gives its groups {np.bincount(g, minlength=count).tolist()[:8]} ... inputs; "
                    f"accepted: {size} each (the last may be short)."
                )
    s = reals(where, "scales", scales, (count, n)).T
    z = array(where, "qzeros", qzeros, ("int32",), (count, words(n, bits)))
    zero = (unpack_words(z, n, bits).astype(np.int16).T + minus) & (2**bits - 1)
    u = unpack_words(np.ascontiguousarray(q.T), k, bits)
    return weight_of(where, qweight, u if perm is None else u[:, perm], s, zero, bits, size), perm


def to_gptq(w, checkpoint_format="gptq", perm=None, round_scale=False):
    """The arrays of a GPTQ layer: ``{"qweight", "qzeros", "scales", "g_idx"}``, as from_gptq takes them.

    Args:
        w: IntWeight (N, K) of 2, 3, 4 or 8 bits, its zero points in -2**(bits - 1)..2**(bits - 1) - 1.
        checkpoint_format: "gptq" (a zero of 0 wraps to 2**bits - 1) or "gptq_v2".
        perm: (K,) as from_gptq_act_order gave it: column j of w is input perm[j].
        round_scale: scales are float16 in the layout; True rounds those that are not.

    Raises:
        UnsupportedError: what the layout cannot hold: other bits, an input_scale, an offset that is no zero point,
            scales that float16 changes.
    """
    where = "interop.to_gptq"
    minus, p = _minus(where, checkpoint_format), Parts(where, w, BITS)
    n, k = p.shape
    u, zero = p.u, p.zero_points()
    g = np.zeros(k, np.int32) if p.group_size is None else (np.arange(k) // p.group_size).astype(np.int32)
    if perm is not None:
        order = array(where, "perm", perm, ("int32", "int64"), (k,))
        if not np.array_equal(np.sort(order), np.arange(k)):
            raise ArgumentError(f"{where}: perm is no permutation of 0..{k - 1}.")
        back = np.argsort(order)
        u, g = u[:, back], g[back]
    stored = (zero.astype(np.int16) - minus & (2**p.bits - 1)).astype(np.uint8)
    arrays = {
        "qweight": pack_words(u, p.bits, words(k, p.bits)).T,
        "qzeros": pack_words(np.ascontiguousarray(stored.T), p.bits, words(n, p.bits)),
        "scales": p.half("scale", p.scale, round_scale).T,
        "g_idx": g,
    }
    return {name: p.out(a) for name, a in arrays.items()}


def _minus(where, checkpoint_format):
    if not isinstance(checkpoint_format, str) or checkpoint_format not in FORMATS:
        raise ArgumentError(
            f"{where}: checkpoint_format is {checkpoint_format!r}; accepted: {', '.join(map(repr, FORMATS))}."
        )
    return 1 if checkpoint_format == "gptq" else 0
