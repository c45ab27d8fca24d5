"""Convolutions: check the arguments, pick a kernel, call it."""

import sys

import numpy as np

from .. import registry
from .._arrays import as_numpy, is_torch
from ..cpu import FLOATS, dtype_name
from ..errors import ArgumentError, DTypeError, UnsupportedError
from ..geometry import Geometry
from ..quant import InputQuant
from .binary import check_sign_conv
from .conv_calls import Empty, again, keep, key_of
from .plans import observed
from .request import (
    check_accumulator,
    check_activation,
    check_array,
    check_format,
    check_requant,
    check_vector,
    code_limits,
    name_of_dtype,
)

ALONG = "its input channels"  # how a convolution is split whose sums could overflow


class ConvRequest:
    """One checked convolution of images (B, C, H, W)."""

    def __init__(self, op, x, w, bias, geometry, out_name, backend, **options):
        self.op, self.x, self.w, self.bias, self.geometry = op, x, w, bias, geometry
        self.out_name, self.backend, self.options = out_name, backend, options
        b, _, height, width = x.shape
        self.shape = (b, geometry.out_channels, *geometry.out_size(op, height, width))
        self.isa = None  # of the kernel that was picked
        self.done = None  # how a CPU kernel has computed it: conv_calls.py

    @property
    def channels_last(self):
        """Whether the channels of x lie side by side; those of the result then do, too."""
        _, c, _, w = strides_of(self.x)
        return c == 1 and (w != 1 or self.x.shape[3] == 1 < self.x.shape[1])

    def empty(self):
        """An uninitialized result of the kind and memory order that x is."""
        return Empty(self)()


def strides_of(x):
    """In elements."""
    return tuple(x.stride()) if is_torch(x) else tuple(s // x.itemsize for s in x.strides)


def conv2d(
    x,
    w,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    activation=None,
    input_quant=None,
    out_dtype=None,
    backend=None,
    padding_mode="zeros",
):
    """Two-dimensional convolution with a compressed weight, NCHW as in torch.

    With an ``input_quant`` the products are summed in integers (thesis eq. 1.9, 3.11):

    ``y[b, o] = act(((float32(acc[b, o]) * w.scale[o]) * x_scale) + bias[o])``,
    ``acc = sum over i, r, s of (xq[b, i, Y, X] - x_zp) * (wq[o, i, r, s] - w_zp[o])``

    Exactness is that of ``linear``: acc is exact, each float32 operation rounds once, in this order. What padding adds
    is the real value 0, whatever the zero point. Kernels want channels side by side (torch.channels_last, or a
    transposed view in NumPy), which is taken without a copy and then also what the result is; NCHW costs a
    transposition.

    For inference: no gradient flows through the result.

    Args:
        x: (B, C, H, W) float32, bfloat16 or float16; torch CPU tensor or NumPy array, any strides.
        w: IntWeight (O, C / groups, kh, kw), any bits and groups of scales; BinaryWeight or TernaryWeight.
        bias: (O,) floats, used as float32; or None.
        stride, dilation: a number or (height, width).
        padding: a number, (height, width), (top, bottom, left, right), "valid" or "same" (stride 1).
        activation: None, "relu", "relu6", "gelu" or "silu".
        input_quant: InputQuant with granularity "tensor" (one scale for x, dynamic or static) or "channel" (one for
            each input channel: the weight's input_scale; with groups > 1 it may instead be ``InputQuant(scale=s)``,
            s (C,), for a weight without one, whose codes and scales are those of W * s); or None for float
            activations (weight-only; reference speed so far).
        out_dtype: float32, bfloat16 or float16; None is the dtype of x.
        backend: None (the fastest that takes the call), "cpu" or "reference"; a named one never falls back.
        padding_mode: "zeros"; with bits=1 also "alternating": +1 where row plus column of the padded image is even,
            else -1, so that every product is one of signs (thesis section 3.3.1).

    With InputQuant(bits=1, granularity="tensor") both sides are signs, x_scale is mean|x| (or static) and what padding
    with zeros adds is 0; w is a BinaryWeight or TernaryWeight, the activation may be a DPReLU.

    Returns:
        (B, O, H', W'), of the kind that x is.

    Raises:
        ArgumentError: shapes, devices or values outside of the above; x not finite where it is quantized.
        DTypeError: a dtype outside of the above.
        UnsupportedError: no kernel takes the call.
    """
    arguments = (
        *(bias, stride, padding, dilation, groups, activation, input_quant, out_dtype, backend),
        padding_mode,
    )
    if is_torch(x):
        torch = sys.modules["torch"]
        if torch.compiler.is_compiling() or observed(torch, x):
            from .. import _torch_conv

            return _torch_conv.conv2d(x, w, *arguments)
    return _call(conv2d_request, x, w, bias, arguments)


def _call(request_of, x, w, bias, arguments):
    """Compute, by the remembered way if there was a call like this."""
    options = arguments if bias is None else [a for a in arguments if a is not bias]
    key = key_of(x, request_of, *options)
    y = again(key, x, w, bias)
    if y is None:
        r = request_of(x, w, *arguments)
        y = registry.pick(r).run(r)
        keep(key, r)
    return y


def conv2d_request(
    x,
    w,
    bias=None,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    activation=None,
    input_quant=None,
    out_dtype=None,
    backend=None,
    padding_mode="zeros",
):
    op = "conv2d"
    geometry = check_images(op, "x", x, tuple(FLOATS), w, stride, padding, dilation, groups)
    signs = isinstance(input_quant, InputQuant) and input_quant.bits == 1
    if signs:
        check_sign_conv(op, x, w, bias, activation, input_quant, padding_mode)
    else:
        check_vector(op, "bias", bias, w.shape[0], (*FLOATS, "float64"))
        check_activation(op, activation)
    if padding_mode != "zeros" and not signs:
        raise ArgumentError(
            f"{op}: padding_mode is {padding_mode!r}; accepted: 'zeros' ('alternating' with InputQuant(bits=1))."
        )
    if input_quant is not None and not signs:
        check_conv_quant(op, w, input_quant, geometry)
        check_accumulator(op, w, *input_quant.limits, input_quant.zero_point or 0, along=ALONG)
    name = name_of_dtype(
        op, out_dtype, dtype_name(x), tuple(FLOATS) if is_torch(x) else ("float32", "float16")
    )
    zeros = padding_mode == "zeros"
    return ConvRequest(
        op, x, w, bias, geometry, name, backend, activation=activation, input_quant=input_quant, zeros=zeros
    )


def conv2d_int(xq, w, x_zero_point=0, stride=1, padding=0, dilation=1, groups=1, backend=None):
    """``acc[b, o] = sum over i, r, s of (xq[b, i, Y, X] - x_zero_point) * (wq[o, i, r, s] - w_zp[o])``, exact.

    Args:
        xq: (B, C, H, W) int8 or uint8 codes; padding counts as x_zero_point. Others as conv2d.
        x_zero_point: the code of 0, within the dtype of xq.

    Returns:
        int32 (B, O, H', W').

    Raises:
        ArgumentError, DTypeError: as conv2d; sums that could leave int32.
    """
    arguments = x_zero_point, stride, padding, dilation, groups, backend
    return _call(conv2d_int_request, xq, w, None, arguments)


def conv2d_int_request(xq, w, x_zero_point=0, stride=1, padding=0, dilation=1, groups=1, backend=None):
    op = "conv2d_int"
    geometry, zero_point = check_codes(op, xq, w, x_zero_point, None, stride, padding, dilation, groups)
    return ConvRequest(op, xq, w, None, geometry, "int32", backend, x_zero_point=zero_point)


def conv2d_requant(
    xq,
    w,
    requant,
    bias=None,
    x_zero_point=0,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    activation=None,
    out_dtype=None,
    backend=None,
):
    """Integers only: ``clip(requantize(acc + bias))`` with acc of ``conv2d_int`` (thesis 1.4.2). Exact.

    Args:
        xq: (B, C, H, W) int8 or uint8 codes; channels side by side are fastest.
        requant: Requant, for the tensor or per output channel; the scale of w is part of it.
        bias: (O,) int32, in units of the accumulator; or None.
        activation: None, "relu" (clamps at the zero point) or "relu6" (needs requant.output_scale).
        out_dtype: int8 (None) or uint8.

    Returns:
        int8 or uint8 (B, O, H', W').

    Raises:
        ArgumentError, DTypeError: as conv2d_int; a Requant whose length is not O; a zero point that out_dtype lacks.
    """
    arguments = (
        *(requant, bias, x_zero_point, stride, padding, dilation, groups, activation, out_dtype),
        backend,
    )
    return _call(conv2d_requant_request, xq, w, bias, arguments)


def conv2d_requant_request(
    xq,
    w,
    requant,
    bias=None,
    x_zero_point=0,
    stride=1,
    padding=0,
    dilation=1,
    groups=1,
    activation=None,
    out_dtype=None,
    backend=None,
):
    op = "conv2d_requant"
    geometry, zero_point = check_codes(op, xq, w, x_zero_point, bias, stride, padding, dilation, groups)
    name = name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = check_requant(op, requant, w.shape[0]).limits(activation, np.dtype(name))
    return ConvRequest(
        op, xq, w, bias, geometry, name, backend, x_zero_point=zero_point, requant=requant, limits=limits
    )


# ---- checks ----------------------------------------------------------------------------------------------


def check_images(op, name, x, dtypes, w, stride, padding, dilation, groups):
    check_array(op, name, x, dtypes)
    check_format(op, w)
    geometry = Geometry.of(op, w.shape, stride, padding, dilation, groups)
    if x.ndim != 4 or x.shape[1] != geometry.channels:
        raise ArgumentError(
            f"{op}: {name} has shape {tuple(x.shape)}, w has shape {tuple(w.shape)} (O, I, kh, kw) and groups is "
            f"{geometry.groups}; {name} must be (B, {geometry.channels}, H, W)."
        )
    return geometry


def check_codes(op, xq, w, x_zero_point, bias, stride, padding, dilation, groups):
    geometry = check_images(op, "xq", xq, ("int8", "uint8"), w, stride, padding, dilation, groups)
    lo, hi, zero_point = code_limits(op, xq, w, x_zero_point, "conv2d")
    check_vector(op, "bias", bias, w.shape[0], ("int32",))
    check_accumulator(op, w, lo, hi, zero_point, bias, ALONG)
    return geometry, zero_point


def check_conv_quant(op, w, q, geometry):
    if not isinstance(q, InputQuant):
        raise DTypeError(f"{op}: input_quant is a {type(q).__name__}; accepted: qkernels.InputQuant or None.")
    if q.power is not None:
        raise UnsupportedError(
            f"{op}: input_quant has power={q.power}; accepted: power=None. Power codes of activations are for linear."
        )
    if q.granularity == "token":
        raise ArgumentError(
            f"{op}: input_quant has granularity 'token', one scale for each row of x, and an output sums over many "
            "pixels; accepted: InputQuant(granularity='tensor') or 'channel'."
        )
    if getattr(w, "input_scale", None) is None:
        if q.granularity == "channel":
            if geometry.groups == 1:
                q.weight_scale(op, None)
            q.channel_scale(op, None, geometry.channels)
        return
    if q.granularity == "channel" and q.scale is not None:
        s = np.tile(as_numpy(w.input_scale, op, "w.input_scale"), geometry.groups)
        q.channel_scale(op, s, geometry.channels)
