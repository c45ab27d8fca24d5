"""Codes below 8 bits, groups and mixed widths: ``linear`` with 8- or 4-bit activations, and the integer products.

``nbytes`` is the portable size of the weight, scales and zero points included: what the floor of M = 1 is made of.
"""

import functools
import math
from functools import partial

import numpy as np
from rows import (
    MAX_COPIES,
    Case,
    Row,
    copy_of,
    is_fastest,
    random,
    registry_call,
    relative_error,
    thread_counts,
)

import qkernels as qk
from qkernels import cpu, registry
from qkernels.latency import roofline

A8, A4 = qk.InputQuant(), qk.InputQuant(bits=4)
VARIANTS = {  # name: (IntWeight.quantize's options, activations)
    "w4": ({"bits": 4}, A8),
    "w4g64": ({"bits": 4, "group_size": 64}, A8),
    "w4a4": ({"bits": 4}, A4),
    "w4g128": ({"bits": 4, "group_size": 128}, A8),
    "w4g32zp": ({"bits": 4, "group_size": 32, "symmetric": False}, A8),
    "w3": ({"bits": 3}, A8),
    "w3g128": ({"bits": 3, "group_size": 128}, A8),
    "w2": ({"bits": 2}, A8),
    "w8g64": ({"bits": 8, "group_size": 64}, A8),
}
MAIN = ("w4", "w4g64", "w4a4")  # on all shapes; the others on one
SHAPES = [(384, 1536), (768, 3072), (4096, 4096), (4096, 11008)]


def rows(quick):
    found = []
    for kernel in registry.kernels():
        kind = kernel.format, kernel.op, kernel.core
        if kind == ("IntWeight", "linear", "gemm") and is_fastest(kernel):
            shapes = SHAPES[::2] if quick else SHAPES
            found += [
                Row(kernel, m, k, n, mode, threads, v)
                for k, n in shapes
                for v in MAIN
                for m, mode in ((1, "cold"), (1, "warm"), (16, "warm"), (128, "warm"))
                for threads in thread_counts()
            ]
            found += [
                Row(kernel, m, 768, 3072, variant=v) for v in VARIANTS if v not in MAIN for m in (1, 128)
            ]
        if kernel.format == "MixedIntWeight" and kernel.core == "gemm":
            size = (768, 3072) if is_fastest(kernel) else (384, 384)
            found += [Row(kernel, m, *size, variant="w4mixed") for m in (1, 16)]
    return found


@functools.lru_cache(maxsize=1)
def weight(k, n, variant):
    W = np.random.default_rng((k, n)).standard_normal((n, k)).astype(np.float32)
    if variant == "w4mixed":
        return qk.MixedIntWeight.quantize(W, 4)
    return qk.IntWeight.quantize(W, **VARIANTS[variant][0])


@functools.lru_cache(maxsize=1)
def copies(k, n, variant):
    block = cpu.packed_tensor(weight(k, n, variant))
    count = min(max(math.ceil(roofline.beyond_cache_bytes() / block.nbytes), 3), MAX_COPIES)
    return [copy_of(block) for _ in range(count)]


def case(row):
    w, op = weight(row.K, row.N, row.variant), row.kernel.op
    quant = VARIANTS.get(row.variant, (None, A8))[1]
    if op == "linear" and row.kernel.backend == "cpu":
        x, y = random(row), np.empty((row.M, row.N), np.float32)
        packed = copies(row.K, row.N, row.variant) if row.mode == "cold" else [cpu.packed(w)]
        plans = [cpu.linear_plan(p, quant, 0, 0, None, row.kernel.isa) for p in packed]
        args = x.ctypes.data, row.M, row.K, 0, y.ctypes.data, row.threads
        calls = [partial(plan.run, *args) for plan in plans]
        return Case(calls, w.nbytes, lambda: relative_error(y, x, w.dense()), keep=(x, y))
    x = random(row, "normal" if op == "linear" else "int8")
    options = {"input_quant": quant} if op == "linear" else {}
    args = (qk.Requant.from_scale(np.full(row.N, 1e-3)),) if op == "linear_requant" else ()
    call = registry_call(row, x, w, *args, **options)
    expected = w.dense() if op == "linear" else w.codes()
    scale = 1e-3 if op == "linear_requant" else 1.0
    return Case([call], w.nbytes, lambda: relative_error(call(), x, expected * scale))


def bench_narrow(row, measured):
    measured(row, case(row))
