"""Power codes and tables of integers beside uniform codes: ``linear`` with 4- and 8-bit activations; codes to numbers.

``int4-a4`` and ``int4-a8`` are what the rows of PowerWeight are compared with: the same kernel with a subtraction in
the place of the table, and a quarter of the products where 8-bit codes are squared.
"""

import functools
from functools import partial

import numpy as np
from rows import Case, Row, difference, elementwise_rows, is_fastest, random, registry_call, relative_error

import qkernels as qk
from qkernels import _native, cpu, registry
from qkernels.ops.table import TABLE_FORMATS
from qkernels.reference.quantize import power_table
from qkernels.registry import ISAS

A4, A8 = qk.InputQuant(bits=4), qk.InputQuant()
P4, P8 = qk.InputQuant(bits=4, power=0.5), qk.InputQuant(power=0.5)
VARIANTS = {  # name: (format, group_size, activations)
    "int4-a4": ("IntWeight", None, A4),
    "int4-a8": ("IntWeight", None, A8),
    "power4-a4": ("PowerWeight", None, P4),
    "power4-a8": ("PowerWeight", None, P8),
    "power4-a8uniform": ("PowerWeight", None, A8),
    "int4g64-a4": ("IntWeight", 64, A4),
    "power4g64-a4": ("PowerWeight", 64, P4),
}
SMALL = (384, 384)  # for the other formats and kernels: to be seen, not to be tuned


def rows(quick):
    found = elementwise_rows("power_dequantize", quick)
    sizes = [SMALL] if quick else [SMALL, (384, 1536), (4096, 4096)]
    for kernel in registry.kernels("linear"):
        if is_fastest(kernel) and kernel.core == "gemm":
            names = [v for v in VARIANTS if VARIANTS[v][0] == kernel.format]
            found += [Row(kernel, m, *size, variant=v) for size in sizes for v in names for m in (1, 16, 128)]
    found.sort(
        key=lambda row: (
            row.K * row.N,
            row.M,
            list(VARIANTS).index(row.variant) if row.variant in VARIANTS else -1,
        )
    )
    for op in ("linear", "matmul_int", "linear_requant"):
        found += [
            Row(k, 16, *SMALL) for k in registry.kernels(op) if k.format in TABLE_FORMATS and k.core == "gemm"
        ]
    return found


@functools.lru_cache(maxsize=8)
def weight(name, group_size, k, n):
    W = np.random.default_rng((k, n)).standard_normal((n, k)).astype(np.float32)
    if name == "IntWeight":
        return qk.IntWeight.quantize(W, bits=4, group_size=group_size)
    if name == "PowerWeight":
        return qk.PowerWeight.quantize(W, bits=4, exponent=0.5, group_size=group_size)
    if name == "FloatWeight":
        return qk.FloatWeight.quantize(W, "e2m1")
    if name == "CodebookWeight":
        values = np.arange(-8, 8, dtype=np.float32)
        index = np.random.default_rng(n).integers(0, 16, (n, k)).astype(np.uint8)
        return qk.CodebookWeight.pack(index, values)
    return qk.LogWeight.quantize(W, bits=4)


def linear(row):
    name, group_size, quant = VARIANTS.get(row.variant, (row.kernel.format, None, P4))
    w, x, y = weight(name, group_size, row.K, row.N), random(row), np.empty((row.M, row.N), np.float32)
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, w, input_quant=quant)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.dense()))
    plan = cpu.linear_plan(cpu.packed(w), quant, 0, 0, None, row.kernel.isa)
    call = partial(plan.run, x.ctypes.data, row.M, row.K, 0, y.ctypes.data, row.threads)
    return Case([call], w.nbytes, lambda: relative_error(y, x, w.dense()), keep=(x, y, plan))


def integers(row):
    w, x = weight(row.kernel.format, None, row.K, row.N), random(row, "int8")
    requant = row.kernel.op == "linear_requant"
    args = (qk.Requant.from_scale(np.full(row.N, 1e-4)),) if requant else ()
    call = registry_call(row, x, w, *args)
    table, _ = w.int_table()
    operands = table[w.lookup().index] * (1e-4 if requant else 1.0)
    return Case([call], w.nbytes, lambda: relative_error(call(), x, operands))


def power_dequantize(row):
    codes = random(row, "int8")
    scale = np.random.default_rng(row.M).uniform(0.1, 1, (row.M, 1)).astype(np.float32)
    expected = qk.reference.power_dequantize(codes, scale)
    nbytes = codes.nbytes + expected.nbytes
    if row.kernel.backend != "cpu":
        call = registry_call(row, codes, scale)
        return Case([call], nbytes, lambda: difference(call(), expected))
    table, out = power_table(0.5)[0], np.empty(codes.shape, np.float32)
    addresses = [a.ctypes.data for a in (codes, table, scale, out)]
    shape = row.M, row.K, row.K
    call = partial(
        _native.power_dequantize,
        *(ISAS[row.kernel.isa][0], addresses[0], *shape, *addresses[1:3], 1, 0, addresses[3], row.threads),
    )
    return Case([call], nbytes, lambda: difference(out, expected), keep=(codes, table, scale, out))


def bench_power(row, measured):
    calls = {"linear": linear, "power_dequantize": power_dequantize}
    measured(row, calls.get(row.kernel.op, integers)(row))
