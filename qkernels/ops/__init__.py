"""The public operations: check the arguments, pick a kernel, call it. One file per family."""

from ..cpu import ACTIVATIONS
from . import table
from .binary import (
    linear_binary,
    linear_binary_request,
    matmul_binary,
    matmul_binary_request,
    pack_signs,
    pack_signs_request,
)
from .integer import linear_requant, linear_requant_request, matmul_int, matmul_int_request
from .linear import linear, linear_request
from .quantize import quantize_activations, quantize_activations_request, requantize, requantize_request

__all__ = [
    "ACTIVATIONS",
    "linear",
    "linear_binary",
    "linear_binary_request",
    "linear_requant",
    "linear_requant_request",
    "linear_request",
    "matmul_binary",
    "matmul_binary_request",
    "matmul_int",
    "matmul_int_request",
    "pack_signs",
    "pack_signs_request",
    "quantize_activations",
    "quantize_activations_request",
    "requantize",
    "requantize_request",
    "table",
]
