"""Integer-only operations: kernels against the reference bit for bit, the reference against float definitions."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from helpers import as_array, assert_same, random_codes
from oracles import onnx

import qkernels as qk
from qkernels import reference, registry
from qkernels.integer_quant import average_requant, exponent_requant, pool_window

LENGTHS = [0, 1, 2, 31, 32, 33, 63, 64, 65, 127, 129, 1000, 70001]
BYTES = [np.int8, np.uint8]
both = pytest.mark.parametrize("dtype", BYTES)


def rows(op):
    return pytest.mark.parametrize("kernel", registry.kernels(op), ids=str)


def ends(dtype):
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def zero_points(dtype, rng):
    """Both ends of a dtype, and one inside."""
    lo, hi = ends(dtype)
    return [lo, hi, int(rng.integers(lo, hi + 1))]


def views(rng, dtype, shape=(3, 5, 7, 6)):
    """Arrays of one shape in every kind of memory that callers hold."""

    def make(*s):
        return random_codes(rng, s, dtype)

    n, c, h, w = shape
    yield "contiguous", make(*shape)
    yield "channels last", make(n, h, w, c).transpose(0, 3, 1, 2)
    yield "transposed", make(w, h, c, n).T
    yield "backwards", make(*shape)[:, :, ::-1, ::-1]
    yield "every second", make(n, c, h, 2 * w)[..., ::2]
    yield "rows apart", make(n, c, h, w + 9)[..., :w]
    yield "broadcast", np.broadcast_to(make(1, c, 1, w), shape)
    yield "unaligned", np.frombuffer(make(math.prod(shape) + 1).tobytes(), dtype)[1:].reshape(shape)


def kinds(x):
    """An array, and the tensor on its memory where torch can hold it."""
    yield x
    if min(x.strides, default=1) > 0 and x.flags.writeable:
        yield torch.from_numpy(x)


# ---- add -------------------------------------------------------------------------------------------------------

SCALES = [
    (0.02, 0.03, 0.04),
    (1.0, 1.0, 1.0),
    (0.5, 1e-4, 0.3),
    (1e-5, 1e-5, 1.0),
    (3.0, 0.1, 1e-3),
    (0.9, 0.9, 1.8),
]


def every_pair(dtype):
    lo, hi = ends(dtype)
    a, b = np.meshgrid(np.arange(lo, hi + 1), np.arange(lo, hi + 1))
    return a.astype(dtype).ravel(), b.astype(dtype).ravel()


@rows("add_requant")
@both
@pytest.mark.parametrize("out_dtype", BYTES)
def test_add_every_pair_of_codes(kernel, dtype, out_dtype, rng):
    a, b = every_pair(dtype)
    for scales in SCALES:
        for za, zb, zo in zip(
            zero_points(dtype, rng), zero_points(dtype, rng)[::-1], zero_points(out_dtype, rng)
        ):
            p = qk.AddRequant.from_scales(scales[0], za, scales[1], zb, scales[2], zo)
            for activation in (None, "relu", "relu6"):
                expected = reference.add_requant(a, b, p, *p.limits(activation, out_dtype)).astype(out_dtype)
                assert_same(kernel(a, b, p, activation, out_dtype), expected)


@rows("add_requant")
@both
@pytest.mark.parametrize("n", LENGTHS)
def test_add_lengths_and_mixed_dtypes(kernel, dtype, n, rng):
    a, b = random_codes(rng, n, dtype), random_codes(rng, n, np.int8)
    p = qk.AddRequant(int(rng.integers(-32767, 32768)), 32767, 15, 3, -128, 9, 0.1)
    expected = reference.add_requant(a, b, p, *p.limits(None, dtype)).astype(dtype)
    assert_same(kernel(a, b, p), expected)


@rows("add_requant")
def test_add_layouts(kernel, rng):
    p = qk.AddRequant.from_scales(0.1, 1, 0.07, 2, 0.12, 3)
    for (_, a), (_, b) in zip(views(rng, np.int8), views(rng, np.int8)):
        for other in (a[::-1][::-1], b, random_codes(rng, a.shape)):
            expected = reference.add_requant(a, other, p, -128, 127).astype(np.int8)
            assert_same(kernel(a, other, p), expected)
    a = torch.from_numpy(random_codes(rng, (2, 6, 5, 4))).to(memory_format=torch.channels_last)
    y = kernel(a, a, p)
    assert_same(y.numpy(), reference.add_requant(a.numpy(), a.numpy(), p, -128, 127).astype(np.int8))
    assert kernel.backend != "cpu" or y.is_contiguous(memory_format=torch.channels_last)


@both
def test_add_error_bound(dtype, rng):
    """Every pair of codes, scales over many octaves: never further from the real sum than AddRequant says."""
    a, b = every_pair(dtype)
    tight = 0
    for _ in range(60):
        sa, sb, so = 2.0 ** rng.uniform(-9, 3, 3)
        za, zb, zo = (int(rng.choice(zero_points(dtype, rng))) for _ in range(3))
        p = qk.AddRequant.from_scales(sa, za, sb, zb, so, zo)
        real = sa / so * (a.astype(float) - za) + sb / so * (b.astype(float) - zb) + zo
        error = np.abs(reference.add_requant(a, b, p, -(10**9), 10**9) - real).max()
        assert error <= p.error_bound + 1e-9
        tight = max(tight, (error - 0.5) / (p.error_bound - 0.5))
    assert tight > 0.5  # the bound says something


def test_subtract(rng):
    a, b = random_codes(rng, 500), random_codes(rng, 500)
    p = qk.AddRequant.from_scales(0.1, 0, 0.1, 0, 0.2, 0, subtract=True)
    assert_same(qk.add_requant(a, b, p), np.floor((a.astype(float) - b) / 2 + 0.5), tolerance=0)


@both
def test_onnxruntime_qlinear_add(dtype, rng):
    """onnxruntime adds in float32 and rounds ties to even: at most one code apart."""
    for _ in range(20):
        a, b = random_codes(rng, 3000, dtype), random_codes(rng, 3000, dtype)
        sa, sb, so = (np.float32(v) for v in 2.0 ** rng.uniform(-5, -3, 3))
        za, zb, zo = (dtype(rng.choice(zero_points(dtype, rng))) for _ in range(3))
        inputs = dict(a=a, sa=sa, za=za, b=b, sb=sb, zb=zb, so=so, zo=zo)
        expected = onnx.run("QLinearAdd", inputs, dtype, domain="com.microsoft")
        p = qk.AddRequant.from_scales(sa, int(za), sb, int(zb), so, int(zo))
        assert_same(qk.add_requant(a, b, p), expected, tolerance=1)
        assert (qk.add_requant(a, b, p) == expected).mean() > 0.98


def test_add_refuses(rng):
    a = random_codes(rng, (2, 3))
    p = qk.AddRequant.from_scales(0.1, 0, 0.1, 0, 0.2, 0)
    with pytest.raises(qk.ArgumentError, match="shape"):
        qk.add_requant(a, a[:1], p)
    with pytest.raises(qk.DTypeError, match="dtype"):
        qk.add_requant(a, a.astype(np.int32), p)
    with pytest.raises(qk.DTypeError, match="torch"):
        qk.add_requant(a, torch.from_numpy(a), p)
    with pytest.raises(qk.ArgumentError, match="zero_point_a"):
        qk.add_requant(a, a, qk.AddRequant.from_scales(0.1, 200, 0.1, 0, 0.2, 0))
    with pytest.raises(qk.ArgumentError, match="zero point"):
        qk.add_requant(a, a, qk.AddRequant.from_scales(0.1, 0, 0.1, 0, 0.2, -3), out_dtype=np.uint8)
    with pytest.raises(qk.ArgumentError, match="gelu"):
        qk.add_requant(a, a, p, activation="gelu")
    with pytest.raises(qk.ArgumentError, match="32767"):
        qk.AddRequant.from_scales(1.0, 0, 1.0, 0, 1e-6)
    with pytest.raises(qk.ArgumentError, match="multiplier_a"):
        qk.AddRequant(40000, 0, 3)


# ---- lookup and GELU -------------------------------------------------------------------------------------------


@rows("lookup_int8")
@both
@pytest.mark.parametrize("out_dtype", BYTES)
@pytest.mark.parametrize("n", LENGTHS)
def test_lookup(kernel, dtype, out_dtype, n, rng):
    q, table = random_codes(rng, n, dtype), random_codes(rng, 256, out_dtype)
    assert_same(kernel(q, table), table[q.astype(int) - ends(dtype)[0]])


@rows("lookup_int8")
def test_lookup_layouts(kernel, rng):
    table = random_codes(rng, 256)
    for _, q in views(rng, np.int8):
        for x in kinds(q):
            assert_same(as_array(kernel(x, table)), table[q.astype(int) + 128])


def test_lookup_table():
    """SiLU at the output's own scale: within half a step of the function for every code."""
    codes = np.arange(-128, 128).astype(np.int8)
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    y = qk.lookup_int8(codes, qk.lookup_table(silu, 0.05, 3, 0.04, -100))
    real = silu(0.05 * (codes.astype(float) - 3)) / 0.04 - 100
    assert np.abs(y - np.clip(real, -128, 127)).max() <= 0.5
    with pytest.raises(qk.ArgumentError, match="NaN"):
        qk.lookup_table(lambda x: x * np.nan, 0.1)
    with pytest.raises(qk.ArgumentError, match="256"):
        qk.lookup_int8(codes, np.zeros(255, np.int8))


@rows("gelu_int")
@both
@pytest.mark.parametrize("out_dtype", BYTES)
def test_gelu_every_code(kernel, dtype, out_dtype, rng):
    """Exhaustive: the definition bit for bit, and the float GELU within 1/2 + 0.0182 / output_scale + 2**-8 steps."""
    lo, hi = ends(dtype)
    codes = np.arange(lo, hi + 1).astype(dtype)
    for scale in (1e-4, 0.003, 0.02, 0.05, 0.11, 1.0, 30.0):
        for out_scale in (None, 0.01, 0.08):
            for zp, zo in zip(zero_points(dtype, rng), zero_points(out_dtype, rng)):
                y = kernel(codes, scale, zp, out_scale, zo, out_dtype)
                x = scale * (codes.astype(float) - zp)
                gelu = x * 0.5 * np.array([math.erfc(-v / math.sqrt(2)) for v in x])
                s = out_scale or scale
                real = np.clip(gelu / s + zo, *ends(out_dtype))
                assert_same(y.astype(float), real, tolerance=0.5 + 0.0182 / s + 2**-8)
                assert_same(y, qk.gelu_int(codes, scale, zp, out_scale, zo, out_dtype, backend="reference"))


# ---- concat ----------------------------------------------------------------------------------------------------


@rows("concat_requant")
@both
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(kernel, dtype, axis, rng):
    shapes = [[2, 3, 5, 4] for _ in range(4)]
    for shape, n in zip(shapes, (3, 16, 0, 70)):
        shape[axis] = n
    types = [dtype, np.int8, np.uint8, dtype]
    scales, zps = [0.1, 0.07, 0.3, 0.1], [5, -128, 255, 9]
    xs = [random_codes(rng, s, t) for s, t in zip(shapes, types)]
    requants = [qk.Requant.from_scale(s / 0.1, 5) for s in scales]
    requants[0] = None
    lo, hi = ends(dtype)
    expected = reference.concat_requant(xs, zps, requants, lo, hi, axis).astype(dtype)
    assert_same(kernel(xs, scales, zps, 0.1, 5, axis), expected)
    last = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in xs]
    assert_same(kernel(last, scales, zps, 0.1, 5, axis), expected)
    strided = [np.repeat(x, 2, -1)[..., ::2] for x in xs]
    assert_same(as_array(kernel([torch.from_numpy(x) for x in strided], scales, zps, 0.1, 5, axis)), expected)


@both
def test_concat_error_bound(dtype, rng):
    lo, hi = ends(dtype)
    codes = np.arange(lo, hi + 1).astype(dtype)
    for _ in range(100):
        s, out = 2.0 ** rng.uniform(-8, 8, 2)
        zp, zo = (int(rng.choice(zero_points(dtype, rng))) for _ in range(2))
        y = qk.concat_requant([codes], [s], [zp], out, zo, axis=0)
        real = np.clip((codes.astype(float) - zp) * s / out + zo, lo, hi)
        assert_same(y.astype(float), real, tolerance=0.5 + 255 * (s / out) * 2.0**-31 + 2**-22)


@both
def test_onnxruntime_qlinear_concat(dtype, rng):
    xs = [random_codes(rng, (2, n, 7), dtype) for n in (3, 8, 1)]
    scales = [np.float32(v) for v in (0.05, 0.02, 0.09)]
    zps = [dtype(rng.choice(zero_points(dtype, rng))) for _ in xs]
    inputs = {"so": np.float32(0.05), "zo": dtype(3)}
    for i, x in enumerate(xs):
        inputs |= {f"x{i}": x, f"s{i}": scales[i], f"z{i}": zps[i]}
    expected = onnx.run("QLinearConcat", inputs, dtype, domain="com.microsoft", axis=1)
    y = qk.concat_requant(xs, [float(s) for s in scales], [int(z) for z in zps], float(np.float32(0.05)), 3)
    assert_same(y, expected, tolerance=1)


def test_concat_refuses(rng):
    x = random_codes(rng, (2, 3))
    with pytest.raises(qk.ArgumentError, match="as many"):
        qk.concat_requant([x, x], [0.1], [0, 0], 0.1)
    with pytest.raises(qk.ArgumentError, match="differ along"):
        qk.concat_requant([x, x[:1]], [0.1, 0.1], [0, 0], 0.1)
    with pytest.raises(qk.ArgumentError, match="axis"):
        qk.concat_requant([x], [0.1], [0], 0.1, axis=2)
    with pytest.raises(qk.ArgumentError, match="zero_points"):
        qk.concat_requant([x], [0.1], [200], 0.1)


# ---- pooling ---------------------------------------------------------------------------------------------------

# kernel, stride, padding, dilation, ceil_mode
POOLS = [
    (1, 1, 0, 1, False),
    (2, 2, 0, 1, False),
    (3, 2, 1, 1, False),
    (3, 2, 1, 1, True),
    ((3, 5), (1, 2), (1, 2), 1, True),
    ((2, 3), 3, (1, 0), (3, 2), False),
    (7, 1, 3, 1, False),
]
CHANNELS = [1, 3, 31, 64, 65, 130]


@rows("max_pool2d_int")
@both
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_max_pool(kernel, dtype, pool, channels, rng):
    x = random_codes(rng, (2, channels, 9, 8), dtype)
    size, stride, padding, dilation, ceil_mode = pool
    y = kernel(torch.from_numpy(x), size, stride, padding, dilation, ceil_mode)
    expected = torch.nn.functional.max_pool2d(
        torch.from_numpy(x.astype(np.float32)), size, stride, padding, dilation, ceil_mode
    )
    assert_same(y.numpy(), expected.numpy().astype(dtype))


@rows("avg_pool2d_int")
@both
@pytest.mark.parametrize("pool", [p for p in POOLS if p[3] == 1], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("include", [True, False])
def test_avg_pool(kernel, dtype, pool, channels, include, rng):
    """Against torch in float64 as well: the mean exactly, rounded half up."""
    x = random_codes(rng, (2, channels, 9, 8), dtype)
    size, stride, padding, _, ceil_mode = pool
    for zp in zero_points(dtype, rng):
        y = kernel(x, size, stride, padding, ceil_mode, include, zp)
        real = torch.nn.functional.avg_pool2d(
            torch.from_numpy(x.astype(np.float64) - zp), size, stride, padding, ceil_mode, include
        ).numpy()
        assert_same(y, np.floor(real + zp + 0.5 + 1e-9).astype(dtype))
        y = kernel(x, size, stride, padding, ceil_mode, include, zp, 0.07, 0.05, 4)
        assert_same(y.astype(float), np.clip(real * 0.07 / 0.05 + 4, *ends(dtype)), tolerance=0.5 + 2**-22)
        again = qk.avg_pool2d_int(
            x, size, stride, padding, ceil_mode, include, zp, 0.07, 0.05, 4, backend="reference"
        )
        assert_same(y, again)


@rows("avg_pool2d_int")
@both
def test_avg_pool_ties_and_sums(kernel, dtype, rng):
    """Constant images, means on and next to a half, and windows that 16 bits do not hold the sum of."""
    lo, hi = ends(dtype)
    for h, w in ((2, 2), (3, 3), (7, 7), (16, 16), (17, 17), (40, 30), (130, 101)):
        n = h * w
        for base, ones in (
            (lo, 0),
            (hi, 0),
            (lo, n // 2),
            (hi - 1, n // 2),
            (0, (n + 1) // 2),
            (hi - 1, n - 1),
        ):
            x = np.full(n, base, dtype)
            x[rng.permutation(n)[:ones]] += 1
            total = int(x.astype(np.int64).sum())
            y = kernel(x.reshape(1, 1, h, w), (h, w))
            assert y.ravel().tolist() == [(2 * total + n) // (2 * n)]


@rows("avg_pool2d_int")
def test_pool_layouts(kernel, rng):
    for _, q in views(rng, np.int8):
        expected = reference.avg_pool2d(
            q, pool_window((7, 6), (3, 3), (2, 2), (1, 1), (1, 1), False, True), 0, None, -128, 127
        )
        for x in kinds(q):
            y = kernel(x, 3, 2, 1)
            assert_same(as_array(y), expected.astype(np.int8))
            most = qk.max_pool2d_int(x, 3, 2, 1)
            assert_same(as_array(most), as_array(qk.max_pool2d_int(x, 3, 2, 1, backend="reference")))
    y = kernel(np.zeros((0, 3, 4, 4), np.int8), 2)
    assert y.shape == (0, 3, 2, 2)
    assert kernel(np.zeros((2, 0, 4, 4), np.int8), 2).shape == (2, 0, 2, 2)


@both
def test_onnxruntime_global_average_pool(dtype, rng):
    x = random_codes(rng, (2, 40, 7, 9), dtype)
    zp, zo = dtype(rng.choice(zero_points(dtype, rng))), dtype(5)
    inputs = dict(x=x, s=np.float32(0.05), z=zp, so=np.float32(0.01), zo=zo)
    expected = onnx.run("QLinearGlobalAveragePool", inputs, dtype, domain="com.microsoft", channels_last=0)
    y = qk.global_avg_pool2d_int(x, int(zp), float(np.float32(0.05)), float(np.float32(0.01)), 5)
    assert_same(y, expected, tolerance=1)
    same = qk.global_avg_pool2d_int(x, int(zp))
    mean = x.astype(float).mean((2, 3), keepdims=True)
    assert_same(same, np.floor(mean + 0.5 + 1e-9).astype(dtype))


def test_pool_refuses(rng):
    x = random_codes(rng, (1, 2, 5, 5))
    with pytest.raises(qk.ArgumentError, match="half"):
        qk.max_pool2d_int(x, 2, padding=2)
    with pytest.raises(qk.ArgumentError, match="fits"):
        qk.avg_pool2d_int(x, 6)
    with pytest.raises(qk.ArgumentError, match="kernel_size"):
        qk.avg_pool2d_int(x, 0)
    with pytest.raises(qk.ArgumentError, match="both"):
        qk.avg_pool2d_int(x, 2, scale=0.1)
    with pytest.raises(qk.ArgumentError, match="without scales"):
        qk.avg_pool2d_int(x, 2, output_zero_point=3)
    with pytest.raises(qk.ArgumentError, match="N, C, H, W"):
        qk.max_pool2d_int(x[0], 2)
    with pytest.raises(qk.DTypeError, match="dtype"):
        qk.max_pool2d_int(x.astype(np.float32), 2)
    assert average_requant(1.0, 9, 0) is average_requant(1.0, 9, 0)


# ---- softmax ---------------------------------------------------------------------------------------------------


def adversarial(rng, n, dtype):
    """Rows for reductions: random, constant at both ends, one far above the rest, two levels, a ramp."""
    lo, hi = ends(dtype)
    low, high = max(lo, -(2**31)), min(hi, 2**31 - 1)
    rows = [rng.integers(low, high + 1, n), np.full(n, low), np.full(n, high), np.full(n, low)]
    rows[3][n // 2] = high
    rows.append(np.where(np.arange(n) % 2, low, high))
    rows.append(np.linspace(low, high, n).astype(np.int64))
    rows.append(np.clip(rng.normal(0, 20, n), low, high).astype(np.int64))
    return np.stack(rows).astype(dtype)


@rows("softmax_int")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("n", [1, 2, 15, 63, 64, 65, 197, 1000, 4097])
@pytest.mark.parametrize("out_dtype", BYTES)
def test_softmax(kernel, dtype, n, out_dtype, rng):
    x = adversarial(rng, n, dtype)
    for scale in (1e-9, 1e-4, 0.01, 0.1, 1.0, 300.0):
        expected = reference.softmax_int(x, exponent_requant(scale)) - (128 if out_dtype == np.int8 else 0)
        assert_same(kernel(x, scale, out_dtype=out_dtype), expected.astype(out_dtype))


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1000, 4096])
def test_softmax_error_bound(n, rng):
    """0.9 + n 2**-15 steps of 1/256 from the real softmax (one more where that is 1)."""
    worst = 0
    for dtype in (np.int8, np.uint8, np.int32):
        x = np.concatenate([adversarial(rng, n, dtype) for _ in range(10)])
        for scale in (1e-9, 1e-7, 1e-4, 0.003, 0.02, 0.1, 0.5, 1.0):
            y = reference.softmax_int(x, exponent_requant(scale))
            e = np.exp(-scale * (x.max(1, keepdims=True).astype(float) - x))
            real = np.minimum(256 * e / e.sum(1, keepdims=True), 255)
            worst = max(worst, np.abs(y - real).max())
    assert worst <= 0.9 + n * 2**-15


def test_exponential_error_bound():
    """i-exp in integers: within 3.2e-3 of exp, relatively, and 2**-23 absolutely, over its whole range."""
    for scale in (1e-6, 1e-3, 0.04, 0.7):
        d = np.unique(np.linspace(0, min(25 / scale, 2**31 - 1), 200001).astype(np.int64))
        e = reference.exp_int(d, exponent_requant(scale)) * 2.0**-23
        real = np.exp(-scale * d.astype(float))
        assert (np.abs(e - real) <= 3.2e-3 * real + 2**-23).all()
        assert (np.diff(e) <= 2**-9).all()


@rows("softmax_int")
def test_softmax_axes_and_layouts(kernel, rng):
    for _, q in views(rng, np.int8):
        for axis in (-1, 0, 1, 2):
            moved = np.ascontiguousarray(q.swapaxes(axis, -1))
            y = reference.softmax_int(moved.reshape(-1, moved.shape[-1]), exponent_requant(0.1))
            expected = y.reshape(moved.shape).swapaxes(axis, -1).astype(np.uint8)
            for x in kinds(q):
                assert_same(as_array(kernel(x, 0.1, axis)), expected)
    assert kernel(np.zeros((0, 4), np.int8), 0.1).shape == (0, 4)
    assert kernel(np.zeros((4, 0), np.int32), 0.1).shape == (4, 0)


def test_softmax_refuses(rng):
    x = random_codes(rng, (2, 3))
    for bad, match in ((0.0, "scale"), (np.nan, "scale"), (1e30, "ratio")):
        with pytest.raises(qk.ArgumentError, match=match):
            qk.softmax_int(x, bad)
    with pytest.raises(qk.ArgumentError, match="axis"):
        qk.softmax_int(x, 0.1, axis=2)


# ---- layer norm ------------------------------------------------------------------------------------------------


def norm_case(rng, n, scale, out_scale=0.03, eps=1e-5):
    weight, bias = rng.normal(1, 0.5, n), rng.normal(0, 0.3, n)
    return weight, bias, qk.LayerNormInt.from_float(weight, bias, scale, out_scale, 3, eps)


@rows("layer_norm_int")
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("n", [1, 2, 15, 63, 65, 384, 768, 4097])
@pytest.mark.parametrize("out_dtype", BYTES)
def test_layer_norm(kernel, dtype, n, out_dtype, rng):
    x = adversarial(rng, n, dtype)
    for scale, eps in ((0.05, 1e-5), (1e-4, 1e-3), (3.0, 0.0)):
        norm = norm_case(rng, n, scale, eps=eps)[2]
        expected = reference.layer_norm_int(x, norm, *ends(out_dtype)).astype(out_dtype)
        assert_same(kernel(x, norm, out_dtype), expected)


@rows("layer_norm_int")
@pytest.mark.parametrize("dtype", [np.int8, np.int32])
def test_layer_norm_longest(kernel, dtype, rng):
    x = adversarial(rng, 32768, dtype)
    norm = norm_case(rng, 32768, 0.05)[2]
    assert_same(kernel(x, norm), reference.layer_norm_int(x, norm, -128, 127).astype(np.int8))


@pytest.mark.parametrize("n", [2, 3, 64, 384, 768, 4096])
def test_layer_norm_error_bound(n, rng):
    """Against float64: 1/2 + max(G, ..) 2**-15 steps, and G (sqrt(2 n) 2**-14 + n 2**-15) more for wide int32 rows."""
    for dtype in (np.int8, np.uint8, np.int32):
        for scale, eps in ((0.05, 1e-5), (0.001, 1e-5), (1.0, 1e-12)):
            weight, bias, norm = norm_case(rng, n, scale, eps=eps)
            for x in (adversarial(rng, n, dtype), adversarial(rng, n, np.int8).astype(dtype) // 64):
                real = scale * (x.astype(float) - x.astype(float).mean(1, keepdims=True))
                real /= np.sqrt((real * real).mean(1, keepdims=True) + eps)
                real = np.clip((real * np.float32(weight) + np.float32(bias)) / 0.03 + 3, -128, 127)
                y = reference.layer_norm_int(x, norm, -128, 127)
                g = np.abs(weight).max() / 0.03
                wide = int(x.max()) - int(x.min()) >= 2**15
                most = max(g, 0.5, np.abs(bias).max() / 0.03 / 1024)
                bound = 0.5 + most * 2**-15 + wide * g * ((2 * n) ** 0.5 * 2**-14 + n * 2**-15)
                assert_same(y.astype(float), real, tolerance=bound)


@rows("layer_norm_int")
def test_layer_norm_layouts(kernel, rng):
    norm = norm_case(rng, 6, 0.1)[2]
    for _, q in views(rng, np.int8):
        expected = reference.layer_norm_int(q.reshape(-1, 6), norm, -128, 127).reshape(q.shape)
        for x in kinds(q):
            assert_same(as_array(kernel(x, norm)), expected.astype(np.int8))
    assert kernel(np.zeros((0, 6), np.int8), norm).shape == (0, 6)


def test_isqrt(rng):
    v = np.concatenate(
        [rng.integers(2**60, 2**62, 2000), np.array([2**60, 2**62 - 1, (2**31 - 1) ** 2, 2**60 + 1])]
    )
    for r in (np.arange(2**30, 2**30 + 50), rng.integers(2**30, 2**31, 500)):
        v = np.concatenate([v, r * r, r * r - 1, r * r + 1])
    v = v[(v >= 2**60) & (v < 2**62)]
    assert [math.isqrt(int(i)) for i in v] == reference.integer.isqrt(v).tolist()


def test_layer_norm_refuses(rng):
    norm = norm_case(rng, 6, 0.1)[2]
    with pytest.raises(qk.ArgumentError, match="rows of 6"):
        qk.layer_norm_int(random_codes(rng, (2, 5)), norm)
    with pytest.raises(qk.DTypeError, match="LayerNormInt"):
        qk.layer_norm_int(random_codes(rng, (2, 6)), None)
    with pytest.raises(qk.ArgumentError, match="shape"):
        qk.LayerNormInt.from_float(np.ones(3), np.ones(4), 0.1, 0.1)
    with pytest.raises(qk.ArgumentError, match="eps"):
        qk.LayerNormInt.from_float(np.ones(3), None, 0.1, 0.1, eps=-1.0)
    with pytest.raises(qk.ArgumentError, match="finite"):
        qk.LayerNormInt.from_float(np.full(3, np.nan), None, 0.1, 0.1)
    with pytest.raises(qk.ArgumentError, match=r"weight\[0\]"):
        qk.LayerNormInt(np.array([2**30]), np.array([0]), 10, 0)


# ---- everywhere ------------------------------------------------------------------------------------------------


def calls(x):
    """One call of each op on a tensor (N, C, H, W); a second call like it takes the remembered way."""
    p = qk.AddRequant.from_scales(0.1, 1, 0.2, 2, 0.3, 3)
    norm = qk.LayerNormInt.from_float(np.ones(x.shape[-1]), None, 0.1, 0.03)
    table = np.arange(256).astype(np.uint8)[::-1]
    yield lambda y, **o: qk.add_requant(y, y, p, "relu", **o)
    yield lambda y, **o: qk.lookup_int8(y, table, **o)
    yield lambda y, **o: qk.gelu_int(y, 0.05, 3, **o)
    yield lambda y, **o: qk.concat_requant([y, y], [0.1, 0.2], [0, 1], 0.1, 0, **o)
    yield lambda y, **o: qk.softmax_int(y, 0.1, **o)
    yield lambda y, **o: qk.layer_norm_int(y, norm, **o)
    yield lambda y, **o: qk.max_pool2d_int(y, (3, 2), 2, 1, **o)
    yield lambda y, **o: qk.avg_pool2d_int(y, 3, (2, 1), 1, zero_point=4, **o)
    yield lambda y, **o: qk.global_avg_pool2d_int(y, **o)


def test_remembered_calls(rng):
    """The second and third call of a kind, in every memory order, after others of another dtype, ISA and shape."""
    tensors = [torch.from_numpy(random_codes(rng, s)) for s in ((2, 5, 7, 6), (1, 3, 4, 6), (0, 5, 7, 6))]
    tensors += [t.to(memory_format=torch.channels_last) for t in tensors] + [
        tensors[0].transpose(2, 3)[..., :6]
    ]
    tensors += [t.view(torch.uint8) for t in tensors[:5]]
    for call in calls(tensors[0]):
        for _ in range(3):
            for isa in (None, "scalar"):
                with qk.force_isa(isa):
                    for t in tensors:
                        assert_same(call(t), call(t, backend="reference"))
    x = tensors[0]
    assert torch.equal(qk.softmax_int(x, 0.1), qk.softmax_int(x.clone(), 0.1))
    qk.gelu_int(x, 0.1, 1)
    with pytest.raises(
        qk.DTypeError, match="zero_point"
    ):  # equal to a remembered argument, but not one that is taken
        qk.gelu_int(x, 0.1, 1.0)


def test_constants_travel(rng):
    """AddRequant and LayerNormInt survive pickle and copy, without what the backend attached."""
    x = random_codes(rng, (3, 6))
    p, norm = qk.AddRequant.from_scales(0.1, 1, 0.2, 2, 0.3, 3), norm_case(rng, 6, 0.1)[2]
    before = qk.add_requant(x, x, p), qk.layer_norm_int(x, norm)
    for twice in (copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))):
        assert_same(qk.add_requant(x, x, twice(p)), before[0])
        assert_same(qk.layer_norm_int(x, twice(norm)), before[1])
    assert twice(p) == p and hash(twice(p)) == hash(p)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads(threads, rng):
    """Sizes that threads share, and results that do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.from_numpy(random_codes(rng, (4, 96, 56, 56)))
        b = torch.from_numpy(random_codes(rng, (4, 96, 56, 56)))
        p = qk.AddRequant.from_scales(0.1, 1, 0.2, 2, 0.3, 3)
        assert_same(
            qk.add_requant(a, b, p).numpy(),
            reference.add_requant(a.numpy(), b.numpy(), p, -128, 127).astype(np.int8),
        )
        expected = torch.nn.functional.max_pool2d(a.float(), 3, 2, 1).to(torch.int8)
        assert_same(qk.max_pool2d_int(a, 3, 2, 1), expected)
        rows = a.reshape(-1, 56)
        y = reference.softmax_int(rows.numpy(), exponent_requant(0.1)).astype(np.uint8)
        assert_same(qk.softmax_int(rows, 0.1).numpy(), y)
        norm = norm_case(rng, 56, 0.1)[2]
        y = reference.layer_norm_int(rows.numpy(), norm, -128, 127).astype(np.int8)
        assert_same(qk.layer_norm_int(rows, norm).numpy(), y)
    finally:
        torch.set_num_threads(before)
