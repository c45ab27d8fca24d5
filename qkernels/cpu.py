"""The CPU backend: prepacked weights, and calls from checked arguments to the native kernels."""

import sys

import numpy as np

from . import _native
from ._arrays import as_numpy, is_torch, reciprocal
from .errors import ArgumentError, UnsupportedError
from .formats.base import check_integer
from .formats.operand import TableOperand, integer_operand, why_no_integers
from .memory import aligned
from .reference.quantize import power_table
from .registry import ISAS, num_threads

FLOATS = {"float32": 0, "bfloat16": 1, "float16": 2}  # DType numbers of csrc/common/types.h
ACTIVATIONS = {None: 0, "relu": 1, "relu6": 2, "gelu": 3, "silu": 4}
ROUNDINGS = {"single": 0, "double": 1, "float": 2}


def address(a):
    """The address of an array's first element; 0 for None."""
    if a is None:
        return 0
    if not is_torch(a):
        return a.ctypes.data
    if type(a).__name__ == "FakeTensor" or (a.data_ptr() == 0 and a.numel()):
        raise ArgumentError(
            f"a {type(a).__name__} of shape {tuple(a.shape)} has no memory; accepted: real numbers."
        )
    return a.data_ptr()


def dtype_name(x):
    """ "float32", "bfloat16", "int8" ... of an array or tensor."""
    return str(x.dtype).removeprefix("torch.")


def packed_tensor(w):
    """The compute layout of a weight (csrc/common/gemm_layout.h) as a fresh 64-byte aligned uint8 array."""
    check_integer("linear", w)
    reason = why_no_integers(w)
    if reason is not None:
        raise UnsupportedError(f"{type(w).__name__}: {reason}.")
    w = integer_operand(w)
    codes = w.index if isinstance(w, TableOperand) else w.codes()
    return prepacked(w, codes, w.group_size if w.is_grouped else w.matrix_shape[1])


def prepacked(w, codes, segment):
    """The block of a NumPy weight whose codes (N, K) come in segments of equal length (the last may be short).

    The codes of a TableOperand are its indices.
    """
    n, k = codes.shape
    bits, table = w.bits, None
    if isinstance(w, TableOperand):
        bits, table = max(w.bits, 2), np.zeros(16, np.int8)
        table[: w.table.size] = w.table
    row_bits = getattr(w, "row_bits", None)
    columns = None if row_bits is None else np.argsort(row_bits, kind="stable").astype(np.int32)
    arrays = [codes, w.scale, w.zero_point, w.input_scale, row_bits, columns]
    arrays = [None if a is None else np.ascontiguousarray(a) for a in arrays]
    codes, scale, zp, input_scale, row_bits, columns = arrays
    row_step = 0 if scale.shape[0] == 1 and n != 1 else scale.shape[1]
    source = _native.PrepackSource(
        *(n, k, segment, w.is_grouped, bits, address(row_bits), address(columns), address(codes)),
        *(address(scale), address(zp), row_step, 1, address(input_scale), address(table)),
    )
    block = aligned(_native.packed_bytes(source))
    _native.prepack(source, address(block), block.nbytes)
    return block


def packed(w):
    """The weight prepacked, made once and kept with it."""
    p = w.__dict__.get("_packed")
    if p is None:
        block = w.__dict__["_block"] = packed_tensor(w)
        p = w.__dict__["_packed"] = _native.PackedWeight(block.ctypes.data, block.nbytes, block)
    return p


def input_mode(q):
    """InputMode number of csrc/cpu/gemm.h."""
    if q.granularity == "channel":
        return 3
    if q.granularity == "token":
        return 0
    return 1 if q.scale is None else 2


def quant_numbers(q):
    """What the operator ``linear_int`` says of an InputQuant: (mode, bits, signed, scale, zero_point, power)."""
    mode = input_mode(q)
    scale = q.scale if mode == 2 else 1.0
    return mode, q.bits, q.signed, scale, q.zero_point or 0, q.power is not None


def linear_plan(p, q, x_type, out_type, activation, isa):
    """A native object that runs ``linear`` for one prepacked weight and one set of options."""
    *quant, power = quant_numbers(q)
    return _native.LinearPlan(p, ISAS[isa][0], *quant, x_type, out_type, ACTIVATIONS[activation], power)


def refuse_row(op, row):
    raise ArgumentError(
        f"{op}: x has a value that is not finite in row {row} (rows counted over all batch dimensions); accepted: "
        "finite numbers. Find it with isfinite, or clamp x."
    )


def linear(r):
    """Registry entry of ``linear`` with integer activations: r is an ops.Request."""
    plan = linear_plan(
        packed(r.w),
        r.options["input_quant"],
        FLOATS[dtype_name(r.x)],
        FLOATS[r.out_name],
        r.options["activation"],
        r.isa,
    )
    bias = None if r.bias is None else float_vector(r.bias)
    out = r.empty(r.out_name)
    row = plan.run(address(r.x2), r.m, r.pitch, address(bias), address(out), num_threads())
    if row >= 0:
        refuse_row("linear", row)
    return r.shaped(out)


def float_vector(bias):
    """A bias as contiguous float32, without a copy where it is that already."""
    if is_torch(bias):
        return bias.detach().resolve_neg().to(sys.modules["torch"].float32).contiguous()
    return np.ascontiguousarray(bias, np.float32)


def int_vector(bias):
    return np.ascontiguousarray(as_numpy(bias, "linear_requant", "bias"), np.int32)


def matmul_int(r):
    out = r.empty("int32")
    signed = dtype_name(r.x) == "int8"
    packed(r.w).matmul(
        ISAS[r.isa][0],
        address(r.x2),
        signed,
        r.m,
        r.pitch,
        r.options["x_zero_point"],
        address(out),
        num_threads(),
    )
    return r.shaped(out)


def requant_arrays(requant, n, lo, hi):
    """Native per-channel arrays of a Requant, kept with it for each (n, range)."""
    kept = requant.__dict__.setdefault("_native", {})
    if (n, lo, hi) not in kept:
        arrays = [
            np.ascontiguousarray(np.broadcast_to(a, (n,)))
            for a in (requant.multiplier, requant.shift, requant.scale)
        ]
        native = _native.RequantArrays(
            *map(address, arrays), ROUNDINGS[requant.rounding], requant.zero_point, lo, hi
        )
        kept[n, lo, hi] = native, arrays
    return kept[n, lo, hi][0]


def linear_requant(r):
    out = r.empty(r.out_name)
    n = r.w.shape[0]
    bias = None if r.bias is None else int_vector(r.bias)
    packed(r.w).matmul_requant(
        ISAS[r.isa][0],
        address(r.x2),
        dtype_name(r.x) == "int8",
        r.m,
        r.pitch,
        r.options["x_zero_point"],
        requant_arrays(r.options["requant"], n, *r.options["limits"]),
        address(bias),
        address(out),
        num_threads(),
    )
    return r.shaped(out)


def requantize(r):
    out = r.empty(r.out_name)
    arrays = requant_arrays(r.options["requant"], r.n, *r.options["limits"])
    _native.requantize(ISAS[r.isa][0], address(r.x2), r.m, r.n, r.pitch, arrays, address(out), num_threads())
    return r.shaped(out)


def quantize_activations(r):
    q = r.options["input_quant"]
    codes = r.empty("int8" if q.signed else "uint8")
    mode = input_mode(q)
    scales = np.empty(max(r.m, 1) if mode == 0 else 1, np.float32)
    inv_k = None if mode != 3 else reciprocal(q.channel_scale("quantize_activations", None, r.n))
    row = _native.quantize_activations(
        ISAS[r.isa][0],
        address(r.x2),
        FLOATS[dtype_name(r.x)],
        r.m,
        r.n,
        r.pitch,
        mode,
        q.bits,
        q.signed,
        q.scale if mode == 2 else 1.0,
        q.zero_point or 0,
        address(inv_k),
        address(codes),
        address(scales),
        num_threads(),
        q.power is not None,
    )
    if row >= 0:
        refuse_row("quantize_activations", row)
    if mode == 3:
        scales = q.channel_scale("quantize_activations", None, r.n).reshape(1, -1)
    elif mode == 0:
        scales = scales[: r.m].reshape(*r.batch, 1)
    else:
        scales = scales.reshape((1,) * max(len(r.batch) + 1, 1))
    return r.shaped(codes), r.like(scales)


def power_dequantize(r):
    o, out = r.options, r.empty(r.out_name)
    table = power_table(o["exponent"])[0 if dtype_name(r.x) == "int8" else 1]
    _native.power_dequantize(
        *(ISAS[r.isa][0], address(r.x2), r.m, r.n, r.pitch, address(table), address(o["scale"])),
        *(int(o["scale"].size != 1), FLOATS[r.out_name], address(out), num_threads()),
    )
    return r.shaped(out)
