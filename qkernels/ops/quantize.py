"""Activations to codes, and accumulators to codes."""

import numpy as np

from .. import registry
from ..cpu import FLOATS
from ..errors import ArgumentError, DTypeError
from ..quant import InputQuant
from .request import Request, check_array, check_requant, name_of_dtype


def requantize(acc, requant, out_dtype=None, backend=None):
    """``clip(round(acc * multiplier * 2**-(31 + shift)) + zero_point)`` in the rounding of ``requant``. Exact.

    Args:
        acc: (..., N) int32.
        requant: Requant, for the tensor or per channel of the last dimension.
        out_dtype: int8 (None) or uint8.

    Returns:
        int8 or uint8, shaped like acc.
    """
    r = requantize_request(acc, requant, out_dtype, backend)
    return registry.pick(r).run(r)


def requantize_request(acc, requant, out_dtype=None, backend=None):
    op = "requantize"
    check_array(op, "acc", acc, ("int32",))
    name = name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = check_requant(op, requant, acc.shape[-1]).limits(None, np.dtype(name))
    return Request(op, acc, None, None, name, backend, requant=requant, limits=limits)


def quantize_activations(x, input_quant, backend=None):
    """Codes and scales of activations (thesis eq. 3.9, 3.10), the same that ``linear`` computes inside.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        input_quant: InputQuant; granularity "channel" needs its scale here.

    Returns:
        codes, int8 or uint8 (..., K); scale, float32: (..., 1) per token, 1s per tensor, (1, K) per channel.

    Raises:
        ArgumentError: x is not finite, or there is no scale for granularity "channel".
    """
    r = quantize_activations_request(x, input_quant, backend)
    return registry.pick(r).run(r)


def quantize_activations_request(x, input_quant, backend=None):
    op = "quantize_activations"
    check_array(op, "x", x, tuple(FLOATS))
    if not isinstance(input_quant, InputQuant):
        raise DTypeError(
            f"{op}: input_quant is a {type(input_quant).__name__}; accepted: qkernels.InputQuant."
        )
    if input_quant.bits == 1:
        raise ArgumentError(
            f"{op}: input_quant has bits=1; accepted: 8. qkernels.pack_signs makes sign bits."
        )
    if input_quant.granularity == "channel":
        input_quant.channel_scale(op, None, x.shape[-1])
    return Request(op, x, None, None, None, backend, input_quant=input_quant)
