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
from .integer_elementwise import (
    add_requant,
    add_requant_request,
    avg_pool2d_int,
    avg_pool2d_int_request,
    concat_requant,
    concat_requant_request,
    gelu_int,
    gelu_int_request,
    global_avg_pool2d_int,
    layer_norm_int,
    layer_norm_int_request,
    lookup_int8,
    lookup_int8_request,
    lookup_table,
    max_pool2d_int,
    max_pool2d_int_request,
    softmax_int,
    softmax_int_request,
)
from .linear import linear, linear_request
from .quantize import quantize_activations, quantize_activations_request, requantize, requantize_request

__all__ = [
    "ACTIVATIONS",
    "add_requant",
    "add_requant_request",
    "avg_pool2d_int",
    "avg_pool2d_int_request",
    "concat_requant",
    "concat_requant_request",
    "gelu_int",
    "gelu_int_request",
    "global_avg_pool2d_int",
    "layer_norm_int",
    "layer_norm_int_request",
    "linear",
    "linear_binary",
    "linear_binary_request",
    "linear_requant",
    "linear_requant_request",
    "linear_request",
    "lookup_int8",
    "lookup_int8_request",
    "lookup_table",
    "matmul_binary",
    "matmul_binary_request",
    "matmul_int",
    "matmul_int_request",
    "max_pool2d_int",
    "max_pool2d_int_request",
    "pack_signs",
    "pack_signs_request",
    "quantize_activations",
    "quantize_activations_request",
    "requantize",
    "requantize_request",
    "softmax_int",
    "softmax_int_request",
    "table",
]
