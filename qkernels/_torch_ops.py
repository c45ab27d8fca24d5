"""``linear`` as torch operators, for torch.compile and export. Eager calls bypass this layer: a Python operator costs
about ten microseconds, and a small layer runs in three.

The weight travels as its prepacked block, a uint8 tensor that describes and checks itself, so the operator's
arguments are tensors and numbers only.
"""

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import _native, cpu, cpu_binary, cpu_float
from ._torch_device import block_on_device, prepacked, run_on_device
from .cpu import ACTIVATIONS, FLOATS
from .errors import ArgumentError, UnsupportedError
from .formats import BinaryWeight, TernaryWeight, WeightFormat
from .formats.base import check_integer
from .registry import ISAS, current_isa, num_threads

_library = torch.library.Library("qkernels", "DEF")
_library.define(
    "linear_int(Tensor x, Tensor packed, Tensor? bias, int out_features, int mode, int bits, bool signed, float scale, "
    "int zero_point, int activation, ScalarType out_dtype, bool power=False, str layout='') -> Tensor"
)
_FLOAT_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def check_block(op, packed):
    """Refuse a prepacked block that is not plain bytes; what they say is checked by the native side."""
    if packed.dtype is not torch.uint8 or not packed.is_contiguous() or not packed.is_cpu:
        raise TypeError(f"{op}: packed is not a contiguous uint8 CPU tensor.")


def check_floats(op, x, out_dtype):
    if x.dtype not in _FLOAT_DTYPES or out_dtype not in _FLOAT_DTYPES or not x.is_cpu:
        raise TypeError(f"{op}: x is {x.dtype} on {x.device}, out_dtype {out_dtype}.")


def float_vector(op, name, v, n, device):
    """A vector as contiguous float32, or None; refused where its length or device is another."""
    if v is None:
        return None
    if tuple(v.shape) != (n,) or v.device != device:
        raise ValueError(f"{op}: {name} is {tuple(v.shape)} on {v.device}, not ({n},) on {device}.")
    return v.to(torch.float32).contiguous()


def _linear(op, x, packed, bias, out_features, out_dtype, kind, plan_of, refuse_row):
    """What the operators on matrices share: ``plan_of`` makes the native plan of a block, of the class ``kind``."""
    check_block(op, packed)
    block = kind(packed.data_ptr(), packed.numel(), packed)
    n, k = block.shape
    if x.dim() < 1 or x.shape[-1] != k or n != out_features:
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} and out_features {out_features}; the weight is ({n}, {k})."
        )
    check_floats(op, x, out_dtype)
    bias = float_vector(op, "bias", bias, n, x.device)
    rows = x.reshape(-1, k).contiguous() if k else x.new_empty((x.shape[:-1].numel(), 0))
    plan = plan_of(block)
    out = torch.empty((*x.shape[:-1], n), dtype=out_dtype)
    b = 0 if bias is None else bias.data_ptr()
    row = plan.run(rows.data_ptr(), rows.shape[0], k, b, out.data_ptr(), num_threads())
    if row >= 0:
        refuse_row("linear", row)
    return out


def _on_device(op, x, packed, bias, n, given, activation, out_dtype, layout):
    """What the operators on matrices share on a device: ``packed`` and ``layout`` are what _torch_device made."""
    where = f"qkernels::{op}"
    if packed.dtype is not torch.uint8 or not packed.is_contiguous() or packed.device != x.device:
        raise TypeError(f"{where}: packed is not a contiguous uint8 tensor on {x.device}.")
    if x.dtype not in _FLOAT_DTYPES or out_dtype not in _FLOAT_DTYPES or x.dim() < 1:
        raise TypeError(f"{where}: x is {x.dtype} {tuple(x.shape)}, out_dtype {out_dtype}.")
    if activation not in ACTIVATIONS.values():
        raise ValueError(f"{where}: activation is {activation}; accepted: 0 to 4.")
    bias = float_vector(where, "bias", bias, n, x.device)
    return run_on_device(op, x, packed, bias, n, given, activation, out_dtype, layout)


def _linear_int(
    x,
    packed,
    bias,
    out_features,
    mode,
    bits,
    signed,
    scale,
    zero_point,
    activation,
    out_dtype,
    power=False,
    layout="",
):
    def plan_of(block):
        quant = (mode, bits, signed, scale, zero_point)
        types = _FLOAT_DTYPES[x.dtype], _FLOAT_DTYPES[out_dtype]
        return _native.LinearPlan(block, ISAS[current_isa()][0], *quant, *types, activation, power)

    op, kind = "qkernels::linear_int", _native.PackedWeight
    return _linear(op, x, packed, bias, out_features, out_dtype, kind, plan_of, cpu.refuse_row)


def _linear_int_cuda(
    x,
    packed,
    bias,
    out_features,
    mode,
    bits,
    signed,
    scale,
    zero_point,
    activation,
    out_dtype,
    power=False,
    layout="",
):
    given = mode, bits, signed, scale, zero_point, power
    return _on_device("linear_int", x, packed, bias, out_features, given, activation, out_dtype, layout)


@torch.library.register_fake("qkernels::linear_int", lib=_library)
def _(
    x,
    packed,
    bias,
    out_features,
    mode,
    bits,
    signed,
    scale,
    zero_point,
    activation,
    out_dtype,
    power=False,
    layout="",
):
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


_library.impl("linear_int", _linear_int, "CPU")
_library.impl("linear_int", _linear_int_cuda, "CUDA")
# For inference: no gradient flows through the result, as in eager calls.
_library.impl("linear_int", torch.library.fallthrough_kernel, "Autograd")


def _block(w, name, kept, packed):
    """The block that ``packed(w)`` keeps in the weight as ``kept``, as a tensor ``name`` on its memory; made once."""
    block = w.__dict__.get(name)
    if block is None:
        with _disable_current_modes():  # real memory, also where fake tensors are being traced
            packed(w)
            block = w.__dict__[name] = torch.from_numpy(w.__dict__[kept])
    return block


def layout(w):
    """The prepacked block of a weight as a tensor, on the memory that eager calls use; made once."""
    return _block(w, "_packed_tensor", "_block", cpu.packed)


def _ready_to_trace(self):
    layout(self)
    return True


# Dynamo runs a function so marked (torch.compiler.assume_constant_result, which would import it here) while it
# traces, and does not look inside. What it leaves behind is then read from the weight and guarded like any tensor.
_ready_to_trace._dynamo_marked_constant = True
WeightFormat._ready_to_trace = _ready_to_trace


def linear_packed(x, packed, bias, n, input_quant, activation, out_dtype, layout=""):
    """``linear`` on a prepacked block; what a module calls while it is compiled."""
    *quant, power = cpu.quant_numbers(input_quant)
    number, out_dtype = ACTIVATIONS[activation], out_dtype or x.dtype
    return torch.ops.qkernels.linear_int(x, packed, bias, n, *quant, number, out_dtype, power, layout)


def linear(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend):
    """``qkernels.linear`` under torch.compile. The operator checks the rest when it runs."""
    device = x.device.type
    backends = (None, "cuda", "triton") if device == "cuda" else (None, device)
    if backend not in backends:
        accepted = ", ".join(map(repr, backends))
        raise UnsupportedError(
            f"linear: backend is {backend!r} under torch.compile with x on {device}; accepted: {accepted}."
        )
    if compute_dtype not in (None, "float32") or (compute_dtype and input_quant is not None):
        raise UnsupportedError(
            f"linear: compute_dtype is {compute_dtype!r} under torch.compile; accepted: None, or 'float32' without an "
            "input_quant."
        )
    if input_quant is not None and input_quant.granularity == "channel" and input_quant.scale is not None:
        raise UnsupportedError("linear: under torch.compile the scale of granularity 'channel' must be None.")
    if x.dim() < 1 or x.shape[-1] != w.shape[1]:
        raise ArgumentError(
            f"linear: x has shape {tuple(x.shape)}, w has shape {w.shape} (N, K); the last dimension of x must be "
            f"K = {w.shape[1]}."
        )
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise ArgumentError(
            f"linear: activation is {activation!r}; accepted: None, 'relu', 'relu6', 'gelu', 'silu'."
        )
    exact, rest = compute_dtype == "float32", (activation, out_dtype)
    if device == "cuda":
        block, layout = block_on_device(x, w, input_quant, compute_dtype, activation, backend)
        return linear_on_block(x, block, bias, w.shape[0], input_quant, exact, *rest, layout)
    if input_quant is None:
        w._ready_to_trace_floats()
        return linear_float_packed(x, w._packed_floats, bias, w.shape[0], exact, *rest)
    if input_quant.bits == 1:
        w._ready_to_trace_signs()
        return linear_signs_packed(x, w._packed_signs, bias, w.shape[0], input_quant, *rest)
    check_integer("linear", w)
    w._ready_to_trace()
    return linear_packed(x, w._packed_tensor, bias, w.shape[0], input_quant, *rest)


# ---- signs: linear with InputQuant(bits=1), as above with the block of the binary core -----------------------

_library.define(
    "linear_signs(Tensor x, Tensor packed, Tensor? bias, int out_features, int mode, float scale, int activation, "
    "ScalarType out_dtype, str layout='') -> Tensor"
)


def _linear_signs(x, packed, bias, out_features, mode, scale, activation, out_dtype, layout=""):
    def plan_of(block):
        epilogue = _native.BinaryPlan(_FLOAT_DTYPES[out_dtype], activation, *([0] * 8))
        return _native.LinearBinary(
            block, ISAS[current_isa()][0], mode, scale, _FLOAT_DTYPES[x.dtype], epilogue
        )

    op, kind = "qkernels::linear_signs", _native.PackedBinary
    return _linear(op, x, packed, bias, out_features, out_dtype, kind, plan_of, cpu_binary.refuse_row)


def _linear_signs_cuda(x, packed, bias, out_features, mode, scale, activation, out_dtype, layout=""):
    given = mode, scale
    return _on_device("linear_signs", x, packed, bias, out_features, given, activation, out_dtype, layout)


@torch.library.register_fake("qkernels::linear_signs", lib=_library)
def _(x, packed, bias, out_features, mode, scale, activation, out_dtype, layout=""):
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


_library.impl("linear_signs", _linear_signs, "CPU")
_library.impl("linear_signs", _linear_signs_cuda, "CUDA")
_library.impl("linear_signs", torch.library.fallthrough_kernel, "Autograd")


def layout_of_signs(w):
    """The prepacked block of the binary core as a tensor, on the memory that eager calls use; made once."""
    return _block(w, "_packed_signs", "_block_of_bits", cpu_binary.packed)


def _ready_to_trace_signs(self):
    layout_of_signs(self)
    return True


_ready_to_trace_signs._dynamo_marked_constant = True
BinaryWeight._ready_to_trace_signs = TernaryWeight._ready_to_trace_signs = _ready_to_trace_signs


def linear_signs_packed(x, packed, bias, n, input_quant, activation, out_dtype, layout=""):
    """``linear`` with InputQuant(bits=1) on a prepacked block."""
    given = cpu_binary.sign_numbers(input_quant)
    number, out_dtype = ACTIVATIONS[activation], out_dtype or x.dtype
    return torch.ops.qkernels.linear_signs(x, packed, bias, n, *given, number, out_dtype, layout)


# ---- floats: linear without an input_quant, as above with the block of the float core -------------------------

_library.define(
    "linear_float(Tensor x, Tensor packed, Tensor? bias, int out_features, bool exact, int activation, "
    "ScalarType out_dtype, str layout='') -> Tensor"
)


def _linear_float(x, packed, bias, out_features, exact, activation, out_dtype, layout=""):
    def plan_of(block):
        types = _FLOAT_DTYPES[x.dtype], _FLOAT_DTYPES[out_dtype]
        return _native.FloatPlan(block, ISAS[current_isa()][0], exact, *types, activation)

    op, kind = "qkernels::linear_float", _native.PackedFloat
    return _linear(op, x, packed, bias, out_features, out_dtype, kind, plan_of, cpu.refuse_row)


def _linear_float_cuda(x, packed, bias, out_features, exact, activation, out_dtype, layout=""):
    given = ("float32" if exact else None,)
    return _on_device("linear_float", x, packed, bias, out_features, given, activation, out_dtype, layout)


@torch.library.register_fake("qkernels::linear_float", lib=_library)
def _(x, packed, bias, out_features, exact, activation, out_dtype, layout=""):
    return x.new_empty((*x.shape[:-1], out_features), dtype=out_dtype)


_library.impl("linear_float", _linear_float, "CPU")
_library.impl("linear_float", _linear_float_cuda, "CUDA")
_library.impl("linear_float", torch.library.fallthrough_kernel, "Autograd")


def layout_of_floats(w):
    """The prepacked block of the float core as a tensor, on the memory that eager calls use; made once."""
    return _block(w, "_packed_floats", "_block_float", cpu_float.packed)


def _ready_to_trace_floats(self):
    layout_of_floats(self)
    return True


_ready_to_trace_floats._dynamo_marked_constant = True
WeightFormat._ready_to_trace_floats = _ready_to_trace_floats


def linear_float_packed(x, packed, bias, n, exact, activation, out_dtype, layout=""):
    """``linear`` without an input_quant on a prepacked block."""
    number, out_dtype = ACTIVATIONS[activation], out_dtype or x.dtype
    return torch.ops.qkernels.linear_float(x, packed, bias, n, exact, number, out_dtype, layout)


# ---- linear with any input_quant, as ops and modules call it ---------------------------------------------------


def layout_for(w, input_quant):
    """The prepacked block that ``linear`` reads of a weight with this input_quant, the only one that is made."""
    if input_quant is None:
        return layout_of_floats(w)
    return layout_of_signs(w) if input_quant.bits == 1 else layout(w)


def linear_on_block(x, packed, bias, n, input_quant, exact, activation, out_dtype, layout=""):
    """``linear`` on a prepacked block; ``exact``: weight-only products of float32, ``layout``: of one on a device."""
    if input_quant is None:
        return linear_float_packed(x, packed, bias, n, exact, activation, out_dtype, layout)
    run = linear_signs_packed if input_quant.bits == 1 else linear_packed
    return run(x, packed, bias, n, input_quant, activation, out_dtype, layout)


def linear_traced(kernel, r):
    """A checked call, r an ops.Request, as an operator: what tracers and dispatch modes see of an eager call."""
    o, on_device = r.options, r.x.device.type != "cpu"
    q, compute = o["input_quant"], o.get("compute_dtype")
    if not isinstance(o["activation"], str | None):
        raise UnsupportedError(
            f"linear: activation is a {type(o['activation']).__name__} where operators are traced; accepted: None, "
            "'relu', 'relu6', 'gelu', 'silu'."
        )
    if on_device and compute == "bfloat16" and r.x.dtype is torch.float16:
        raise UnsupportedError(
            "linear: compute_dtype is 'bfloat16' with a float16 x where operators are traced; accepted: None, "
            "'float32'."
        )
    block, layout = prepacked(kernel, r) if on_device else (layout_for(r.w, q), "")
    rest = o["activation"], getattr(torch, r.out_name), layout
    return linear_on_block(r.x, block, r.bias, r.w.shape[0], q, compute == "float32", *rest)


assert set(FLOATS) == {"float32", "bfloat16", "float16"}
