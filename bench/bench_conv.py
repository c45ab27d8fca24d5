"""Convolutions on layers of ResNet-50, MobileNet-V2 and EfficientNet: images with channels side by side.

``conv2d_requant`` takes uint8 codes and gives uint8 codes with rounding "float", what QLinearConv and torch's quantized
convolutions compute; ``conv2d`` takes and gives float32 with a static scale; ``conv2d_int`` gives the accumulators. The
call is the remembered one that a layer makes again and again. M counts output pixels.
"""

from functools import partial

import numpy as np
from rows import Case, Row, difference, is_fastest, thread_counts

import qkernels as qk
from qkernels import registry

# H (= W), C, O, kernel, stride, groups; padding keeps the size
LAYERS = {
    "r50-1x1-64-256": (56, 64, 256, 1, 1, 1),
    "r50-3x3-64": (56, 64, 64, 3, 1, 1),
    "r50-3x3-128": (28, 128, 128, 3, 1, 1),
    "r50-1x1-512-128": (28, 512, 128, 1, 1, 1),
    "r50-3x3-256": (14, 256, 256, 3, 1, 1),
    "r50-1x1-1024-256": (14, 1024, 256, 1, 1, 1),
    "r50-3x3-512": (7, 512, 512, 3, 1, 1),
    "r50-7x7s2-3-64": (224, 3, 64, 7, 2, 1),
    "mb2-1x1-32-16": (112, 32, 16, 1, 1, 1),
    "mb2-1x1-24-144": (56, 24, 144, 1, 1, 1),
    "mb2-1x1-192-32": (28, 192, 32, 1, 1, 1),
    "mb2-1x1-96-576": (14, 96, 576, 1, 1, 1),
    "mb2-1x1-320-1280": (7, 320, 1280, 1, 1, 1),
    "mb2-dw3-32": (112, 32, 32, 3, 1, 32),
    "mb2-dw3s2-96": (112, 96, 96, 3, 2, 96),
    "mb2-dw3-144": (56, 144, 144, 3, 1, 144),
    "mb2-dw3s2-192": (28, 192, 192, 3, 2, 192),
    "mb2-dw3-384": (14, 384, 384, 3, 1, 384),
    "mb2-dw3-960": (7, 960, 960, 3, 1, 960),
    "eff-dw5s2-240": (28, 240, 240, 5, 2, 240),
    "eff-dw5-672": (14, 672, 672, 5, 1, 672),
}
SMALL = ("r50-3x3-512", "mb2-dw3-960")  # for kernels other than the fastest
QUICK = ("r50-3x3-128", "mb2-1x1-24-144", "mb2-dw3-144")
OPS = ("conv2d_requant", "conv2d", "conv2d_int")


def rows(quick):
    kernels = [k for op in OPS for k in registry.kernels(op) if k.format == "IntWeight"]
    fastest = [k for k in kernels if is_fastest(k)]
    found = [
        row(kernel, name, threads, batch)
        for kernel in fastest
        for name in (QUICK if quick else LAYERS)
        for threads in thread_counts()
        for batch in ((1,) if quick or kernel.op != "conv2d_requant" else (1, 8))
    ]
    return found + [row(k, name, 1, 1) for k in kernels if not is_fastest(k) for name in SMALL]


def row(kernel, name, threads, batch):
    size, c, o, kernel_size, stride, groups = LAYERS[name]
    pixels = batch * -((-size // stride) ** 2)
    return Row(kernel, pixels, c // groups * kernel_size**2, o, "warm", threads, f"{name}-b{batch}")


def case(row):
    name, _, batch = row.variant.rpartition("-b")
    size, c, o, kernel_size, stride, groups = LAYERS[name]
    rng = np.random.default_rng(0)
    codes = rng.integers(-127, 128, (o, c // groups, kernel_size, kernel_size)).astype(np.int8)
    w = qk.IntWeight.pack(codes, rng.uniform(0.005, 0.015, (o, 1)).astype(np.float32))
    x = np.moveaxis(rng.integers(0, 256, (int(batch), size, size, c)).astype(np.uint8), -1, 1)
    padding = (kernel_size - 1) // 2
    g = {"stride": stride, "padding": padding, "groups": groups}
    op, backend = row.kernel.op, row.kernel.backend
    if op == "conv2d":
        x = np.moveaxis(np.moveaxis(x, 1, -1).astype(np.float32), -1, 1)
        quant = qk.InputQuant(granularity="tensor", scale=1.0, signed=False)
        call = partial(qk.conv2d, x, w, np.zeros(o, np.float32), **g, input_quant=quant)
    elif op == "conv2d_int":
        call = partial(qk.conv2d_int, x, w, 128, **g)
    else:
        step = np.sqrt(row.K) * 127 * 74 * 0.01 / 40
        r = qk.Requant.from_scale(w.scale / step, 128, "float")
        call = partial(qk.conv2d_requant, x, w, r, None, 128, **g, out_dtype="uint8")
    call = partial(forced, row.kernel, partial(call, backend=backend))
    y = call()
    return Case([call], w.nbytes + x.nbytes + y.nbytes, lambda: error(y, x, w, op, g))


def forced(kernel, call):
    if kernel.isa is None or is_fastest(kernel):
        return call()
    with registry.force_isa(kernel.isa):
        return call()


def error(y, x, w, op, g):
    """Against the exact accumulators of the first image: 0 for integers, else what rounding costs."""
    acc = qk.conv2d_int(x[:1].astype(np.uint8), w, 0 if op == "conv2d" else 128, **g, backend="reference")
    if op == "conv2d":
        return difference(y[:1], acc * w.scale.reshape(1, -1, 1, 1).astype(np.float64))
    if op == "conv2d_int":
        return difference(y[:1], acc)
    step = np.sqrt(w.matrix_shape[1]) * 127 * 74 * 0.01 / 40
    real = acc * w.scale.reshape(1, -1, 1, 1).astype(np.float64) / step
    return difference(y[:1].astype(np.float64) - 128, np.clip(real, -128, 127))


def bench_conv(row, measured):
    measured(row, case(row))
