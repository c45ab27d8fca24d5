"""The CUDA backend: weights prepacked on a device, and calls from checked arguments to the kernels of csrc/cuda.

A weight's arrays live on the host; what a kernel reads is made at the first call on a device, uploaded, and kept with
the weight for that device. Calls run on torch's current stream of the device of x, allocate through torch and never
synchronise, so that they can be captured in a CUDA graph. For that reason they do not refuse activations that are not
finite: results of such a row (of all rows, with one dynamic scale for the tensor) are NaN.
"""

import sys
from dataclasses import dataclass

import numpy as np

from ._arrays import is_torch, reciprocal
from .cpu import FLOATS, ROUNDINGS, address, dtype_name, quant_numbers
from .errors import ArgumentError, UnsupportedError
from .formats.operand import integer_operand, why_no_integers
from .memory import kept_on

try:
    from . import _cuda as native
except ImportError as _error:
    native, _why_missing = None, str(_error)
else:
    _why_missing = None

# Tokens: where rows of ``linear`` for one weight differ by their number, they do so here. Remembered calls and compiled
# code hold what was chosen on either side.
FEW = 16
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
    torch = sys.modules["torch"]
    raw = getattr(
        torch._C, "_cuda_getCurrentRawStream", None
    )  # what compiled code calls: a number, no object
    return raw(x.get_device()) if raw else torch.cuda.current_stream(x.device).cuda_stream


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
    """The block of csrc/cuda/gemm_layout.h of a weight, uint8, on the host, and its facts."""
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
        parts["inv_input"] = reciprocal(w.input_scale)
    return block_of(layout, parts), flags


def upload(array, where):
    """A host array as a tensor on a device, for use by any stream."""
    torch = sys.modules["torch"]
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if where.type != "cuda":
        return tensor.clone()
    if torch.cuda.is_current_stream_capturing():
        raise ArgumentError(
            "a weight, Requant or InputQuant is not on the device yet, and cannot be uploaded while a CUDA graph "
            "is captured: make one call before the capture."
        )
    return tensor.to(where)


@dataclass(frozen=True)
class Core:
    """What a core says of itself: all that ``qkernels.cuda_linear`` needs to run ``linear`` on it.

    name      in what operators carry beside a prepacked tensor
    kind      class of the native module, a checked view of a prepacked tensor: of (device, address, bytes, owner), the
              weight's (n, k), and the facts
    block     weight -> (its block, uint8, on the host; the facts, a tuple of numbers and of tuples of numbers)
    operator  the torch operator whose calls it takes
    given     options of a request -> what that operator says of the activations, in its order
    numbers   facts, name of x's dtype, *given -> what ``linear`` of the view takes between the pitch and the bias
    sized_by  how many of these numbers the size of the scratch memory depends on
    """

    name: str
    kind: str
    block: object
    operator: str
    given: object
    numbers: object
    sized_by: int = 0

    def tensor(self, w, where):
        """The compute layout of a weight on a device, and its facts; made once for each."""

        def make():
            block, facts = self.block(w)
            return upload(block, where), facts

        return kept_on(w, f"_cuda_{self.name}", where, make)

    def view(self, tensor, n, k, facts, owner=None):
        """The native view of what ``tensor`` made; it keeps ``owner`` alive."""
        kind = getattr(native, self.kind)
        return kind(index_of(tensor), tensor.data_ptr(), tensor.numel(), owner, n, k, *facts)

    def weight(self, w, where):
        """The native view of a weight on a device."""

        def make():
            tensor, facts = self.tensor(w, where)
            return self.view(tensor, *w.matrix_shape, facts, tensor)

        return kept_on(w, f"_cuda_{self.name}_native", where, make)


def int_numbers(facts, x_name, mode, bits, signed, scale, zero_point, power):
    """(mode, lo, hi, largest, zero_point, scale): csrc/cuda/quantize.h."""
    if power:
        raise UnsupportedError("linear: power codes of activations have no CUDA C++ kernel.")
    hi = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    lo = 0 if not signed else -hi if mode < 2 else -hi - 1
    return mode, lo, hi, hi, zero_point, scale


def quantization(q):
    """``int_numbers`` of an InputQuant."""
    return int_numbers((), None, *quant_numbers(q))


INT8 = Core(
    *("int8", "Int8Weight", int8_block, "linear_int"),
    given=lambda options: quant_numbers(options["input_quant"]),
    numbers=int_numbers,
)


def refuses_weight(request):
    """None, or why the int8 core does not take the weight."""
    w = request.w
    reason = why_no_integers(w)
    if reason is None and w.is_grouped:
        return "the weight has group-wise scales; this kernel takes one a channel or tensor"
    return reason


def refuses_quant(request):
    """None, or why the int8 core does not take the activations."""
    q = request.options["input_quant"]
    if q is None:
        return "input_quant is None (weight-only): that is for the float core"
    if q.bits == 1:
        return "input_quant has bits=1: that is for the binary core"
    return "input_quant has a power" if q.power is not None else None


# ---- calls ------------------------------------------------------------------------------------------------------


def scratch(size, like):
    torch = sys.modules["torch"]
    return torch.empty(size, dtype=torch.uint8, device=like.device)


def matmul_int(r):
    w, x, out = INT8.weight(r.w, r.x.device), r.x2, r.empty("int32")
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
    w, x, out = INT8.weight(r.w, r.x.device), r.x2, r.empty(r.out_name)
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


def channel_scales(q, k, where):
    """The scales of granularity "channel", (K,), and 1 / them, on a device; made once."""

    def make():
        scale = q.channel_scale("quantize_activations", None, k)
        return upload(np.ascontiguousarray(scale), where), upload(reciprocal(scale), where)

    return kept_on(q, "_cuda_channel", where, make, k)


def quantize_activations(r):
    torch = sys.modules["torch"]
    q, x = r.options["input_quant"], r.x2
    codes = r.empty("int8" if q.signed else "uint8")
    scales = torch.empty(r.m, dtype=torch.float32, device=x.device)
    mode, *quant = quantization(q)
    channel, inv_k = (None, None) if mode != 3 else channel_scales(q, r.n, x.device)
    memory = scratch(256, x)
    native.quantize(
        *(index_of(x), stream_of(x), address(x), FLOATS[dtype_name(x)], r.m, r.n, r.pitch, mode, *quant),
        *(address(inv_k), address(codes), r.n, address(scales), 0, address(memory)),
    )
    if mode == 0:
        return r.shaped(codes), scales.reshape(*r.batch, 1)
    if mode == 3:  # NaN where a row is not finite
        bad = scales.sum() * 0 if r.m else 0
        return r.shaped(codes), channel.reshape(1, -1) + bad
    ones = (1,) * max(len(r.batch) + 1, 1)
    if r.m == 0:
        return r.shaped(codes), torch.full(ones, quant[-1], dtype=torch.float32, device=x.device)
    return r.shaped(codes), scales.amax().reshape(ones)
