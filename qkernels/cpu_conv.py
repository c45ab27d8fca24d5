"""Convolutions on the CPU: prepacked weights, and calls from checked arguments to the native kernels."""

import numpy as np

from . import _native
from ._arrays import is_torch
from .cpu import (
    ACTIVATIONS,
    FLOATS,
    address,
    dtype_name,
    float_vector,
    input_mode,
    int_vector,
    requant_arrays,
)
from .errors import ArgumentError
from .ops.conv import strides_of
from .reference.conv import input_scale
from .registry import ISAS, num_threads

DTYPES = {**FLOATS, "int8": 3, "uint8": 4, "int32": 5}  # DType numbers of csrc/common/types.h
ROWS, TAPS, DEPTHWISE = range(3)  # ConvKind of csrc/common/conv_layout.h
MOST_PLANS = 64  # a weight sees a few shapes; more is a leak


def kind_of(geometry):
    if geometry.depthwise:
        return DEPTHWISE
    one_run = geometry.groups == 1 and (geometry.dilation[1] == 1 or geometry.kernel[1] == 1)
    return ROWS if one_run else TAPS


def packed_conv_tensor(w, kind, groups):
    """The compute layout of a convolution weight (csrc/common/conv_layout.h) as a 64-byte aligned uint8 array."""
    w = w.numpy()
    n, per_group, kh, kw = w.shape
    codes, zero = w.codes().reshape(w.shape), w.zero_point
    args = kind, n, per_group, kh, kw, groups, zero is not None
    total, first, stride, segments, segment, padded = _native.conv_layout(*args)
    raw = np.empty(total + 64, np.uint8)
    block = raw[-raw.ctypes.data % 64 :][:total]
    block[:] = 0
    _native.conv_header(*args, address(block), total)
    order = (0, 3, 2, 1) if kind == DEPTHWISE else (0, 2, 3, 1)
    runs = np.zeros((n, segments, padded), np.int8)
    runs[:, :, :segment] = codes.transpose(order).reshape(n, segments, segment)
    step = 0 if w.scale.shape[0] == 1 else 1
    blocks = 1 if kind == DEPTHWISE else groups
    rows = n // blocks
    for g in range(blocks):
        part = slice(g * rows, (g + 1) * rows)
        scale = np.ascontiguousarray(w.scale[part] if step else w.scale)
        z = None if zero is None else np.ascontiguousarray(zero[part] if step else zero)
        own = np.ascontiguousarray(runs[part]).reshape(rows, segments * padded)
        to = block[first + g * stride :][:stride]
        _native.int8_prepack(
            address(own), *own.shape, address(scale), step, address(z), step, 0, address(to), stride
        )
    return block


def packed_conv(w, geometry):
    """The weight prepacked for a geometry, made once and kept with it."""
    kept = w.__dict__.setdefault("_conv", {})
    key = kind_of(geometry), geometry.groups
    if key not in kept:
        block = packed_conv_tensor(w, *key)
        kept[key] = _native.PackedConv(address(block), block.nbytes, block), block
    return kept[key][0]


def _readable(x):
    """x with channels or pixels side by side: itself, or a copy."""
    if is_torch(x):
        x = x.detach().resolve_neg()
    elif not x.flags.aligned or any(s % x.itemsize for s in x.strides):
        return np.ascontiguousarray(x)
    _, c, _, w = strides_of(x)
    if c == 1 or w == 1 or (x.shape[3] == 1 and x.shape[1] == 1):
        return x
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def _plan(r, x, mode, signed, scale, zero_point, activation=None, requant=None):
    """The native plan of a call, kept with the weight. It is found again by everything that it was made from."""
    kept = r.w.__dict__.setdefault("_conv_plans", {})
    strides, last, out_type = strides_of(x), r.channels_last, DTYPES[r.out_name]
    key = (
        *(
            r.geometry,
            r.isa,
            tuple(x.shape),
            strides,
            x.dtype,
            mode,
            signed,
            scale,
            zero_point,
            out_type,
            last,
        ),
        *(activation, None if requant is None else id(requant)),
    )
    plan = kept.get(key)
    if plan is None:
        if len(kept) >= MOST_PLANS:
            kept.clear()
        g = r.geometry
        b, _, height, width = x.shape
        numbers = (b, height, width, *r.shape[2:], *g.stride, *g.dilation, g.padding[0], g.padding[2])
        plan = kept[key] = _native.ConvPlan(
            packed_conv(r.w, g),
            ISAS[r.isa][0],
            numbers,
            DTYPES[dtype_name(x)],
            strides,
            mode,
            signed,
            scale,
            zero_point,
            out_type,
            not last,
            ACTIVATIONS[activation],
            requant,
        )
    return plan


def _run(r, plan, x, bias, scale=None):
    out = r.empty()
    row = plan.run(address(x), address(scale), address(bias), address(out), num_threads())
    if row >= 0:
        refuse_row(r.op, row, x.shape[2])
    return out


def refuse_row(op, row, height):
    raise ArgumentError(
        f"{op}: x has a value that is not finite in image {row // height}, row {row % height}; accepted: finite "
        "numbers. Find it with isfinite, or clamp x."
    )


def channel_scale(w, q, geometry):
    """float32 (C,) that x is divided by first, kept with the weight; None for none."""
    if getattr(w, "input_scale", None) is None:
        return None if q.granularity != "channel" else np.ascontiguousarray(q.scale)
    kept = w.__dict__.setdefault("_conv_scale", {})
    if geometry.groups not in kept:
        kept[geometry.groups] = input_scale(w.numpy(), q, geometry)
    return kept[geometry.groups]


def conv2d(r):
    """Registry entry of ``conv2d`` with integer activations: r is an ops.conv.ConvRequest."""
    q, x = r.options["input_quant"], _readable(r.x)
    mode = input_mode(q)
    scale = q.scale if mode == 2 else 1.0
    plan = _plan(r, x, mode, q.signed, scale, q.zero_point or 0, r.options["activation"])
    bias = None if r.bias is None else float_vector(r.bias)
    return _run(r, plan, x, bias, channel_scale(r.w, q, r.geometry))


def conv2d_int(r):
    x = _readable(r.x)
    return _run(r, _plan(r, x, 2, dtype_name(x) == "int8", 1.0, r.options["x_zero_point"]), x, None)


def conv2d_requant(r):
    x = _readable(r.x)
    requant = requant_arrays(r.options["requant"], r.w.shape[0], *r.options["limits"])
    plan = _plan(r, x, 2, dtype_name(x) == "int8", 1.0, r.options["x_zero_point"], None, requant)
    return _run(r, plan, x, None if r.bias is None else int_vector(r.bias))
