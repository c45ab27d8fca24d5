"""The rows of the registry: which kernel computes which operation for which weight format."""

from .. import (
    cpu,
    cpu_binary,
    cpu_conv,
    cpu_decode,
    cpu_float,
    cpu_integer,
    cuda,
    cuda_binary,
    cuda_float,
    cuda_int4,
    cuda_linear,
    reference_backend,
    registry,
)
from .. import triton_backend as triton
from ..formats.operand import why_no_integers
from ..registry import Kernel


def add_rows(
    op,
    formats,
    core,
    isas,
    call,
    reference,
    accepts=None,
    exactness="exact",
    tag=None,
    reference_accepts=None,
):
    """Rows for each format: the CPU ones strongest ISA first, then the reference. ``formats`` (None,): no weight.

    reference None: no row for it, where other rows of the op and format bring it.
    """
    accepts = accepts or (lambda request: None)
    reference_accepts = reference_accepts or (lambda request: None)
    for name in formats:
        for isa in reversed(isas):
            registry.register(Kernel(op, name, "cpu", isa, core, accepts, call, exactness, tag))
        if reference is not None:
            registry.register(
                Kernel(op, name, "reference", None, core, reference_accepts, reference, exactness)
            )


def integer_activations(request):
    if request.options["input_quant"] is None:
        return "input_quant is None (weight-only): that is for the float core, which has no convolutions"
    if request.options["input_quant"].bits == 1:
        return "input_quant has bits=1: that is for the binary core"
    return None


def binary_activations(request):
    quant = request.options["input_quant"]
    if quant is None or quant.bits != 1:
        return "the binary core takes input_quant=qkernels.InputQuant(bits=1)"
    return None


def integer_table(request):
    return why_no_integers(request.w)


def float_activations(request):
    if request.options["input_quant"] is not None:
        return "input_quant is given: the float core takes float activations"
    if request.options["compute_dtype"] == "bfloat16" and not cpu_float.has_bf16(registry.current_isa()):
        return f"compute_dtype is 'bfloat16': it needs the ISA {cpu_float.BF16_ISA!r}"
    return None


GEMM_ISAS = ("scalar", "avx2", "avx512vnni")
BINARY_ISAS = ("scalar", "avx2", "avx512vpopcntdq")
FLOAT_ISAS = (*GEMM_ISAS, "avx512bf16", "amxbf16")
BITS_FORMATS = ("BinaryWeight", "TernaryWeight")
GEMM_FORMATS = ("IntWeight", "MixedIntWeight", *BITS_FORMATS)
TABLE_FORMATS = ("PowerWeight", "LogWeight", "FloatWeight", "CodebookWeight")  # whose codes index a table
FLOAT_FORMATS = (*GEMM_FORMATS, *TABLE_FORMATS)

add_rows(
    "linear", BITS_FORMATS, "binary", BINARY_ISAS, cpu_binary.linear, None, binary_activations, tag="signs"
)
_float = {"exactness": "float", "tag": "float"}
add_rows(
    "linear", FLOAT_FORMATS, "gemm_float", FLOAT_ISAS, cpu_float.linear, None, float_activations, **_float
)
add_rows("linear", GEMM_FORMATS, "gemm", GEMM_ISAS, cpu.linear, reference_backend.linear, integer_activations)
for _op in ("matmul_int", "linear_requant"):
    add_rows(_op, GEMM_FORMATS, "gemm", GEMM_ISAS, getattr(cpu, _op), getattr(reference_backend, _op))
# On the integer core where the table is integers.
add_rows(
    *("linear", TABLE_FORMATS, "gemm", GEMM_ISAS, cpu.linear, reference_backend.linear),
    accepts=lambda r: integer_activations(r) or integer_table(r),
    reference_accepts=lambda r: None if r.options["input_quant"] is None else integer_table(r),
)
for _op in ("matmul_int", "linear_requant"):
    _calls = getattr(cpu, _op), getattr(reference_backend, _op)
    add_rows(_op, TABLE_FORMATS, "gemm", GEMM_ISAS, *_calls, integer_table, reference_accepts=integer_table)
for _op in ("requantize", "quantize_activations", "power_dequantize"):
    add_rows(_op, (None,), "elementwise", GEMM_ISAS, getattr(cpu, _op), getattr(reference_backend, _op))

# Tables gain from VBMI, which comes with the fourth level; the others do not.
BYTE_ISAS = ("scalar", "avx2", "avx512vnni", "avx512vpopcntdq")
for _op in ("concat_requant", "lookup_int8", "gelu_int", "softmax_int"):
    add_rows(_op, (None,), "integer", BYTE_ISAS, getattr(cpu_integer, _op), getattr(reference_backend, _op))
for _op in ("add_requant", "layer_norm_int", "max_pool2d_int", "avg_pool2d_int"):
    add_rows(_op, (None,), "integer", GEMM_ISAS, getattr(cpu_integer, _op), getattr(reference_backend, _op))
for _op in ("matmul_binary", "linear_binary"):
    add_rows(
        _op, BITS_FORMATS, "binary", BINARY_ISAS, getattr(cpu_binary, _op), getattr(reference_backend, _op)
    )
add_rows("pack_signs", (None,), "binary", BINARY_ISAS, cpu_binary.pack_signs, reference_backend.pack_signs)

CONV_FORMATS = ("IntWeight", *BITS_FORMATS)
add_rows(
    "conv2d", BITS_FORMATS, "binary", BINARY_ISAS, cpu_binary.conv2d, None, binary_activations, tag="signs"
)
for _op, _accepts in (("conv2d", integer_activations), ("conv2d_int", None), ("conv2d_requant", None)):
    _calls = getattr(cpu_conv, _op), getattr(reference_backend, _op)
    add_rows(_op, CONV_FORMATS, "conv", GEMM_ISAS, *_calls, _accepts)

for _op in ("rms_norm", "swiglu", "decode_attention"):
    _calls = getattr(cpu_decode, _op), getattr(reference_backend, _op)
    add_rows(_op, (None,), "decode", GEMM_ISAS, *_calls, exactness="float")


# ---- rows for tensors on a device: after the others, so that they are never asked about CPU arrays first ------------

registry.DEVICE_BACKENDS["cuda"] = cuda.unavailable


def add_cuda_rows(op, formats, arch, core, call, *refusals, exactness="exact", tag=None):
    """Rows of the CUDA backend; each of ``refusals`` gives None or a reason for a request."""

    def accepts(request):
        return next((reason for refuses in (cuda.refuses, *refusals) if (reason := refuses(request))), None)

    for name in formats:
        registry.register(Kernel(op, name, "cuda", None, core, accepts, call, exactness, tag, arch))


add_cuda_rows(  # before int8: it leaves to that what has no groups and many tokens
    *("linear", ("IntWeight", *TABLE_FORMATS), "sm80", "gemm", cuda_linear.INT4),
    *(cuda.refuses_quant, cuda_int4.refuses_weight),
    tag="int4",
)
add_cuda_rows(
    "linear", FLOAT_FORMATS, "sm80", "gemm", cuda_linear.INT8, cuda.refuses_quant, cuda.refuses_weight
)
_few_bits = tuple(f for f in FLOAT_FORMATS if f != "MixedIntWeight")  # some of its rows are wider than 4 bits
add_cuda_rows(
    *("linear", _few_bits, "sm80", "gemm_float", cuda_linear.FLOAT),
    *(cuda_float.refuses_options, cuda_float.refuses_weight),
    **_float,
)
add_cuda_rows(
    "linear", BITS_FORMATS, "sm80", "binary", cuda_linear.SIGNS, cuda_binary.refuses_quant, tag="signs"
)
for _op in ("matmul_binary", "linear_binary"):
    add_cuda_rows(_op, BITS_FORMATS, "sm80", "binary", getattr(cuda_binary, _op), cuda_binary.refuses_bits)
add_cuda_rows("pack_signs", (None,), "sm80", "binary", cuda_binary.pack_signs)
for _op in ("matmul_int", "linear_requant"):
    add_cuda_rows(_op, FLOAT_FORMATS, "sm80", "gemm", getattr(cuda, _op), cuda.refuses_weight)
add_cuda_rows("requantize", (None,), "sm80", "elementwise", cuda.requantize)
add_cuda_rows(
    "quantize_activations", (None,), "sm80", "elementwise", cuda.quantize_activations, cuda.refuses_quant
)


# ---- rows of Triton, for tensors on a CUDA device: after those of CUDA C++, which come first where both take a call --

registry.DEVICE_BACKENDS["triton"] = triton.unavailable


def add_triton_rows(op, formats, core, call, accepts, exactness="exact", tag=None):
    for name in formats:
        registry.register(Kernel(op, name, "triton", None, core, accepts, call, exactness, tag))


add_triton_rows("linear", FLOAT_FORMATS, "gemm", triton.INT, triton.accepts_integers)
_float = {"exactness": "float", "tag": "float"}
add_triton_rows("linear", FLOAT_FORMATS, "gemm_float", triton.FLOAT, triton.accepts_floats, **_float)
for _op in ("matmul_int", "linear_requant"):
    add_triton_rows(_op, FLOAT_FORMATS, "gemm", getattr(triton, _op), triton.accepts_codes)
for _op in ("requantize", "quantize_activations"):
    add_triton_rows(_op, (None,), "elementwise", getattr(triton, _op), triton.refuses)
