"""Operations on sign bits: binary and ternary products, alone and with what follows them in a network."""

import sys

import numpy as np

from .. import registry
from .._arrays import is_torch
from ..binary import DPReLU, Threshold
from ..cpu import FLOATS, dtype_name
from ..errors import ArgumentError, DTypeError
from ..formats import BinaryWeight, TernaryWeight
from ..quant import InputQuant
from .request import Request, check_activation, check_array, check_device, check_vector, name_of_dtype

FLOAT32_MAX = float(np.finfo(np.float32).max)
BITS_FORMATS = (BinaryWeight, TernaryWeight)


class BitsRequest(Request):
    """A request whose result has ``width`` columns of its own: packed bits are narrower than channels."""

    width = None

    @property
    def columns(self):
        return self.w.shape[0] if self.w is not None else self.n

    def empty_as(self, name):
        if is_torch(self.x):
            torch = sys.modules["torch"]
            return torch.empty((self.m, self.width), dtype=getattr(torch, name), device=self.x.device)
        return np.empty((self.m, self.width), name)

    def shaped_as(self, out):
        return out.reshape(*self.batch, self.width)

    def scales(self, scales, per_row):
        shape = (*self.batch, 1) if per_row else (1,) * (len(self.batch) + 1)
        return self.like(scales[: self.m if per_row else 1].reshape(shape))


def pack_signs(x, input_quant=None, backend=None):
    """Sign bits of activations: bit ``k % 8`` of byte ``k // 8`` is 1 where ``x[..., k] >= 0``, padding bits are 0.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        input_quant: InputQuant(bits=1), to get the scale, too; or None.

    Returns:
        uint8 (..., ceil(K / 8)); with an input_quant the pair of it and the scale, float32 (..., 1) per token or 1s.

    Raises:
        ArgumentError: x is not finite.
    """
    r = pack_signs_request(x, input_quant, backend)
    return registry.pick(r).run(r)


def pack_signs_request(x, input_quant=None, backend=None):
    op = "pack_signs"
    check_array(op, "x", x, tuple(FLOATS))
    if input_quant is not None and not (isinstance(input_quant, InputQuant) and input_quant.bits == 1):
        raise ArgumentError(
            f"{op}: input_quant is {input_quant!r}; accepted: None, or qkernels.InputQuant(bits=1)."
        )
    r = BitsRequest(op, x, None, None, "uint8", backend, input_quant=input_quant)
    r.width = -(-x.shape[-1] // 8)
    return r


def matmul_binary(x_bits, w, x_nonzero=None, backend=None):
    """``acc[..., n] = sum_k x[..., k] * w[n, k]`` of signs, ``K - 2 popcount(x xor w)``, exact (thesis eq. 3.39).

    Args:
        x_bits: uint8 (..., ceil(K / 8)), as pack_signs makes them; bits past K are not looked at.
        w: BinaryWeight or TernaryWeight (N, K).
        x_nonzero: uint8, shaped like x_bits, or None: bits that are 0 where an activation is 0 (ternary activations).

    Returns:
        int32 (..., N).

    Raises:
        ArgumentError: shapes that do not fit.
        DTypeError: other dtypes.
    """
    r = matmul_binary_request(x_bits, w, x_nonzero, backend)
    return registry.pick(r).run(r)


def matmul_binary_request(x_bits, w, x_nonzero=None, backend=None):
    r = _bits_request("matmul_binary", x_bits, w, None, "int32", backend, x_nonzero)
    r.width = w.shape[0]
    return r


def linear_binary(
    x_bits,
    w,
    x_scale=None,
    bias=None,
    activation=None,
    threshold=None,
    sign=False,
    out_dtype=None,
    x_nonzero=None,
    backend=None,
):
    """A binary layer from bits: the exact accumulator of ``matmul_binary``, and what follows it in one pass.

    floats      ``act(((float32(acc) * alpha[n]) * x_scale[m]) + bias[n])``, each operation rounded to float32
    sign=True   the bits of that value >= 0, packed for the next layer
    threshold   integers only: bits of ``acc >= value[n]`` (``<=`` where flipped), packed; with a multiplicity the
                int8 numbers ``multiplicity[n] * sign`` (thesis eq. 3.41)

    Args:
        x_bits, w, x_nonzero: see matmul_binary.
        x_scale: None (1), one number, or float32 (..., 1): a scale for each row.
        bias: (N,) floats, or None.
        activation: None, "relu", "relu6", "gelu", "silu", or a DPReLU (also RPReLU).
        threshold: Threshold, in place of x_scale, bias, activation and sign; its multiplicity decides the output.
        sign: pack the signs of the result.
        out_dtype: of floats: float32 (None), bfloat16 or float16.

    Returns:
        floats (..., N), uint8 (..., ceil(N / 8)) bits, or int8 (..., N).

    Raises:
        ArgumentError: shapes that do not fit, or options that exclude each other.
        DTypeError: other types.
    """
    r = linear_binary_request(
        x_bits, w, x_scale, bias, activation, threshold, sign, out_dtype, x_nonzero, backend
    )
    return registry.pick(r).run(r)


def linear_binary_request(
    x_bits,
    w,
    x_scale=None,
    bias=None,
    activation=None,
    threshold=None,
    sign=False,
    out_dtype=None,
    x_nonzero=None,
    backend=None,
):
    op = "linear_binary"
    r = _bits_request(op, x_bits, w, bias, None, backend, x_nonzero)
    n = w.shape[0]
    check_vector(op, "bias", bias, n, (*FLOATS, "float64"), x_bits)
    check_binary_activation(op, activation, n)
    if not isinstance(sign, bool | np.bool_):
        raise ArgumentError(f"{op}: sign is {sign!r}; accepted: True, False.")
    if threshold is not None:
        _check_threshold(op, threshold, n)
        if any(v is not None for v in (x_scale, bias, activation, out_dtype)) or sign:
            raise ArgumentError(
                f"{op}: threshold comes with x_scale, bias, activation, sign or out_dtype; accepted: threshold alone. "
                "Threshold.from_batch_norm folds scales and biases into it."
            )
    scale, per_row = _row_scales(op, x_scale, r)
    names = tuple(FLOATS) if is_torch(x_bits) else ("float32", "float16")
    r.out_name = name_of_dtype(op, out_dtype, "float32", names)
    kind = r.out_name
    if sign or (threshold is not None and threshold.multiplicity is None):
        kind, r.out_name = "threshold" if threshold is not None else "sign", "uint8"
    elif threshold is not None:
        kind, r.out_name = "multiple", "int8"
    r.width = -(-n // 8) if r.out_name == "uint8" else n
    r.options.update(
        x_scale=scale, scale_per_row=per_row, activation=activation, threshold=threshold, kind=kind
    )
    return r


def check_bits_weight(op, w):
    if not isinstance(w, BITS_FORMATS):
        raise DTypeError(
            f"{op}: w is a {type(w).__name__}; accepted: qkernels.BinaryWeight, qkernels.TernaryWeight."
        )
    if len(w.shape) != 2:
        raise ArgumentError(
            f"{op}: w has shape {w.shape}; accepted: (N, K). A convolution weight is for conv2d."
        )


def check_binary_activation(op, activation, n):
    if not isinstance(activation, DPReLU):
        return check_activation(op, activation)
    if activation.channels not in (1, n):
        raise ArgumentError(
            f"{op}: activation has {activation.channels} channels; there are {n}, so it takes 1 or {n}."
        )
    return None


def _check_threshold(op, threshold, n):
    if not isinstance(threshold, Threshold):
        raise DTypeError(
            f"{op}: threshold is a {type(threshold).__name__}; accepted: qkernels.Threshold or None."
        )
    if threshold.value.shape != (n,):
        raise ArgumentError(
            f"{op}: threshold has {threshold.value.shape[0]} channels; there are {n}, so it must have {n}."
        )


def _bits_request(op, x_bits, w, bias, out_name, backend, x_nonzero):
    check_array(op, "x_bits", x_bits, ("uint8",))
    check_bits_weight(op, w)
    want = -(-w.shape[1] // 8)
    if x_bits.shape[-1] != want:
        raise ArgumentError(
            f"{op}: x_bits has shape {tuple(x_bits.shape)}, w has K = {w.shape[1]}; the last dimension of x_bits must "
            f"be ceil(K / 8) = {want} bytes. qkernels.pack_signs makes them."
        )
    r = BitsRequest(op, x_bits, w, bias, out_name, backend, x_nonzero=None)
    if x_nonzero is not None:
        check_array(op, "x_nonzero", x_nonzero, ("uint8",))
        check_device(op, "x_nonzero", x_nonzero, x_bits)
        if tuple(x_nonzero.shape) != tuple(x_bits.shape):
            raise ArgumentError(
                f"{op}: x_nonzero has shape {tuple(x_nonzero.shape)}; accepted: that of x_bits, {tuple(x_bits.shape)}."
            )
        r.options["x_nonzero"] = Request(op, x_nonzero)
    return r


def _row_scales(op, x_scale, r):
    """float32 (m,) or (1,), and whether rows have their own."""
    if x_scale is None:
        return None, False
    if isinstance(x_scale, int | float | np.floating | np.integer) and not isinstance(x_scale, bool):
        if not abs(float(x_scale)) <= FLOAT32_MAX:
            raise ArgumentError(f"{op}: x_scale is {x_scale}; accepted: a finite float32 number.")
        return np.full(1, x_scale, np.float32), False
    check_array(op, "x_scale", x_scale, (*FLOATS, "float64"))
    if x_scale.shape == (1,) * x_scale.ndim:
        return x_scale.reshape(1), False
    if tuple(x_scale.shape) != (*r.batch, 1):
        raise ArgumentError(
            f"{op}: x_scale has shape {tuple(x_scale.shape)}; accepted: a number, or {(*r.batch, 1)}, one a row."
        )
    return x_scale.reshape(-1), True


def linear_request(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend):
    """``linear`` with InputQuant(bits=1); ops.linear hands such calls over."""
    op = "linear"
    check_array(op, "x", x, tuple(FLOATS))
    check_bits_weight(op, w)
    if x.shape[-1] != w.shape[1]:
        raise ArgumentError(
            f"{op}: x has shape {tuple(x.shape)}, w has shape {w.shape} (N, K); the last dimension of x must be "
            f"K = {w.shape[1]}."
        )
    check_vector(op, "bias", bias, w.shape[0], (*FLOATS, "float64"), x)
    check_binary_activation(op, activation, w.shape[0])
    if compute_dtype is not None:
        raise ArgumentError(f"{op}: compute_dtype is {compute_dtype!r} with an input_quant; accepted: None.")
    names = tuple(FLOATS) if is_torch(x) else ("float32", "float16")
    name = name_of_dtype(op, out_dtype, dtype_name(x), names)
    return Request(op, x, w, bias, name, backend, activation=activation, input_quant=input_quant)


def check_sign_conv(op, x, w, bias, activation, input_quant, padding_mode):
    """What conv2d with InputQuant(bits=1) takes beside what every convolution does."""
    if not isinstance(w, BITS_FORMATS):
        raise DTypeError(
            f"{op}: w is a {type(w).__name__}; accepted: qkernels.BinaryWeight, qkernels.TernaryWeight."
        )
    check_vector(op, "bias", bias, w.shape[0], (*FLOATS, "float64"))
    check_binary_activation(op, activation, w.shape[0])
    if input_quant.granularity != "tensor":
        raise ArgumentError(
            f"{op}: input_quant has granularity {input_quant.granularity!r}, and an output sums over many pixels; "
            "accepted with bits=1: InputQuant(bits=1, granularity='tensor'), a scale or not."
        )
    if padding_mode not in ("zeros", "alternating"):
        raise ArgumentError(
            f"{op}: padding_mode is {padding_mode!r}; accepted with bits=1: 'zeros', 'alternating'."
        )
