"""Convolutions of sign and ternary weights with 8-bit activations: every kernel against the reference, bit for bit."""

import numpy as np
import pytest
from helpers import assert_same, random_codes

import qkernels as qk
from qkernels import registry

VALUES = {"BinaryWeight": [-1, 1], "TernaryWeight": [-1, 0, 1]}
GEOMETRIES = {  # C, O, kernel, size, options
    "1x1": (20, 70, (1, 1), (5, 4), {}),
    "3x3": (16, 65, (3, 3), (7, 6), {"padding": 1}),
    "odd": (5, 3, (3, 2), (6, 6), {"stride": 2, "padding": (1, 0), "dilation": 2}),
    "groups": (12, 8, (3, 3), (6, 5), {"groups": 4, "padding": 2}),
    "depthwise": (33, 33, (3, 3), (6, 7), {"groups": 33, "padding": 1}),
}


def rows(op):
    found = [k for k in registry.kernels(op) if k.core == "conv" and k.format in VALUES]
    return pytest.mark.parametrize("kernel", found, ids=str)


def weight(kernel, rng, o, i, size):
    codes = rng.choice(np.array(VALUES[kernel.format], np.int8), (o, i, *size))
    return getattr(qk, kernel.format).pack(codes, rng.uniform(0.01, 1, o).astype(np.float32))


@rows("conv2d_int")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_int(kernel, geometry, rng):
    c, o, size, image, options = GEOMETRIES[geometry]
    w = weight(kernel, rng, o, c // options.get("groups", 1), size)
    for dtype in (np.int8, np.uint8):
        x = random_codes(rng, (2, c, *image), dtype)
        x_zp = int(rng.integers(0, 128))
        assert_same(kernel(x, w, x_zp, **options), qk.conv2d_int(x, w, x_zp, **options, backend="reference"))


@rows("conv2d_requant")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_requant(kernel, geometry, rng):
    c, o, size, image, options = GEOMETRIES[geometry]
    w = weight(kernel, rng, o, c // options.get("groups", 1), size)
    x, r = random_codes(rng, (1, c, *image)), qk.Requant.from_scale(rng.uniform(0.01, 0.2, o), 3)
    bias = rng.integers(-99, 99, o).astype(np.int32)
    y = kernel(x, w, r, bias, 5, **options)
    assert_same(y, qk.conv2d_requant(x, w, r, bias, 5, **options, backend="reference"))


@rows("conv2d")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d(kernel, geometry, rng):
    c, o, size, image, options = GEOMETRIES[geometry]
    w = weight(kernel, rng, o, c // options.get("groups", 1), size)
    x = rng.standard_normal((2, c, *image)).astype(np.float32)
    for quant in (qk.InputQuant(granularity="tensor"), qk.InputQuant(4, "tensor", signed=False)):
        y = kernel(x, w, input_quant=quant, activation="relu", **options)
        expected = qk.conv2d(x, w, input_quant=quant, activation="relu", **options, backend="reference")
        assert_same(y, expected)
