"""Elementwise ops: activations to codes, accumulators to codes. Bytes are those read and written.

The error of activations is that of rounding them to 8 bits; accumulators are compared with the reference.
"""

from functools import partial

import numpy as np
from rows import Case, difference, elementwise_rows, random, registry_call

import qkernels as qk
from qkernels import _native, cpu
from qkernels.registry import ISAS

QUANTS = {
    "": qk.InputQuant(),
    "tensor": qk.InputQuant(granularity="tensor"),
    "static": qk.InputQuant(granularity="tensor", scale=0.04),
    "float16": qk.InputQuant(),
}


def rows(quick):
    activations = elementwise_rows("quantize_activations", quick, list(QUANTS)[1:])
    return activations + elementwise_rows("requantize", quick, ["double", "float"])


def quantize_activations(row):
    x, quant = random(row).astype("float16" if row.variant == "float16" else "float32"), QUANTS[row.variant]
    nbytes = x.nbytes + x.size
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, quant)
        return Case([call], nbytes, lambda: difference(np.multiply(*call()), x))
    codes, scales = np.empty(x.shape, np.int8), np.empty((row.M, 1), np.float32)
    call = partial(
        _native.quantize_activations,
        *(ISAS[row.kernel.isa][0], x.ctypes.data, cpu.FLOATS[x.dtype.name], row.M, row.K, row.K),
        *(cpu.input_mode(quant), quant.bits, quant.signed, quant.scale or 1.0, 0, 0),
        *(codes.ctypes.data, scales.ctypes.data, row.threads),
    )

    def error():
        used = scales if quant.granularity == "token" else quant.scale or scales[0]
        return difference(codes * used, x)

    return Case([call], nbytes, error, keep=(x,))


def requantize(row):
    acc = np.random.default_rng(row.K).integers(-(2**17), 2**17, (row.M, row.K), np.int32)
    requant = qk.Requant.from_scale(np.full(row.K, 1e-3), rounding=row.variant or "single")
    nbytes = acc.nbytes + acc.size
    expected = qk.reference.requantize(acc, requant, -128, 127)
    if row.kernel.backend != "cpu":
        call = registry_call(row, acc, requant)
        return Case([call], nbytes, lambda: difference(call(), expected))
    out, arrays = np.empty(acc.shape, np.int8), cpu.requant_arrays(requant, row.K, -128, 127)
    args = acc.ctypes.data, row.M, row.K, row.K, arrays, out.ctypes.data, row.threads
    call = partial(_native.requantize, ISAS[row.kernel.isa][0], *args)
    return Case([call], nbytes, lambda: difference(out, expected), keep=(acc, out, requant))


def bench_quantize(row, measured):
    measured(row, globals()[row.kernel.op](row))
