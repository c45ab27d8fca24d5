"""Integer-only operations: bytes read and written against the bandwidth of where they lie. Errors are against float64.

Pooling rows: images of M x M pixels and K channels, windows 3 x 3 with stride 2, "global" the mean of the image.
"""

from functools import partial

import numpy as np
import torch
from rows import Case, Row, difference, elementwise_rows, is_fastest, random, small_rows, thread_counts

import qkernels as qk
from qkernels import ops, registry

MAPS = [(112, 32), (56, 96), (14, 256), (7, 1280)]  # M, K of MobileNet and EfficientNet
SCALE = 0.05


def rows(quick):
    listed = []
    for op in ("add_requant", "lookup_int8", "gelu_int", "concat_requant"):
        listed += elementwise_rows(op, quick)
    for op in ("softmax_int", "layer_norm_int"):
        listed += elementwise_rows(op, quick, ["int32"])
    for op, variants in (("max_pool2d_int", [""]), ("avg_pool2d_int", ["", "global"])):
        fastest = [k for k in registry.kernels(op) if is_fastest(k)]
        listed += [
            Row(k, m, c, c, threads=t, variant=v)
            for k in fastest
            for m, c in (MAPS[1:2] if quick else MAPS)
            for v in variants
            for t in thread_counts()
        ]
        listed += [Row(row.kernel, 7, 64, 64) for row in small_rows(op)[::2]]
    return listed


def call_of(row, *args, **options):
    """The registry's entry on checked arguments: what a call costs after its checks."""
    with registry.force_isa(row.kernel.isa):
        request = getattr(ops, f"{row.kernel.op}_request")(*args, backend=row.kernel.backend, **options)
    request.isa = row.kernel.isa
    return partial(row.kernel.run, request)


def case_of(row, call, nbytes, expected):
    return Case([call], nbytes, lambda: difference(np.asarray(call(), np.float64), expected))


def add_requant(row):
    a, b = random(row, "int8"), random(row, "int8")[::-1].copy()
    p = qk.AddRequant.from_scales(SCALE, 3, 0.03, -5, 0.07, 1)
    real = (SCALE * (a.astype(float) - 3) + 0.03 * (b.astype(float) + 5)) / 0.07 + 1
    return case_of(row, call_of(row, a, b, p), 3 * a.size, np.clip(real, -128, 127))


def lookup_int8(row):
    q = random(row, "int8")
    table = qk.lookup_table(lambda x: x / (1 + np.exp(-x)), SCALE)
    real = SCALE * q.astype(float)
    real /= 1 + np.exp(-real)
    return case_of(row, call_of(row, q, table), 2 * q.size, real / SCALE)


def gelu_int(row):
    q = random(row, "int8")
    real = torch.nn.functional.gelu(torch.from_numpy(SCALE * q.astype(float))).numpy()
    return case_of(row, call_of(row, q, SCALE), 2 * q.size, real / SCALE)


def concat_requant(row):
    a, b = random(row, "int8"), random(row, "int8")
    real = np.concatenate([a.astype(float), np.clip(0.03 / SCALE * b.astype(float), -128, 127)], 1)
    call = call_of(row, [a, b], [SCALE, 0.03], [0, 0], SCALE)
    return case_of(row, call, 4 * a.size, real)


def softmax_int(row):
    q = random(row, row.variant or "int8")
    scale = 2.0**-27 if row.variant else SCALE
    e = np.exp(scale * (q.astype(float) - q.max(1, keepdims=True)))
    nbytes = q.nbytes + q.size
    return case_of(row, call_of(row, q, scale), nbytes, 256 * e / e.sum(1, keepdims=True))


def layer_norm_int(row):
    q = random(row, row.variant or "int8")
    norm = qk.LayerNormInt.from_float(np.ones(row.K), np.zeros(row.K), SCALE, 0.03)
    x = q.astype(float)
    real = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True) / 0.03
    return case_of(row, call_of(row, q, norm), q.nbytes + q.size, np.clip(real, -128, 127))


def image(row):
    q = np.random.default_rng(row.K).integers(-128, 128, (1, row.M, row.M, row.K)).astype(np.int8)
    return q.transpose(0, 3, 1, 2)


def max_pool2d_int(row):
    q = image(row)
    y = qk.max_pool2d_int(q, 3, 2, 1, backend="reference")
    return case_of(row, call_of(row, q, 3, 2, 1), q.size + y.size, y)


def avg_pool2d_int(row):
    q = image(row)
    window = (row.M, 1, 0) if row.variant else (3, 2, 1)
    y = qk.avg_pool2d_int(q, *window, backend="reference")
    return case_of(row, call_of(row, q, *window), q.size + y.size, y)


def bench_integer(row, measured):
    before = torch.get_num_threads()
    torch.set_num_threads(row.threads)  # what a call through the registry uses
    try:
        measured(row, globals()[row.kernel.op](row))
    finally:
        torch.set_num_threads(before)
