"""The reference against independent implementations: onnxruntime, LiteRT, torch.

Kernels are compared with the reference elsewhere, so what holds here holds for all of them.
"""

import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes
from oracles import litert, onnx

from qkernels import reference
from qkernels.quant import InputQuant, Requant

SHAPES = [(1, 1, 1), (1, 64, 32), (3, 31, 17), (16, 384, 40), (5, 1000, 9)]  # M, K, N
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
int_types = pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])


def codes(rng, shape, x_dtype):
    m, k, n = shape
    return random_codes(rng, (m, k), x_dtype), onnx.exact(random_codes(rng, (n, k)))


# onnxruntime


@int_types
@each_shape
@pytest.mark.parametrize("zero_points", ["none", "tensor", "channel"])
def test_onnx_matmul_integer(shape, x_dtype, zero_points, rng):
    x, w = codes(rng, shape, x_dtype)
    inputs, x_zp, w_zp = {"a": x, "b": np.ascontiguousarray(w.T)}, 0, None
    if zero_points != "none":
        x_zp = int(x_dtype(rng.integers(np.iinfo(x_dtype).min, np.iinfo(x_dtype).max + 1)))
        w_zp = rng.integers(-128, 128, 1 if zero_points == "tensor" else shape[2]).astype(np.int8)
        inputs["a_zp"] = x_dtype(x_zp)
        inputs["b_zp"] = w_zp[0] if zero_points == "tensor" else w_zp
        w_zp = w_zp.astype(np.int16)[:, None]
    expected = onnx.run("MatMulInteger", inputs, np.int32)
    assert_same(reference.matmul_int(x, w, x_zp, w_zp), expected)


@int_types
@each_shape
@pytest.mark.parametrize("per_channel", [False, True])
def test_onnx_qlinear_matmul_is_requant_float(shape, x_dtype, per_channel, rng):
    """QLinearMatMul: rint(float32(acc) * (x_scale * w_scale / y_scale)) + y_zero_point, bit for bit."""
    x, w = codes(rng, shape, x_dtype)
    n = shape[2]
    x_zp, y_zp = (x_dtype(v) for v in rng.integers(*((-128, 128) if x_dtype is np.int8 else (0, 256)), 2))
    w_zp = rng.integers(-9, 10, n if per_channel else 1).astype(np.int8)
    x_scale, w_scale = np.float32(0.037), rng.uniform(0.001, 0.01, len(w_zp)).astype(np.float32)
    y_scale = np.float32(0.03 * shape[1] ** 0.5)
    inputs = {
        "a": x,
        "a_scale": x_scale,
        "a_zp": x_zp,
        "b": np.ascontiguousarray(w.T),
        "b_scale": w_scale if per_channel else w_scale[0],
        "b_zp": w_zp if per_channel else w_zp[0],
        "y_scale": y_scale,
        "y_zp": y_zp,
    }
    expected = onnx.run("QLinearMatMul", inputs, x_dtype)
    r = Requant.from_scale(x_scale * w_scale / y_scale, int(y_zp), "float")
    y = reference.linear_requant(
        x, w, r, x_zp=int(x_zp), w_zp=w_zp.astype(np.int16)[:, None], out_dtype=x_dtype
    )
    assert_same(y, expected)
    assert len(np.unique(expected)) > 20 or expected.size < 600  # else the scales test nothing


@pytest.mark.parametrize("signed", [True, False])
def test_onnx_quantize_linear(signed, rng):
    """QuantizeLinear divides by the scale, qkernels multiplies by its reciprocal: equal where 1/s is exact,
    else at most one code apart, and that next to a tie only."""
    x = np.concatenate([rng.standard_normal(5000) * 3, np.arange(-40, 40) / 16]).astype(np.float32)[None]
    dtype, zp = (np.int8, -7) if signed else (np.uint8, 130)
    for scale in (0.125, 0.03, 0.0471):
        iq = InputQuant(granularity="tensor", scale=scale, signed=signed, zero_point=zp)
        q, s = reference.quantize_activations(x, iq)
        expected = onnx.run("QuantizeLinear", {"x": x, "s": s[0, 0], "zp": dtype(zp)}, dtype)
        ratio = x.astype(np.float64) / s[0, 0]
        near_tie = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) < 1e-4
        assert_same(q, expected, tolerance=1.0 * near_tie * (scale != 0.125))


# LiteRT


def litert_case(rng, shape, per_channel):
    x, w = codes(rng, shape, np.int8)
    w = np.maximum(w, -127)  # LiteRT's weights are symmetric
    bias = rng.integers(-3000, 3000, shape[2]).astype(np.int32)
    w_scale = rng.uniform(0.002, 0.01, shape[2] if per_channel else 1).astype(np.float32)
    return x, w, bias, np.float32(0.041), w_scale, np.float32(0.03 * shape[1] ** 0.5)


@each_shape
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_litert_reference_is_single(shape, per_channel, activation, rng):
    x, w, bias, x_scale, w_scale, y_scale = litert_case(rng, shape, per_channel)
    expected = litert.fully_connected(x, w, bias, x_scale, 3, w_scale, y_scale, -20, activation)
    r = Requant.from_scale(litert.effective_scale(x_scale, w_scale, y_scale), -20, "single", y_scale)
    assert_same(reference.linear_requant(x, w, r, bias, x_zp=3, activation=activation), expected)
    assert activation or len(np.unique(expected)) > 20 or expected.size < 600


def near_ties(rng, scale, count=4000):
    """Accumulators whose product with scale lies next to, or on, a tie."""
    ties = rng.integers(-127, 127, count) + 0.5
    return np.clip(np.rint(ties / scale) + rng.integers(-2, 3, count), -(2**31), 2**31 - 1).astype(np.int32)


def test_litert_reference_next_to_ties(rng):
    """Equal also where a half decides, with one difference: at an exact negative tie LiteRT (2.3) rounds away
    from zero, `single` rounds up. Scales with a long significand have no exact ties."""
    x, exact_ties = np.ones((1, 1), np.int8), 0
    for scale in [*2.0 ** rng.uniform(-23, 1, 30), 0.5, 2.0**-3, 3 * 2.0**-7, 2.0**-15]:
        scale = np.float32(scale)
        acc = near_ties(rng, float(scale))
        w = np.zeros((len(acc), 1), np.int8)
        expected = litert.fully_connected(x, w, acc, 1.0, 0, scale, 1.0, 0)
        y = reference.linear_requant(x, w, Requant.from_scale(scale), acc)
        product = acc.astype(np.float64) * float(scale)
        negative_tie = (product < 0) & (product - np.floor(product) == 0.5)
        assert_same(y.astype(np.int64) - negative_tie, expected.astype(np.int64))
        exact_ties += int(negative_tie.sum())
    assert exact_ties > 100


def test_litert_reference_is_not_double(rng):
    """So the name `single` is not an accident: rounding twice differs next to ties."""
    scale = np.float32(0.3)
    acc = near_ties(rng, 0.3)
    w = np.zeros((len(acc), 1), np.int8)
    expected = litert.fully_connected(np.ones((1, 1), np.int8), w, acc, 1.0, 0, scale, 1.0, 0)
    y = reference.linear_requant(
        np.ones((1, 1), np.int8), w, Requant.from_scale(scale, rounding="double"), acc
    )
    assert (y != expected).any()


@each_shape
@pytest.mark.parametrize("per_channel", [False, True])
def test_litert_xnnpack_is_float(shape, per_channel, rng):
    """LiteRT's default, XNNPACK, multiplies by a float32 scale and rounds ties to even."""
    x, w, bias, x_scale, w_scale, y_scale = litert_case(rng, shape, per_channel)
    expected = litert.fully_connected(x, w, bias, x_scale, 3, w_scale, y_scale, -20, resolver="AUTO")
    scale = x_scale * w_scale / y_scale
    y = reference.linear_requant(x, w, Requant.from_scale(scale, -20, "float"), bias, x_zp=3)
    assert_same(y, expected)


# torch


@pytest.mark.parametrize("shape", [(17, 8, 8), (32, 384, 64), (64, 1000, 16)], ids=str)
def test_torch_int_mm(shape, rng):
    x, w = codes(rng, shape, np.int8)
    expected = torch._int_mm(torch.from_numpy(x), torch.from_numpy(w).T.contiguous())
    assert_same(reference.matmul_int(x, w), expected.numpy())


def test_torch_fake_quantize(rng):
    """torch multiplies by the reciprocal of the scale as well: bit for bit, where no zero point is added
    (torch adds it before it rounds)."""
    x = torch.from_numpy(rng.standard_normal((64, 65), dtype=np.float32) * 4)
    for scale in (0.125, 0.0471, 0.01):
        q, s = reference.quantize_activations(x.numpy(), InputQuant(granularity="tensor", scale=scale))
        expected = torch.fake_quantize_per_tensor_affine(x, s.item(), 0, -128, 127)
        assert_same(q * s, expected.numpy())


@pytest.mark.parametrize("activation", ["relu", "relu6", "gelu", "silu"])
def test_torch_activations(activation, rng):
    x = torch.from_numpy(
        np.concatenate([rng.standard_normal(4000) * 4, [0, -100, 100, 1e-30]]).astype(np.float32)
    )
    f = {"relu": torch.relu, "relu6": torch.nn.functional.relu6, "gelu": torch.nn.functional.gelu,
         "silu": torch.nn.functional.silu}[activation]  # fmt: skip
    expected = f(x.double())
    y = reference.apply_activation(x.numpy(), activation).astype(np.float64)
    assert_same(y, expected.numpy(), tolerance=np.abs(expected.numpy()) * 2.0**-23 + 1e-15)
