"""The binary core on CUDA: products of signs with BinaryWeight and TernaryWeight, by AND and popcount on tensor cores.

Calls do not refuse activations that are not finite (qkernels.cuda says why): the scale of such a row, and what is
computed with it, is NaN; its bits are those of x >= 0.
"""

import sys

import numpy as np

from . import cuda
from .binary import DPReLU
from .cpu import ACTIVATIONS, FLOATS, address, dtype_name, float_vector
from .cpu_binary import scale_mode, sign_numbers
from .memory import kept_on

INT32 = 5  # DType of csrc/common/types.h
NONE, SIGN, THRESHOLD = 0, 1, 2  # Pack of csrc/cuda/epilogue.h


def refuses_quant(request):
    """None, or why the binary core does not take a ``linear``."""
    q = request.options["input_quant"]
    if q is None or q.bits != 1:
        return "the binary core takes input_quant=qkernels.InputQuant(bits=1)"
    return refuses_activation(request)


def refuses_activation(request):
    if isinstance(request.options.get("activation"), DPReLU):
        return "the activation is a DPReLU; this kernel takes those with a name"
    return None


def refuses_bits(request):
    """None, or why the binary core does not take a product of bits."""
    if request.options.get("x_nonzero") is not None:
        return "x_nonzero is given (ternary activations); this kernel takes signs"
    if request.options.get("kind") == "multiple":
        return "the threshold has a multiplicity; this kernel gives bits"
    return refuses_activation(request)


def binary_block(w):
    """The block of csrc/cuda/binary.h of a weight, uint8, on the host, and its facts: whether it has two planes."""
    w = w.numpy()
    n, k = w.matrix_shape
    ternary = len(w.planes) == 2
    layout = cuda.native.binary_layout(n, k, ternary)
    rows = np.zeros((n, 1 + ternary, layout["plane_bytes"]), np.uint8)
    if k:
        rows[:, 0, : w.packed.shape[1]] = w.packed
        if ternary:
            rows[:, 1, : w.packed.shape[1]] = w.nonzero & ~w.packed
    codes = rows.reshape(n, layout["row_bytes"]).view(np.int8)
    count = np.bitwise_count(rows).sum((1, 2), dtype=np.int64)
    parts = {
        "codes": cuda.int8_tiles(codes, layout["n_pad"], layout["row_bytes"]),
        "scale": w.alpha,
        "offset": (count if ternary else 2 * count - k).astype(np.int32),
    }
    if not ternary:
        parts["two"] = np.full(n, 2, np.int32)
    return cuda.block_of(layout, parts), (ternary,)


SIGNS = cuda.Core(
    *("signs", "BinaryWeight", binary_block, "linear_signs"),
    given=lambda options: sign_numbers(options["input_quant"]),
    numbers=lambda facts, x_name, *given: given,
)


def threshold_tensors(threshold, where):
    """value and flip of a Threshold on a device; made once."""
    arrays = threshold.value, threshold.flip
    return kept_on(
        *(threshold, "_cuda", where),
        lambda: [cuda.upload(np.ascontiguousarray(a, np.int32), where) for a in arrays],
    )


def _row_scales(r):
    """float32 (m,) on the device, or None."""
    scale = r.options["x_scale"]
    if scale is None:
        return None
    torch = sys.modules["torch"]
    scale = torch.as_tensor(scale).detach().to(device=r.x.device, dtype=torch.float32)
    return scale.expand(r.m).contiguous()


def _run_bits(r, out_type, pack, result, **options):
    w, x = SIGNS.weight(r.w, r.x.device), r.x2
    memory = cuda.scratch(w.scratch_bytes(r.m), x)
    scale, bias = options.get("scale"), options.get("bias")
    threshold = options.get("threshold", (None, None))
    w.bits(
        *(cuda.stream_of(x), address(x), r.m, r.pitch, out_type, pack, address(scale), address(bias)),
        *(ACTIVATIONS[options.get("activation")], *map(address, threshold)),
        *(address(result), address(memory), memory.numel()),
    )
    return r.shaped_as(result)


def matmul_binary(r):
    return _run_bits(r, INT32, NONE, r.empty_as("int32"))


def linear_binary(r):
    o, result = r.options, r.empty_as(r.out_name)
    if o["kind"] == "threshold":
        arrays = threshold_tensors(o["threshold"], r.x.device)
        return _run_bits(r, INT32, THRESHOLD, result, threshold=arrays)
    bias = None if r.bias is None else float_vector(r.bias)
    options = {"scale": _row_scales(r), "bias": bias, "activation": o["activation"]}
    if o["kind"] == "sign":
        return _run_bits(r, FLOATS["float32"], SIGN, result, **options)
    return _run_bits(r, FLOATS[r.out_name], NONE, result, **options)


def pack_signs(r):
    torch = sys.modules["torch"]
    q, x, bits = r.options["input_quant"], r.x2, r.empty_as("uint8")
    mode = 2 if q is None else scale_mode(q)
    scales = None if q is None else torch.empty(r.m, dtype=torch.float32, device=x.device)
    cuda.native.pack_signs(
        *(cuda.index_of(x), cuda.stream_of(x), address(x), FLOATS[dtype_name(x)], r.m, r.n, r.pitch, mode),
        *(1.0 if q is None or q.scale is None else q.scale, address(bits), r.width, address(scales)),
    )
    if q is None:
        return r.shaped_as(bits)
    if mode == 0:
        return r.shaped_as(bits), scales.reshape(*r.batch, 1)
    ones = (1,) * (len(r.batch) + 1)
    if r.m == 0:
        fixed = 0.0 if mode == 1 else 1.0 if q.scale is None else q.scale
        return r.shaped_as(bits), torch.full(ones, fixed, dtype=torch.float32, device=x.device)
    return r.shaped_as(bits), scales.amax().reshape(ones)  # all equal, or NaN among them
