"""The CUDA backend: weights prepacked on a device, and calls from checked arguments to the kernels of csrc/cuda.

A weight's arrays live on the host; what a kernel reads is made at the first call on a device, uploaded, and kept with
the weight for that device. Calls run on torch's current stream of the device of x, allocate through torch and never
synchronise, so that they can be captured in a CUDA graph. For that reason they do not refuse activations that are not
finite: results of such a row (of all rows, with one dynamic scale for the tensor) are NaN.
"""

import sys

import numpy as np

from ._arrays import is_torch
from .cpu import ACTIVATIONS, FLOATS, ROUNDINGS, address, dtype_name, float_vector, input_mode
from .errors import ArgumentError
from .formats.operand import integer_operand, why_no_integers
from .memory import kept_on

try:
    from . import _cuda as native
except ImportError as _error:
    native, _why_missing = None, str(_error)
else:
    _why_missing = None

CAPABILITY = (8, 0)  # the least: mma.sync on int8 with 32 k, cp.async


def unavailable():
    """None, or why no kernel of this backend can run on this machine."""
    if native is None:
        if "cannot import name" in _why_missing:
            return "qkernels was built without CUDA (nvcc was not found, or QKERNELS_CUDA=off)"
        return f"the CUDA extension does not load: {_why_missing}"
    if native.emulated:
        return None
    if _known.get("count") is None:
        _known["count"] = native.device_count()
    count, why = _known["count"]
    return None if count else f"no CUDA device: {why}"


_known = {}


def device(index):
    """What the runtime says about a device, looked up once."""
    if index not in _known:
        _known[index] = native.device(index)
    return _known[index]


def refuses(request):
    """None, or why this backend cannot take a request: what depends on the machine and on where x is."""
    reason = unavailable()
    if reason is not None:
        return reason
    x = request.x
    if native.emulated:
        return None if is_torch(x) and x.device.type == "cpu" else "the emulator takes CPU tensors"
    if not is_torch(x) or x.device.type != "cuda":
        return "x is on the CPU; accepted: a CUDA tensor"
    capability = device(index_of(x))["capability"]
    if capability < CAPABILITY:
        return f"{x.device} has compute capability {capability}; needed: {CAPABILITY}"
    return None


def index_of(x):
    return x.device.index or 0


def stream_of(x):
    """The number of torch's current stream on the device of x."""
    if not x.is_cuda:
        return 0
    return sys.modules["torch"].cuda.current_stream(x.device).cuda_stream


def capabilities():
    """The state of this backend, for qkernels.capabilities()."""
    reason = unavailable()
    if reason is not None:
        return {"available": False, "reason": reason}
    return {"available": True, "devices": [dict(device(i)) for i in range(native.device_count()[0])]}


# ---- weights --------------------------------------------------------------------------------------------------


def int8_tiles(codes, n_pad, k_pad):
    """int8 (N, K) in the tiles of csrc/cuda/gemm_layout.h, flat."""
    padded = np.zeros((n_pad, k_pad), np.int8)
    padded[: codes.shape[0], : codes.shape[1]] = codes
    tiles = padded.reshape(n_pad // 16, 16, k_pad // 64, 64)
    return np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(-1)


def block_of(layout, parts):
    """The block that a native layout (its byte offsets by name) describes: uint8, 0 where none of the parts lies."""
    block = np.zeros(layout["total_bytes"], np.uint8)
    for name, values in parts.items():
        block[layout[name] :][: values.nbytes] = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    return block


def int8_block(w):
    """The block of csrc/cuda/gemm_layout.h of a weight, uint8, on the host, and its flags."""
    w = integer_operand(w)
    codes = np.ascontiguousarray(w.codes(), np.int8)
    n, k = codes.shape
    zero = None if w.zero_point is None else np.broadcast_to(w.zero_point, (n, 1)).astype(np.int64)[:, 0]
    flags = zero is not None, w.input_scale is not None
    layout = native.int8_layout(n, k, *flags)
    sums = codes.sum(1, dtype=np.int64)
    parts = {
        "codes": int8_tiles(codes, layout["n_pad"], layout["k_pad"]),
        "scale": np.broadcast_to(np.asarray(w.scale, np.float32), (n, 1))[:, 0],
        "offset": (sums if zero is None else sums - k * zero).astype(np.int32),
    }
    if zero is not None:
        parts["zero"] = zero.astype(np.int32)
    if flags[1]:
        parts["inv_input"] = np.float32(1) / np.asarray(w.input_scale, np.float32)
    return block_of(layout, parts), flags[0] + 2 * flags[1]


def upload(array, where):
    """A host array as a tensor on a device, for use by any stream."""
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if where.type != "cuda":
        return tensor.clone()
    if torch.cuda.is_current_stream_capturing():
        raise ArgumentError(
            "a weight or Requant is not on the device yet, and cannot be uploaded while a CUDA graph is captured: "
            "make one call before the capture."
        )
    return tensor.to(where)


def packed_tensor(w, where):
    """The compute layout of a weight on a device: the tensor and its flags (1 zero points, 2 input scales), made once
    for each device."""

    def make():
        block, flags = int8_block(w)
        return upload(block, where), flags

    return kept_on(w, "_cuda_int8", where, make)


def view_of(kind, tensor, n, k, *facts):
    """A checked view, of a class of the native module, of a prepacked tensor."""
    return kind(index_of(tensor), tensor.data_ptr(), tensor.numel(), tensor, n, k, *facts)


def native_weight(tensor, n, k, flags):
    """The checked view of what ``packed_tensor`` made."""
    return view_of(native.Int8Weight, tensor, n, k, bool(flags & 1), bool(flags & 2))


def packed(w, where):
    """The native weight of ``packed_tensor``."""

    def make():
        tensor, flags = packed_tensor(w, where)
        return native_weight(tensor, *w.matrix_shape, flags)

    return kept_on(w, "_cuda_int8_native", where, make)


def refuses_weight(request):
    """None, or why the int8 core does not take the weight."""
    return _weight_reason(request.w)


def _weight_reason(w):
    reason = why_no_integers(w)
    if reason is None and w.is_grouped:
        return "the weight has group-wise scales; this kernel takes one a channel or tensor"
    return reason


def refuses_quant(request):
    """None, or why the int8 core does not take the activations."""
    return _quant_reason(request.options["input_quant"])


def _quant_reason(q):
    if q is None:
        return "input_quant is None (weight-only): that is for the float core"
    if q.bits == 1:
        return "input_quant has bits=1: that is for the binary core"
    return "input_quant has a power" if q.power is not None else None


def refuses_power(request):
    return _quant_reason(request.options["input_quant"])


def refuses_compiled(w, input_quant):
    """None, or why ``linear`` with this weight cannot be traced for a device."""
    return unavailable() or _quant_reason(input_quant) or _weight_reason(w)


# ---- calls ------------------------------------------------------------------------------------------------------


def scratch(size, like):
    torch = sys.modules["torch"]
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def quantization(q):
    """(mode, lo, hi, largest, zero_point, scale) of an InputQuant: csrc/cuda/quantize.h."""
    mode = input_mode(q)
    return code_range(mode, q.bits, q.signed, q.zero_point or 0, q.scale if mode == 2 else 1.0)


def code_range(mode, bits, signed, zero_point, scale):
    hi = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    lo = 0 if not signed else -hi if mode < 2 else -hi - 1
    return mode, lo, hi, hi, zero_point, scale


def linear(r):
    """Registry entry of ``linear`` with integer activations: r is an ops.Request."""
    bias = None if r.bias is None else float_vector(r.bias)
    options = r.options["activation"], getattr(sys.modules["torch"], r.out_name)
    w, quant = packed(r.w, r.x.device), quantization(r.options["input_quant"])
    return r.shaped(_linear(w, r.x2, r.m, r.pitch, bias, quant, ACTIVATIONS[options[0]], options[1]))


def linear_on_tensor(x, tensor, bias, n, flags, quant, activation, out_dtype):
    """``linear`` on a prepacked tensor, as the torch operator has it; activation is its number."""
    k = x.shape[-1]
    w = native_weight(tensor, n, k, flags)
    rows = x.reshape(-1, k).contiguous() if k else x.new_empty((x.shape[:-1].numel(), 0))
    out = _linear(w, rows, rows.shape[0], k, bias, quant, activation, out_dtype)
    return out.reshape(*x.shape[:-1], n)


def _linear(w, x, m, pitch, bias, quant, activation, out_dtype):
    torch = sys.modules["torch"]
    out = torch.empty((m, w.shape[0]), dtype=out_dtype, device=x.device)
    memory = scratch(w.scratch_bytes(m), x)
    w.linear(
        *(stream_of(x), address(x), FLOATS[dtype_name(x)], m, pitch, *quant, address(bias), activation),
        *(FLOATS[dtype_name(out)], address(out), address(memory), memory.numel()),
    )
    return out


# A call like one before skips the checks, as on the CPU (ops/plans.py): launching a small kernel takes microseconds.


def keep_plan(r, options):
    """Remember for ``same_as_before`` what a checked call of ``linear`` computed with."""
    plans = r.w.__dict__.setdefault("_cuda_plans", {})
    if len(plans) > 64:
        plans.clear()
    quant, activation = quantization(r.options["input_quant"]), ACTIVATIONS[r.options["activation"]]
    out_type = getattr(sys.modules["torch"], r.out_name)
    plan = (
        packed(r.w, r.x.device),
        quant,
        activation,
        out_type,
        FLOATS[dtype_name(r.x)],
        FLOATS[r.out_name],
        {},
    )
    plans[options, index_of(r.x)] = plan


def same_as_before(x, w, bias, options):
    """``linear`` on a CUDA tensor where a call with these options was checked before, else None."""
    try:
        plan = w.__dict__["_cuda_plans"][options, index_of(x)]
    except (AttributeError, KeyError, TypeError):  # not a weight, a first call, options that no call takes
        return None
    if not x.is_contiguous() or x.is_neg():
        return None
    weight, quant, activation, out_type, x_number, out_number, sizes = plan
    torch, shape = sys.modules["torch"], x.shape
    n, k = w.shape
    if not shape or shape[-1] != k:
        return None
    b = 0
    if bias is not None:
        usual = (
            type(bias) in (torch.Tensor, torch.nn.Parameter) and bias.is_contiguous() and not bias.is_neg()
        )
        if not usual or bias.dtype is not torch.float32 or bias.shape != (n,) or bias.device != x.device:
            return None
        b = bias.data_ptr()
    m = x.numel() // k
    size = sizes.get(m)
    if size is None:
        if len(sizes) > 1024:
            sizes.clear()
        size = sizes[m] = weight.scratch_bytes(m)
    out = torch.empty((*shape[:-1], n), dtype=out_type, device=x.device)
    memory = torch.empty(size, dtype=torch.uint8, device=x.device)
    where = x.data_ptr(), x_number, m, k, *quant, b, activation, out_number, out.data_ptr()
    weight.linear(stream_of(x), *where, memory.data_ptr(), size)
    return out


def matmul_int(r):
    w, x, out = packed(r.w, r.x.device), r.x2, r.empty("int32")
    memory = scratch(w.scratch_bytes(r.m), x)
    w.matmul(
        *(stream_of(x), address(x), dtype_name(x) == "int8", r.m, r.pitch, r.options["x_zero_point"]),
        *(address(out), address(memory), memory.numel()),
    )
    return r.shaped(out)


def requant_tensors(requant, n, where):
    """multiplier, shift and scale of a Requant, (n,) each, on a device; made once."""
    arrays = (requant.multiplier, requant.shift, requant.scale)
    return kept_on(
        *(requant, "_cuda", where),
        lambda: [upload(np.ascontiguousarray(np.broadcast_to(a, (n,))), where) for a in arrays],
        n,
    )


def linear_requant(r):
    w, x, out = packed(r.w, r.x.device), r.x2, r.empty(r.out_name)
    bias = None if r.bias is None else r.bias.detach().contiguous()
    memory = scratch(w.scratch_bytes(r.m), x)
    requant = r.options["requant"]
    w.requant(
        *(stream_of(x), address(x), dtype_name(x) == "int8", r.m, r.pitch, r.options["x_zero_point"]),
        *map(address, requant_tensors(requant, r.w.shape[0], x.device)),
        *(ROUNDINGS[requant.rounding], requant.zero_point, *r.options["limits"], address(bias)),
        *(address(out), address(memory), memory.numel()),
    )
    return r.shaped(out)


def requantize(r):
    x, out = r.x2, r.empty(r.out_name)
    requant = r.options["requant"]
    native.requantize(
        *(index_of(x), stream_of(x), address(x), r.m, r.n, r.pitch),
        *map(address, requant_tensors(requant, r.n, x.device)),
        *(ROUNDINGS[requant.rounding], requant.zero_point, *r.options["limits"], address(out)),
    )
    return r.shaped(out)


def quantize_activations(r):
    torch = sys.modules["torch"]
    q, x = r.options["input_quant"], r.x2
    codes = r.empty("int8" if q.signed else "uint8")
    scales = torch.empty(r.m, dtype=torch.float32, device=x.device)
    mode, *quant = quantization(q)
    channel = None if mode != 3 else q.channel_scale("quantize_activations", None, r.n)
    inv_k = None if mode != 3 else upload(np.float32(1) / channel, x.device)
    memory = scratch(256, x)
    native.quantize(
        *(index_of(x), stream_of(x), address(x), FLOATS[dtype_name(x)], r.m, r.n, r.pitch, mode, *quant),
        *(address(inv_k), address(codes), r.n, address(scales), 0, address(memory)),
    )
    if mode == 0:
        return r.shaped(codes), scales.reshape(*r.batch, 1)
    if mode == 3:  # NaN where a row is not finite
        bad = scales.sum() * 0 if r.m else 0
        return r.shaped(codes), upload(channel.reshape(1, -1), x.device) + bad
    ones = (1,) * max(len(r.batch) + 1, 1)
    if r.m == 0:
        return r.shaped(codes), torch.full(ones, quant[-1], dtype=torch.float32, device=x.device)
    return r.shaped(codes), scales.amax().reshape(ones)
