"""Binary and ternary products. A bit is a sign, 1 is +1; rows of bits are bytes, least significant bit first."""

from dataclasses import replace

import numpy as np

from .._arrays import first_bad
from ..errors import ArgumentError
from .activation import apply_activation
from .conv import conv2d_int


def binary_matmul(x_bits, w_bits, K):
    """Dot products of ±1 vectors from packed bits: (M, B) x (N, B) uint8 -> (M, N) int32 (thesis eq. 3.39).

    B = ceil(K / 8); bits past K are 0 on both sides, so they cancel.
    """
    return K - 2 * _count(x_bits[:, None, :] ^ w_bits[None, :, :])


def ternary_matmul(x_bits, x_nonzero, w_bits, w_nonzero):
    """The same where values may be 0: a product counts where both ``nonzero`` bits are set, all (.., B) uint8."""
    there = x_nonzero[:, None, :] & w_nonzero[None, :, :]
    return _count(there) - 2 * _count((x_bits[:, None, :] ^ w_bits[None, :, :]) & there)


def _count(bits):
    return np.unpackbits(bits, axis=-1).sum(-1, dtype=np.int32)


def pack_signs(x):
    """Bits of ``x >= 0`` (so of -0.0, too): (..., K) -> uint8 (..., ceil(K / 8)), bit k % 8 of byte k // 8.

    Raises:
        ArgumentError: x is not finite.
    """
    _check_finite(x)
    return np.packbits(x >= 0, axis=-1, bitorder="little")


def sign_scale(x, iq):
    """The scale of binarized activations, float32 (M, 1) per token or (1, 1): ``x ~ scale * sign``.

    dynamic  mean|x| (Rastegari et al. 2016, eq. 9 and 10, of the whole dot product), the number for which
             ``||x - scale * sign(x)||`` is smallest. In float32: element k of a row is added to partial sum k % 64 in
             order; then sums j and j + h are added for h = 32, 16 ... 1; then divided by K. Per tensor, the sums of
             the rows are added in order in float64, divided by M * K and rounded once.
    static   ``scale``, or 1 where there is none: InputQuant(bits=1, granularity="tensor", scale=s).

    Raises:
        ArgumentError: x is not finite, or so large that a sum leaves float32.
    """
    if iq.scale is not None:
        return np.full((1, 1), iq.scale, np.float32)
    m, k = x.shape
    parts = np.zeros((m, 64), np.float32)
    with np.errstate(over="ignore"):
        for k0 in range(0, k, 64):
            block = np.abs(x[:, k0 : k0 + 64])
            parts[:, : block.shape[1]] += block
        while parts.shape[1] > 1:
            half = parts.shape[1] // 2
            parts = parts[:, :half] + parts[:, half:]
    _check_finite(parts)
    if iq.granularity == "token":
        return parts / np.float32(max(k, 1))
    total = np.float64(0)
    for s in parts[:, 0]:
        total += s
    return np.full((1, 1), total / max(m * k, 1), np.float32)


def _check_finite(x):
    bad = first_bad(~np.isfinite(x))
    if bad is not None:
        raise ArgumentError(
            f"sign bits: a value of x is not finite, or the sum of |x| is not, in row {bad[0]}; accepted: finite."
        )


def scaled(acc, alpha, x_scale, bias=None, activation=None):
    """``act(((float32(acc) * alpha[n]) * x_scale[m]) + bias[n])``, each operation rounded to float32.

    activation: None, a name, or a DPReLU.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        y = acc.astype(np.float32) * alpha * x_scale
        y = y if bias is None else y + bias
        return (
            apply_activation(y, activation) if isinstance(activation, str | None) else dprelu(y, activation)
        )


def dprelu(x, p):
    """``alpha (x - gamma) + zeta if x > gamma else beta (x - gamma) + zeta`` (thesis eq. 3.34), float32 per channel."""
    slope = np.where(x > p.gamma, p.alpha, p.beta)
    return slope * (x - p.gamma) + p.zeta


def threshold_bits(acc, t):
    """Booleans: ``acc >= t.value``, or ``acc <= t.value`` where t.flip."""
    return np.where(t.flip, acc <= t.value, acc >= t.value)


def threshold_multiples(acc, t):
    """``multiplicity[n] * sign`` of the thresholded neurons, int8 (thesis eq. 3.41)."""
    return np.where(threshold_bits(acc, t), t.multiplicity, -t.multiplicity).astype(np.int8)


def conv2d_signs(x, w, iq, geometry, bias=None, activation=None, zeros=True):
    """``conv2d`` of signs: acc of the ±1 image with the codes of w, then ``scaled``. NCHW in and out.

    Outside of the image is 0 ("padded binary" of thesis section 3.3.1), or, without ``zeros``, +1 where row plus column
    of the padded image is even and -1 where it is odd ("proper binary"). The scale's rows are the pixels, a group's
    channels each.

    Args:
        x: float32 (B, C, H, W). w: BinaryWeight or TernaryWeight of shape (O, I, kh, kw) with NumPy fields.

    Returns:
        float32 (B, O, H', W').
    """
    _check_finite(x)
    top, bottom, left, right = geometry.padding
    b, c, height, width = x.shape
    rows, columns = np.indices((height + top + bottom, width + left + right))
    outside = 0 if zeros else np.where((rows + columns) % 2 == 0, 1, -1)
    padded = np.broadcast_to(outside, (b, c, *rows.shape)).astype(np.int8)
    padded[:, :, top : top + height, left : left + width] = np.where(x >= 0, 1, -1)
    acc = conv2d_int(padded, w.codes().reshape(w.shape), replace(geometry, padding=(0, 0, 0, 0)))
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, w.shape[1])
    y = scaled(np.moveaxis(acc, 1, -1), w.alpha, sign_scale(pixels, iq)[0], bias, activation)
    return np.ascontiguousarray(np.moveaxis(y, -1, 1))
