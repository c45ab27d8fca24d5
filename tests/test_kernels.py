"""Every kernel of the registry against the reference, bit for bit: awkward shapes, strides, extreme codes."""

import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes

import qkernels as qk
from qkernels import ops, registry
from qkernels.reference import apply_activation

# M, K, N: empty, one, a lane less, a lane, a lane more, a panel more, primes, tall, wide
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (2, 3, 63),
    (1, 64, 64),
    (5, 65, 65),
    (7, 127, 129),
    (13, 31, 17),
    (6, 256, 128),
    (97, 40, 33),
    (1, 4096, 3),
    (33, 33, 300),
]
LONG = [(2, 20000, 5), (200, 8200, 66), (7, 131071, 1)]  # several blocks of K, and the longest K there is
THREADS = [1, 2, 5]


def rows(op):
    """The rows for IntWeight, and those without a weight; tests/test_narrow.py has the other formats and widths."""
    return pytest.mark.parametrize(
        "kernel", [k for k in registry.kernels(op) if k.format in ("IntWeight", None)], ids=str
    )


@pytest.fixture(params=THREADS, ids=lambda t: f"{t}t")
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def weight(rng, n, k, zero_point=False, input_scale=False, per_tensor=False):
    channels = 1 if per_tensor else n
    return qk.IntWeight.pack(
        random_codes(rng, (n, k)),
        rng.uniform(1e-3, 1e-1, (channels, 1)).astype(np.float32),
        zero_point=rng.integers(-150, 150, (channels, 1)) if zero_point else None,
        input_scale=rng.uniform(0.01, 3, k).astype(np.float32) if input_scale else None,
    )


def poisoned_free_list():
    """Fill memory that the next results will likely come from: an element nobody writes is noticed."""
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), float("nan"))
        np.full(size, np.nan)


def test_every_op_and_format_has_a_reference_and_a_scalar_kernel():
    for op in registry.OPS:
        for name in {k.format for k in registry._table if k.op == op}:
            there = {(k.backend, k.isa) for k in registry._table if (k.op, k.format) == (op, name)}
            assert {("reference", None), ("cpu", "scalar"), ("cpu", "avx2")} <= there, (op, name)


def test_a_weaker_isa_takes_the_strongest_kernel_it_has(rng):
    w, x = weight(rng, 8, 12), random_codes(rng, (3, 12))
    for kernel in registry.kernels("matmul_int"):
        if kernel.isa is not None and kernel.format == "IntWeight":
            with qk.force_isa(kernel.isa):
                assert qk.explain("matmul_int", x, w).chosen is kernel


# ---- matmul_int ------------------------------------------------------------------------------------------


@rows("matmul_int")
@pytest.mark.parametrize("shape", SHAPES + LONG, ids=str)
@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
def test_matmul_int(kernel, shape, x_dtype, threads, rng):
    m, k, n = shape
    if k * 128 * (255 if x_dtype == np.uint8 else 128) > 2**31 - 1:
        pytest.skip("the accumulator bound refuses this K for uint8 (test_overflow_is_refused)")
    x, w = random_codes(rng, (m, k), x_dtype), weight(rng, n, k)
    poisoned_free_list()
    expected = x.astype(np.int64) @ w.codes().astype(np.int64).T
    assert_same(kernel(x, w), expected.astype(np.int32))


@rows("matmul_int")
@pytest.mark.parametrize("shape", SHAPES[3:], ids=str)
@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
@pytest.mark.parametrize("w_zero", [False, True])
def test_matmul_int_zero_points(kernel, shape, x_dtype, w_zero, threads, rng):
    m, k, n = shape
    x, w = random_codes(rng, (m, k), x_dtype), weight(rng, n, k, zero_point=w_zero)
    x_zp = int(rng.integers(np.iinfo(x_dtype).min, np.iinfo(x_dtype).max + 1))
    zp = w.zero_point.astype(np.int64) if w_zero else 0
    expected = (x.astype(np.int64) - x_zp) @ (w.codes().astype(np.int64) - zp).T
    assert_same(kernel(x, w, x_zp), expected.astype(np.int32))


@rows("matmul_int")
@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (127, 127), (-128, 127), (127, -128)])
def test_matmul_int_extremes(kernel, x_code, w_code):
    """Saturating instructions and 16-bit intermediates fail here first."""
    k = 131071
    w = qk.IntWeight.pack(np.full((3, k), w_code, np.int8), 1.0)
    assert (kernel(np.full((2, k), x_code, np.int8), w) == k * x_code * w_code).all()


@rows("matmul_int")
def test_strides_batches_and_kinds(kernel, rng):
    w = weight(rng, 21, 34)
    base = random_codes(rng, (4, 6, 34))
    views = {
        "batch": base,
        "vector": base[0, 0],
        "rows apart": random_codes(rng, (9, 80))[:, :34],
        "every second row": random_codes(rng, (9, 34))[::2],
        "backwards": random_codes(rng, (9, 34))[::-1],
        "transposed": random_codes(rng, (34, 9)).T,
        "every second column": random_codes(rng, (5, 68))[:, ::2],
        "broadcast": np.broadcast_to(base[0, 0], (5, 34)),
        "swapped batch": base.swapaxes(0, 1),
        "unaligned": np.frombuffer(random_codes(rng, (1, 35)).tobytes(), np.int8)[1:].reshape(1, 34),
    }
    for name, x in views.items():
        expected = (x.astype(np.int64) @ w.codes().astype(np.int64).T).astype(np.int32)
        assert_same(kernel(x, w), expected)
        if name not in ("backwards", "unaligned", "broadcast"):
            y = kernel(torch.from_numpy(x), w)
            assert isinstance(y, torch.Tensor) and y.dtype == torch.int32
            assert_same(y.numpy(), expected)


def test_overflow_is_refused(rng):
    with pytest.raises(qk.FormatError, match="131072"):
        qk.IntWeight.pack(np.zeros((1, 131072), np.int8), 1.0)
    w = qk.IntWeight.pack(np.zeros((1, 100000), np.int8), 1.0)
    with pytest.raises(qk.ArgumentError, match="accumulator"):
        qk.matmul_int(np.zeros((1, 100000), np.uint8), w)
    with pytest.raises(qk.ArgumentError, match="accumulator"):
        qk.matmul_int(np.zeros((1, 100000), np.int8), w, x_zero_point=127)
    r = qk.Requant(2**30, 0)
    small = qk.IntWeight.pack(np.zeros((1, 131071), np.int8), 1.0)
    with pytest.raises(qk.ArgumentError, match="accumulator"):
        qk.linear_requant(np.zeros((1, 131071), np.int8), small, r, bias=np.array([2**30], np.int32))


# ---- requantization --------------------------------------------------------------------------------------

ACC = np.array(
    [0, 1, -1, 2, -2, 3, -3, 127, -128, 2**30, -(2**30), 2**31 - 1, -(2**31), 2**24 + 1, -(2**24) - 1],
    np.int32,
)


@rows("requantize")
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
@pytest.mark.parametrize("out_dtype", [np.int8, np.uint8])
def test_requantize(kernel, rounding, out_dtype, threads, rng):
    """Every shift, with multipliers at the ends of their range: ties, saturation and 64-bit sums included."""
    shifts = np.repeat(np.arange(-31, 32), 4)
    multipliers = np.tile([2**30, 2**31 - 1, 0, int(rng.integers(2**30, 2**31))], 63)
    acc = np.concatenate(
        [np.tile(ACC[:, None], (1, 252)), rng.integers(-(2**31), 2**31, (300, 252)).astype(np.int32)]
    )
    lo, hi = np.iinfo(out_dtype).min, np.iinfo(out_dtype).max
    for zero in (0, int(lo), int(hi), 5):
        r = qk.Requant(multipliers, shifts, zero, rounding)
        assert_same(
            kernel(acc, r, out_dtype=out_dtype), qk.reference.requantize(acc, r, lo, hi).astype(out_dtype)
        )


@rows("requantize")
@pytest.mark.parametrize("shape", [(0, 3), (1,), (2, 1), (3, 17), (2, 5, 65)], ids=str)
def test_requantize_shapes(kernel, shape, rng):
    acc = rng.integers(-(2**20), 2**20, shape).astype(np.int32)
    r = qk.Requant.from_scale(1e-4, rounding="single")
    expected = (
        qk.reference.requantize(acc.reshape(-1, shape[-1]), r, -128, 127).astype(np.int8).reshape(shape)
    )
    assert_same(kernel(acc, r), expected)
    assert_same(kernel(acc[..., ::-1], r), expected[..., ::-1])


@rows("linear_requant")
@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0]], ids=str)
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_linear_requant(kernel, shape, rounding, activation, rng):
    m, k, n = shape
    for x_dtype, out_dtype, per_channel in ((np.int8, np.int8, True), (np.uint8, np.uint8, False)):
        x, w = random_codes(rng, (m, k), x_dtype), weight(rng, n, k, zero_point=per_channel)
        bias = rng.integers(-(10**5), 10**5, n).astype(np.int32) if per_channel else None
        scale = rng.uniform(0.2, 2, n if per_channel else 1) / (3000 * max(k, 1) ** 0.5)
        r = qk.Requant.from_scale(scale, zero_point=7, rounding=rounding, output_scale=0.11)
        x_zp = int(x_dtype(3))
        zp = w.zero_point.astype(np.int64) if per_channel else 0
        acc = (x.astype(np.int64) - x_zp) @ (w.codes().astype(np.int64) - zp).T + (
            0 if bias is None else bias
        )
        lo, hi = r.limits(activation, out_dtype)
        expected = qk.reference.requantize(acc.astype(np.int32), r, lo, hi).astype(out_dtype)
        poisoned_free_list()
        y = kernel(x, w, r, bias=bias, x_zero_point=x_zp, activation=activation, out_dtype=out_dtype)
        assert_same(y, expected)
        if activation == "relu6" and expected.size > 1000:
            assert expected.max() <= round(6 / 0.11) + 7 and expected.min() >= 7


# ---- activation quantization -----------------------------------------------------------------------------


def activations(rng, m, k):
    x = rng.standard_normal((m, k)).astype(np.float32) * rng.uniform(0.01, 50, (m, 1)).astype(np.float32)
    if x.size > 4:
        x.flat[rng.integers(0, x.size)] = 0.0
        x.flat[rng.integers(0, x.size)] = -0.0
        x[0, :] = 0 if m > 2 else x[0, :]
        x[m // 2, : k // 2] *= np.float32(1e-30)
        if m > 4:
            x[3] = np.float32(2.0**-101)
            x[4] = np.float32(3e38) * np.sign(x[4] + np.float32(0.1))
    return x


INPUT_QUANTS = {
    "token": lambda s: qk.InputQuant(),
    "token unsigned": lambda s: qk.InputQuant(signed=False),
    "tensor": lambda s: qk.InputQuant(granularity="tensor"),
    "tensor unsigned": lambda s: qk.InputQuant(granularity="tensor", signed=False),
    "static": lambda s: qk.InputQuant(granularity="tensor", scale=0.07),
    "static zero point": lambda s: qk.InputQuant(granularity="tensor", scale=0.07, zero_point=-117),
    "static unsigned": lambda s: qk.InputQuant(granularity="tensor", scale=0.2, zero_point=130, signed=False),
    "static tiny": lambda s: qk.InputQuant(granularity="tensor", scale=2.0**-126),
    "channel": lambda s: qk.InputQuant(granularity="channel", scale=s),
}
each_quant = pytest.mark.parametrize("quant", INPUT_QUANTS)


@rows("quantize_activations")
@pytest.mark.parametrize(
    "shape", [(0, 4), (1, 0), (1, 1), (3, 15), (2, 16), (5, 17), (4, 64), (9, 131), (40, 1000)], ids=str
)
@each_quant
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantize_activations(kernel, shape, quant, dtype, threads, rng):
    m, k = shape
    x = torch.from_numpy(
        np.clip(activations(rng, m, k), -6e4, 6e4) if dtype == "float16" else activations(rng, m, k)
    )
    x = x.to(getattr(torch, dtype))
    q = INPUT_QUANTS[quant](rng.uniform(0.01, 3, k).astype(np.float32))
    codes, scale = kernel(x, q)
    expected_codes, expected_scale = qk.reference.quantize_activations(x.float().numpy(), q)
    assert_same(codes.numpy(), expected_codes)
    assert_same(scale.numpy(), expected_scale)


@rows("quantize_activations")
@each_quant
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(kernel, quant, bad, rng):
    for k in (1, 20, 200):
        for where in (0, k - 1):
            x = np.ones((3, k), np.float32)
            x[1, where] = bad
            with pytest.raises(qk.ArgumentError, match=r"finite|nan|inf"):
                kernel(x, INPUT_QUANTS[quant](np.ones(k, np.float32)))


# ---- linear ----------------------------------------------------------------------------------------------


@rows("linear")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "quant",
    ["token", "tensor", "static zero point", "token unsigned", "channel", "token/s", "tensor/s", "static/s"],
)
@pytest.mark.parametrize("activation", [None, "relu", "relu6"])
def test_linear_is_exact(kernel, shape, quant, activation, threads, rng):
    m, k, n = shape
    quant, _, folded = quant.partition("/")
    folded = bool(folded) or quant == "channel"
    w = weight(rng, n, k, zero_point=quant == "tensor", input_scale=folded, per_tensor="static" in quant)
    x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
    x = np.clip(x, -1e6, 1e6)
    q = INPUT_QUANTS[quant](w.input_scale)
    for b in (None, bias):
        poisoned_free_list()
        y = kernel(x, w, b, activation, input_quant=q)
        assert_same(y, qk.reference.linear_int(x, w, q, b, activation))


@rows("linear")
@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("out_dtype", [None, "float32", "bfloat16", "float16"])
def test_linear_dtypes(kernel, x_dtype, out_dtype, rng):
    w, q = weight(rng, 70, 50), qk.InputQuant()
    x = torch.from_numpy(activations(rng, 6, 50)).clamp(-100, 100).to(getattr(torch, x_dtype))
    out = None if out_dtype is None else getattr(torch, out_dtype)
    y = kernel(x, w, input_quant=q, out_dtype=out)
    expected = torch.from_numpy(qk.reference.linear_int(x.float().numpy(), w, q)).to(out or x.dtype)
    assert y.dtype == expected.dtype
    assert_same(y.float().numpy(), expected.float().numpy())


def every_float16():
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)


@rows("linear")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounding(kernel, dtype):
    """Results that meet every rounding case of the 16-bit types: subnormals, ties, overflow to infinity."""
    w = qk.IntWeight.pack(np.full((1, 1), 127, np.int8), 1 / 127)
    values = torch.cat(
        [every_float16().float(), torch.logspace(-45, 38.5, 20001), -torch.logspace(-45, 38.5, 20001)]
    )
    x = values[values.isfinite()].reshape(-1, 1)
    q = qk.InputQuant()
    y = kernel(x, w, input_quant=q, out_dtype=dtype)
    exact = torch.from_numpy(qk.reference.linear_int(x.numpy(), w, q))
    assert_same(y.float().numpy(), exact.to(dtype).float().numpy())


@rows("linear")
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_smooth_activations(kernel, activation):
    """Within 1e-6 + 2e-6 |y| of the float64 definition, from -90 to 90."""
    w = qk.IntWeight.pack(np.full((64, 1), 1, np.int8), 1.0)
    bias = np.linspace(-1, 1, 64).astype(np.float32)
    x = np.linspace(-90, 90, 4001).astype(np.float32).reshape(-1, 1)
    q = qk.InputQuant(granularity="tensor", scale=1.0)
    before = qk.reference.linear_int(x, w, q, bias)
    expected = apply_activation(before, activation)
    y = kernel(x, w, bias, activation, input_quant=q)
    error = np.abs(y.astype(np.float64) - expected)
    assert (error <= 1e-6 + 2e-6 * np.abs(expected)).all(), error.max()


def test_the_reference_runs_visibly(rng, caplog):
    """Weight-only convolutions have no other kernel; linear layers do, and say nothing."""
    w, x = (
        qk.IntWeight.quantize(rng.standard_normal((8, 3, 3, 3))),
        rng.standard_normal((1, 3, 5, 5)).astype(np.float32),
    )
    registry._said.clear()
    with caplog.at_level("WARNING", "qkernels"):
        qk.linear(x.reshape(5, 15), weight(rng, 4, 15))
        assert not caplog.records
        for _ in range(2):
            qk.conv2d(x, w)
    assert len(caplog.records) == 1 and "reference" in caplog.text
    assert qk.explain("conv2d", w, x).chosen.backend == "reference"
    with pytest.raises(qk.UnsupportedError, match="weight-only"):
        qk.conv2d(x, w, backend="cpu")


def test_a_fallback_is_visible(rng, caplog):
    """Products of bfloat16 on an instruction set without them; those of float32 run natively and say nothing."""
    w, x = weight(rng, 8, 12), rng.standard_normal((3, 12)).astype(np.float32)
    registry._said.clear()
    with qk.force_isa("scalar"), caplog.at_level("WARNING", "qkernels"):
        np.testing.assert_allclose(qk.linear(x, w), x @ w.dense().T, rtol=1e-4, atol=1e-4)
        assert not caplog.records and qk.explain("linear", w, x).chosen.backend == "cpu"
        y = qk.linear(x, w, compute_dtype="bfloat16")
        qk.linear(x, w, compute_dtype="bfloat16")
        assert len(caplog.records) == 1 and "reference" in caplog.text
        expected = qk.reference.linear_float(x, w, compute_dtype="bfloat16")
        np.testing.assert_array_equal(y, expected)
        with pytest.raises(qk.UnsupportedError, match="avx512bf16"):
            qk.linear(x, w, compute_dtype="bfloat16", backend="cpu")


def test_linear_plan_follows_its_options(rng):
    """The remembered fast call must not answer for other options, biases or shapes."""
    w = qk.IntWeight.quantize(torch.randn(40, 30))
    q, s = qk.InputQuant(), qk.InputQuant(granularity="tensor")
    for shape in ((1, 30), (2, 3, 30), (30,)):
        x = torch.randn(shape)
        for options in (
            {"input_quant": q},
            {"input_quant": s},
            {"input_quant": q, "activation": "relu"},
            {"input_quant": q, "bias": torch.randn(40)},
            {"input_quant": q, "bias": torch.randn(40, dtype=torch.bfloat16)},
            {"input_quant": q, "bias": torch.randn(80)[::2]},
            {"input_quant": q, "out_dtype": torch.bfloat16},
        ):
            for _ in range(2):
                y = qk.linear(x, w, **options)
                expected = qk.linear(x, w, backend="reference", **options)
                assert y.dtype == expected.dtype and torch.equal(y, expected)
        assert torch.equal(
            qk.linear(x.bfloat16(), w, input_quant=q),
            qk.linear(x.bfloat16(), w, input_quant=q, backend="reference"),
        )
    with pytest.raises(qk.ArgumentError, match="bias"):
        qk.linear(torch.randn(1, 30), w, bias=torch.randn(39), input_quant=q)
    with pytest.raises(qk.ArgumentError, match="K = 30"):
        qk.linear(torch.randn(1, 40), w, input_quant=q)


def test_repeated_runs_agree(rng, threads):
    w, q = qk.IntWeight.quantize(rng.standard_normal((384, 384))), qk.InputQuant()
    x = torch.randn(130, 384)
    first = qk.linear(x, w, input_quant=q)
    for _ in range(20):
        assert torch.equal(qk.linear(x, w, input_quant=q), first)


def test_ops_table_names_match():
    for kernel in registry.kernels():
        assert hasattr(ops, kernel.op) and hasattr(ops, f"{kernel.op}_request")
