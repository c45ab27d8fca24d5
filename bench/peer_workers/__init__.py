"""The peers of ``bench/peers.py``: one module a library family, one process a family.
 A family module defines ``load(threads) -> (version, variants, notes)``; it imports its library there and
nowhere else, so that a missing library costs one clear line.  ``FAMILIES`` names the modules; the order is
the order of timing.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """One worker process: the module it runs and the environment variables that module needs."""

    module: str
    env: dict[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "qkernels": Family("qkernels_cpu"),
    "litert": Family("litert_cpu"),
    "zentorch": Family("zentorch_cpu", {"ZENDNNL_MATMUL_WEIGHT_CACHE": "1"}),
    "torch": Family("torch_cpu"),
    "onnxruntime": Family("onnxruntime_cpu"),
    "openvino": Family("openvino_cpu"),
}

OURS = "qkernels"

# category -> what its rows have in common; only rows of one category are compared.
CATEGORIES: dict[str, str] = {
    "gemm": "int8 gemm: 8-bit codes in, int32 or scaled float32 out",
    "requant": "8-bit codes in and out: the integer-only layer",
    "linear_f32": "full linear, float32 in and out, int8 inside (activations quantized in the call)",
    "linear_bf16": "full linear, bfloat16 in and out, int8 inside (activations quantized in the call)",
    "float32": "float32 linear, for scale",
    "bfloat16": "bfloat16 linear, for scale",
}
