"""The binary core on the CPU: prepacked bits, and calls from checked arguments to the native kernels."""

import numpy as np

from . import _native
from .cpu import ACTIVATIONS, FLOATS, address, dtype_name, float_vector
from .errors import ArgumentError
from .registry import ISAS, num_threads

OUT = {"float32": 0, "bfloat16": 1, "float16": 2, "int32": 3, "sign": 4, "threshold": 5, "multiple": 6}


def packed_tensor(w):
    """The compute layout of a binary or ternary weight (csrc/common/binary_layout.h), a 64-byte aligned uint8 array."""
    w = w.numpy()
    n, k = w.matrix_shape
    planes = [np.ascontiguousarray(getattr(w, name)) for name in w.planes]
    nonzero = planes[1] if len(planes) == 2 else None
    alpha = np.ascontiguousarray(w.alpha)
    size = _native.binary_packed_bytes(n, k, nonzero is not None)
    raw = np.empty(size + 64, np.uint8)
    block = raw[-raw.ctypes.data % 64 :][:size]
    _native.binary_prepack(address(planes[0]), address(nonzero), n, k, address(alpha), address(block), size)
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
        address(scales),
        num_threads(),
    )
    if row >= 0:
        refuse_row("pack_signs", row)
    return r.shaped_as(bits) if q is None else (r.shaped_as(bits), r.scales(scales, mode == 0))
