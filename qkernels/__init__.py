"""qkernels: fast, exact kernels for compressed networks. Needs NumPy; torch is used where it is installed."""

from importlib import import_module

from .errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from .formats import IntWeight, MixedIntWeight
from .ops import (
    conv2d,
    conv2d_int,
    conv2d_requant,
    linear,
    linear_requant,
    matmul_int,
    quantize_activations,
    requantize,
)
from .quant import InputQuant, Requant
from .registry import capabilities, explain, force_isa
from .version import __version__

# Imported when first used: they need torch or safetensors.
_LAZY = {"nn": ".nn", "compress": ".compress:compress", "save": ".io:save", "load": ".io:load"}

__all__ = [
    "ArgumentError",
    "DTypeError",
    "FormatError",
    "InputQuant",
    "IntWeight",
    "MixedIntWeight",
    "Requant",
    "UnsupportedError",
    "__version__",
    "capabilities",
    "conv2d",
    "conv2d_int",
    "conv2d_requant",
    "explain",
    "force_isa",
    "linear",
    "linear_requant",
    "matmul_int",
    "quantize_activations",
    "requantize",
    *_LAZY,
]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'qkernels' has no attribute {name!r}")
    module, _, attribute = _LAZY[name].partition(":")
    value = import_module(module, __name__)
    value = getattr(value, attribute) if attribute else value
    globals()[name] = value
    return value
