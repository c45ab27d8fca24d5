"""The specification, in NumPy: one function per operation. A kernel that disagrees with it is wrong."""

from .activation import ACTIVATIONS, apply_activation
from .conv import conv2d, conv2d_float, conv2d_int, conv2d_requant
from .linear import linear_float, linear_int, linear_requant, matmul_int
from .quantize import quantize_activations
from .requantize import requantize

__all__ = [
    "ACTIVATIONS",
    "apply_activation",
    "conv2d",
    "conv2d_float",
    "conv2d_int",
    "conv2d_requant",
    "linear_float",
    "linear_int",
    "linear_requant",
    "matmul_int",
    "quantize_activations",
    "requantize",
]
