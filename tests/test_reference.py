"""The reference against hand-worked values and exact arithmetic (test_oracles.py: against other packages)."""

import math
from fractions import Fraction

import numpy as np
import pytest
from helpers import assert_same, random_codes

from qkernels import reference
from qkernels.errors import ArgumentError
from qkernels.formats import IntWeight
from qkernels.quant import InputQuant, Requant

SHAPES = [(0, 3, 4), (3, 0, 4), (3, 4, 0), (1, 1, 1), (5, 7, 3), (2, 300, 17)]  # M, K, N
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def floats(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


# quantize_activations


def test_dynamic_worked_example():
    """amax 63.5: s = 1/2; ties 0.25 / s = 0.5 and 0.75 / s = 1.5 go to even codes."""
    x = np.array([[63.5, 0.25, 0.75, -1.25], [0.0, -127.0, 1.5, 2.5]], np.float32)
    q, s = reference.quantize_activations(x, InputQuant())
    assert q.dtype == np.int8 and s.dtype == np.float32
    assert s.tolist() == [[0.5], [1.0]] and q.tolist() == [[127, 0, 2, -2], [0, -127, 2, 2]]
    q, s = reference.quantize_activations(x, InputQuant(granularity="tensor"))
    assert s.tolist() == [[1.0]] and q[0].tolist() == [64, 0, 1, -1]


def test_dynamic_unsigned_clips_negatives():
    x = np.array([[255.0, 0.5, 1.5, -3.0]], np.float32)
    q, s = reference.quantize_activations(x, InputQuant(signed=False))
    assert q.dtype == np.uint8 and s.tolist() == [[1.0]] and q.tolist() == [[255, 0, 2, 0]]


def test_static_tensor_uses_the_whole_range():
    x = np.array([[-1000.0, -64.0, 0.25, 0.75, 1000.0]], np.float32)
    q, s = reference.quantize_activations(x, InputQuant(granularity="tensor", scale=0.5))
    assert s.tolist() == [[0.5]] and q.tolist() == [[-128, -128, 0, 2, 127]]
    q, _ = reference.quantize_activations(x, InputQuant(granularity="tensor", scale=0.5, zero_point=7))
    assert q.tolist() == [[-128, -121, 7, 9, 127]]
    q, _ = reference.quantize_activations(
        x, InputQuant(granularity="tensor", scale=0.5, zero_point=100, signed=False)
    )
    assert q.tolist() == [[0, 0, 100, 102, 255]]


def test_static_channel():
    """thesis eq. 3.10: q[:, k] = x[:, k] / s[k]."""
    x, s = np.array([[1.0, 1.0, -300.0]], np.float32), np.array([0.5, 0.25, 1.0], np.float32)
    for iq, given in (
        (InputQuant(granularity="channel"), s),
        (InputQuant(granularity="channel", scale=s), None),
    ):
        q, scale = reference.quantize_activations(x, iq, given)
        assert q.tolist() == [[2, 4, -128]] and scale.tolist() == [s.tolist()]


@pytest.mark.parametrize("amax", [0.0, 2.0**-149, float(np.nextafter(np.float32(2.0**-100), np.float32(0)))])
def test_tiny_rows_get_scale_one(amax):
    x = np.array([[amax, -amax], [1.0, 0.5]], np.float32)
    q, s = reference.quantize_activations(x, InputQuant())
    assert s[0, 0] == 1 and q[0].tolist() == [0, 0] and q[1].tolist() == [127, 64]


@pytest.mark.parametrize("amax", [2.0**-100, 3.4028234663852886e38])
def test_extreme_rows_quantize(amax):
    q, s = reference.quantize_activations(np.array([[amax, -amax, 0]], np.float32), InputQuant())
    assert q.tolist() == [[127, -127, 0]] and np.isfinite(s).all()


@each_shape
@pytest.mark.parametrize("granularity", ["token", "tensor"])
@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_error_is_half_a_step(shape, granularity, signed, rng):
    x = floats(rng, *shape[:2])
    x = x if signed else np.abs(x)
    q, s = reference.quantize_activations(x, InputQuant(granularity=granularity, signed=signed))
    assert q.shape == x.shape and s.shape == ((shape[0], 1) if granularity == "token" else (1, 1))
    assert_same(q * s.astype(np.float64), x, tolerance=np.broadcast_to(s, x.shape) * 0.50002)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_input_names_the_row(value):
    x = np.zeros((4, 3), np.float32)
    x[2, 1] = value
    for iq in (InputQuant(), InputQuant(granularity="tensor"), InputQuant(granularity="tensor", scale=1.0)):
        with pytest.raises(ArgumentError, match=r"x\[2, 1\] is .*row 2"):
            reference.quantize_activations(x, iq)


# matmul_int


@each_shape
@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
def test_matmul_int_is_exact(shape, x_dtype, rng):
    m, k, n = shape
    x, w = random_codes(rng, (m, k), x_dtype), random_codes(rng, (n, k))
    zp = rng.integers(-128, 128, (n, 1)).astype(np.int16)
    for x_zp, w_zp in ((0, None), (9, None), (0, zp), (-100, zp), (3, np.full((1, 1), -5, np.int16))):
        expected = (x.astype(np.int64) - x_zp) @ (w.astype(np.int64) - (0 if w_zp is None else w_zp)).T
        assert_same(reference.matmul_int(x, w, x_zp, w_zp), expected.astype(np.int32))


def test_matmul_int_at_the_k_bound():
    k = 131071
    x, w = np.full((1, k), -128, np.int8), np.full((1, k), -128, np.int8)
    assert reference.matmul_int(x, w).item() == k * 2**14 == INT32_MAX - 16383
    assert reference.matmul_int(x, -w - 1).item() == -k * 128 * 127


# requantize


def exact(acc, m, shift, rounding):
    """The three roundings in Python integers and fractions, written as the sources of each write them."""
    if rounding == "single":  # TFLite, MultiplyByQuantizedMultiplier, single rounding
        t = 31 + shift
        return (acc * m + (1 << (t - 1) if t else 0)) >> t
    if rounding == "double":  # gemmlowp, fixedpoint.h
        a = max(INT32_MIN, min(INT32_MAX, acc << max(-shift, 0)))
        nudged = a * m + ((1 << 30) if a * m >= 0 else 1 - (1 << 30))
        high = abs(nudged) // 2**31 * (1 if nudged >= 0 else -1)  # C division truncates
        right = max(shift, 0)
        mask = (1 << right) - 1
        return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))
    product = Fraction(float(np.float32(acc))) * Fraction(float(np.float32(math.ldexp(m, -31 - shift))))
    return round(Fraction(float(np.float32(float(product)))))  # one rounding to float32, then half to even


@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_requantize_equals_its_source(rounding, rng):
    corners = [
        0,
        1,
        -1,
        2,
        -2,
        3,
        -3,
        INT32_MAX,
        INT32_MIN,
        INT32_MIN + 1,
        2**30,
        -(2**30),
        12345678,
        -87654321,
    ]
    acc = np.array(
        corners + rng.integers(INT32_MIN, INT32_MAX, 50).tolist() + rng.integers(-9999, 9999, 50).tolist()
    )
    ms = [0, 2**30, 2**30 + 1, 3 * 2**29, 2**31 - 1, *rng.integers(2**30, 2**31, 5).tolist()]
    for shift in (-31, -30, -7, -1, 0, 1, 2, 7, 16, 24, 30, 31):
        r = Requant(ms, [shift] * len(ms), rounding=rounding)
        y = reference.requantize(acc.astype(np.int32)[:, None], r, -(2**62), 2**62)
        expected = np.array([[exact(int(a), m, shift, rounding) for m in ms] for a in acc])
        assert_same(y, expected)


@pytest.mark.parametrize(
    ("acc", "m", "shift", "expected"),
    [
        # 1/2: the high multiply rounds ties up
        (1, 2**30, 0, 1),
        (-1, 2**30, 0, 0),
        (3, 2**30, 0, 2),
        (-3, 2**30, 0, -1),
        # 1/4: high multiply, then ties away from zero
        (2, 2**30, 1, 1),
        (-2, 2**30, 1, -1),
        (6, 2**30, 1, 2),
        (-6, 2**30, 1, -2),
        # rounding twice: 0.25 -> 0.5 -> 1, 1.25 -> 1.5 -> 2, and -0.25 -> 0
        (1, 2**30, 1, 1),
        (5, 2**30, 1, 2),
        (-1, 2**30, 1, 0),
        # 3/4
        (2, 3 * 2**29, 0, 2),
        (-2, 3 * 2**29, 0, -1),
        # a left shift: exact, and saturating at both ends before the multiply
        (5, 2**30, -1, 5),
        (-5, 2**30, -3, -20),
        (2**30, 2**30, -1, 2**30),
        (-(2**30) - 1, 2**30, -1, -(2**30)),
        (1, 2**30, -31, 2**30),
        # the corners
        (INT32_MIN, 2**30, 0, -(2**30)),
        (INT32_MIN, 2**31 - 1, 0, INT32_MIN + 1),
        (INT32_MAX, 2**31 - 1, 0, INT32_MAX - 1),
        (INT32_MAX, 2**30, 31, 1),
        (INT32_MIN, 2**30, 31, -1),
        (INT32_MIN, 0, 0, 0),
    ],
)
def test_double_worked_values(acc, m, shift, expected):
    """CMSIS-NN's arm_nn_requantize and gemmlowp, by hand."""
    r = Requant(m, shift, rounding="double")
    assert reference.requantize(np.array([[acc]], np.int32), r, INT32_MIN, INT32_MAX).item() == expected


def test_roundings_differ_where_they_should():
    acc = np.array([[-3, -1, 1, 3, 5]], np.int32)
    y = {
        rounding: reference.requantize(acc, Requant(2**30, 0, rounding=rounding), -128, 127).tolist()[0]
        for rounding in ("single", "double", "float")
    }
    assert y["single"] == y["double"] == [-1, 0, 1, 2, 3] and y["float"] == [-2, 0, 0, 2, 2]
    quarter = {
        rounding: reference.requantize(2 * acc, Requant(2**30, 1, rounding=rounding), -128, 127).tolist()[0]
        for rounding in ("single", "double", "float")
    }
    assert quarter == {"single": [-1, 0, 1, 2, 3], "double": [-2, -1, 1, 2, 3], "float": [-2, 0, 0, 2, 2]}


@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_requantize_clamps_and_adds_the_zero_point_wide(rounding):
    acc = np.array([[INT32_MIN, -1, 0, 1, INT32_MAX]], np.int32)
    r = Requant(2**31 - 1, -31, zero_point=100, rounding=rounding)
    assert reference.requantize(acc, r, -128, 127).tolist() == [[-128, -128, 100, 127, 127]]
    assert reference.requantize(acc, r, 0, 255).tolist() == [[0, 0, 100, 255, 255]]


def test_linear_requant_per_channel(rng):
    x, w = random_codes(rng, (4, 9)), random_codes(rng, (3, 9))
    bias = np.array([7, -70000, 0], np.int32)
    r = Requant.from_scale([0.01, 0.001, 0.5], zero_point=-3, output_scale=0.1)
    acc = reference.matmul_int(x, w, 5) + bias
    y = reference.linear_requant(x, w, r, bias, x_zp=5)
    assert y.dtype == np.int8 and y.shape == (4, 3)
    for n in range(3):
        one = Requant.from_scale([0.01, 0.001, 0.5][n], zero_point=-3)
        assert_same(y[:, n], reference.requantize(acc[:, n], one, -128, 127).astype(np.int8))
    assert reference.linear_requant(x, w, r, bias, activation="relu").min() >= -3
    assert reference.linear_requant(x, w, r, bias, activation="relu6").max() <= 57
    u = Requant.from_scale(0.01, zero_point=128)
    assert reference.linear_requant(x, w, u, out_dtype=np.uint8).dtype == np.uint8


# linear


@each_shape
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    "iq", [InputQuant(), InputQuant(granularity="tensor", scale=0.03, zero_point=9)], ids=["token", "static"]
)
def test_linear_int_is_near_the_product(shape, symmetric, iq, rng):
    m, k, n = shape
    x, W, bias = floats(rng, m, k), floats(rng, n, k), floats(rng, n)
    w = IntWeight.quantize(W, symmetric=symmetric)
    y = reference.linear_int(x, w, iq, bias)
    assert y.dtype == np.float32
    codes, s = reference.quantize_activations(x, iq)
    x_hat = (codes.astype(np.float64) - (iq.zero_point or 0)) * s
    assert_same(y, x_hat @ w.dense().astype(np.float64).T + bias, tolerance=1e-4 * (k + 1) ** 0.5)


def test_linear_int_order_of_operations():
    """act(((float32(acc) * w_scale) * x_scale) + bias), each operation rounded to float32."""
    w = IntWeight.pack(np.array([[127, 3], [-128, 1]], np.int8), np.array([0.1, 0.3], np.float32))
    x, bias = np.array([[0.7, -0.11]], np.float32), np.array([0.2, -0.1], np.float32)
    f = np.float32
    s = f(0.7) / f(127)
    q = [127, int(np.rint(f(-0.11) * (f(1) / s)))]
    expected = [f(f(f(acc) * ws) * s) + b for acc, ws, b in zip(
        (127 * q[0] + 3 * q[1], -128 * q[0] + q[1]), w.scale[:, 0], bias, strict=True)]  # fmt: skip
    assert_same(reference.linear_int(x, w, InputQuant(), bias), np.array([expected], np.float32))
    relu = np.maximum(np.array([expected], np.float32), 0)
    assert_same(reference.linear_int(x, w, InputQuant(), bias, "relu"), relu)


def test_spiq_folds_exactly():
    """Power-of-two scales lose nothing: the folded product equals the plain one."""
    s = np.array([0.25, 2.0, 1.0, 0.5], np.float32)
    x = np.array([[4.0, -64.0, 3.0, 0.5], [-2.5, 254.0, 127.0, -64.0]], np.float32)
    w = IntWeight.pack([[1, -128, 127, 5], [3, 2, 1, 0]], [[1.0], [0.5]], input_scale=s)
    iq = InputQuant(granularity="channel")
    assert_same(reference.linear_int(x, w, iq), x @ w.dense().T)
    assert_same(reference.linear_int(x, w, InputQuant(granularity="channel", scale=s)), x @ w.dense().T)
    assert_same(reference.linear_float(x, w), x @ w.dense().T)


def test_spiq_refuses_what_does_not_fit():
    w = IntWeight.pack(np.ones((2, 3), np.int8), 1.0)
    folded = IntWeight.pack(np.ones((2, 3), np.int8), 1.0, input_scale=np.ones(3))
    x = np.ones((1, 3), np.float32)
    with pytest.raises(ArgumentError, match="the weight has no input_scale"):
        reference.linear_int(x, w, InputQuant(granularity="channel"))
    with pytest.raises(ArgumentError, match="is not the weight's input_scale"):
        reference.linear_int(x, folded, InputQuant(granularity="channel", scale=np.full(3, 2.0)))


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_input_scale_is_divided_out_before_dynamic_scales(granularity, rng):
    """W * diag(s) with x / s: powers of two change nothing, and an outlier channel no longer costs the others."""
    x, W = floats(rng, 5, 40), floats(rng, 7, 40)
    q, s = InputQuant(granularity=granularity), 2.0 ** rng.integers(-3, 4, 40)
    folded = IntWeight.quantize(W, input_scale=s)
    divided = IntWeight.pack(folded.codes(), folded.scale)
    assert_same(
        reference.linear_int(x, folded, q), reference.linear_int((x / s).astype(np.float32), divided, q)
    )
    x[:, 3] *= 300
    s = np.ones(40)
    s[3] = 17
    plain = reference.linear_int(x, IntWeight.quantize(W), q) - x @ W.T
    smooth = reference.linear_int(x, IntWeight.quantize(W, input_scale=s), q) - x @ W.T
    assert np.linalg.norm(smooth) < 0.5 * np.linalg.norm(plain)


@each_shape
def test_linear_float(shape, rng):
    m, k, n = shape
    x, bias, s = floats(rng, m, k), floats(rng, n), rng.uniform(0.5, 2, k).astype(np.float32)
    for options in ({}, {"input_scale": s}, {"symmetric": False}):
        w = IntWeight.quantize(floats(rng, n, k), **options)
        y = reference.linear_float(x, w, bias, "relu")
        expected = np.maximum(x.astype(np.float64) @ w.dense().astype(np.float64).T + bias, 0)
        assert_same(y.astype(np.float64), expected, tolerance=1e-4)
    assert reference.linear_float(x, w, out_dtype=np.float16).dtype == np.float16


# activations


def test_activations_against_exact_values(rng):
    x = np.concatenate([np.linspace(-12, 12, 997), rng.standard_normal(500) * 3, [0.0, -1e30, 1e30, -88.0]])
    x = x.astype(np.float32)
    f64 = x.astype(np.float64)
    phi = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in f64])
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-f64))
    for name, y in {
        "relu": np.where(x > 0, x, 0),
        "relu6": np.minimum(np.where(x > 0, x, 0), 6),
        "gelu": f64 * phi,
        "silu": f64 * sigmoid,
    }.items():
        out = reference.apply_activation(x, name)
        assert out.dtype == np.float32
        assert_same(out.astype(np.float64), y, tolerance=np.abs(y) * 2.0**-24 + 2.0**-149)
    assert reference.apply_activation(x, None) is x
