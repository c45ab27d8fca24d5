"""Decoding's operations between linear layers: bytes against the bandwidth of where they lie, on one thread.

rms_norm and swiglu of M rows (K numbers in); decode_attention of M heads of K / M numbers, three of them sharing keys,
at position 256.
"""

import numpy as np
import torch
from bench_integer import call_of, case_of
from rows import Row, is_fastest, random, small_rows

from qkernels import reference, registry

POSITION = 256


def rows(quick):
    listed = []
    for op, widths in (("rms_norm", (576, 4096)), ("swiglu", (3072, 22016))):
        fastest = [k for k in registry.kernels(op) if is_fastest(k)]
        listed += [Row(k, m, n, n) for k in fastest for n in widths[: 1 if quick else 2] for m in (1, 16)]
        listed += small_rows(op)
    for kernel in registry.kernels("decode_attention"):
        listed += [Row(kernel, 9, 576, 576)] if quick or not is_fastest(kernel) else []
        listed += [
            Row(kernel, m, k, k) for m, k in ((9, 576), (24, 3072)) if is_fastest(kernel) and not quick
        ]
    return listed


def rms_norm(row):
    x, weight = random(row), random(row)[0].copy()
    return case_of(
        row, call_of(row, x, weight, 1e-5), 2 * x.nbytes + weight.nbytes, reference.rms_norm(x, weight, 1e-5)
    )


def swiglu(row):
    x = random(row)
    return case_of(row, call_of(row, x), 3 * x.nbytes // 2, reference.swiglu(x))


def decode_attention(row):
    rng = np.random.default_rng(row.K)
    heads, head = row.M, row.K // row.M
    planes = 2 * heads // 3
    qkv = rng.standard_normal((1, (heads + planes) * head), np.float32)
    turn = rng.standard_normal((heads + planes, head // 2, 2), np.float32)
    store = rng.standard_normal((planes, POSITION + 1, head), np.float32)
    expected = reference.decode_attention(qkv, turn, store.copy(), POSITION)
    return case_of(row, call_of(row, qkv, turn, store, POSITION), store.nbytes, expected)


def bench_decode(row, measured):
    before = torch.get_num_threads()
    torch.set_num_threads(row.threads)
    try:
        measured(row, globals()[row.kernel.op](row))
    finally:
        torch.set_num_threads(before)
