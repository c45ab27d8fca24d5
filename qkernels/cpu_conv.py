"""Convolutions on the CPU: prepacked weights, and calls from checked arguments to the native kernels."""

from types import SimpleNamespace

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
    prepacked,
    requant_arrays,
)
from .errors import ArgumentError
from .formats.base import check_integer
from .memory import aligned
from .ops.conv import strides_of
from .reference.conv import input_scale
from .registry import ISAS, num_threads

DTYPES = {**FLOATS, "int8": 3, "uint8": 4, "int32": 5}  # DType numbers of csrc/common/types.h
ROWS, TAPS, GATHERED, DEPTHWISE = range(4)  # ConvKind of csrc/common/conv_layout.h
HEADER_BYTES = _native.CONV_HEADER_BYTES
MOST_PLANS = 64  # a weight sees a few shapes; more is a leak


def kind_of(w, geometry):
    """How the weight is laid out for a geometry; csrc/common/conv_layout.h."""
    if w.is_grouped:
        return GATHERED
    if geometry.depthwise:
        return DEPTHWISE
    (_, kw), per_group = geometry.kernel, w.shape[1]
    side_by_side = geometry.groups == 1 and (geometry.dilation[1] == 1 or kw == 1)
    # packed codes of the padding are not zero, so the activations there must be
    return ROWS if side_by_side and (w.bits == 8 or kw * per_group % 4 == 0) else TAPS


def packed_conv_tensor(w, kind, groups):
    """The compute layout of a convolution weight (csrc/common/conv_layout.h) as a 64-byte aligned uint8 array."""
    check_integer("conv2d", w)
    w = w.numpy()
    n, per_group, kh, kw = w.shape
    codes = w.codes().reshape(w.shape)
    segment, order = {
        ROWS: (kw * per_group, (0, 2, 3, 1)),
        TAPS: (per_group, (0, 2, 3, 1)),
        GATHERED: (w.group_size, (0, 1, 2, 3)),
        DEPTHWISE: (kh, (0, 3, 2, 1)),
    }[kind]
    arrays = {"bits": w.bits, "scale": w.scale, "zero_point": w.zero_point}
    if kind == DEPTHWISE and w.bits < 8:  # few bytes, so they are kept as they are multiplied
        zero = 0 if w.zero_point is None else w.zero_point.reshape(-1, 1, 1, 1)
        codes, arrays["bits"], arrays["zero_point"] = (codes - zero).astype(np.int8), 8, None
    codes = codes.transpose(order).reshape(n, per_group * kh * kw)
    blocks = 1 if kind == DEPTHWISE else groups
    own = []
    for g in range(blocks):
        part = slice(g * (n // blocks), (g + 1) * (n // blocks))
        rows = {k: v[part] if np.ndim(v) and len(v) > 1 else v for k, v in arrays.items()}
        source = SimpleNamespace(**rows, is_grouped=w.is_grouped, input_scale=None)
        own.append(prepacked(source, codes[part], segment))
    stride = max((len(b) for b in own), default=0)
    total = HEADER_BYTES + blocks * stride
    block = aligned(total)
    block[:] = 0
    _native.conv_header(kind, n, per_group, kh, kw, groups, stride, address(block), total)
    for g, b in enumerate(own):
        block[HEADER_BYTES + g * stride :][: len(b)] = b
    return block


def packed_conv(w, geometry):
    """The weight prepacked for a geometry, made once and kept with it."""
    kept = w.__dict__.setdefault("_conv", {})
    key = kind_of(w, geometry), geometry.groups
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


def _plan(r, x, mode, bits, signed, scale, zero_point, activation=None, requant=None):
    """The native plan of a call, kept with the weight. It is found again by everything that it was made from."""
    kept = r.w.__dict__.setdefault("_conv_plans", {})
    strides = (0, 0, 0, 1) if 0 in x.shape else strides_of(x)  # those of nothing mean nothing
    last, out_type = r.channels_last, min(DTYPES[r.out_name], 3) if requant else DTYPES[r.out_name]
    key = (
        *(
            r.geometry,
            r.isa,
            tuple(x.shape),
            strides,
            x.dtype,
            mode,
            bits,
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
            bits,
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
    scale_at, bias_at = address(scale), address(bias)
    row = plan.run(address(x), scale_at, bias_at, address(out), num_threads())
    if x is r.x or (is_torch(x) and x.data_ptr() == r.x.data_ptr()):  # else x had to be copied
        r.done = plan.run, scale_at, bias_at, (plan, scale, bias)
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
        given = q is not None and q.granularity == "channel"
        return np.ascontiguousarray(q.scale) if given else None
    kept = w.__dict__.setdefault("_conv_scale", {})
    if geometry.groups not in kept:
        kept[geometry.groups] = input_scale(w.numpy(), q, geometry)
    return kept[geometry.groups]


def conv2d(r):
    """Registry entry of ``conv2d`` with integer activations: r is an ops.conv.ConvRequest."""
    q, x = r.options["input_quant"], _readable(r.x)
    mode = input_mode(q)
    scale = q.scale if mode == 2 else 1.0
    plan = _plan(r, x, mode, q.bits, q.signed, scale, q.zero_point or 0, r.options["activation"])
    bias = None if r.bias is None else float_vector(r.bias)
    return _run(r, plan, x, bias, channel_scale(r.w, q, r.geometry))


def conv2d_int(r):
    x = _readable(r.x)
    return _run(r, _plan(r, x, 2, 8, dtype_name(x) == "int8", 1.0, r.options["x_zero_point"]), x, None)


def conv2d_requant(r):
    x = _readable(r.x)
    requant = requant_arrays(r.options["requant"], r.w.shape[0], *r.options["limits"])
    plan = _plan(r, x, 2, 8, dtype_name(x) == "int8", 1.0, r.options["x_zero_point"], None, requant)
    return _run(r, plan, x, None if r.bias is None else int_vector(r.bias))
