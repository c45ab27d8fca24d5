"""Convolutions: every kernel against the reference, bit for bit; the reference against torch and onnxruntime."""

import functools
import warnings

import numpy as np
import onnx as onnx_package
import pytest
import torch
from helpers import assert_same, random_codes
from onnx.backend.test.loader import load_model_tests
from oracles import onnx

import qkernels as qk
from qkernels import reference, registry
from qkernels.geometry import Geometry
from qkernels.quant import Requant

# B, C, H, W, O, kernel, stride, padding, dilation, groups
GEOMETRIES = {
    "1x1": (2, 64, 5, 7, 64, (1, 1), 1, 0, 1, 1),
    "1x1, odd channels": (1, 5, 9, 4, 65, (1, 1), 1, 0, 1, 1),
    "1x1, one of everything": (1, 1, 1, 1, 1, (1, 1), 1, 0, 1, 1),
    "1x1, stride 2": (2, 16, 7, 7, 10, (1, 1), 2, 0, 1, 1),
    "1x1, padding": (1, 12, 3, 3, 8, (1, 1), 1, 1, 1, 1),
    "3x3": (1, 64, 8, 8, 64, (3, 3), 1, 1, 1, 1),
    "3x3, odd channels": (2, 65, 6, 5, 3, (3, 3), 1, 1, 1, 1),
    "3x3, three channels": (1, 3, 11, 13, 70, (3, 3), 2, 1, 1, 1),
    "3x3, one channel": (1, 1, 6, 6, 5, (3, 3), 1, 1, 1, 1),
    "3x3, dilation": (1, 8, 9, 9, 7, (3, 3), 1, 2, 2, 1),
    "3x3, dilation, odd": (1, 5, 9, 12, 7, (3, 3), (2, 1), (2, 3), (2, 3), 1),
    "3x3, stride 3": (1, 4, 10, 10, 6, (3, 3), 3, 1, 1, 1),
    "3x3, same": (1, 6, 5, 6, 4, (3, 3), 1, "same", 1, 1),
    "4x2, same, even": (1, 6, 5, 6, 4, (4, 2), 1, "same", (1, 2), 1),
    "4x4, no padding": (1, 7, 9, 8, 9, (4, 4), 2, "valid", 1, 1),
    "5x5": (1, 17, 9, 9, 33, (5, 5), 1, 2, 1, 1),
    "7x7, stride 2": (1, 3, 23, 20, 64, (7, 7), 2, 3, 1, 1),
    "1x7": (1, 8, 4, 12, 16, (1, 7), 1, (0, 3), 1, 1),
    "7x1, stride": (1, 8, 12, 4, 16, (7, 1), (1, 2), (3, 0), 1, 1),
    "four paddings": (1, 4, 4, 5, 6, (3, 3), 1, (0, 3, 1, 2), 1, 1),
    "padding beyond the image": (1, 5, 2, 3, 9, (3, 3), 2, 7, 1, 1),
    "only padding": (1, 3, 1, 1, 2, (2, 2), 5, 6, 1, 1),
    "groups": (2, 24, 6, 6, 12, (3, 3), 1, 1, 1, 3),
    "groups, odd": (1, 15, 6, 7, 10, (3, 3), 2, 1, 1, 5),
    "groups of 64": (1, 128, 4, 4, 130, (1, 1), 1, 0, 1, 2),
    "groups, dilation": (1, 8, 7, 7, 4, (2, 2), 1, 0, 3, 2),
    "wide row": (1, 4, 2, 300, 66, (1, 3), 1, (0, 1), 1, 1),
    "several images a unit": (9, 20, 3, 3, 70, (3, 3), 1, 1, 1, 1),
    "many rows": (3, 6, 61, 9, 20, (3, 3), 1, 1, 1, 1),
    "empty batch": (0, 8, 5, 5, 6, (3, 3), 1, 1, 1, 1),
    "no output channels": (1, 8, 5, 5, 0, (3, 3), 1, 1, 1, 1),
}
SOME = ["1x1", "1x1, odd channels", "3x3", "3x3, odd channels", "groups, odd", "7x7, stride 2"]
each_geometry = pytest.mark.parametrize("name", GEOMETRIES)
int_types = pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])


def rows(op):
    found = [k for k in registry.kernels(op) if k.core == "conv" and k.format == "IntWeight"]
    return pytest.mark.parametrize("kernel", found, ids=str)


@pytest.fixture(params=[1, 2, 5], ids=lambda t: f"{t}t")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def images(rng, shape, dtype, last):
    """(B, C, H, W) codes or floats, channels side by side where `last`."""
    b, c, h, w = shape
    shape = (b, h, w, c) if last else shape
    x = rng.standard_normal(shape).astype(dtype) if dtype == np.float32 else random_codes(rng, shape, dtype)
    return np.moveaxis(x, -1, 1) if last else x


def weight(rng, shape, zero_point=False, bits=8, per_tensor=False, group_size=None, input_scale=None):
    half, channels = 2 ** (bits - 1), 1 if per_tensor else shape[0]
    codes = rng.integers(-half, half, shape).astype(np.int8)
    groups = 1 if group_size is None else -(-int(np.prod(shape[1:])) // group_size)
    scale = rng.uniform(1e-3, 1e-1, (channels, groups)).astype(np.float32)
    zp = rng.integers(-50, 50, scale.shape) if zero_point else None
    return qk.IntWeight.pack(codes, scale, zp, bits=bits, group_size=group_size, input_scale=input_scale)


def case(rng, name, x_dtype, last=True, **options):
    b, c, h, w, o, kernel, stride, padding, dilation, groups = GEOMETRIES[name]
    x = images(rng, (b, c, h, w), x_dtype, last)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, weight(rng, (o, c // groups, *kernel), **options), geometry


def zero_point_of(rng, dtype):
    info = np.iinfo(dtype)
    return int(rng.integers(info.min, info.max + 1))


def exact(x, w, x_zp, stride, padding, dilation, groups):
    """torch's convolution in float64, which holds these sums exactly."""
    g = Geometry.of("exact", w.shape, stride, padding, dilation, groups)
    top, bottom, left, right = g.padding
    codes = w.codes().reshape(w.shape).astype(np.float64)
    if w.zero_point is not None:
        codes = codes - w.zero_point.reshape(-1, 1, 1, 1)
    xt = torch.from_numpy(np.ascontiguousarray(x).astype(np.float64) - x_zp)
    xt = torch.nn.functional.pad(xt, (left, right, top, bottom))
    y = torch.nn.functional.conv2d(xt, torch.from_numpy(codes), None, g.stride, 0, g.dilation, groups)
    return y.numpy().astype(np.int32)


# ---- the reference ---------------------------------------------------------------------------------------


@each_geometry
@int_types
def test_reference_equals_torch(name, x_dtype, rng):
    if "no output" in name:
        pytest.skip("torch refuses it")
    x, w, g = case(rng, name, x_dtype, zero_point=True)
    x_zp = zero_point_of(rng, x_dtype)
    y = reference.conv2d_int(
        x, w.codes().reshape(w.shape), Geometry.of("test", w.shape, **g), x_zp, w.zero_point
    )
    assert_same(y, exact(x, w, x_zp, **g))


def onnx_attributes(g, w):
    top, bottom, left, right = Geometry.of("onnx", w.shape, **g).padding
    pair = {
        n: list(v) if isinstance(v, tuple) else [v, v] for n, v in g.items() if n in ("stride", "dilation")
    }
    return {
        "strides": pair["stride"],
        "dilations": pair["dilation"],
        "pads": [top, left, bottom, right],
        "group": g["groups"],
    }


ONNX_GEOMETRIES = ["1x1", "3x3", "3x3, dilation, odd", "7x7, stride 2", "four paddings", "groups", "5x5"]


@pytest.mark.parametrize("name", ONNX_GEOMETRIES)
def test_onnx_conv_integer(name, rng):
    x, w, g = case(rng, name, np.uint8, last=False)
    x_zp = zero_point_of(rng, np.uint8)
    inputs = {"x": x, "w": w.codes().reshape(w.shape), "x_zp": np.uint8(x_zp), "w_zp": np.int8(0)}
    expected = onnx.run("ConvInteger", inputs, np.int32, **onnx_attributes(g, w))
    assert_same(qk.conv2d_int(x, w, x_zp, **g), expected)


@pytest.mark.parametrize("name", ONNX_GEOMETRIES)
@int_types
def test_onnx_qlinear_conv_is_requant_float(name, x_dtype, rng):
    x, w, g = case(rng, name, x_dtype, last=False)
    w = qk.IntWeight.pack(onnx.exact(w.codes().reshape(w.shape)), w.scale)
    o = w.shape[0]
    x_zp, y_zp = zero_point_of(rng, x_dtype), zero_point_of(rng, x_dtype)
    x_scale, y_scale = np.float32(0.037), np.float32(0.7)
    w_scale = rng.uniform(0.001, 0.01, o).astype(np.float32)
    bias = rng.integers(-9999, 9999, o).astype(np.int32)
    inputs = {
        "x": x,
        "x_scale": x_scale,
        "x_zp": x_dtype(x_zp),
        "w": w.codes().reshape(w.shape),
        "w_scale": w_scale,
        "w_zp": np.zeros(o, np.int8),
        "y_scale": y_scale,
        "y_zp": x_dtype(y_zp),
        "bias": bias,
    }
    expected = onnx.run("QLinearConv", inputs, x_dtype, **onnx_attributes(g, w))
    r = Requant.from_scale(x_scale * w_scale / y_scale, y_zp, "float")
    y = qk.conv2d_requant(x, w, r, bias, x_zp, **g, out_dtype=x_dtype)
    assert_same(y, expected)
    assert len(np.unique(expected)) > 20


@pytest.mark.parametrize("name", ["test_convinteger_with_padding", "test_convinteger_without_padding"])
def test_onnx_node_tests_conv_integer(name):
    model, (inputs, (expected,)) = node_test(name)
    attributes = {a.name: onnx_package.helper.get_attribute_value(a) for a in model.graph.node[0].attribute}
    top, left, bottom, right = attributes.get("pads", [0] * 4)
    x, codes, x_zp, *w_zp = (np.asarray(a) for a in inputs)
    w_zp = w_zp[0].reshape(-1, 1).astype(np.int16) if w_zp else np.zeros((1, 1), np.int16)
    scale = np.ones(w_zp.shape, np.float32)
    w = qk.IntWeight.pack(codes.astype(np.int16) - 128, scale, zero_point=w_zp - 128)
    y = qk.conv2d_int(x, w, int(x_zp), padding=(top, bottom, left, right))
    assert_same(y, expected)


def test_onnx_node_test_qlinear_conv():
    _, (inputs, (expected,)) = node_test("test_qlinearconv")
    x, x_scale, x_zp, codes, w_scale, w_zp, y_scale, y_zp = inputs
    w = qk.IntWeight.pack(codes.astype(np.int16) - 128, 1.0, zero_point=w_zp.astype(np.int16) - 128)
    r = Requant.from_scale(x_scale * w_scale / y_scale, int(y_zp), "float")
    assert_same(qk.conv2d_requant(x, w, r, None, int(x_zp), out_dtype=np.uint8), expected)


@functools.cache
def node_tests():
    with np.errstate(all="ignore"), warnings.catch_warnings():  # the cases of all operators are made
        warnings.simplefilter("ignore")
        return {t.name: t for t in load_model_tests(kind="node")}


def node_test(name):
    test = node_tests()[name]
    return test.model, test.data_sets[0]


# ---- every kernel: integers ------------------------------------------------------------------------------


@rows("conv2d_int")
@each_geometry
@int_types
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("zero_points", [False, True], ids=["plain", "zero-points"])
def test_conv2d_int(kernel, name, x_dtype, last, zero_points, rng):
    x, w, g = case(rng, name, x_dtype, last, zero_point=zero_points)
    x_zp = zero_point_of(rng, x_dtype) if zero_points else 0
    if "no output" in name:
        assert kernel(x, w, x_zp, **g).shape == (1, 0, 5, 5)
        return
    y = kernel(x, w, x_zp, **g)
    assert_same(y, exact(x, w, x_zp, **g))
    assert y.strides[1] == 4 or not last or min(x.shape[1], y.shape[1]) < 2 or not y.size


@rows("conv2d_int")
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize(
    "name", ["1x1", "1x1, odd channels", "3x3", "3x3, odd channels", "groups, odd", "7x7, stride 2"]
)
def test_narrow_weights(kernel, bits, name, rng):
    for zero_point in (False, True):
        x, w, g = case(rng, name, np.uint8, bits=bits, zero_point=zero_point, per_tensor=zero_point)
        assert_same(kernel(x, w, 77, **g), exact(x, w, 77, **g))


LARGE = [
    (1, 64, 40, 40, 192, (3, 3), 1, 1, 1, 1),  # units shared by threads
    (2, 160, 9, 9, 800, (3, 3), 1, 1, 1, 1),  # a weight beyond one cache: panels shared
    (1, 1100, 5, 5, 70, (3, 3), 1, 1, 1, 1),  # k in several blocks
    (4, 16, 30, 30, 64, (5, 5), 2, 2, 1, 4),
]


@rows("conv2d_int")
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_on_threads(kernel, shape, threads, rng):
    if kernel.isa in (None, "scalar") and threads != 2:
        pytest.skip("slow")
    b, c, h, w, o, kernel_size, stride, padding, dilation, groups = shape
    x = images(rng, (b, c, h, w), np.int8, True)
    weights = weight(rng, (o, c // groups, *kernel_size), zero_point=True)
    g = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    assert_same(kernel(x, weights, 5, **g), exact(x, weights, 5, **g))


@rows("conv2d_int")
@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (127, 127), (-128, 127), (127, -128)])
def test_extremes(kernel, x_code, w_code):
    w = qk.IntWeight.pack(np.full((3, 1456, 3, 3), w_code, np.int8), 1.0)
    x = np.full((1, 1456, 4, 4), x_code, np.int8)
    assert kernel(x, w, padding=1)[0, 0, 1, 1] == 1456 * 9 * x_code * w_code


@rows("conv2d_int")
def test_strides_and_kinds(kernel, rng):
    w = weight(rng, (9, 6, 3, 3))
    base = random_codes(rng, (2, 6, 7, 8))
    wide = random_codes(rng, (2, 9, 12, 14))
    views = {
        "nchw": base,
        "nhwc": np.moveaxis(np.ascontiguousarray(np.moveaxis(base, 1, -1)), -1, 1),
        "crop": wide[:, 2:8, 1:8, 3:11],
        "crop of nhwc": np.moveaxis(np.moveaxis(wide, 1, -1).copy()[:, 1:8, 3:11, 2:8], -1, 1),
        "every second row": random_codes(rng, (2, 6, 14, 8))[:, :, ::2],
        "every second pixel": random_codes(rng, (2, 6, 7, 16))[:, :, :, ::2],
        "upside down": base[:, :, ::-1],
        "mirrored": base[:, :, :, ::-1],
        "channels backwards": base[:, ::-1],
        "broadcast batch": np.broadcast_to(base[:1], (3, 6, 7, 8)),
        "broadcast row": np.broadcast_to(base[:, :, :1], (2, 6, 7, 8)),
        "turned": base.swapaxes(2, 3),
    }
    for name, x in views.items():
        expected = exact(x, w, 3, 1, 1, 1, 1)
        assert_same(kernel(x, w, 3, padding=1), expected)
        if min(x.strides) > 0:
            y = kernel(torch.from_numpy(x), w, 3, padding=1)
            assert isinstance(y, torch.Tensor) and y.dtype == torch.int32, name
            assert_same(y.numpy(), expected)
    last = torch.from_numpy(base).contiguous(memory_format=torch.channels_last)
    assert kernel(last, w, padding=1).is_contiguous(memory_format=torch.channels_last)
    assert kernel(torch.from_numpy(base), w, padding=1).is_contiguous()


@rows("conv2d_requant")
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
@pytest.mark.parametrize(
    "name", ["1x1", "3x3, odd channels", "groups, odd", "3x3, three channels", "1x1, odd channels"]
)
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
def test_conv2d_requant(kernel, rounding, name, last, rng):
    for x_dtype, out_dtype, activation in (
        (np.uint8, np.uint8, None),
        (np.int8, np.int8, "relu"),
        (np.int8, np.uint8, "relu6"),
    ):
        x, w, g = case(rng, name, x_dtype, last)
        o = w.shape[0]
        bias = rng.integers(-5000, 5000, o).astype(np.int32)
        scale = rng.uniform(0.2, 1.0, o) * 0.3 / np.sqrt(w.matrix_shape[1]) / 30
        r = Requant.from_scale(scale, 3, rounding, output_scale=0.04)
        x_zp = zero_point_of(rng, x_dtype)
        acc = exact(x, w, x_zp, **g) + bias.reshape(-1, 1, 1)
        expected = reference.requantize(np.moveaxis(acc, 1, -1), r, *r.limits(activation, out_dtype))
        for b in (bias, torch.from_numpy(bias)):
            y = kernel(x, w, r, b, x_zp, **g, activation=activation, out_dtype=out_dtype)
            assert_same(y, np.moveaxis(expected, -1, 1).astype(out_dtype))


# ---- every kernel: floats --------------------------------------------------------------------------------

QUANTS = {
    "dynamic": qk.InputQuant(granularity="tensor"),
    "dynamic, 4 bits": qk.InputQuant(bits=4, granularity="tensor"),
    "unsigned": qk.InputQuant(granularity="tensor", signed=False),
    "static": qk.InputQuant(granularity="tensor", scale=0.02, zero_point=-9),
    "static, unsigned": qk.InputQuant(granularity="tensor", scale=0.02, signed=False, zero_point=130),
    "channel": qk.InputQuant(granularity="channel"),
    "smoothed": qk.InputQuant(granularity="tensor"),
}


@rows("conv2d")
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize(
    "name", ["1x1", "3x3, odd channels", "groups, odd", "7x7, stride 2", "padding beyond the image"]
)
@pytest.mark.parametrize("last", [True, False], ids=["nhwc", "nchw"])
def test_conv2d(kernel, quant, name, last, rng):
    per_group = GEOMETRIES[name][1] // GEOMETRIES[name][-1]
    s = rng.uniform(0.01, 0.05, per_group).astype(np.float32) if quant in ("channel", "smoothed") else None
    x, w, g = case(rng, name, np.float32, last, input_scale=s, zero_point=True)
    bias = rng.standard_normal(w.shape[0]).astype(np.float32)
    for activation, b in ((None, None), ("relu", bias), ("relu6", bias)):
        geometry = Geometry.of("test", w.shape, **g)
        expected = reference.conv2d(x, w, QUANTS[quant], geometry, b, activation)
        y = kernel(x, w, b, **g, activation=activation, input_quant=QUANTS[quant])
        assert_same(y, expected)


@rows("conv2d")
@pytest.mark.parametrize("name", ["1x1", "3x3", "groups of 64", "5x5"])
@pytest.mark.parametrize("bits", [8, 4, 3])
def test_groups_of_scales(kernel, name, bits, rng):
    x, w, g = case(rng, name, np.float32, bits=bits, group_size=20, zero_point=bits < 8)
    q = QUANTS["dynamic"]
    expected = reference.conv2d(x, w, q, Geometry.of("test", w.shape, **g))
    assert_same(kernel(x, w, **g, input_quant=q), expected)


@rows("conv2d")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(kernel, dtype, rng):
    w, q = weight(rng, (70, 5, 3, 3)), QUANTS["static"]
    x = torch.from_numpy(images(rng, (2, 5, 6, 7), np.float32, False)).to(dtype)
    expected = reference.conv2d(x.float().numpy(), w, q, Geometry.of("test", w.shape, padding=1))
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        for out_dtype in (None, torch.float32, torch.float16):
            y = kernel(image, w, padding=1, input_quant=q, out_dtype=out_dtype)
            assert y.dtype == (out_dtype or dtype)
            assert_same(y, torch.from_numpy(expected).to(y.dtype))


@rows("conv2d")
def test_what_is_not_finite_is_refused(kernel, rng):
    w = weight(rng, (4, 3, 3, 3))
    for q in (QUANTS["dynamic"], QUANTS["static"]):
        for last in (True, False):
            x = images(rng, (3, 3, 8, 9), np.float32, last)
            x[1, 2, 5, 4] = np.nan if last else np.inf
            with pytest.raises(qk.ArgumentError, match="finite"):
                kernel(x, w, padding=1, input_quant=q)


def test_scales_per_channel_of_a_grouped_convolution(rng):
    """A weight cannot carry them, since groups share its columns: they are folded by hand and given with the call."""
    for groups, i in ((6, 1), (2, 3)):
        s = rng.uniform(0.03, 0.06, 6).astype(np.float32)
        W = rng.standard_normal((12, i, 3, 3)).astype(np.float32)
        folded = W.reshape(groups, -1, i, 3, 3) * s.reshape(groups, 1, i, 1, 1)
        w = qk.IntWeight.quantize(folded.reshape(W.shape))
        x = images(rng, (1, 6, 9, 9), np.float32, True)
        y = qk.conv2d(
            x, w, padding=1, groups=groups, input_quant=qk.InputQuant(granularity="channel", scale=s)
        )
        xt = torch.from_numpy(np.ascontiguousarray(x))
        expected = torch.nn.functional.conv2d(xt, torch.from_numpy(W), None, 1, 1, 1, groups).numpy()
        assert np.linalg.norm(y - expected) < 0.02 * np.linalg.norm(expected)


def test_weight_only_is_the_reference(rng):
    w, x = weight(rng, (5, 4, 3, 3), bits=4), images(rng, (1, 4, 6, 6), np.float32, False)
    y = qk.conv2d(x, w, padding=1)
    expected = torch.nn.functional.conv2d(torch.from_numpy(x), torch.from_numpy(w.dense()), padding=1)
    assert np.allclose(y, expected.numpy(), atol=1e-5)
    assert "weight-only" in str(qk.explain("conv2d", x, w, padding=1))
    with pytest.raises(qk.UnsupportedError, match="weight-only"):
        qk.conv2d(x, w, padding=1, backend="cpu")


# ---- arguments -------------------------------------------------------------------------------------------


def test_refusals(rng):
    w, x = weight(rng, (6, 4, 3, 3)), random_codes(rng, (1, 4, 8, 8))
    xf, q = x.astype(np.float32), qk.InputQuant(granularity="tensor")
    bad = [
        (lambda: qk.conv2d_int(x[0], w), "must be \\(B, 4, H, W\\)"),
        (lambda: qk.conv2d_int(x[:, :3], w), "must be \\(B, 4, H, W\\)"),
        (lambda: qk.conv2d_int(x, weight(rng, (6, 36))), "\\(O, I, kh, kw\\)"),
        (lambda: qk.conv2d_int(x, w, groups=4), "divide"),
        (lambda: qk.conv2d_int(x, w, groups=0), "groups is 0"),
        (lambda: qk.conv2d_int(x, w, stride=0), "stride is 0"),
        (lambda: qk.conv2d_int(x, w, stride=(1, 2, 3)), "stride"),
        (lambda: qk.conv2d_int(x, w, padding=-1), "padding is -1"),
        (lambda: qk.conv2d_int(x, w, padding="full"), "same"),
        (lambda: qk.conv2d_int(x, w, padding="same", stride=2), "stride 1"),
        (lambda: qk.conv2d_int(x, w, dilation=4), "Pad more"),
        (lambda: qk.conv2d_int(x, w, x_zero_point=200), "-128..127"),
        (lambda: qk.conv2d_int(x, w, padding=True), "integers"),
        (lambda: qk.conv2d(xf, w, input_quant=qk.InputQuant()), "'token'"),
        (lambda: qk.conv2d(xf, w, input_quant=qk.InputQuant(granularity="channel")), "input_scale"),
        (lambda: qk.conv2d(xf, w, input_quant=q, padding_mode="reflect"), "zeros"),
        (lambda: qk.conv2d(xf, w, np.zeros(5, np.float32), input_quant=q), "\\(6,\\)"),
        (lambda: qk.conv2d(xf, w, input_quant=q, activation="tanh"), "gelu"),
        (lambda: qk.conv2d_int(x, weight(rng, (6, 4, 3, 3), group_size=16)), "group_size=16"),
        (lambda: qk.conv2d_requant(x, w, Requant.from_scale([1.0, 2.0])), "1 or 6"),
    ]
    for call, text in bad:
        with pytest.raises((qk.ArgumentError, qk.DTypeError, qk.UnsupportedError), match=text):
            call()
    with pytest.raises(qk.DTypeError):
        qk.conv2d_int(x.astype(np.int16), w)
    with pytest.raises(qk.DTypeError):
        qk.conv2d_int(x, np.zeros((6, 4, 3, 3)))


def test_a_remembered_call_sees_what_changed(rng):
    w = weight(rng, (6, 4, 3, 3))
    x = torch.from_numpy(random_codes(rng, (1, 4, 8, 8)))
    bias, r = torch.zeros(6, dtype=torch.int32), Requant.from_scale(0.01)
    first = qk.conv2d_requant(x, w, r, bias)
    assert_same(qk.conv2d_requant(x, w, r, bias), first)
    bias += 3000
    second = qk.conv2d_requant(x, w, r, bias)
    assert_same(second, qk.conv2d_requant(x, w, r, bias, backend="reference"))
    assert not torch.equal(first, second)
    bias[2] = 2**31 - 1
    with pytest.raises(qk.ArgumentError, match="int32"):
        qk.conv2d_requant(x, w, r, bias)
    q = qk.InputQuant(granularity="tensor")
    xf = x.float()
    qk.conv2d(xf, w, input_quant=q)
    xf[0, 0, 3, 3] = float("nan")
    with pytest.raises(qk.ArgumentError, match="row 3"):
        qk.conv2d(xf, w, input_quant=q)
    for kernel in registry.kernels("conv2d_int"):
        if kernel.isa is not None and kernel.format == "IntWeight":
            with qk.force_isa(kernel.isa):
                assert qk.explain("conv2d_int", x, w).chosen is kernel
                assert_same(qk.conv2d_int(x, w), qk.conv2d_int(x, w, backend="reference"))
