"""The peers of ``bench/peers.py``: one module a library family, one process a family.
 A family module defines ``load(threads, problem) -> (version, variants, notes)``; it imports its library
there and nowhere else, so that a missing library costs one clear line.  ``FAMILIES`` names the modules; the
order is the order of timing.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """One worker process: its module, the problems it has something for, the environment it needs."""

    module: str
    problems: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "qkernels": Family("qkernels_cpu", ("linear", "w4a8", "w4a16", "binary", "conv")),
    "litert": Family("litert_cpu", ("linear", "w4a8", "conv")),
    "zentorch": Family("zentorch_cpu", ("linear", "w4a8", "w4a16"), {"ZENDNNL_MATMUL_WEIGHT_CACHE": "1"}),
    "torch": Family("torch_cpu", ("linear", "w4a8", "w4a16", "binary", "conv")),
    "onnxruntime": Family("onnxruntime_cpu", ("linear", "w4a8", "w4a16", "conv")),
    "openvino": Family("openvino_cpu", ("linear", "w4a8", "w4a16", "conv")),
    "ggml": Family("ggml_cpu", ("w4a8", "w4a16")),
    "bitsandbytes": Family("bitsandbytes_cpu", ("w4a8", "w4a16")),
    "faiss": Family("faiss_cpu", ("binary",)),
    "numkong": Family("numkong_cpu", ("binary",)),
}

OURS = "qkernels"


@dataclass(frozen=True)
class Category:
    """Rows that do the same work: only those are compared.

    ``scale``: other categories whose best row is put beside ours, as the time without this format.
    ``reference``: a category that is there for that only, in warm cells and, where ``cold``, in cold ones.
    """

    what: str
    scale: tuple[str, ...] = ()
    reference: bool = False
    cold: bool = False


CATEGORIES: dict[str, Category] = {
    "gemm": Category("int8 gemm: 8-bit codes in, int32 or scaled float32 out"),
    "requant": Category("8-bit codes in and out: the integer-only layer"),
    "linear_f32": Category(
        "full linear, float32 in and out, int8 inside (activations quantized in the call)", ("float32",)
    ),
    "linear_bf16": Category(
        "full linear, bfloat16 in and out, int8 inside (activations quantized in the call)", ("bfloat16",)
    ),
    "w4": Category(
        "full linear, 4-bit weights, float32 in and out (bfloat16 where the name says so)",
        ("float32", "int8"),
    ),
    "w4a16_bf16": Category(
        "weight-only linear: 4-bit weights, float activations, bfloat16 in and out", ("w4a8", "dense_bf16")
    ),
    "w4a16_f32": Category(
        "weight-only linear: 4-bit weights, float activations, float32 in and out",
        ("w4a8", "dense_bf16", "float32"),
    ),
    "w4a8": Category("4-bit weights, activations quantized to 8 bits, for scale", reference=True, cold=True),
    "dense_bf16": Category("bfloat16 weights, not compressed, for scale", reference=True, cold=True),
    "binary": Category("products of signs: packed bits in, integers out", ("float32", "int8")),
    "conv": Category("convolution, 8-bit codes in and out", ("float32",)),
    "int8": Category("int8 of qkernels, for scale", reference=True),
    "float32": Category("float32, for scale", reference=True),
    "bfloat16": Category("bfloat16, for scale", reference=True),
}
