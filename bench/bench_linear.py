"""``linear`` with 8-bit activations, float32 in and out; a dynamic scale per row unless stated.

The call is the plan that a layer runs: weight prepacked, arguments checked, result allocated.
"""

from functools import partial

import numpy as np
from rows import Case, difference, gemm_rows, random, registry_call, relative_error, weights

import qkernels as qk
from qkernels import cpu

VARIANTS = {
    "": qk.InputQuant(),
    "tensor": qk.InputQuant(granularity="tensor"),
    "static": qk.InputQuant(granularity="tensor", scale=0.03),
    "channel": qk.InputQuant(granularity="channel"),
    "float16": qk.InputQuant(),
    "gelu": qk.InputQuant(),
}


def rows(quick):
    return gemm_rows("linear", quick, list(VARIANTS)[1:])


def case(row):
    x, w, quant = random(row), weights(row).weight, VARIANTS[row.variant]
    if row.variant == "channel":
        w = with_input_scale(w)
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, w, input_quant=quant)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.dense()))
    name = "float16" if row.variant == "float16" else "float32"
    activation = "gelu" if row.variant == "gelu" else None
    x, y, bias = x.astype(name), np.empty((row.M, row.N), name), np.zeros(row.N, np.float32)
    kind = cpu.FLOATS[name]
    packed = [cpu.packed(w)] if row.variant else weights(row).packed(row)
    plans = [cpu.linear_plan(p, quant, kind, kind, activation, row.kernel.isa) for p in packed]
    args = x.ctypes.data, row.M, row.K, bias.ctypes.data, y.ctypes.data, row.threads
    calls = [partial(plan.run, *args) for plan in plans]
    return Case(calls, w.nbytes, lambda: error(y, x, w.dense(), activation), keep=(x, y, bias))


def with_input_scale(w):
    scale = np.random.default_rng(0).uniform(0.02, 0.04, w.shape[1]).astype(np.float32)
    return qk.IntWeight.pack(w.codes(), w.scale, input_scale=scale)


def error(y, x, dense, activation):
    if activation is None:
        return relative_error(y, x, dense)
    before = (x[:32].astype(np.float64) @ dense[:128].astype(np.float64).T).astype(np.float32)
    return difference(y[:32, :128], qk.reference.apply_activation(before, activation))


def bench_linear(row, measured):
    measured(row, case(row))
