"""Depthwise convolutions have a kernel of their own: channels across the lanes."""

import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes
from test_conv import exact, images, rows, threads, weight  # noqa: F401

import qkernels as qk
from qkernels import reference
from qkernels.geometry import Geometry
from qkernels.quant import Requant

# B, C, H, W, multiplier, kernel, stride, padding, dilation
GEOMETRIES = {
    "3x3": (1, 64, 9, 9, 1, (3, 3), 1, 1, 1),
    "3x3, stride 2": (2, 96, 9, 10, 1, (3, 3), 2, 1, 1),
    "3x3, stride 3": (1, 65, 9, 10, 1, (3, 3), 3, 0, 1),
    "3x3, few channels": (1, 3, 12, 11, 1, (3, 3), 1, 1, 1),
    "3x3, half a block": (1, 32, 12, 40, 1, (3, 3), 1, 1, 1),
    "3x3, odd channels": (1, 130, 5, 5, 1, (3, 3), 1, 1, 1),
    "3x3, dilation": (1, 20, 9, 9, 1, (3, 3), 1, 2, 2),
    "3x3, dilation and stride": (1, 20, 13, 14, 1, (3, 3), 2, 2, (2, 3)),
    "3x3, same": (1, 16, 6, 7, 1, (3, 3), 1, "same", 1),
    "5x5": (1, 70, 11, 11, 1, (5, 5), 1, 2, 1),
    "5x5, stride 2": (1, 70, 11, 12, 1, (5, 5), 2, 2, 1),
    "7x7": (1, 66, 9, 9, 1, (7, 7), 1, 3, 1),
    "1x1": (1, 66, 9, 9, 1, (1, 1), 1, 0, 1),
    "2x4, even": (1, 33, 9, 9, 1, (2, 4), 1, (1, 2), 1),
    "1x9": (1, 33, 9, 19, 1, (1, 9), 1, (0, 4), 1),
    "9x1": (1, 33, 19, 9, 1, (9, 1), 1, (4, 0), 1),
    "multiplier 2": (1, 20, 9, 9, 2, (3, 3), 1, 1, 1),
    "multiplier 3": (2, 64, 5, 5, 3, (5, 5), 2, 2, 1),
    "padding beyond the image": (1, 40, 2, 2, 1, (3, 3), 2, 7, 1),
    "wide": (1, 8, 3, 100, 1, (3, 3), 1, 1, 1),
    "several images a unit": (7, 24, 3, 3, 1, (3, 3), 1, 1, 1),
    "empty batch": (0, 24, 3, 3, 1, (3, 3), 1, 1, 1),
}
each_geometry = pytest.mark.parametrize("name", GEOMETRIES)


def case(rng, name, x_dtype, last=True, **options):
    b, c, h, w, multiplier, kernel, stride, padding, dilation = GEOMETRIES[name]
    g = {"stride": stride, "padding": padding, "dilation": dilation, "groups": c}
    x = images(rng, (b, c, h, w), x_dtype, last)
    return x, weight(rng, (c * multiplier, 1, *kernel), **options), g


@rows("conv2d_int")
@each_geometry
@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("zero_points", [False, True], ids=["plain", "zero-points"])
def test_conv2d_int(kernel, name, x_dtype, last, bits, zero_points, rng):
    x, w, g = case(rng, name, x_dtype, last, bits=bits, zero_point=zero_points)
    x_zp = int(rng.integers(np.iinfo(x_dtype).min, np.iinfo(x_dtype).max + 1)) if zero_points else 0
    assert_same(kernel(x, w, x_zp, **g), exact(x, w, x_zp, **g))


@rows("conv2d_int")
def test_on_threads(kernel, threads, rng):  # noqa: F811
    x, w = images(rng, (2, 200, 40, 41), np.uint8, True), weight(rng, (200, 1, 3, 3))
    g = {"stride": 1, "padding": 1, "dilation": 1, "groups": 200}
    assert_same(kernel(x, w, 7, **g), exact(x, w, 7, **g))


@rows("conv2d_requant")
@each_geometry
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_conv2d_requant(kernel, name, rounding, rng):
    x, w, g = case(rng, name, np.uint8)
    o = w.shape[0]
    r = Requant.from_scale(rng.uniform(0.001, 0.01, o), 100, rounding, output_scale=0.05)
    bias = torch.from_numpy(rng.integers(-5000, 5000, o).astype(np.int32))
    for activation in (None, "relu6"):
        acc = exact(x, w, 128, **g) + bias.numpy().reshape(-1, 1, 1)
        expected = reference.requantize(np.moveaxis(acc, 1, -1), r, *r.limits(activation, np.uint8))
        y = kernel(x, w, r, bias, 128, **g, activation=activation, out_dtype=np.uint8)
        assert_same(y, np.moveaxis(expected, -1, 1).astype(np.uint8))


@rows("conv2d")
@pytest.mark.parametrize("name", ["3x3", "3x3, odd channels", "5x5, stride 2", "multiplier 2"])
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("granularity", ["tensor", "static", "channel"])
def test_conv2d(kernel, name, last, granularity, rng):
    x, w, g = case(rng, name, np.float32, last)
    scale = {"tensor": None, "static": 0.03, "channel": rng.uniform(0.01, 0.05, x.shape[1])}[granularity]
    q = qk.InputQuant(granularity="tensor" if granularity == "static" else granularity, scale=scale)
    bias = rng.standard_normal(w.shape[0]).astype(np.float32)
    expected = reference.conv2d(x, w, q, Geometry.of("test", w.shape, **g), bias, "relu6")
    assert_same(kernel(x, w, bias, **g, activation="relu6", input_quant=q), expected)


@rows("conv2d_int")
@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (127, 127), (-128, 127), (127, -128)])
def test_extremes(kernel, x_code, w_code):
    w = qk.IntWeight.pack(np.full((70, 1, 7, 7), w_code, np.int8), 1.0)
    x = np.full((1, 70, 7, 7), x_code, np.int8)
    assert (kernel(x, w, groups=70) == 49 * x_code * w_code).all()


@rows("conv2d_int")
def test_nothing_is_read_past_the_image(kernel, rng):
    """The last pixel of the last image ends where memory does; the kernel loads 64 channels at a time."""
    raw = random_codes(rng, (1, 6, 6, 10), np.uint8)
    x = np.moveaxis(raw, -1, 1)
    w = weight(rng, (10, 1, 3, 3))
    g = {"stride": 1, "padding": 1, "dilation": 1, "groups": 10}
    assert_same(kernel(x, w, 0, **g), exact(x, w, 0, **g))
