"""The CPU backend of the integer-only elementwise operations: from checked requests to csrc/cpu/integer.cpp.

Tensors keep their memory order: what is dense in any order of its dimensions (contiguous, channels_last, a transpose)
is read as it lies, and the result lies the same way. Anything else is copied first. Pooling works on NHWC memory.
"""

import functools
import math
import sys

import numpy as np

from . import _native, reference
from ._arrays import is_torch
from .cpu import address, dtype_name
from .integer_quant import average_requant
from .registry import ISAS, num_threads

CODE_TYPES = {"int8": 3, "uint8": 4, "int32": 5}  # DType numbers of csrc/common/types.h


def empty(like, shape, name):
    """An uninitialized array of the kind that ``like`` is."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, name))
    return np.empty(shape, name)


def permuted(x, order):
    return x.permute(order) if is_torch(x) else x.transpose(order)


def contiguous(x):
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def is_contiguous(x):
    return x.is_contiguous() if is_torch(x) else x.flags.c_contiguous


def memory_order(xs):
    """The order of dimensions in which every x is dense, that of the first if it is; else None."""
    if all(map(is_contiguous, xs)):
        return tuple(range(xs[0].ndim))
    first = xs[0]
    strides = first.stride() if is_torch(first) else first.strides
    order = tuple(sorted(range(first.ndim), key=lambda d: (-strides[d], first.shape[d] != 1, d)))
    return order if all(is_contiguous(permuted(x, order)) for x in xs) else None


def in_order(xs):
    """(order, xs permuted to it and contiguous)"""
    order = memory_order(xs)
    if order is None:
        order = tuple(range(xs[0].ndim))
    return order, [contiguous(permuted(x, order)) for x in xs]


def inverse(order):
    return tuple(int(i) for i in np.argsort(order))


@functools.lru_cache(maxsize=256)
def add_codes(p, a_signed, b_signed, out_signed, lo, hi):
    """The native form of an AddRequant: unsigned bytes in, a signed byte out, all zero points in one number."""
    za, zb = p.zero_point_a + 128 * a_signed, p.zero_point_b + 128 * b_signed
    offset = 0 if out_signed else 128
    half = (1 << p.shift) >> 1
    start = half + ((p.zero_point - offset) << p.shift) - za * p.multiplier_a - zb * p.multiplier_b
    return _native.AddCodes(
        *(p.multiplier_a, p.multiplier_b, start, p.shift, a_signed, b_signed, out_signed),
        *(lo - offset, hi - offset),
    )


def add_native(r):
    types = dtype_name(r.x), dtype_name(r.options["b"]), r.out_name
    return add_codes(r.options["requant"], *(t == "int8" for t in types), *r.options["limits"])


def add_requant(r):
    order, (a, b) = in_order([r.x, r.options["b"]])
    native = add_native(r)
    out = empty(a, a.shape, r.out_name)
    count = math.prod(a.shape)
    if count:
        _native.add_codes(ISAS[r.isa][0], address(a), address(b), count, native, address(out), num_threads())
    return permuted(out, inverse(order))


def table_bytes(table, dtype):
    """A table in the order of codes' values as 256 bytes in the order of their bits."""
    table = np.asarray(table)
    return np.roll(table, -128).tobytes() if np.dtype(dtype) == np.int8 else table.tobytes()


def lookup(r, table):
    order, (q,) = in_order([r.x])
    out = empty(q, q.shape, r.out_name)
    count = math.prod(q.shape)
    if count:
        _native.lookup_rows(
            *(ISAS[r.isa][0], address(q), 1, count, count, table, address(out), count, num_threads())
        )
    return permuted(out, inverse(order))


def lookup_int8(r):
    return lookup(r, table_bytes(r.options["table"], dtype_name(r.x)))


@functools.lru_cache(maxsize=256)
def gelu_table(dtype, zero_point, to_erf, requant, lo, hi, out_dtype):
    codes = np.arange(256) + np.iinfo(dtype).min
    table = reference.gelu_int(codes, zero_point, to_erf, requant, lo, hi)
    return table_bytes(table.astype(out_dtype), dtype)


def gelu_bytes(r):
    o = r.options
    return gelu_table(dtype_name(r.x), o["zero_point"], o["to_erf"], o["requant"], *o["limits"], r.out_name)


def gelu_int(r):
    return lookup(r, gelu_bytes(r))


def concat_tables(r):
    """For each input: its table of 256 bytes, or None where codes are copied."""
    o = r.options
    return [
        None if requant is None else _requant_table(dtype_name(x), zp, requant, *o["limits"], r.out_name)
        for x, zp, requant in zip(o["xs"], o["zero_points"], o["requants"])
    ]


def concat_requant(r):
    order, xs = in_order(r.options["xs"])
    at = order.index(r.options["axis"])
    outer = math.prod(xs[0].shape[:at])
    shape = list(xs[0].shape)
    shape[at] = sum(x.shape[at] for x in xs)
    out = empty(xs[0], tuple(shape), r.out_name)
    pitch, place = math.prod(shape[at:]), address(out)
    for x, table in zip(xs, concat_tables(r)):
        n = math.prod(x.shape[at:])
        if outer and n and table is None:
            _native.copy_rows(address(x), outer, n, n, place, pitch)
        elif outer and n:
            _native.lookup_rows(
                *(ISAS[r.isa][0], address(x), outer, n, n, table, place, pitch, num_threads())
            )
        place += n
    return permuted(out, inverse(order))


@functools.lru_cache(maxsize=1024)
def _requant_table(dtype, zero_point, requant, lo, hi, out_dtype):
    table = reference.requant_table(np.dtype(dtype), zero_point, requant, lo, hi)
    return table_bytes(table.astype(out_dtype), dtype)


# ---- pooling -----------------------------------------------------------------------------------------------

NARROW = 64  # values of a window whose mean needs 32 bits only
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


@functools.lru_cache(maxsize=1024)
def _sides(window):
    """For rows and columns: (start, count, place) as one array, and the distinct (count, divisor) that place means."""
    sides = []
    for start, count, divisor in (window.rows, window.columns):
        kinds = list(dict.fromkeys(zip(count.tolist(), divisor.tolist())))
        place = [kinds.index(kind) for kind in zip(count.tolist(), divisor.tolist())]
        sides.append((np.stack([start, count, np.array(place, np.int64)]), kinds))
    return sides


def max_pool_arguments(r):
    """(before the geometry, geometry) of the native call, without addresses of tensors and threads."""
    window = r.options["window"]
    n, c, h, w = r.x.shape
    (rows, _), (columns, _) = _sides(window)
    return (ISAS[r.isa][0], dtype_name(r.x) == "int8", n, c, h, w), (
        *(address(rows), rows.shape[1], window.dilation[0]),
        *(address(columns), columns.shape[1], window.dilation[1]),
    )


def run_pool(r, run, before, after):
    x = contiguous(permuted(r.x, TO_NHWC))
    out = empty(x, (x.shape[0], *r.options["window"].shape, x.shape[3]), r.out_name)
    if math.prod(out.shape):
        run(before[0], address(x), *before[1:], *after, address(out), num_threads())
    return permuted(out, TO_NCHW)


def max_pool2d_int(r):
    return run_pool(r, _native.max_pool_codes, *max_pool_arguments(r))


@functools.lru_cache(maxsize=1024)
def _averages(window, zero_point, ratio, out_zero_point, in_signed, out_signed, lo, hi):
    """(sum * multiplier + start) >> shift, from the sum of unsigned bytes to a signed one, for each kind of window.

    For the same scale multiplier = ceil(2**shift / D). With the padding counted in, sums are between 0 and 255 D, so
    the excess of the multiplier adds less than 255 D / 2**shift, which is at most 1 / (2 D) and cannot carry
    floor(sum / D + 1/2) over an integer: for D up to 64 with a shift of 22, where all of it fits int32,
    above with 30 + floor(log2 D).
    """
    (_, rows), (_, columns) = _sides(window)
    flip, offset = 128 * in_signed, 0 if out_signed else 128
    zero = zero_point + flip
    entries = []
    for count, divisor in ((a * b, c * d) for a, c in rows for b, d in columns):
        narrow = ratio is None and divisor <= NARROW
        if ratio is None:
            shift = 22 if narrow else 30 + divisor.bit_length() - 1
            multiplier = -(-(1 << shift) // divisor)
            padding, to_code = (divisor - count) * zero, -flip
        else:
            requant = average_requant(ratio, divisor, out_zero_point)
            multiplier, shift = int(requant.multiplier[0]), 31 + int(requant.shift[0])
            padding, to_code = -count * zero, out_zero_point
        start = padding * multiplier + ((1 << shift) >> 1) + ((to_code - offset) << shift)
        entries.append((multiplier, start, shift, narrow))
    return _native.Averages(entries, len(columns), in_signed, out_signed, lo - offset, hi - offset)


def avg_pool_arguments(r):
    """As max_pool_arguments."""
    o = r.options
    n, c, h, w = r.x.shape
    averages = _averages(
        *(o["window"], o["zero_point"], o["ratio"], o["output_zero_point"]),
        *(dtype_name(r.x) == "int8", r.out_name == "int8", *o["limits"]),
    )
    (rows, _), (columns, _) = _sides(o["window"])
    geometry = address(rows), rows.shape[1], address(columns), columns.shape[1], averages
    return (ISAS[r.isa][0], n, c, h, w), geometry


def avg_pool2d_int(r):
    return run_pool(r, _native.avg_pool_codes, *avg_pool_arguments(r))


# ---- I-BERT ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _exponentials(to_exponent):
    values = reference.exp_int(np.arange(256, dtype=np.int64), to_exponent).astype(np.uint32)
    multiplier, shift = int(to_exponent.multiplier[0]), 31 + int(to_exponent.shift[0])
    return _native.Exponentials(address(values), multiplier, shift)


def softmax_int(r):
    out = empty(r.x, (r.m, r.n), r.out_name)
    _native.softmax_codes(
        *(ISAS[r.isa][0], address(r.x2), CODE_TYPES[dtype_name(r.x)], r.m, r.n, r.pitch),
        *(_exponentials(r.options["to_exponent"]), address(out), r.out_name == "int8", num_threads()),
    )
    return out.reshape(*r.x.shape)


def norm_arguments(norm, out_signed, lo, hi):
    """What the native layer norm takes of a LayerNormInt: for uint8 everything 128 lower, and the result flipped."""
    offset = 0 if out_signed else 128
    if out_signed not in norm._native:
        bias = norm.bias - np.int32(offset << norm.shift)
        norm._native[out_signed] = (address(norm.weight), address(bias), norm.shift, norm.eps), bias
    return *norm._native[out_signed][0], out_signed, lo - offset, hi - offset


def layer_norm_int(r):
    out = empty(r.x, (r.m, r.n), r.out_name)
    norm = r.options["norm"]
    _native.layer_norm_codes(
        *(ISAS[r.isa][0], address(r.x2), CODE_TYPES[dtype_name(r.x)], r.m, r.n, r.pitch),
        *norm_arguments(norm, r.out_name == "int8", *r.options["limits"]),
        *(address(out), num_threads()),
    )
    return out.reshape(*r.x.shape)
