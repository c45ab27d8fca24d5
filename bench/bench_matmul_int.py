"""The bare integer product: int8 codes in, int32 out, prepacked weight."""

from functools import partial

import numpy as np
from rows import Case, gemm_rows, random, registry_call, relative_error, weights

from qkernels.registry import ISAS


def rows(quick):
    return gemm_rows("matmul_int", quick, ["uint8"])


def case(row):
    x, w = random(row, row.variant or "int8"), weights(row).weight
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, w)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.codes()))
    out = np.empty((row.M, row.N), np.int32)
    args = x.ctypes.data, x.dtype == np.int8, row.M, row.K, 0, out.ctypes.data, row.threads
    calls = [partial(p.matmul, ISAS[row.kernel.isa][0], *args) for p in weights(row).packed(row)]
    return Case(calls, w.nbytes, lambda: relative_error(out, x, w.codes()), keep=(x, out))


def bench_matmul_int(row, measured):
    measured(row, case(row))
