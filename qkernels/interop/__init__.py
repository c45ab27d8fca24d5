"""Weights as other libraries store them, to and from IntWeight. Each module says its layout bit by bit."""

from .awq import from_awq, to_awq
from .compressed_tensors import from_int_quantized, from_pack_quantized, to_int_quantized, to_pack_quantized
from .gguf import from_gguf, to_gguf
from .gptq import from_gptq, from_gptq_act_order, to_gptq
from .matmul_nbits import from_matmul_nbits, to_matmul_nbits

__all__ = [
    "from_awq",
    "from_gguf",
    "from_gptq",
    "from_gptq_act_order",
    "from_int_quantized",
    "from_matmul_nbits",
    "from_pack_quantized",
    "to_awq",
    "to_gguf",
    "to_gptq",
    "to_int_quantized",
    "to_matmul_nbits",
    "to_pack_quantized",
]
