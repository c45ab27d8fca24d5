"""Binary and ternary weights: products of packed signs, ``linear`` from floats, what follows in one pass, packing.

The floor is that of one xor, one population count and one addition for 512 products; two words that share a count need
five operations for 1024, so the best rows are above 100 %.
"""

import functools
import math
from functools import partial

import numpy as np
import rows as bench
from rows import MAX_COPIES, Case, Row, difference, is_fastest, registry_call, relative_error

import qkernels as qk
from qkernels import cpu, cpu_binary, registry
from qkernels.latency import roofline
from qkernels.registry import ISAS

SHAPES = [(1024, 1024), (1024, 4096), (4096, 4096)]  # K x N
QUICK_SHAPES = [(4096, 4096)]
FORMATS = {"BinaryWeight": qk.BinaryWeight, "TernaryWeight": qk.TernaryWeight}
EPILOGUES = ["sign", "prelu", "threshold", "multiple"]


def rows(quick):
    ops = ("matmul_binary", "linear", "linear_binary", "matmul_int", "linear_requant")
    kernels = [
        k for op in ops for k in registry.kernels(op) if k.format in FORMATS and k.core != "gemm_float"
    ]
    fastest = [k for k in kernels if is_fastest(k) and k.core == "binary"]
    found = [
        Row(kernel, m, k, n, mode, threads)
        for k, n in (QUICK_SHAPES if quick else SHAPES)
        for kernel in fastest
        if kernel.op != "linear_binary"
        for m in (bench.QUICK_MS if quick else bench.MS)
        for mode in ("warm", "cold")
        if mode == "warm" or m == 1
        for threads in bench.thread_counts()
    ]
    found += [
        Row(kernel, m, 1024, 1024, variant=variant)
        for kernel in fastest
        if kernel.op == "linear_binary"
        for variant in ("", *EPILOGUES)
        for m in (1, 128)
    ]
    found += [
        Row(kernel, m, 1024, 1024, variant="masked")
        for kernel in fastest
        if kernel.op == "matmul_binary"
        for m in (1, 128)
    ]
    found += [
        Row(k, m, bench.SMALL, bench.SMALL) for k in kernels if k not in fastest for m in bench.SMALL_MS
    ]
    found += [
        Row(kernel, 28 * 28 if is_fastest(kernel) else 25, 9 * 128, 128)
        for kernel in registry.kernels("conv2d")
        if kernel.format in FORMATS and kernel.core == "binary"
    ]
    return found + bench.elementwise_rows("pack_signs", quick, ["token"])


class Weights:
    """The weight of one shape and, where rows are cold, prepacked copies that exceed the last-level cache."""

    def __init__(self, kind, k, n):
        rng = np.random.default_rng((k, n))
        values = (-1, 1) if kind == "BinaryWeight" else (-1, 0, 1)
        codes = rng.choice(np.array(values, np.int8), (n, k))
        self.weight = FORMATS[kind].pack(codes, rng.uniform(0.005, 0.015, n))

    def packed(self, row):
        return self.copies if row.mode == "cold" else [cpu_binary.packed(self.weight)]

    @functools.cached_property
    def copies(self):
        count = min(max(math.ceil(roofline.beyond_cache_bytes() / self.weight.nbytes), 3), MAX_COPIES)
        return [_native_copy(cpu_binary.packed_tensor(self.weight)) for _ in range(count)]


def _native_copy(block):
    return qk._native.PackedBinary(block.ctypes.data, block.nbytes, block)


_kept = functools.lru_cache(maxsize=2)(Weights)


def case(row):
    op = row.kernel.op
    if op == "pack_signs":
        return _pack_signs(row)
    if op == "conv2d":
        return _conv2d(row)
    made = _kept(row.kernel.format, row.K, row.N)
    w = made.weight
    if row.kernel.core == "gemm" or row.kernel.backend != "cpu":
        return _through_the_registry(row, w)
    if op == "linear":
        return _linear(row, made)
    return _from_bits(row, made)


def _through_the_registry(row, w):
    x = bench.random(row, "normal" if row.kernel.op == "linear" else "int8")
    if row.kernel.op == "linear":
        quant = qk.InputQuant(bits=1 if row.kernel.core == "binary" else 8)
        call = registry_call(row, x, w, input_quant=quant)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.dense()))
    if row.kernel.op in ("matmul_binary", "linear_binary"):
        x = np.where(x >= 0, 1.0, -1.0).astype(np.float32)
        call = registry_call(row, qk.pack_signs(x), w)
        dense = w.codes() if row.kernel.op == "matmul_binary" else w.dense()
        return Case([call], w.nbytes, lambda: relative_error(call(), x, dense))
    if row.kernel.op == "matmul_int":
        call = registry_call(row, x, w)
        return Case([call], w.nbytes, lambda: relative_error(call(), x, w.codes()))
    step = np.abs(x[:32].astype(np.float32) @ w.dense()[:128].T).max() / 120
    call = registry_call(row, x, w, qk.Requant.from_scale(w.scale / step))
    return Case([call], w.nbytes, lambda: relative_error(call(), x, w.dense() / step))


def _linear(row, made):
    x, y = bench.random(row), np.empty((row.M, row.N), np.float32)
    quant, kind = qk.InputQuant(bits=1), cpu.FLOATS["float32"]
    epilogue, keep = cpu_binary.plan("float32", row.N)
    number = ISAS[row.kernel.isa][0]
    plans = [
        qk._native.LinearBinary(p, number, cpu_binary.scale_mode(quant), 1.0, kind, epilogue)
        for p in made.packed(row)
    ]
    args = x.ctypes.data, row.M, row.K, 0, y.ctypes.data, row.threads
    calls = [partial(p.run, *args) for p in plans]
    signs = np.where(x >= 0, 1, -1) * np.abs(x).mean(1, keepdims=True)
    return Case(
        calls, made.weight.nbytes, lambda: relative_error(y, signs, made.weight.dense()), (x, y, keep)
    )


def _from_bits(row, made):
    w, rng = made.weight, np.random.default_rng(row.M)
    signs = rng.choice(np.array([-1.0, 1.0], np.float32), (row.M, row.K))
    bits, n = qk.pack_signs(signs), row.N
    nonzero = np.full(bits.shape, 255, np.uint8) if row.variant == "masked" else None
    kind, options = "int32" if row.kernel.op == "matmul_binary" else "float32", {}
    if row.variant == "sign":
        kind = "sign"
    elif row.variant == "prelu":
        options["activation"] = qk.RPReLU(np.full(n, 0.25), np.zeros(n), np.zeros(n))
    elif row.variant in ("threshold", "multiple"):
        kind = row.variant
        options["threshold"] = qk.Threshold(np.zeros(n, int), None, np.ones(n, int))
    plan, keep = cpu_binary.plan(kind, n, **options)
    dtype = {"int32": np.int32, "float32": np.float32, "multiple": np.int8}.get(kind, np.uint8)
    out = np.empty((row.M, -(-n // 8) if dtype is np.uint8 else n), dtype)
    mask, pitch = (0, 0) if nonzero is None else (nonzero.ctypes.data, nonzero.shape[1])
    args = ISAS[row.kernel.isa][0], bits.ctypes.data, bits.shape[1], mask, pitch, row.M, 0, 0, plan
    calls = [partial(p.run_bits, *args, out.ctypes.data, row.threads) for p in made.packed(row)]

    def error():
        acc = signs[:32].astype(np.float64) @ w.codes()[:128].astype(np.float64).T
        if kind == "int32":
            return difference(out[:32, :128], acc)
        if kind == "float32":
            y = acc * w.alpha[:128]
            return difference(out[:32, :128], np.where(y > 0, y, 0.25 * y) if options else y)
        if kind == "multiple":
            return difference(out[:32, :128], np.where(acc >= 0, 1, -1))
        return difference(out[:32, :16], np.packbits(acc >= 0, axis=1, bitorder="little"))

    return Case(calls, w.nbytes, error, (bits, nonzero, out, keep))


def _conv2d(row):
    """3x3, 128 channels, a square image of M pixels, floats in and out."""
    size, rng = math.isqrt(row.M), np.random.default_rng(row.M)
    x = rng.standard_normal((1, size, size, 128), np.float32).transpose(0, 3, 1, 2)
    w = FORMATS[row.kernel.format].quantize(rng.standard_normal((128, 128, 3, 3), np.float32))
    quant = qk.InputQuant(bits=1, granularity="tensor", scale=1.0)
    call = registry_call(row, x, w, padding=1, input_quant=quant)

    def error():
        signs = np.pad(np.where(x >= 0, 1.0, -1.0), ((0, 0), (0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(signs, (3, 3), (2, 3))
        return difference(call(), np.einsum("bchwij,ocij->bohw", windows, w.dense(), optimize=True))

    return Case([call], w.nbytes, error)


def _pack_signs(row):
    x, quant = bench.random(row), qk.InputQuant(bits=1) if row.variant else None
    nbytes = x.nbytes + x.size // 8
    expected = np.packbits(x >= 0, axis=1, bitorder="little")
    if row.kernel.backend != "cpu":
        call = registry_call(row, x, quant)
        return Case([call], nbytes, lambda: difference(call(), expected))
    bits, scales = np.empty(expected.shape, np.uint8), np.empty(max(row.M, 1), np.float32)
    args = (
        ISAS[row.kernel.isa][0],
        x.ctypes.data,
        cpu.FLOATS["float32"],
        row.M,
        row.K,
        row.K,
        0 if quant else 2,
        1.0,
    )
    call = partial(
        qk._native.pack_signs, *args, bits.ctypes.data, bits.shape[1], scales.ctypes.data, row.threads
    )
    return Case([call], nbytes, lambda: difference(bits, expected), (x, bits, scales))


def bench_binary(row, measured):
    measured(row, case(row))
