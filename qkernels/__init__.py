"""qkernels: fast, exact kernels for compressed networks. Needs NumPy; torch is used where it is installed."""

from importlib import import_module

from .binary import DPReLU, RPReLU, Threshold
from .errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from .formats import (
    BinaryWeight,
    CodebookWeight,
    FloatWeight,
    IntWeight,
    LogWeight,
    MixedIntWeight,
    PowerWeight,
    TernaryWeight,
    search_exponent,
)
from .integer_quant import AddRequant, LayerNormInt
from .ops import (
    add_requant,
    avg_pool2d_int,
    concat_requant,
    conv2d,
    conv2d_int,
    conv2d_requant,
    decode_attention,
    gelu_int,
    global_avg_pool2d_int,
    layer_norm_int,
    linear,
    linear_binary,
    linear_requant,
    lookup_int8,
    lookup_table,
    matmul_binary,
    matmul_int,
    max_pool2d_int,
    pack_signs,
    power_dequantize,
    quantize_activations,
    requantize,
    rms_norm,
    softmax_int,
    swiglu,
)
from .program import Program
from .quant import InputQuant, Requant
from .registry import capabilities, explain, force_isa
from .version import __version__

# Imported when first used: they need torch or safetensors.
_LAZY = {"nn": ".nn", "compress": ".compress:compress", "save": ".io:save", "load": ".io:load"}
_LAZY["IntegerNetwork"] = ".integer_network:IntegerNetwork"
_LAZY["interop"] = ".interop"

__all__ = [
    "AddRequant",
    "ArgumentError",
    "BinaryWeight",
    "CodebookWeight",
    "DPReLU",
    "DTypeError",
    "FloatWeight",
    "FormatError",
    "InputQuant",
    "IntWeight",
    "LayerNormInt",
    "LogWeight",
    "MixedIntWeight",
    "PowerWeight",
    "Program",
    "RPReLU",
    "Requant",
    "TernaryWeight",
    "Threshold",
    "UnsupportedError",
    "__version__",
    "add_requant",
    "avg_pool2d_int",
    "capabilities",
    "concat_requant",
    "conv2d",
    "conv2d_int",
    "conv2d_requant",
    "decode_attention",
    "explain",
    "force_isa",
    "gelu_int",
    "global_avg_pool2d_int",
    "layer_norm_int",
    "linear",
    "linear_binary",
    "linear_requant",
    "lookup_int8",
    "lookup_table",
    "matmul_binary",
    "matmul_int",
    "max_pool2d_int",
    "pack_signs",
    "power_dequantize",
    "quantize_activations",
    "requantize",
    "rms_norm",
    "search_exponent",
    "softmax_int",
    "swiglu",
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
