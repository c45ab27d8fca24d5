"""The specification, in NumPy: one function per operation. A kernel that disagrees with it is wrong."""

from .activation import ACTIVATIONS, apply_activation
from .binary import (
    binary_matmul,
    conv2d_signs,
    dprelu,
    pack_signs,
    scaled,
    sign_scale,
    ternary_matmul,
    threshold_bits,
    threshold_multiples,
)
from .conv import conv2d, conv2d_float, conv2d_int, conv2d_requant
from .decode import decode_attention, rms_norm, swiglu
from .integer import (
    add_requant,
    avg_pool2d,
    concat_requant,
    exp_int,
    gelu_int,
    layer_norm_int,
    lookup_int8,
    max_pool2d,
    requant_table,
    softmax_int,
)
from .linear import linear_float, linear_int, linear_requant, matmul_int
from .quantize import power_dequantize, power_values, quantize_activations, split_power
from .requantize import requantize

__all__ = [
    "ACTIVATIONS",
    "add_requant",
    "apply_activation",
    "avg_pool2d",
    "binary_matmul",
    "concat_requant",
    "conv2d",
    "conv2d_float",
    "conv2d_int",
    "conv2d_requant",
    "conv2d_signs",
    "decode_attention",
    "dprelu",
    "exp_int",
    "gelu_int",
    "layer_norm_int",
    "linear_float",
    "linear_int",
    "linear_requant",
    "lookup_int8",
    "matmul_int",
    "max_pool2d",
    "pack_signs",
    "power_dequantize",
    "power_values",
    "quantize_activations",
    "requant_table",
    "requantize",
    "rms_norm",
    "scaled",
    "sign_scale",
    "softmax_int",
    "split_power",
    "swiglu",
    "ternary_matmul",
    "threshold_bits",
    "threshold_multiples",
]
