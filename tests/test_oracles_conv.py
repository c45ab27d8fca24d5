"""The convolution's reference against ONNX's node tests and onnxruntime, on all attributes they have."""

import numpy as np
import pytest
from helpers import assert_same, random_codes
from oracles import onnx

import qkernels as qk

# B, C, H, W, O, kernel, stride, dilation, groups, (top, left, bottom, right)
CASES = [
    (1, 1, 1, 1, 1, (1, 1), (1, 1), (1, 1), 1, (0, 0, 0, 0)),
    (2, 3, 9, 7, 5, (3, 3), (1, 1), (1, 1), 1, (1, 1, 1, 1)),
    (1, 8, 6, 11, 4, (1, 1), (2, 2), (1, 1), 1, (0, 0, 0, 0)),
    (2, 4, 13, 10, 6, (5, 3), (2, 1), (1, 2), 2, (2, 1, 0, 3)),
    (1, 6, 8, 8, 6, (3, 3), (2, 2), (1, 1), 6, (0, 0, 1, 1)),
    (1, 5, 12, 9, 10, (3, 2), (1, 2), (2, 1), 5, (3, 1, 2, 0)),
    (1, 3, 23, 23, 8, (7, 7), (2, 2), (1, 1), 1, (3, 3, 3, 3)),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
int_types = pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])


def geometry(stride, dilation, groups, pads):
    """The arguments as ONNX and as qkernels spell them."""
    top, left, bottom, right = pads
    theirs = {"strides": list(stride), "dilations": list(dilation), "group": groups, "pads": list(pads)}
    ours = {"stride": stride, "dilation": dilation, "groups": groups, "padding": (top, bottom, left, right)}
    return theirs, ours


def data(rng, case, x_dtype):
    b, c, h, w, o, kernel, *_, groups, _ = case
    return random_codes(rng, (b, c, h, w), x_dtype), onnx.exact(random_codes(rng, (o, c // groups, *kernel)))


@int_types
@each_case
def test_onnx_conv_integer(case, x_dtype, rng):
    (x, codes), (theirs, ours) = data(rng, case, x_dtype), geometry(*case[6:])
    x_zp = x_dtype(rng.integers(np.iinfo(x_dtype).min, np.iinfo(x_dtype).max + 1))
    w_zp = np.int8(rng.integers(-9, 10))
    if x_dtype is np.int8:  # onnxruntime has the operator for uint8 only: the same numbers, 128 higher
        shifted, shifted_zp = (x.astype(np.int16) + 128).astype(np.uint8), np.uint8(int(x_zp) + 128)
    else:
        shifted, shifted_zp = x, x_zp
    inputs = {"x": shifted, "w": codes, "x_zp": shifted_zp, "w_zp": w_zp}
    expected = onnx.run("ConvInteger", inputs, np.int32, **theirs)
    weight = qk.IntWeight.pack(codes, 1.0, int(w_zp))
    assert_same(qk.conv2d_int(x, weight, int(x_zp), **ours, backend="reference"), expected)


@int_types
@each_case
@pytest.mark.parametrize("per_channel", [False, True])
def test_onnx_qlinear_conv_is_requant_float(case, x_dtype, per_channel, rng):
    """rint(float32(acc + bias) * (x_scale * w_scale / y_scale)) + y_zero_point, bit for bit."""
    (x, codes), (theirs, ours) = data(rng, case, x_dtype), geometry(*case[6:])
    n = len(codes) if per_channel else 1
    x_zp, y_zp = (x_dtype(v) for v in rng.integers(*((-128, 128) if x_dtype is np.int8 else (0, 256)), 2))
    x_scale, w_scale = np.float32(0.037), rng.uniform(0.001, 0.01, n).astype(np.float32)
    y_scale = np.float32(0.03 * codes[0].size ** 0.5)
    bias = rng.integers(-3000, 3000, len(codes)).astype(np.int32)
    inputs = {
        "x": x,
        "x_scale": x_scale,
        "x_zp": x_zp,
        "w": codes,
        "w_scale": w_scale if per_channel else w_scale[0],
        "w_zp": np.zeros(n, np.int8) if per_channel else np.int8(0),
        "y_scale": y_scale,
        "y_zp": y_zp,
        "bias": bias,
    }
    expected = onnx.run("QLinearConv", inputs, x_dtype, **theirs)
    r = qk.Requant.from_scale(x_scale * w_scale / y_scale, int(y_zp), "float")
    weight = qk.IntWeight.pack(codes, w_scale)
    about = {**ours, "out_dtype": np.dtype(x_dtype).name, "backend": "reference"}
    assert_same(qk.conv2d_requant(x, weight, r, bias, int(x_zp), **about), expected)


def of_node(attributes, codes, zero_point):
    """uint8 codes to int8, and the geometry of a node test."""
    zp = np.asarray(zero_point, np.int16).reshape(-1) - 128
    weight = qk.IntWeight.pack(codes.astype(np.int16) - 128, np.ones(len(zp), np.float32), zp)
    given = {"strides": (1, 1), "dilations": (1, 1), "group": 1, "pads": (0, 0, 0, 0), **attributes}
    return weight, geometry(*(given[k] for k in ("strides", "dilations", "group", "pads")))[1]


def test_node_conv_integer():
    tests = onnx.node_tests("ConvInteger")
    for attributes, inputs, expected in tests.values():
        x, w, x_zp, *w_zp = inputs.values()
        weight, ours = of_node(attributes, w, w_zp[0] if w_zp else np.uint8(0))
        assert_same(qk.conv2d_int(x, weight, int(x_zp), **ours, backend="reference"), expected)
    assert len(tests) >= 2


def test_node_qlinear_conv():
    ((attributes, inputs, expected),) = onnx.node_tests("QLinearConv").values()
    weight, ours = of_node(attributes, inputs["w"], inputs["w_zero_point"])
    scale = (
        np.float32(inputs["x_scale"]) * np.float32(inputs["w_scale"].item()) / np.float32(inputs["y_scale"])
    )
    r = qk.Requant.from_scale(scale, int(inputs["y_zero_point"]), "float")
    about = {**ours, "out_dtype": "uint8", "backend": "reference"}
    assert_same(
        qk.conv2d_requant(inputs["x"], weight, r, None, int(inputs["x_zero_point"]), **about), expected
    )
