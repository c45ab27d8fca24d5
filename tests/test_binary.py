"""Binary and ternary weights: formats, every kernel against the reference and against plain integer products."""

import pickle
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes
from torch._subclasses.fake_tensor import FakeTensorMode

import qkernels as qk
from qkernels import _torch_ops, cpu_binary, reference, registry

FORMATS = {"BinaryWeight": qk.BinaryWeight, "TernaryWeight": qk.TernaryWeight}
# M, K, N: empty, a bit, a word less and more, tiles and panels less and more, rows on both sides of every tile
SHAPES = [
    (0, 20, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (2, 63, 15),
    (3, 64, 16),
    (4, 65, 17),
    (5, 127, 63),
    (6, 128, 64),
    (7, 129, 65),
    (8, 192, 130),
    (13, 1000, 48),
    (25, 640, 33),
    (1, 5000, 200),
]
QUANTS = {
    "token": qk.InputQuant(bits=1),
    "tensor": qk.InputQuant(bits=1, granularity="tensor"),
    "static": qk.InputQuant(bits=1, granularity="tensor", scale=0.37),
}


def rows(op, *formats):
    """The rows of an op that binarized activations reach."""
    found = [
        k for k in registry.kernels(op) if k.format in (formats or (*FORMATS, None)) and k.core == "binary"
    ]
    return pytest.mark.parametrize("kernel", found, ids=str)


@pytest.fixture(params=[1, 3], ids=lambda t: f"{t}t")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def weight(rng, kind, n, k):
    values = (-1, 1) if kind == "BinaryWeight" else (-1, 0, 1)
    return FORMATS[kind].pack(rng.choice(values, (n, k)).astype(np.int8), rng.uniform(0.01, 2, n))


def signs(rng, m, k):
    """Random bytes, bits past K among them, and the signs that they stand for."""
    bits = rng.integers(0, 256, (m, -(-k // 8)), np.uint8)
    return bits, unpacked(bits, k) * 2 - 1


def unpacked(bits, k):
    return np.unpackbits(bits, axis=-1, count=k, bitorder="little").astype(np.int64)


# ---- formats ---------------------------------------------------------------------------------------------


def test_golden_bytes_of_the_docstrings():
    signs = [1, -1, -1, 1, 1, 1, -1, 1, -1, 1]
    w = qk.BinaryWeight.pack(np.array([signs]), 0.5)
    assert w.packed.tolist() == [[0b10111001, 0b00000010]] and w.alpha.tolist() == [0.5]
    assert w.codes().tolist() == [signs] and w.dense().tolist() == [[0.5 * s for s in signs]]
    codes = [1, 0, -1, 1, 1, 0, 0, 1, -1, 1]
    t = qk.TernaryWeight.pack(np.array([codes]), 2.0)
    assert t.packed.tolist() == [[0b10011001, 0b00000010]]
    assert t.nonzero.tolist() == [[0b10011101, 0b00000011]]
    assert t.codes().tolist() == [codes] and t.dense().tolist() == [[2.0 * c for c in codes]]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("k", [0, 1, 7, 8, 9, 63, 64, 65, 200])
def test_pack_and_codes_are_inverse(kind, k, rng):
    values = (-1, 1) if kind == "BinaryWeight" else (-1, 0, 1)
    codes = rng.choice(values, (5, k)).astype(np.int8)
    for given in (codes, codes.astype(np.float32), torch.from_numpy(codes), np.asfortranarray(codes)):
        w = FORMATS[kind].pack(given, rng.uniform(0, 1, 5))
        assert_same(w.numpy().codes(), codes)
        assert isinstance(w.packed, torch.Tensor) == isinstance(given, torch.Tensor)
        assert type(w.codes()) is type(w.packed) and type(w.dense()) is type(w.packed)
        assert_same(pickle.loads(pickle.dumps(w)).numpy().packed, w.numpy().packed)
    assert w.scale.shape == (5, 1) and w.bits == (1 if kind == "BinaryWeight" else 2)
    assert w.nbytes == len(w.planes) * 5 * -(-k // 8) + 20
    if k:
        assert w.bits_per_weight == pytest.approx(8 * w.nbytes / (5 * k))


def test_quantize_binary(rng):
    W = rng.standard_normal((6, 100)).astype(np.float32)
    W[0, :4], W[1] = (0.0, -0.0, 1e-30, -1e-30), 0
    w = qk.BinaryWeight.quantize(W)
    assert_same(w.codes(), np.where(W >= 0, 1, -1).astype(np.int8))
    assert_same(w.alpha, np.abs(W).mean(1, dtype=np.float64).astype(np.float32))
    for other in (w.alpha * 1.01, w.alpha * 0.99):  # eq. 6 of XNOR-Net: no alpha is nearer
        there = qk.BinaryWeight.pack(w.codes(), other).dense()
        assert (np.square(W - w.dense()).sum(1) <= np.square(W - there).sum(1)).all()


def test_quantize_ternary(rng):
    W = rng.standard_normal((6, 100)).astype(np.float32)
    W[1], W[2, 1:] = 0, 0
    w = qk.TernaryWeight.quantize(W)
    size = np.abs(W.astype(np.float64))
    kept = size > 0.7 * size.mean(1, keepdims=True)
    assert_same(w.codes(), (np.sign(W) * kept).astype(np.int8))
    mean = [s[k].mean() if k.any() else 0.0 for s, k in zip(size, kept, strict=True)]
    assert_same(w.alpha, np.array(mean, np.float32))
    assert (qk.TernaryWeight.quantize(W, threshold=0.0).codes() == np.sign(W)).all()
    assert (qk.TernaryWeight.quantize(W, threshold=1000.0).codes() == 0).all()


@pytest.mark.parametrize("kind", FORMATS)
def test_convolution_weights(kind, rng):
    W = rng.standard_normal((6, 5, 3, 2)).astype(np.float32)
    w, flat = FORMATS[kind].quantize(W), FORMATS[kind].quantize(W.reshape(6, -1))
    assert w.shape == (6, 5, 3, 2) and w.matrix_shape == (6, 30)
    assert_same(w.packed, flat.packed)
    assert_same(w.dense(), flat.dense().reshape(6, 5, 3, 2))
    with pytest.raises(qk.ArgumentError, match="convolution"):
        qk.matmul_binary(np.zeros((1, 4), np.uint8), w)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_files(kind, framework, rng, tmp_path):
    w = {
        "layer": weight(rng, kind, 7, 19),
        "conv": FORMATS[kind].quantize(rng.standard_normal((4, 3, 2, 2)).astype(np.float32)),
        "other": qk.IntWeight.quantize(rng.standard_normal((3, 8)).astype(np.float32)),
    }
    qk.save(tmp_path / "w", w)
    loaded = qk.load(tmp_path / "w", framework)
    for name, a in w.items():
        assert loaded[name].shape == a.shape and type(loaded[name]) is type(a)
        for field, values in a.arrays().items():
            assert_same(loaded[name].numpy().arrays()[field], values)


def test_formats_refuse():
    packed, alpha = np.zeros((2, 2), np.uint8), np.ones(2, np.float32)
    qk.BinaryWeight(packed, alpha, (2, 10))
    bad = np.array([[0, 4], [0, 0]], np.uint8)
    for arrays, text in [
        ((bad, alpha, (2, 10)), "bits set past K = 10"),
        ((packed, alpha, (2, 17)), "needs"),
        ((packed, alpha, (2,)), "accepted"),
        ((packed, np.ones(3, np.float32), (2, 10)), "alpha has shape"),
        ((packed, np.full(2, np.nan, np.float32), (2, 10)), "alpha"),
        ((packed, -alpha, (2, 10)), "not negative"),
        ((packed, alpha, (2, 2**31)), "K = "),
    ]:
        with pytest.raises(qk.FormatError, match=text):
            qk.BinaryWeight(*arrays)
    for arrays in [(packed.astype(np.int8), alpha, (2, 10)), (packed, alpha.astype(np.float64), (2, 10))]:
        with pytest.raises(qk.DTypeError):
            qk.BinaryWeight(*arrays)
    with pytest.raises(qk.DTypeError, match="one kind"):
        qk.BinaryWeight(packed, torch.ones(2), (2, 10))
    with pytest.raises(qk.FormatError, match="nonzero has not"):
        qk.TernaryWeight(np.ones((2, 2), np.uint8), packed, alpha, (2, 10))
    with pytest.raises(qk.FormatError, match="accepted: -1, \\+1"):
        qk.BinaryWeight.pack(np.array([[1, 0]]))
    with pytest.raises(qk.FormatError, match="codes\\[0, 1\\] is 2"):
        qk.TernaryWeight.pack(np.array([[1, 2]]))
    for kind in FORMATS.values():
        with pytest.raises(qk.ArgumentError, match="finite"):
            kind.quantize(np.array([[1.0, np.nan]], np.float32))
        with pytest.raises(qk.ArgumentError, match="shape"):
            kind.quantize(np.ones(3, np.float32))


def test_input_quant_of_one_bit_refuses():
    for options in (
        {"granularity": "channel"},
        {"signed": False},
        {"granularity": "tensor", "scale": 1.0, "zero_point": 0},
    ):
        with pytest.raises(qk.ArgumentError, match="bits=1"):
            qk.InputQuant(bits=1, **options)
    assert pickle.loads(pickle.dumps(QUANTS["static"])) == QUANTS["static"]
    with pytest.raises(qk.ArgumentError, match="pack_signs"):
        qk.quantize_activations(np.ones((2, 2), np.float32), qk.InputQuant(bits=1))


# ---- products --------------------------------------------------------------------------------------------


@rows("matmul_binary")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["signs", "masked"])
def test_matmul_binary(kernel, shape, masked, threads, rng):
    m, k, n = shape
    w, (bits, x) = weight(rng, kernel.format, n, k), signs(rng, m, k)
    there = rng.integers(0, 256, bits.shape, np.uint8) if masked else None
    if masked:
        x = x * unpacked(there, k)
    expected = (x @ w.codes().astype(np.int64).T).astype(np.int32)
    assert_same(kernel(bits, w, x_nonzero=there), expected)


@rows("matmul_binary")
def test_extremes(kernel, rng):
    """All bits equal, all different, and a K at which 16-bit counts would have wrapped."""
    k = 70001
    ones, zeros = np.full((2, -(-k // 8)), 255, np.uint8), np.zeros((2, -(-k // 8)), np.uint8)
    w = FORMATS[kernel.format].pack(np.repeat([[1], [-1], [1]], k, axis=1))
    assert (kernel(ones, w) == [k, -k, k]).all() and (kernel(zeros, w) == [-k, k, -k]).all()
    assert (kernel(ones, w, x_nonzero=ones) == [k, -k, k]).all()
    assert (kernel(ones, w, x_nonzero=zeros) == 0).all()


@rows("matmul_binary", "BinaryWeight")
def test_large(kernel, threads, rng):
    """Several chunks of rows and, on two threads, rows or panels split."""
    for m, k, n in [(700, 1600, 70), (40, 4096, 1000), (3, 12800, 700)]:
        w, (bits, x) = weight(rng, kernel.format, n, k), signs(rng, m, k)
        expected = (x.astype(np.float32) @ w.codes().astype(np.float32).T).astype(np.int32)
        assert_same(kernel(bits, w), expected)


@rows("matmul_binary")
def test_strides_batches_and_kinds(kernel, rng):
    w, k = weight(rng, kernel.format, 21, 75), 75
    base = rng.integers(0, 256, (4, 6, 10), np.uint8)
    views = {
        "batch": base,
        "vector": base[0, 0],
        "rows apart": rng.integers(0, 256, (9, 33), np.uint8)[:, :10],
        "every second row": rng.integers(0, 256, (9, 10), np.uint8)[::2],
        "backwards": rng.integers(0, 256, (9, 10), np.uint8)[::-1],
        "transposed": rng.integers(0, 256, (10, 9), np.uint8).T,
        "broadcast": np.broadcast_to(base[0, 0], (5, 10)),
        "unaligned": np.frombuffer(rng.bytes(11), np.uint8)[1:].reshape(1, 10),
    }
    for name, bits in views.items():
        x = unpacked(np.ascontiguousarray(bits), k) * 2 - 1
        expected = (x @ w.codes().astype(np.int64).T).astype(np.int32)
        assert_same(kernel(bits, w), expected)
        assert_same(kernel(bits, w, x_nonzero=np.full(bits.shape, 255, np.uint8)), expected)
        if name not in ("backwards", "unaligned", "broadcast"):
            y = kernel(torch.from_numpy(bits), w)
            assert isinstance(y, torch.Tensor)
            assert_same(y.numpy(), expected)


@rows("linear")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("quant", QUANTS)
def test_linear(kernel, shape, quant, threads, rng):
    m, k, n = shape
    x = rng.standard_normal((m, k), np.float32) * np.float32(10.0) ** rng.integers(-3, 4, (m, 1)).astype(
        np.float32
    )
    w, bias = weight(rng, kernel.format, n, k), rng.standard_normal(n).astype(np.float32)
    prelu = qk.DPReLU(*rng.standard_normal((4, n)).astype(np.float32)) if n else None
    for b, activation in [(None, None), (bias, "relu"), (bias, prelu)]:
        acc = (np.where(x >= 0, 1, -1) @ w.codes().astype(np.int64).T).astype(np.int32)
        expected = reference.scaled(acc, w.alpha, reference.sign_scale(x, QUANTS[quant]), b, activation)
        assert_same(kernel(x, w, b, activation=activation, input_quant=QUANTS[quant]), expected)


@rows("linear")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_linear_dtypes(kernel, dtype, rng):
    """Half floats are taken as the float32 they stand for; zeros of both signs are +1."""
    x = torch.from_numpy(rng.standard_normal((9, 70), np.float32)).to(getattr(torch, dtype))
    x[0, :5], x[1] = 0.0, -0.0
    w, quant = weight(rng, kernel.format, 19, 70), qk.InputQuant(bits=1)
    exact = kernel(x.float(), w, input_quant=quant)
    for out in ("float32", "bfloat16", "float16"):
        y = kernel(x, w, input_quant=quant, out_dtype=getattr(torch, out))
        assert_same(y, exact.to(getattr(torch, out)))
    for name in ("gelu", "silu"):
        y = kernel(x.float(), w, activation=name, input_quant=quant).numpy()
        expected = reference.apply_activation(exact.numpy(), name)
        assert_same(y, expected, 1e-6 + 2e-6 * np.abs(expected))


def test_linear_on_torch_remembers_its_plan(rng):
    x = torch.from_numpy(rng.standard_normal((3, 5, 70), np.float32))
    w, bias = (
        weight(rng, "BinaryWeight", 19, 70),
        torch.from_numpy(rng.standard_normal(19).astype(np.float32)),
    )
    prelu = qk.RPReLU(0.25, 0.1, -0.2)
    for activation in (None, prelu):
        first = qk.linear(x, w, bias, activation=activation, input_quant=QUANTS["token"])
        again = qk.linear(x, w, bias, activation=activation, input_quant=QUANTS["token"])
        expected = qk.linear(x.numpy(), w, bias.numpy(), activation, QUANTS["token"], backend="reference")
        assert_same(first, again)
        assert_same(first.numpy(), expected)
    x[1, 2, 3] = np.inf
    with pytest.raises(qk.ArgumentError, match="row 7"):
        qk.linear(x, w, bias, activation=prelu, input_quant=QUANTS["token"])


@rows("linear")
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(kernel, quant, bad, rng):
    x = rng.standard_normal((9, 130), np.float32)
    x[4, 128] = bad
    with pytest.raises(qk.ArgumentError, match="row 4"):
        kernel(x, weight(rng, kernel.format, 5, 130), input_quant=QUANTS[quant])


@rows("linear")
def test_a_sum_beyond_float32_is_refused(kernel, rng):
    x = np.full((2, 70), 1e38, np.float32)
    w = weight(rng, kernel.format, 5, 70)
    for quant in ("token", "tensor"):
        with pytest.raises(qk.ArgumentError, match="row 0"):
            kernel(x, w, input_quant=QUANTS[quant])
    assert np.isfinite(kernel(x, w, input_quant=QUANTS["static"])).all()


@rows("linear_binary")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_binary(kernel, shape, threads, rng):
    m, k, n = shape
    w, (bits, x) = weight(rng, kernel.format, n, k), signs(rng, m, k)
    acc = (x @ w.codes().astype(np.int64).T).astype(np.int32)
    bias, scale = rng.standard_normal(n).astype(np.float32), rng.uniform(0.1, 2, (m, 1)).astype(np.float32)
    prelu = qk.DPReLU(*rng.standard_normal((4, n)).astype(np.float32)) if n else None
    for activation in (None, "relu6", prelu):
        expected = reference.scaled(acc, w.alpha, scale, bias, activation)
        y = kernel(bits, w, x_scale=scale, bias=bias, activation=activation)
        assert_same(y, expected)
        with np.errstate(over="ignore"):
            assert_same(
                kernel(bits, w, scale, bias, activation, out_dtype="float16"), expected.astype(np.float16)
            )
        packed = kernel(bits, w, x_scale=scale, bias=bias, activation=activation, sign=True)
        assert_same(packed, np.packbits(expected >= 0, axis=1, bitorder="little"))
    assert_same(kernel(bits, w, 0.5), reference.scaled(acc, w.alpha, np.float32(0.5)))
    value, flip = rng.integers(-k - 1, k + 2, n), rng.random(n) < 0.5
    t = qk.Threshold(value, flip)
    want = np.where(flip, acc <= value, acc >= value)
    assert_same(kernel(bits, w, threshold=t), np.packbits(want, axis=1, bitorder="little"))
    times = rng.integers(-127, 128, n)
    y = kernel(bits, w, threshold=qk.Threshold(value, flip, times))
    assert_same(y, (times * np.where(want, 1, -1)).astype(np.int8))


@rows("pack_signs")
@pytest.mark.parametrize("k", [0, 1, 7, 8, 63, 64, 65, 200, 1027])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_pack_signs(kernel, k, dtype, threads, rng):
    x = torch.from_numpy(rng.standard_normal((6, k), np.float32)).to(getattr(torch, dtype))
    x[rng.random((6, k)) < 0.2] = 0.0
    x[rng.random((6, k)) < 0.2] = -0.0
    values = x.float().numpy()
    expected = np.packbits(values >= 0, axis=1, bitorder="little")
    bits = kernel(x)
    assert bits.dtype == torch.uint8
    assert_same(bits.numpy(), expected)
    for quant in QUANTS.values():
        bits, scale = kernel(x, quant)
        assert_same(bits.numpy(), expected)
        assert_same(scale.numpy(), reference.sign_scale(values, quant))
        if quant.scale is None and k:
            mean = np.abs(values.astype(np.float64)).mean(1 if quant.granularity == "token" else None)
            np.testing.assert_allclose(scale.numpy().ravel(), mean.ravel(), rtol=1e-5)
    assert kernel(values.reshape(2, 3, k)).shape == (2, 3, -(-k // 8))


@rows("pack_signs")
def test_pack_signs_refuses_what_is_not_finite(kernel, rng):
    x = rng.standard_normal((9, 130), np.float32)
    x[4, 129] = np.nan
    with pytest.raises(qk.ArgumentError, match="row 4"):
        kernel(x)


# ---- what follows a product ------------------------------------------------------------------------------


def test_scale_is_nearest(rng):
    """Eq. 9 of XNOR-Net: no other scale brings scale * sign nearer to x."""
    x = rng.standard_normal((5, 300), np.float32)
    s, sign = reference.sign_scale(x, qk.InputQuant(bits=1)), np.where(x >= 0, 1, -1)
    for other in (s * 1.01, s * 0.99):
        assert (np.square(x - s * sign).sum(1) <= np.square(x - other * sign).sum(1)).all()


def test_rprelu_is_a_dprelu(rng):
    """Eq. 3.34: the thesis says that DPReLU can encode RPReLU."""
    x, (beta, gamma, zeta) = (
        rng.standard_normal((50, 7)).astype(np.float32),
        rng.standard_normal((3, 7)).astype(np.float32),
    )
    expected = np.where(x > gamma, x - gamma + zeta, beta * (x - gamma) + zeta)
    assert_same(reference.dprelu(x, qk.RPReLU(beta, gamma, zeta)), expected)


def test_thresholds_are_those_of_real_arithmetic(rng):
    """Against 60 decimal digits: every accumulator around the threshold gets the sign of the batch norm's output."""
    getcontext().prec = 60
    n = 300
    gamma, beta, mean, bias = (rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n) for _ in range(4))
    var, scale = rng.uniform(0, 4, n), rng.uniform(0, 3, n)
    gamma[:8], scale[8:12], beta[12:20] = 0, 0, 0
    beta[:3], beta[4:7] = (0, 1, -1), (0.0, 1e-300, -1e-300)
    mean[20:40], bias[20:40], scale[20:40] = rng.integers(-50, 50, 20), 0, 1  # exact ties at beta = 0
    beta[20:40] = 0
    t = qk.Threshold.from_batch_norm(gamma, beta, mean, var, 1e-5, scale, bias)
    for i in range(n):
        numbers = (gamma, beta, mean, var, np.full(n, 1e-5), scale, bias)
        g, b, mu, v, eps, s, c = (Decimal(float(a[i])) for a in numbers)
        near = {max(-(2**30), min(2**30, int(t.value[i]) + d)) for d in (-2, -1, 0, 1, 2)}
        for acc in near | {-5, 0, 5}:
            want = g * (s * acc + c - mu) / (v + eps).sqrt() + b >= 0
            got = acc <= t.value[i] if t.flip[i] else acc >= t.value[i]
            assert got == want, (i, acc)


def test_extreme_thresholds():
    t = qk.Threshold.from_batch_norm(
        [1.0, 1.0, -1.0, -1.0, 1e-300, 1.0],
        [1e300, -1e300, 1e300, -1e300, 1e300, 0.0],
        0.0,
        1.0,
        0.0,
        [1] * 5 + [1e-300],
    )
    acc = np.array([[-(2**30)], [0], [2**30]])
    assert (reference.threshold_bits(acc, t)[:, :5] == [True, False, True, False, True]).all()
    assert reference.threshold_bits(acc, t)[:, 5].tolist() == [False, True, True]
    assert qk.Threshold.from_batch_norm([], [], [], []).value.shape == (0,)
    for bad, text in [
        ({"var": -1.0}, "var \\+ eps"),
        ({"scale": -1.0}, "scale"),
        ({"gamma": np.nan}, "gamma"),
        ({"beta": [1.0, 2.0], "mean": [1.0, 2.0, 3.0]}, "shapes"),
    ]:
        with pytest.raises(qk.ArgumentError, match=text):
            qk.Threshold.from_batch_norm(**{"gamma": 1.0, "beta": 0.0, "mean": 0.0, "var": 1.0, **bad})


def test_a_batch_norm_becomes_a_threshold(rng):
    """Sign of batch norm of a layer in float64 against the fused comparison."""
    x, w = rng.standard_normal((40, 130), np.float32), weight(rng, "BinaryWeight", 30, 130)
    gamma, beta, mean = rng.standard_normal((3, 30)) * [[1], [20], [30]]
    var = rng.uniform(10, 200, 30)
    acc = np.where(x >= 0, 1, -1) @ w.codes().astype(np.int64).T
    y = gamma * (acc * w.alpha.astype(np.float64) * 0.5 - mean) / np.sqrt(var + 1e-5) + beta
    t = qk.Threshold.from_batch_norm(gamma, beta, mean, var, scale=0.5 * w.alpha.astype(np.float64))
    bits = qk.linear_binary(qk.pack_signs(x), w, threshold=t)
    assert_same(bits, np.packbits(y >= 0, axis=1, bitorder="little"))


def test_multiplicities_are_duplicated_neurons(rng):
    """Eq. 3.41: a layer after lambda * sign(W x) sees what it sees after the duplicated neurons, each with a weight."""
    x = rng.standard_normal((20, 70), np.float32)
    w, times = weight(rng, "BinaryWeight", 12, 70), rng.integers(-3, 4, 12)
    t = qk.Threshold(np.zeros(12, int), None, times)
    scaled = qk.linear_binary(qk.pack_signs(x), w, threshold=t)
    acc = np.where(x >= 0, 1, -1) @ w.codes().astype(np.int64).T
    assert_same(scaled, (times * np.where(acc >= 0, 1, -1)).astype(np.int8))
    after = weight(rng, "BinaryWeight", 9, 12)
    expected = scaled.astype(np.int64) @ after.codes().astype(np.int64).T
    # negative neurons: -sign(a) is sign(-a) but at a = 0, where the flipped comparison says so exactly
    count, rows = np.abs(times), w.repeat(times)
    flip = np.repeat(times < 0, count)
    assert rows.shape == (count.sum(), 70)
    bits = qk.linear_binary(
        qk.pack_signs(x), rows, threshold=qk.Threshold(np.where(flip, 1, 0), np.zeros(len(flip), bool))
    )
    wide = qk.BinaryWeight.pack(np.repeat(after.codes(), count, axis=1))
    assert (qk.matmul_binary(bits, wide) == expected).all()
    assert (qk.matmul_int(scaled, after) == expected).all()


def test_a_binary_network_stays_in_bits(rng):
    """Three layers of thresholds on packed bits against plain integers."""
    x = rng.standard_normal((33, 100), np.float32)
    bits, values = qk.pack_signs(x), np.where(x >= 0, 1, -1)
    for n, k in [(70, 100), (130, 70), (10, 130)]:
        w, t = weight(rng, "BinaryWeight", n, k), rng.integers(-9, 9, n)
        values = np.where(values @ w.codes().astype(np.int64).T >= t, 1, -1)
        bits = qk.linear_binary(bits, w, threshold=qk.Threshold(t))
        assert_same(bits, np.packbits(values > 0, axis=1, bitorder="little"))


def integer_rows(op):
    found = [k for k in registry.kernels(op) if k.format in FORMATS and k.core == "gemm"]
    return pytest.mark.parametrize("kernel", found, ids=str)


@integer_rows("matmul_int")
def test_codes_of_8_bits(kernel, rng):
    """int8 and uint8 activations go through the integer core, which decodes one or two bits."""
    for m, k, n in [(1, 1, 1), (2, 75, 70), (7, 300, 130), (3, 0, 4)]:
        w = weight(rng, kernel.format, n, k)
        for dtype in (np.int8, np.uint8):
            x, zero = random_codes(rng, (m, k), dtype), int(rng.integers(0, 100))
            expected = (x.astype(np.int64) - zero) @ w.codes().T.astype(np.int64)
            assert_same(kernel(x, w, zero), expected.astype(np.int32))


@integer_rows("linear")
def test_linear_with_8_bits(kernel, rng):
    x, w = rng.standard_normal((7, 75), np.float32), weight(rng, kernel.format, 70, 75)
    y = kernel(x, w, input_quant=qk.InputQuant())
    assert_same(y, reference.linear_int(x, w, qk.InputQuant()))
    assert np.linalg.norm(y - x @ w.dense().T) < 0.02 * np.linalg.norm(y)
    np.testing.assert_allclose(qk.linear(x, w, backend="reference"), x @ w.dense().T, rtol=1e-4, atol=1e-4)


@integer_rows("linear_requant")
def test_linear_requant(kernel, rng):
    x, w = random_codes(rng, (7, 75)), weight(rng, kernel.format, 70, 75)
    requant, bias = (
        qk.Requant.from_scale(rng.uniform(0.01, 0.2, 70)),
        rng.integers(-999, 999, 70).astype(np.int32),
    )
    expected = reference.linear_requant(x, w.codes(), requant, bias)
    assert_same(kernel(x, w, requant, bias), expected)


def test_ops_refuse(rng):
    w, bits = weight(rng, "BinaryWeight", 5, 20), np.zeros((2, 3), np.uint8)
    x = np.zeros((2, 20), np.float32)
    quant, t = qk.InputQuant(bits=1), qk.Threshold(np.zeros(5, int))
    for error, text, call in [
        (qk.ArgumentError, "ceil", lambda: qk.matmul_binary(bits[:, :2], w)),
        (qk.DTypeError, "uint8", lambda: qk.matmul_binary(bits.astype(np.int8), w)),
        (qk.DTypeError, "BinaryWeight", lambda: qk.matmul_binary(bits, x)),
        (qk.ArgumentError, "x_nonzero", lambda: qk.matmul_binary(bits, w, bits[:1])),
        (qk.DTypeError, "threshold is a list", lambda: qk.linear_binary(bits, w, threshold=[1])),
        (qk.ArgumentError, "threshold alone", lambda: qk.linear_binary(bits, w, 0.5, threshold=t)),
        (
            qk.ArgumentError,
            "6 channels",
            lambda: qk.linear_binary(bits, w, threshold=qk.Threshold(np.zeros(6, int))),
        ),
        (qk.ArgumentError, "sign is 1", lambda: qk.linear_binary(bits, w, sign=1)),
        (
            qk.ArgumentError,
            "x_scale has shape",
            lambda: qk.linear_binary(bits, w, np.ones((3, 1), np.float32)),
        ),
        (
            qk.ArgumentError,
            "3 channels",
            lambda: qk.linear_binary(bits, w, activation=qk.DPReLU(1.0, [1.0, 2, 3])),
        ),
        (qk.ArgumentError, "input_quant", lambda: qk.pack_signs(x, qk.InputQuant())),
        (qk.ArgumentError, "K = 20", lambda: qk.linear(x[:, :19], w, input_quant=quant)),
        (qk.DTypeError, "BinaryWeight", lambda: qk.linear(x, qk.IntWeight.quantize(x), input_quant=quant)),
        (
            qk.ArgumentError,
            "compute_dtype",
            lambda: qk.linear(x, w, input_quant=quant, compute_dtype="float32"),
        ),
        (qk.ArgumentError, "activation", lambda: qk.linear(x, w, activation="tanh", input_quant=quant)),
        (qk.DTypeError, "multiplicity", lambda: qk.Threshold(np.zeros(2, int), None, [0.5, 1])),
        (qk.ArgumentError, "127", lambda: qk.Threshold(np.zeros(2, int), None, [1, 128])),
        (qk.ArgumentError, "flip", lambda: qk.Threshold(np.zeros(2, int), [True])),
        (qk.ArgumentError, "DPReLU", lambda: qk.DPReLU(np.nan, 1.0)),
        (qk.ArgumentError, "DPReLU", lambda: qk.DPReLU([1.0, 2.0], [1.0, 2.0, 3.0])),
    ]:
        with pytest.raises(error, match=text):
            call()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("quant", QUANTS)
def test_torch_operator(kind, quant, rng):
    """opcheck, a whole graph compiled, and eager calls that something observes."""
    torch._dynamo.reset()
    w, bias, q = weight(rng, kind, 24, 70), torch.randn(24), QUANTS[quant]
    for x in (torch.randn(3, 70), torch.randn(2, 3, 70, dtype=torch.bfloat16), torch.randn(0, 70)):
        eager = qk.linear(x, w, bias, "relu", q)
        compiled = torch.compile(lambda x: qk.linear(x, w, bias, "relu", q), fullgraph=True, backend="eager")
        assert_same(compiled(x), eager)
        block, mode = _torch_ops.layout_of_signs(w), cpu_binary.scale_mode(q)
        arguments = x, block, bias, 24, mode, q.scale or 1.0, 1, x.dtype
        torch.library.opcheck(torch.ops.qkernels.linear_signs.default, arguments)
        assert_same(torch.ops.qkernels.linear_signs(*arguments), eager)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert qk.linear(torch.empty(5, 70), w, bias, "relu", q).shape == (5, 24)
    block = _torch_ops.layout_of_signs(w).clone()
    block[0] += 1
    with pytest.raises(ValueError, match="not a prepacked"):
        torch.ops.qkernels.linear_signs(torch.randn(3, 70), block, None, 24, 0, 1.0, 0, torch.float32)


def test_explain_names_the_core(rng):
    w, x = weight(rng, "BinaryWeight", 5, 20), np.zeros((2, 20), np.float32)
    assert qk.explain("linear", w, x, input_quant=qk.InputQuant(bits=1)).chosen.core == "binary"
    assert qk.explain("linear", w, x, input_quant=qk.InputQuant()).chosen.core == "gemm"
    assert qk.explain("matmul_binary", np.zeros((2, 3), np.uint8), w).chosen.core == "binary"


# ---- independent oracles ---------------------------------------------------------------------------------


def test_faiss_hamming(rng):
    faiss = pytest.importorskip("faiss")
    for m, k, n in [(1, 64, 5), (9, 1024, 70)]:
        w, (bits, _) = weight(rng, "BinaryWeight", n, k), signs(rng, m, k)
        out = np.zeros((m, n), np.int32)
        faiss.hammings(*map(faiss.swig_ptr, (bits, w.packed)), m, n, k // 8, faiss.swig_ptr(out))
        assert (qk.matmul_binary(bits, w) == k - 2 * out).all()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_gguf_ternary_blocks(kind, rng):
    """Blocks of gguf's ternary types decode to the codes that we pack: 256 weights and one scale each."""
    gguf = pytest.importorskip("gguf")
    number = gguf.GGMLQuantizationType[kind]
    W = rng.choice([-1.0, 0.0, 1.0], (6, 512)) * rng.uniform(0.1, 2, (6, 1))
    W[:, ::256] = np.abs(W).max(1, keepdims=True)  # every block spans its scale
    blocks = gguf.quants.quantize(W.astype(np.float32), number)
    dense = gguf.quants.dequantize(blocks, number)
    w = qk.TernaryWeight.pack(np.sign(dense).astype(np.int8), np.abs(dense).max(1))
    assert_same(w.dense(), dense.astype(np.float32))
    assert (w.codes() == np.sign(W)).all()
