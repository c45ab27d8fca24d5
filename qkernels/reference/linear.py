"""The matrix product of activations (M, K) with a weight (N, K), in its integer and float forms."""

import numpy as np

from .activation import apply_activation
from .quantize import quantize_activations
from .requantize import requantize


def matmul_int(xq, codes, x_zero_point=0, w_zero_point=None):
    """``acc[m, n] = sum_k (xq[m, k] - x_zero_point) * (codes[n, k] - w_zero_point[n])``, exact.

    Args:
        xq: int8 or uint8 (M, K). codes: int8 (N, K). w_zero_point: int16 (N, 1) or (1, 1), or None.

    Returns:
        int32 (M, N). Sums stay below 2**31 (checked when the weight is built): float64 holds them exactly.
    """
    w = codes.astype(np.float64) - (0 if w_zero_point is None else w_zero_point)
    return ((xq.astype(np.float64) - x_zero_point) @ w.T).astype(np.int32)


def linear_int(x, w, iq, bias=None, activation=None, out_dtype=np.float32):
    """Quantize x, multiply exactly, scale:

    ``y[m, n] = act(((float32(acc[m, n]) * w.scale[n]) * x_scale[m]) + bias[n])``

    each operation rounded to float32, no fused multiply-add. Group-wise scales take the place of the first product:
    grouped_sum. Where the weight has an input_scale s, its codes
    are those of W * diag(s), and x * (1 / s) is what is quantized. With granularity "channel" that is already
    all of the scale (SPIQ, thesis eq. 3.11), and x_scale is 1; the others scale what is left per token or
    tensor (the smoothing of Xiao et al. 2022).

    Args:
        x: float32 (M, K). w: IntWeight with NumPy fields. iq: InputQuant. bias: float32 (N,) or None.

    Returns:
        out_dtype (M, N).
    """
    if iq.granularity == "channel":
        iq.weight_scale("linear", w.input_scale)
    elif w.input_scale is not None:
        with np.errstate(over="ignore"):
            x = x * (np.float32(1) / w.input_scale)
    xq, x_scale = quantize_activations(x, iq, w.input_scale)
    with np.errstate(over="ignore"):
        if getattr(w, "is_grouped", False):
            y = grouped_sum(xq, w, iq.zero_point or 0)
        else:
            y = matmul_int(xq, w.codes(), iq.zero_point or 0, w.zero_point).astype(np.float32) * w.scale.T
        y = y if iq.granularity == "channel" else y * x_scale
        return _finish(y, bias, activation, out_dtype)


def grouped_sum(xq, w, x_zero_point=0):
    """``sum over groups g of scale[n, g] * float32(acc_g[m, n])``, one fused multiply-add a group, in their order.

    acc_g is the exact integer sum of the group's products. float32 (M, N).
    """
    y = np.zeros((xq.shape[0], w.matrix_shape[0]), np.float32)
    codes = w.codes()
    for g in range(w.scale.shape[1]):
        part = slice(g * w.group_size, (g + 1) * w.group_size)
        zero = None if w.zero_point is None else w.zero_point[:, g : g + 1]
        acc = matmul_int(xq[:, part], codes[:, part], x_zero_point, zero)
        y = fused_multiply_add(acc.astype(np.float32), w.scale[:, g], y)
    return y


def fused_multiply_add(a, b, c):
    """a * b + c in float32, rounded once. The product is exact in float64; the sum is rounded to odd there, which a
    second rounding to float32 cannot tell from the exact sum (Boldo & Melquiond 2008)."""
    product, c = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + c
    part = total - c
    error = (product - part) + (c - (total - part))  # what the sum lost, exactly (Knuth's TwoSum)
    even = (total.view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, odd, total).astype(np.float32)


def linear_float(x, w, bias=None, activation=None, out_dtype=np.float32):
    """Weight-only: ``y = act((x / input_scale) @ (scale * (code - zero_point) + offset).T + bias)``.

    The dot product is accumulated in float64 and rounded to float32; bias and activation follow in float32.
    Kernels accumulate in float32, so they agree within a tolerance.

    Args:
        x: float32 (M, K). w: IntWeight with NumPy fields. bias: float32 (N,) or None.

    Returns:
        out_dtype (M, N).
    """
    x = x.astype(np.float64)
    x = x if w.input_scale is None else x / w.input_scale
    codes = w.codes() if w.zero_point is None else w.codes() - w.per_code(w.zero_point.astype(np.float64))
    w_scaled = codes * w.per_code(w.scale.astype(np.float64))
    w_scaled = w_scaled if w.offset is None else w_scaled + w.per_code(w.offset.astype(np.float64))
    with np.errstate(over="ignore"):
        return _finish((x @ w_scaled.T).astype(np.float32), bias, activation, out_dtype)


def linear_requant(xq, codes, requant, bias=None, x_zp=0, w_zp=None, activation=None, out_dtype=np.int8):
    """Integers only: ``requantize(acc + bias)``, clamped to the range of out_dtype and of the activation.

    Args:
        xq: int8 or uint8 (M, K). codes: int8 (N, K). requant: Requant. bias: int32 (N,) or None.
        activation: None, "relu" or "relu6".

    Returns:
        int8 or uint8 (M, N).
    """
    acc = matmul_int(xq, codes, x_zp, w_zp)
    acc = acc if bias is None else acc + bias
    return requantize(acc, requant, *requant.limits(activation, out_dtype)).astype(out_dtype)


def _finish(y, bias, activation, out_dtype):
    y = y if bias is None else y + bias
    return apply_activation(y, activation).astype(out_dtype)
