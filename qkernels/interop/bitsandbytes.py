"""4-bit layers of bitsandbytes (Dettmers et al. 2023, QLoRA): NF4 and FP4, a scale for each block of weights."""

import math

import numpy as np

from .._arrays import as_numpy
from ..errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from ..formats import CodebookWeight
from ..formats.bits import pack_rows, unpack_rows
from ..formats.checks import checked_shape
from ..formats.coded import wrap
from ._codes import array, reals

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256


def from_bitsandbytes(
    weight,
    absmax,
    quant_map,
    shape,
    block_size=64,
    nested_absmax=None,
    nested_quant_map=None,
    nested_offset=0.0,
):
    """CodebookWeight (N, K): ``W[n, k] = quant_map[u[i]] * absmax[i // block_size]``, ``i = n * K + k`` (QuantState).

    Layout: code i of the flattened matrix is in byte i // 2, even i in the high nibble. With double quantization absmax
    is uint8 and stands for ``nested_quant_map[absmax[j]] * nested_absmax[j // 256] + nested_offset``, each operation
    rounded to float32.

    Exact. The codebook is the quant_map of the checkpoint, NF4 or FP4, in its order.

    Args:
        weight: uint8, N * K / 2 elements of any shape. absmax: floats (N * K / block_size,), or uint8.
        quant_map: floats (16,). shape: (N, K), K a multiple of block_size. block_size: 32 to 4096, a power of two.
        nested_absmax: floats (ceil(len(absmax) / 256),). nested_quant_map: floats (256,). nested_offset: a number.

    Raises:
        DTypeError, FormatError: arrays that contradict the layout.
        UnsupportedError: blocks that run over the ends of rows.
    """
    where = "interop.from_bitsandbytes"
    if (
        isinstance(block_size, bool)
        or not isinstance(block_size, int | np.integer)
        or block_size not in BLOCKS
    ):
        raise ArgumentError(
            f"{where}: block_size is {block_size!r}; accepted: {', '.join(map(str, BLOCKS))}."
        )
    n, k = size = checked_shape(where, shape if isinstance(shape, tuple | list) else as_tuple(where, shape))[
        :2
    ]
    if len(size) != 2 or k % block_size:
        raise UnsupportedError(
            f"{where}: shape is {shape!r} with block_size={block_size}; accepted: (N, K) with K a multiple of it, so "
            "that no block runs over the end of a row."
        )
    q = array(where, "weight", weight, ("uint8",)).reshape(-1)
    blocks = n * (k // block_size)
    if q.size * 2 != n * k:
        raise FormatError(f"{where}: weight has {q.size} bytes; shape {size} needs {n * k // 2}.")
    table = reals(where, "quant_map", quant_map, (16,))
    nested = str(getattr(absmax, "dtype", "")).removeprefix("torch.") == "uint8"
    if not nested:
        s = reals(where, "absmax", absmax, (blocks,))
    elif nested_absmax is None or nested_quant_map is None:
        raise DTypeError(
            f"{where}: absmax has dtype uint8 (double quantization); accepted with it: nested_absmax and "
            "nested_quant_map. Without: floats."
        )
    else:
        s = _nested(where, absmax, nested_absmax, nested_quant_map, nested_offset, blocks)
    high_first = (q >> 4 | q << 4).reshape(n, k // 2)
    codes = unpack_rows(high_first, k, 4)
    count = max(1, k // block_size)
    s = s.reshape(n, count) if k else np.ones((n, 1), np.float32)
    if (s < 0).any():
        i, j = np.argwhere(s < 0)[0]
        raise FormatError(f"{where}: absmax of row {i}, block {j} is {s[i, j]}; accepted: 0 or more.")
    packed, table, s = wrap(weight, codes, 4, table[None], s)
    return CodebookWeight(packed, table, s, 4, int(block_size), (n, k))


def to_bitsandbytes(w):
    """``{"weight", "absmax", "quant_map", "shape", "block_size"}``, as from_bitsandbytes takes them, absmax in float32.

    Args:
        w: CodebookWeight (N, K) of 4 bits with one table, in groups of a power of two from 32 to 4096 that divides K;
            or with a scale a row, where K is such a number.

    Raises:
        UnsupportedError: what the layout cannot hold: anything else, or an input_scale.
    """
    where = "interop.to_bitsandbytes"
    if not isinstance(w, CodebookWeight):
        raise DTypeError(f"{where}: w is a {type(w).__name__}; accepted: qkernels.CodebookWeight.")
    like, (n, k) = w.packed, w.matrix_shape
    size = w.group_size if w.is_grouped else k
    w = w.numpy()
    if len(w.shape) != 2 or w.bits != 4 or w.codebook.shape[0] != 1 or w.input_scale is not None:
        raise UnsupportedError(
            f"{where}: w has shape {w.shape}, {w.bits} bits, {w.codebook.shape[0]} tables and "
            f"{'an' if w.input_scale is not None else 'no'} input_scale; the layout holds matrices of 4 bits with one "
            "table and no input_scale."
        )
    if size not in BLOCKS or k % size:
        raise UnsupportedError(
            f"{where}: w has K = {k} in groups of {size}; the layout has blocks of {BLOCKS[0]} to {BLOCKS[-1]}, "
            "powers of two that divide K."
        )
    codes = unpack_rows(w.packed, k, 4)
    nibbles = pack_rows(codes, 4).reshape(-1, 1)
    absmax = np.broadcast_to(w.float_scale(), (n, k // size)).reshape(-1)
    packed, absmax, table = (
        wrap(like, codes[:0], 4, a)[1] for a in (nibbles >> 4 | nibbles << 4, absmax, w.codebook[0])
    )
    return {"weight": packed, "absmax": absmax, "quant_map": table, "shape": (n, k), "block_size": int(size)}


def as_tuple(where, shape):
    a = as_numpy(shape, where, "shape")
    if a.dtype.kind not in "iu" or a.ndim != 1:
        raise DTypeError(f"{where}: shape is {shape!r}; accepted: (N, K).")
    return tuple(a.tolist())


def _nested(where, absmax, nested_absmax, nested_quant_map, offset, blocks):
    codes = array(where, "absmax", absmax, ("uint8",), (blocks,))
    table = reals(where, "nested_quant_map", nested_quant_map, (NESTED_BLOCK,))
    outer = reals(where, "nested_absmax", nested_absmax, (-(-blocks // NESTED_BLOCK),))
    added = as_numpy(offset, where, "nested_offset")
    if added.size != 1 or added.dtype.kind not in "iuf" or not math.isfinite(added.reshape(()).item()):
        raise ArgumentError(f"{where}: nested_offset is {offset!r}; accepted: a finite number.")
    with np.errstate(over="ignore"):
        s = table[codes] * np.repeat(outer, NESTED_BLOCK)[:blocks] + np.float32(added.reshape(()).item())
    return reals(where, "absmax", s)
