"""The float core: weights of up to 8 bits against float activations."""

import numpy as np

from . import _native
from ._arrays import is_half
from .cpu import ACTIVATIONS, FLOATS, address, dtype_name, float_vector
from .memory import aligned
from .registry import ISAS, RANK, num_threads

BF16_ISA = "avx512bf16"


def packed_tensor(w):
    """The compute layout of a weight (csrc/common/float_layout.h) as a fresh 64-byte aligned uint8 array."""
    q = w.numpy().lookup()
    n, k = q.index.shape
    index, table, scale, offset, input_scale = (
        None if a is None else np.ascontiguousarray(a)
        for a in (q.index, q.table, q.scale, q.offset, q.input_scale)
    )
    count = table.shape[0]
    tables_of = 0 if count == 1 else 1 if count == n else 2
    ramp = (
        q.bits == 8 and count == 1 and np.array_equal(table[0], np.arange(256).astype(np.uint8).view(np.int8))
    )
    row_step = 0 if scale.shape[0] == 1 and n != 1 else scale.shape[1]
    source = _native.FloatSource(
        *(
            n,
            k,
            q.bits,
            q.group_size if q.is_grouped else k,
            tables_of,
            is_half(scale),
            is_half(offset),
            ramp,
        ),
        *map(address, (index, table, scale, offset)),
        *(row_step, 1, address(input_scale)),
    )
    block = aligned(_native.packed_float_bytes(source))
    _native.prepack_float(source, address(block), block.nbytes)
    return block


def packed(w):
    """The weight prepacked, made once and kept with it."""
    p = w.__dict__.get("_packed_float")
    if p is None:
        block = w.__dict__["_block_float"] = packed_tensor(w)
        p = w.__dict__["_packed_float"] = _native.PackedFloat(block.ctypes.data, block.nbytes, block)
    return p


def has_bf16(isa):
    """Whether kernels of this instruction set multiply bfloat16 pairs."""
    return RANK[isa] >= RANK[BF16_ISA]


def linear_plan(w, x_type, out_name, activation, isa, compute_dtype):
    """A native object that runs ``linear`` for one weight and one set of options."""
    exact = compute_dtype == "float32"
    return _native.FloatPlan(
        packed(w), ISAS[isa][0], exact, x_type, FLOATS[out_name], ACTIVATIONS[activation]
    )


def linear(r):
    """Registry entry of ``linear`` with float activations: r is an ops.Request."""
    o = r.options
    plan = linear_plan(r.w, FLOATS[dtype_name(r.x)], r.out_name, o["activation"], r.isa, o["compute_dtype"])
    bias = None if r.bias is None else float_vector(r.bias)
    out = r.empty(r.out_name)
    plan.run(address(r.x2), r.m, r.pitch, address(bias), address(out), num_threads())
    return r.shaped(out)
