"""Integers only: int8 codes in and out, a multiplier per channel; rounding "single" unless the row says so.

The error is against the float64 product in units of the output scale: what rounding to int8 costs.
"""

from functools import partial

import numpy as np
from rows import Case, gemm_rows, random, registry_call, relative_error, weights

import qkernels as qk
from qkernels import cpu
from qkernels.registry import ISAS


def rows(quick):
    return gemm_rows("linear_requant", quick, ["double", "float"])


def case(row):
    x, w = random(row, "int8"), weights(row).weight
    step = np.abs(x[:32].astype(np.float32) @ w.dense()[:128].T).max() / 120  # real value of an output code
    requant = qk.Requant.from_scale(w.scale / step, rounding=row.variant or "single")
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, w, requant)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.dense() / step))
    y, bias = np.empty((row.M, row.N), np.int8), np.zeros(row.N, np.int32)
    arrays = cpu.requant_arrays(requant, row.N, -128, 127)
    args = x.ctypes.data, True, row.M, row.K, 0, arrays, bias.ctypes.data, y.ctypes.data, row.threads
    calls = [partial(p.matmul_requant, ISAS[row.kernel.isa][0], *args) for p in weights(row).packed(row)]
    error = partial(relative_error, y, x, w.dense() / step)
    return Case(calls, w.nbytes, error, keep=(x, y, bias, requant))


def bench_linear_requant(row, measured):
    measured(row, case(row))
