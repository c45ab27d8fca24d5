"""The two-dimensional convolution of codes, NCHW in and out."""

from dataclasses import replace

import numpy as np

from .linear import _finish, grouped_sum
from .quantize import quantize_activations
from .requantize import requantize


def conv2d_int(xq, codes, geometry, x_zero_point=0, w_zero_point=None):
    """``acc[b, o, y, x] = sum over i, r, s of (xq[b, g * I + i, Y, X] - x_zp) * (codes[o, i, r, s] - w_zp[o])``, exact,

    with ``Y = y * stride - top + r * dilation``, X likewise, and ``g = o // (O / groups)`` the group of o. What lies
    outside of the image counts as x_zero_point, so it adds nothing.

    Args:
        xq: int8 or uint8 (B, C, H, W). codes: int8 (O, I, kh, kw). w_zero_point: int16 (O, 1) or (1, 1), or None.

    Returns:
        int32 (B, O, H', W'). Sums stay below 2**31: float64 holds them exactly.
    """
    w = codes.reshape(len(codes), int(np.prod(codes.shape[1:]))).astype(np.float64)
    w = w - (0 if w_zero_point is None else w_zero_point)
    return _conv(xq.astype(np.float64) - x_zero_point, w, geometry).astype(np.int32)


def conv2d(x, w, iq, geometry, bias=None, activation=None):
    """Quantize x, convolve exactly, scale:

    ``y[b, o] = act(((float32(acc[b, o]) * w.scale[o]) * x_scale) + bias[o])``

    each operation rounded to float32, as in linear_int. With granularity "tensor" x_scale is that of the whole x; with
    "channel" it is 1 and input channel c is quantized by its own scale, which the codes of the weight have folded in
    (thesis eq. 3.10-3.11).

    Args:
        x: float32 (B, C, H, W). w: IntWeight of shape (O, I, kh, kw) with NumPy fields. iq: InputQuant.
        bias: float32 (O,) or None.

    Returns:
        float32 (B, O, H', W').
    """
    xq, x_scale = quantize_image(x, iq, input_scale(w, iq, geometry))
    with np.errstate(over="ignore"):
        if w.is_grouped:
            y = _grouped(xq, w, geometry, iq.zero_point or 0)
        else:
            acc = conv2d_int(xq, w.codes().reshape(w.shape), geometry, iq.zero_point or 0, w.zero_point)
            y = acc.astype(np.float32) * w.scale.reshape(-1, 1, 1)
        y = y if iq.granularity == "channel" else y * x_scale
        return _finish(y, None if bias is None else bias.reshape(-1, 1, 1), activation, np.float32)


def _grouped(xq, w, geometry, x_zero_point):
    """The sum of linear.grouped_sum for every pixel: float32 (B, O, H', W')."""
    columns, out_size = _unfold(xq.astype(np.float64) - x_zero_point, geometry)
    n = w.shape[0] // geometry.groups
    y = np.zeros((len(xq), w.shape[0], columns.shape[-1]), np.float32)
    for b, g in np.ndindex(len(xq), geometry.groups):
        rows = slice(g * n, (g + 1) * n)
        part = replace(
            w,
            packed=w.packed[rows],
            scale=w.scale[rows],
            zero_point=None if w.zero_point is None else w.zero_point[rows],
            shape=(n, w.matrix_shape[1]),
            input_scale=None,
        )
        y[b, rows] = grouped_sum(columns[b, g].T, part).T
    return y.reshape(len(xq), w.shape[0], *out_size)


def conv2d_float(x, w, geometry, bias=None, activation=None):
    """Weight-only: the convolution of x with ``w.dense()``, summed in float64 and rounded to float32 once; bias and
    activation follow in float32."""
    dense = w.dense().reshape(w.shape[0], int(np.prod(w.shape[1:]))).astype(np.float64)
    with np.errstate(over="ignore"):
        y = _conv(x.astype(np.float64), dense, geometry).astype(np.float32)
        return _finish(y, None if bias is None else bias.reshape(-1, 1, 1), activation, np.float32)


def conv2d_requant(xq, codes, geometry, requant, lo, hi, bias=None, x_zero_point=0, w_zero_point=None):
    """Integers only: ``requantize(acc + bias)`` per output channel, clamped to lo..hi: int64 (B, O, H', W')."""
    acc = conv2d_int(xq, codes, geometry, x_zero_point, w_zero_point)
    acc = acc if bias is None else acc + bias.reshape(-1, 1, 1)
    return np.moveaxis(requantize(np.moveaxis(acc, 1, -1), requant, lo, hi), -1, 1)


def quantize_image(x, iq, scale=None):
    """quantize_activations of (B, C, H, W): codes, and scale () or (C,). ``scale``: (C,) of granularity "channel"."""
    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
    if iq.granularity == "tensor" and scale is not None:
        rows = rows * (np.float32(1) / scale)
    codes, s = quantize_activations(rows, iq, scale if iq.granularity == "channel" else None)
    b, c, h, w = x.shape
    return np.moveaxis(codes.reshape(b, h, w, c), -1, 1), s.reshape(-1) if s.size > 1 else s.reshape(())


def input_scale(w, iq, geometry):
    """float32 (C,): by what each input channel is divided before it is quantized; None if all by one scale."""
    if w.input_scale is not None:
        return np.tile(w.input_scale, geometry.groups)
    return iq.scale if iq is not None and iq.granularity == "channel" else None


def _conv(x, w, geometry):
    """float64 (B, C, H, W) and (O, I * kh * kw) to (B, O, H', W'): a matrix product per group of unfolded windows."""
    columns, out_size = _unfold(x, geometry)
    g, (n, k) = geometry.groups, w.shape
    return (w.reshape(g, n // g, k) @ columns).reshape(len(x), n, *out_size)


def _unfold(x, geometry):
    """(B, C, H, W) to (B, groups, I * kh * kw, H' * W'), K in the order (i, r, s), zeros outside; and (H', W')."""
    b, c, height, width = x.shape
    top, bottom, left, right = geometry.padding
    out_h, out_w = geometry.out_size("conv2d", height, width)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel, geometry.stride, geometry.dilation
    windows = [
        x[:, :, r * dh : r * dh + (out_h - 1) * sh + 1 : sh, s * dw : s * dw + (out_w - 1) * sw + 1 : sw]
        for r in range(kh)
        for s in range(kw)
    ]
    g, k = geometry.groups, c // geometry.groups * kh * kw
    return np.stack(windows, 2).reshape(b, g, k, out_h * out_w), (out_h, out_w)
