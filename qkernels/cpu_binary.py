"""The binary core on the CPU: prepacked bits, and calls from checked arguments to the native kernels."""

import sys

import numpy as np

from . import _native
from ._arrays import is_torch
from .binary import DPReLU
from .cpu import ACTIVATIONS, FLOATS, address, dtype_name, float_vector
from .errors import ArgumentError
from .memory import aligned
from .registry import ISAS, num_threads

OUT = {"float32": 0, "bfloat16": 1, "float16": 2, "int32": 3, "sign": 4, "threshold": 5, "multiple": 6}


def packed_tensor(w):
    """The compute layout of a binary or ternary weight (csrc/common/binary_layout.h), a 64-byte aligned uint8 array."""
    w = w.numpy()
    n, k = w.matrix_shape
    planes = [np.ascontiguousarray(getattr(w, name)) for name in w.planes]
    return _prepacked(planes, n, k, k, np.ascontiguousarray(w.alpha))


def _prepacked(planes, n, k, products, alpha):
    nonzero = planes[1] if len(planes) == 2 else None
    block = aligned(_native.binary_packed_bytes(n, k, nonzero is not None))
    _native.binary_prepack(
        address(planes[0]), address(nonzero), n, k, products, address(alpha), address(block), block.nbytes
    )
    return block


def packed(w):
    """The weight prepacked for the binary core, made once and kept with it."""
    p = w.__dict__.get("_packed_bits")
    if p is None:
        block = w.__dict__["_block_of_bits"] = packed_tensor(w)
        p = w.__dict__["_packed_bits"] = _native.PackedBinary(block.ctypes.data, block.nbytes, block)
    return p


def refuse_row(op, row):
    raise ArgumentError(
        f"{op}: x has a value that is not finite, or values whose sum leaves float32, in row {row} (rows counted over "
        "all batch dimensions); accepted: finite numbers."
    )


def scale_mode(q):
    """SignScale number of csrc/cpu/binary.h."""
    if q.granularity == "token":
        return 0
    return 1 if q.scale is None else 2


def sign_numbers(q):
    """What the operator ``linear_signs`` says of an InputQuant: (mode, scale)."""
    mode = scale_mode(q)
    return mode, q.scale if mode == 2 else 1.0


def plan(out, n, bias=None, activation=None, threshold=None):
    """A native plan of the epilogue, and the arrays whose addresses it has."""
    keep = [None if bias is None else float_vector(bias)]
    prelu = [None] * 4
    if activation is not None and not isinstance(activation, str):
        prelu = [np.ascontiguousarray(np.broadcast_to(a, (n,)), np.float32) for a in activation.arrays()]
        activation = None
    alpha, beta, gamma, zeta = prelu
    integers = [None] * 3
    if threshold is not None:
        flip = -threshold.flip.astype(np.int32)
        integers = [np.ascontiguousarray(threshold.value), flip, threshold.multiplicity]
    keep += [alpha, beta, gamma, zeta, *integers]
    return _native.BinaryPlan(OUT[out], ACTIVATIONS[activation], *map(address, keep)), keep


def linear_plan(w, q, x_type, out_name, activation, isa):
    """A native object that runs ``linear`` with binarized activations, and the arrays that it needs kept."""
    epilogue, keep = plan(out_name, w.shape[0], None, activation)
    native = _native.LinearBinary(
        packed(w), ISAS[isa][0], scale_mode(q), 1.0 if q.scale is None else q.scale, x_type, epilogue
    )
    return native, keep


def linear(r):
    """Registry entry of ``linear`` with InputQuant(bits=1): r is an ops.Request."""
    options = r.options
    native, _keep = linear_plan(
        r.w, options["input_quant"], FLOATS[dtype_name(r.x)], r.out_name, options["activation"], r.isa
    )
    bias = None if r.bias is None else float_vector(r.bias)
    out = r.empty(r.out_name)
    row = native.run(address(r.x2), r.m, r.pitch, address(bias), address(out), num_threads())
    if row >= 0:
        refuse_row("linear", row)
    return r.shaped(out)


def _run_bits(r, out_name, result, x_scale, step, **epilogue):
    bits, pitch = r.x2, r.pitch
    mask = r.options["x_nonzero"]
    mask_rows, mask_pitch = (None, 0) if mask is None else (mask.x2, mask.pitch)
    native, _keep = plan(out_name, r.columns, **epilogue)
    packed(r.w).run_bits(
        ISAS[r.isa][0],
        address(bits),
        pitch,
        address(mask_rows),
        mask_pitch,
        r.m,
        address(x_scale),
        step,
        native,
        address(result),
        num_threads(),
    )
    return r.shaped_as(result)


def matmul_binary(r):
    return _run_bits(r, "int32", r.empty_as("int32"), None, 0)


def linear_binary(r):
    o = r.options
    scale, step = None, 0
    if o["x_scale"] is not None:
        scale = float_vector(o["x_scale"])
        step = 1 if o["scale_per_row"] else 0
    result = r.empty_as(r.out_name)
    kind = o["kind"]
    return _run_bits(
        r, kind, result, scale, step, bias=r.bias, activation=o["activation"], threshold=o["threshold"]
    )


def pack_signs(r):
    q = r.options["input_quant"]
    mode = 2 if q is None else scale_mode(q)
    bits = r.empty_as("uint8")
    scales = np.empty(max(r.m, 1) if mode == 0 else 1, np.float32)
    row = _native.pack_signs(
        ISAS[r.isa][0],
        address(r.x2),
        FLOATS[dtype_name(r.x)],
        r.m,
        r.n,
        r.pitch,
        mode,
        1.0 if q is None or q.scale is None else q.scale,
        address(bits),
        r.width,
        address(scales),
        num_threads(),
    )
    if row >= 0:
        refuse_row("pack_signs", row)
    return r.shaped_as(bits) if q is None else (r.shaped_as(bits), r.scales(scales, mode == 0))


# ---- convolutions ----------------------------------------------------------------------------------------


def packed_groups(w, groups):
    """For each group of a convolution its weight prepacked, a segment of whole words for each tap, and the sums of its
    taps: int32 (taps, N padded to 64)."""
    kept = w.__dict__.setdefault("_packed_taps", {})
    if groups not in kept:
        v = w.numpy()
        o, i, kh, kw = v.shape
        n, taps, words = o // groups, kh * kw, -(-i // 64)
        codes = v.codes().reshape(o, i, taps).transpose(0, 2, 1)
        kept[groups] = []
        for g in range(groups):
            part = codes[g * n : (g + 1) * n]
            padded = np.zeros((n, taps, words * 64), bool)
            planes = []
            for flags in (part > 0, part != 0)[: len(w.planes)]:
                padded[..., :i] = flags
                planes.append(np.packbits(padded.reshape(n, -1), axis=1, bitorder="little"))
            alpha = np.ascontiguousarray(v.alpha[g * n : (g + 1) * n])
            block = _prepacked(planes, n, taps * words * 64, taps * i, alpha)
            sums = np.zeros((taps, -(-n // 64) * 64), np.int32)
            sums[:, :n] = part.sum(2, dtype=np.int32).T
            kept[groups].append((_native.PackedBinary(address(block), block.nbytes, block), sums))
    return kept[groups]


def conv2d(r):
    """Registry entry of ``conv2d`` with InputQuant(bits=1): r is an ops.conv.ConvRequest."""
    g, q = r.geometry, r.options["input_quant"]
    b, _, height, width = r.x.shape
    o, per_group, kh, kw = r.w.shape
    words, isa, threads = -(-per_group // 64), ISAS[r.isa][0], num_threads()
    x = r.x.detach().resolve_neg().permute(0, 2, 3, 1).contiguous() if is_torch(r.x) else nhwc(r.x)
    rows = b * height * width * g.groups
    bits, scale = np.empty((rows, words), np.uint64), np.empty(1, np.float32)
    row = _native.pack_signs(
        *(isa, address(x), FLOATS[dtype_name(x)], rows, per_group, per_group, scale_mode(q)),
        *(1.0 if q.scale is None else q.scale, address(bits), words * 8, address(scale), threads),
    )
    if row >= 0:
        refuse_row("conv2d", row)
    out_height, out_width = r.shape[2:]
    numbers = [b, height, width, out_height, out_width, kh, kw, *g.stride, *g.dilation]
    numbers += [g.padding[0], g.padding[2], words * g.groups, words, per_group]
    bias = None if r.bias is None else float_vector(r.bias)
    y = _empty_nhwc(r, out_height, out_width)
    n, size = o // g.groups, 4 if r.out_name == "float32" else 2
    for i, (weight, sums) in enumerate(packed_groups(r.w, g.groups)):
        part = slice(i * n, (i + 1) * n)
        activation = r.options["activation"]
        if activation is not None and not isinstance(activation, str) and activation.channels > 1:
            activation = DPReLU(*(a[part] if a.size > 1 else a for a in activation.arrays()))
        epilogue, _keep = plan(r.out_name, n, None if bias is None else bias[part], activation)
        weight.run_conv(
            *(isa, address(bits) + i * words * 8, numbers, address(sums) if r.options["zeros"] else 0),
            *(float(scale[0]), epilogue, address(y) + i * n * size, o, threads),
        )
    y = y.permute(0, 3, 1, 2) if is_torch(y) else y.transpose(0, 3, 1, 2)
    if r.channels_last:
        return y
    return y.contiguous() if is_torch(y) else np.ascontiguousarray(y)


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def _empty_nhwc(r, height, width):
    shape = r.shape[0], height, width, r.shape[1]
    if is_torch(r.x):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, r.out_name))
    return np.empty(shape, r.out_name)
