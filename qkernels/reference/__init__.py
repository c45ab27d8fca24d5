"""The specification, in NumPy: one function per operation. A kernel that disagrees with it is wrong."""

from .activation import ACTIVATIONS, apply_activation
from .binary import (
    binary_matmul,
    dprelu,
    pack_signs,
    scaled,
    sign_scale,
    ternary_matmul,
    threshold_bits,
    threshold_multiples,
)
from .linear import linear_float, linear_int, linear_requant, matmul_int
from .quantize import quantize_activations
from .requantize import requantize

__all__ = [
    "ACTIVATIONS",
    "apply_activation",
    "binary_matmul",
    "dprelu",
    "linear_float",
    "linear_int",
    "linear_requant",
    "matmul_int",
    "pack_signs",
    "quantize_activations",
    "requantize",
    "scaled",
    "sign_scale",
    "ternary_matmul",
    "threshold_bits",
    "threshold_multiples",
]
