"""The public operations: check the arguments, pick a kernel, call it. One file per family."""

from ..cpu import ACTIVATIONS
from . import table
from .conv import (
    check_conv_quant,
    conv2d,
    conv2d_int,
    conv2d_int_request,
    conv2d_requant,
    conv2d_requant_request,
    conv2d_request,
)
from .integer import linear_requant, linear_requant_request, matmul_int, matmul_int_request
from .linear import linear, linear_request
from .quantize import quantize_activations, quantize_activations_request, requantize, requantize_request

__all__ = [
    "ACTIVATIONS",
    "check_conv_quant",
    "conv2d",
    "conv2d_int",
    "conv2d_int_request",
    "conv2d_requant",
    "conv2d_requant_request",
    "conv2d_request",
    "linear",
    "linear_requant",
    "linear_requant_request",
    "linear_request",
    "matmul_int",
    "matmul_int_request",
    "quantize_activations",
    "quantize_activations_request",
    "requantize",
    "requantize_request",
    "table",
]
