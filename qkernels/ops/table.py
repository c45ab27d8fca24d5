"""The rows of the registry: which kernel computes which operation for which weight format."""

from .. import cpu, cpu_conv, cpu_integer, reference_backend, registry
from ..registry import Kernel


def add_rows(op, formats, core, isas, call, reference, accepts=None, exactness="exact"):
    """Rows for each format: the CPU ones strongest ISA first, then the reference. ``formats`` (None,): no weight."""
    accepts = accepts or (lambda request: None)
    for name in formats:
        for isa in reversed(isas):
            registry.register(Kernel(op, name, "cpu", isa, core, accepts, call, exactness))
        registry.register(Kernel(op, name, "reference", None, core, lambda r: None, reference, exactness))


def integer_activations(request):
    if request.options["input_quant"] is None:
        return "input_quant is None (weight-only): no CPU kernel yet; pass input_quant=qkernels.InputQuant()"
    return None


GEMM_ISAS = ("scalar", "avx2", "avx512vnni")
GEMM_FORMATS = ("IntWeight", "MixedIntWeight")

add_rows("linear", GEMM_FORMATS, "gemm", GEMM_ISAS, cpu.linear, reference_backend.linear, integer_activations)
for _op in ("matmul_int", "linear_requant"):
    add_rows(_op, GEMM_FORMATS, "gemm", GEMM_ISAS, getattr(cpu, _op), getattr(reference_backend, _op))
for _op in ("requantize", "quantize_activations"):
    add_rows(_op, (None,), "elementwise", GEMM_ISAS, getattr(cpu, _op), getattr(reference_backend, _op))


CONV_FORMATS = ("IntWeight",)

for _op, _accepts in (
    ("conv2d", integer_activations),
    ("conv2d_int", None),
    ("conv2d_requant", None),
):
    add_rows(
        _op,
        CONV_FORMATS,
        "conv",
        GEMM_ISAS,
        getattr(cpu_conv, _op),
        getattr(reference_backend, _op),
        _accepts,
    )
# Tables gain from VBMI, which comes with the fourth level; the others do not.
BYTE_ISAS = ("scalar", "avx2", "avx512vnni", "avx512vpopcntdq")
for _op in ("concat_requant", "lookup_int8", "gelu_int", "softmax_int"):
    add_rows(_op, (None,), "integer", BYTE_ISAS, getattr(cpu_integer, _op), getattr(reference_backend, _op))
for _op in ("add_requant", "layer_norm_int", "max_pool2d_int", "avg_pool2d_int"):
    add_rows(_op, (None,), "integer", GEMM_ISAS, getattr(cpu_integer, _op), getattr(reference_backend, _op))
