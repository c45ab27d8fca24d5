"""Layers of compressed-tensors checkpoints (llm-compressor, vLLM): formats pack-quantized and int-quantized."""

import sys

import numpy as np

from .._arrays import as_numpy, is_torch
from ..errors import ArgumentError, FormatError, UnsupportedError
from ..formats.bits import to_unsigned
from ._codes import (
    FLOATS,
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

BITS = tuple(range(2, 9))


def from_pack_quantized(
    weight_packed, weight_scale, weight_shape=None, weight_zero_point=None, bits=4, group_size=None
):
    """IntWeight (N, K): ``W[n, k] = scale[n, g] * (code[n, k] - zero_point[n, g])`` (PackedQuantizationCompressor).

    Layout: rows of ``weight_packed`` are bitstreams of code + 2**(bits - 1), least significant first, in int32 words;
    columns of ``weight_zero_point`` are bitstreams of zero_point + 2**(bits - 1).

    Exact; scales become float32. Zero points of 8-bit groups become the ``offset`` -scale * zero_point, rounded to
    float32: such a weight is weight-only. A negative scale turns its codes over.

    Args:
        weight_packed: int32 (N, ceil(K * bits / 32)). weight_scale: floats (N, G), (N, 1), or (1,) of a tensor.
        weight_shape: integers (2,), N and K; None: K fills the words.
        weight_zero_point: int32 (ceil(N * bits / 32), G); int8 shaped like weight_scale; or None, all 0.
        bits: 2 to 8. group_size: of the configuration; None or -1 per channel or tensor.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout. UnsupportedError: other bits.
    """
    where = "interop.from_pack_quantized"
    bits, size = checked_bits(where, bits, BITS), checked_group(where, group_size)
    q = array(where, "weight_packed", weight_packed, ("int32",), (None, None))
    n, k = len(q), q.shape[1] * 32 // bits
    if weight_shape is not None:
        shape = as_numpy(weight_shape, where, "weight_shape")
        if shape.dtype.kind not in "iu" or shape.shape != (2,):
            raise FormatError(f"{where}: weight_shape is {shape}; accepted: two integers, N and K.")
        shape = shape.tolist()
        k = shape[1]
        if shape[0] != n or k < 0 or -(-k * bits // 32) != q.shape[1]:
            raise FormatError(
                f"{where}: weight_shape is {shape}, weight_packed has shape {q.shape}; with {bits} bits that must be "
                f"({shape[0]}, {-(-k * bits // 32)})."
            )
    u = unpack_words(q, k, bits)
    s = _scale(where, weight_scale, n, group_count(k, size))
    zero = 2 ** (bits - 1)
    if weight_zero_point is not None:
        if str(getattr(weight_zero_point, "dtype", "")).removeprefix("torch.") == "int8":
            zero = zero + _zero_point(where, weight_zero_point, s.shape, bits)
        else:
            words = -(-n * bits // 32)
            z = array(where, "weight_zero_point", weight_zero_point, ("int32", "int8"), (words, s.shape[1]))
            zero = unpack_words(np.ascontiguousarray(z.T), n, bits).T.astype(np.int16)
    return weight_of(where, weight_packed, u, s, zero, bits, size)


def from_int_quantized(weight, weight_scale, weight_zero_point=None, group_size=None):
    """IntWeight (N, K) of 8 bits: ``W[n, k] = scale[n, g] * (weight[n, k] - zero_point[n, g])``
    (IntQuantizationCompressor). What from_pack_quantized says of 8 bits holds.

    Args:
        weight: int8 (N, K). weight_scale: floats (N, G), (N, 1), or (1,) of a tensor. weight_zero_point: int8 shaped
            like weight_scale, or None. group_size: of the configuration; None or -1 per channel or tensor.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout.
    """
    where = "interop.from_int_quantized"
    size = checked_group(where, group_size)
    q = array(where, "weight", weight, ("int8",), (None, None))
    s = _scale(where, weight_scale, len(q), group_count(q.shape[1], size))
    zero = 128
    if weight_zero_point is not None:
        zero = zero + _zero_point(where, weight_zero_point, s.shape, 8)
    return weight_of(where, weight, to_unsigned(q, 8) ^ np.uint8(128), s, zero, 8, size)


def to_pack_quantized(w, scale_dtype="float32"):
    """``{"weight_packed", "weight_scale", "weight_shape"}`` and, of an asymmetric weight, ``"weight_zero_point"``.

    Args:
        w: IntWeight (N, K), its zero points in -2**(bits - 1)..2**(bits - 1) - 1. One scale for all becomes one a
            channel.
        scale_dtype: "float32", "float16", or of torch weights "bfloat16"; it must hold the scales exactly.

    Raises:
        UnsupportedError: what the layout cannot hold: an input_scale, an offset that is no zero point, other zero
            points, scales that scale_dtype changes.
    """
    p = Parts("interop.to_pack_quantized", w, BITS)
    (n, k), half = p.shape, 2 ** (p.bits - 1)
    out = {
        "weight_packed": p.out(pack_words(p.u, p.bits, -(-k * p.bits // 32))),
        "weight_scale": _cast(p, scale_dtype),
        "weight_shape": p.out(np.array([n, k], np.int64)),
    }
    zero = p.zero_points()
    if (zero != half).any():
        words = pack_words(np.ascontiguousarray(zero.T), p.bits, -(-n * p.bits // 32))
        out["weight_zero_point"] = p.out(words.T)
    return out


def to_int_quantized(w, scale_dtype="float32"):
    """``{"weight", "weight_scale"}`` of an 8-bit IntWeight and, of an asymmetric one, ``"weight_zero_point"``; as
    to_pack_quantized otherwise."""
    p = Parts("interop.to_int_quantized", w, (8,))
    zero, flip = p.zero_points(), np.uint8(128)
    out = {"weight": p.out((p.u ^ flip).view(np.int8)), "weight_scale": _cast(p, scale_dtype)}
    if (zero != 128).any():
        out["weight_zero_point"] = p.out((zero ^ flip).view(np.int8))
    return out


def _scale(where, scale, n, count):
    """float32 (N, G) of (N, G), (N,) or one number."""
    s = reals(where, "weight_scale", scale)
    if s.size == 1 and count == 1:
        return np.full((n, 1), s.reshape(()), np.float32)
    s = s[:, None] if s.ndim == 1 else s
    if s.shape != (n, count):
        raise FormatError(
            f"{where}: weight_scale has shape {s.shape}; accepted: ({n}, {count}), one for each group of each row."
        )
    return s


def _zero_point(where, x, shape, bits):
    """int16, shaped like the scales, or one."""
    z = array(where, "weight_zero_point", x, ("int8",)).astype(np.int16)
    z = z[:, None] if z.ndim == 1 and z.size != 1 else z
    half = 2 ** (bits - 1)
    if z.size and (z.min() < -half or z.max() >= half):
        raise FormatError(
            f"{where}: weight_zero_point spans {z.min()}..{z.max()}; accepted with {bits} bits: {-half}..{half - 1}."
        )
    if z.size != 1 and z.shape != shape:
        raise FormatError(
            f"{where}: weight_zero_point has shape {z.shape}; accepted: {shape}, like weight_scale."
        )
    return z.reshape(()) if z.size == 1 else z


def _cast(p, dtype):
    if not isinstance(dtype, str) or dtype not in FLOATS or (dtype == "bfloat16" and not is_torch(p.like)):
        raise ArgumentError(
            f"{p.where}: scale_dtype is {dtype!r}; accepted: 'float32', 'float16', and of torch weights 'bfloat16'."
        )
    if dtype == "float32":
        return p.out(p.scale)
    if dtype == "float16":
        return p.out(p.half("scale", p.scale, False))
    exact = (p.scale.view(np.uint32) & 0xFFFF) == 0
    if not exact.all():
        i, j = np.argwhere(~exact)[0]
        raise UnsupportedError(
            f"{p.where}: scale[{i}, {j}] is {p.scale[i, j]!r}, which bfloat16 would change; accepted: "
            "scale_dtype='float32'."
        )
    return p.out(p.scale).to(sys.modules["torch"].bfloat16)
