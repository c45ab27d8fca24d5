"""Weight-only ``linear``: compressed weights of every dense format, float32 or bfloat16 activations.

The call is the plan that a layer runs: weight prepacked, arguments checked, result allocated. The floor is made of the
bytes of the portable weight and of bfloat16 products where the kernel's ISA has them, float32 ones elsewhere and in
variants named "exact".
"""

import copy
import functools
import math
from functools import partial

import numpy as np
import torch
from rows import MAX_COPIES, Case, Row, is_fastest, random, registry_call, relative_error, thread_counts

import qkernels as qk
from qkernels import cpu, cpu_float, registry
from qkernels.latency import roofline

WEIGHTS = {  # name: (format, options of its quantize)
    "w4": ("IntWeight", {"bits": 4}),
    "w4g128": ("IntWeight", {"bits": 4, "group_size": 128}),
    "w4g64": ("IntWeight", {"bits": 4, "group_size": 64}),
    "w4g32": ("IntWeight", {"bits": 4, "group_size": 32}),
    "w8": ("IntWeight", {"bits": 8}),
    "w3g128": ("IntWeight", {"bits": 3, "group_size": 128}),
    "w2": ("IntWeight", {"bits": 2}),
    "power4": ("PowerWeight", {"bits": 4, "exponent": 0.5}),
    "nf4": ("CodebookWeight", {"bits": 4, "codebook": "nf4", "group_size": 64}),
    "e2m1": ("FloatWeight", {"kind": "e2m1"}),
    "log4": ("LogWeight", {"bits": 4}),
    "mixed4": ("MixedIntWeight", {"bits": 4}),
    "signs": ("BinaryWeight", {}),
    "ternary": ("TernaryWeight", {}),
}
MAIN = ("w4", "w4g128", "w4g64", "w4g32")  # on both shapes and all threads; the others on one
SHAPES = [(4096, 4096), (4096, 11008)]
SMALL = (384, 384)  # for kernels other than the fastest
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def of_format(name):
    """The weights of a format."""
    return [v for v, (f, _) in WEIGHTS.items() if f == name]


def rows(quick):
    found = []
    for kernel in registry.kernels("linear"):
        for name in of_format(kernel.format):
            if kernel.core == "gemm_float" and is_fastest(kernel):
                found += fastest_rows(kernel, name, quick)
            elif kernel.core == "gemm_float" or kernel.backend == "reference":
                small = name == of_format(kernel.format)[0]
                found += [Row(kernel, m, *SMALL, "warm", 1, f"{name} f32", True) for m in (1, 16) if small]
    return sorted(found, key=lambda row: (row.K * row.N, row.variant.split()[0]))


def fastest_rows(kernel, name, quick):
    shapes = SHAPES if name in MAIN and not quick else SHAPES[:1]
    cold = [(1, "cold", t) for t in thread_counts()]
    warm = [(m, "warm", t) for m in (128, 512) for t in (thread_counts() if name in MAIN else [1])]
    for k, n in shapes:
        for m, mode, threads in cold + warm[: 1 if quick else None]:
            for kind in ("f32", "bf16"):
                yield Row(kernel, m, k, n, mode, threads, f"{name} {kind}", True)
    if name == MAIN[0]:
        yield Row(kernel, 128, *SHAPES[0], "warm", 1, f"{name} f32 exact", True, exact=True)


@functools.lru_cache(maxsize=1)
def weight(k, n, name):
    kind, options = WEIGHTS[name]
    W = np.random.default_rng((k, n)).standard_normal((n, k), np.float32)
    return getattr(qk, kind).quantize(torch.from_numpy(W), **options)


@functools.lru_cache(maxsize=1)
def copies(k, n, name):
    """The weight again and again, each with a compute layout of its own."""
    w = weight(k, n, name)
    count = min(max(math.ceil(roofline.beyond_cache_bytes() / w.nbytes), 3), MAX_COPIES)
    return [copy.copy(w) for _ in range(count)]


def case(row):
    name, kind, *_ = row.variant.split()
    w, exact = weight(row.K, row.N, name), "float32" if row.exact else None
    x = torch.from_numpy(random(row)).to(DTYPES[kind])
    dense, numbers = np.asarray(w.dense()), x.float().numpy()
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, w)
        return Case([call], w.nbytes, lambda: relative_error(call().float().numpy(), numbers, dense))
    y, name_of_y = x.new_empty((row.M, row.N)), cpu.dtype_name(x)
    weights = copies(row.K, row.N, name) if row.mode == "cold" else [w]
    options = cpu.FLOATS[name_of_y], name_of_y, None, row.kernel.isa, exact
    plans = [cpu_float.linear_plan(each, *options) for each in weights]
    args = cpu.address(x), row.M, row.K, 0, cpu.address(y), row.threads
    calls = [partial(plan.run, *args) for plan in plans]
    return Case(calls, w.nbytes, lambda: relative_error(y.float().numpy(), numbers, dense), keep=(x, y))


def bench_linear_float(row, measured):
    measured(row, case(row))
