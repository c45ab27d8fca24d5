"""The CUDA kernels, run on the host by csrc/cuda/emulator, against the reference, bit for bit.

The emulated module takes the place of qkernels._cuda, and CPU tensors that of CUDA tensors: everything from the public
function to the kernel is what runs on a GPU.
"""

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes

import qkernels as qk
from qkernels import cuda

SCHEDULES = [0, 1, 7]  # the order in which threads run: forwards, backwards, random

# M, K, N: empty, one, few tokens with edges everywhere, few tokens and shared K, more tokens, shared K, large tiles
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (1, 64, 16),
    (5, 65, 17),
    (8, 2200, 33),
    (9, 127, 63),
    (16, 4096, 16),
    (17, 130, 65),
    (33, 1100, 70),
    (64, 63, 64),
    (130, 200, 258),
    (257, 64, 129),
]


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    module = cuda_builds.emulate(monkeypatch, request.param)
    module.force_gemm("mma")  # wgmma: test_cuda_wgmma.py
    yield module
    module.force_gemm("any")


def poisoned_free_list():
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), float("nan"))


def weight(rng, n, k, zero_point=False, input_scale=False, bits=8):
    lo, hi = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return qk.IntWeight.pack(
        random_codes(rng, (n, k)).clip(lo, hi),
        rng.uniform(1e-3, 1e-1, (n, 1)).astype(np.float32),
        zero_point=rng.integers(-7 if bits < 8 else -150, 7 if bits < 8 else 150, (n, 1))
        if zero_point
        else None,
        input_scale=rng.uniform(0.01, 3, k).astype(np.float32) if input_scale else None,
        bits=bits,
    )


def activations(rng, m, k):
    x = rng.standard_normal((m, k)).astype(np.float32) * rng.uniform(0.01, 50, (m, 1)).astype(np.float32)
    if m > 2 and k > 2:
        x[0], x[1, : k // 2], x[2, 0] = 0, x[1, : k // 2] * np.float32(1e-30), -0.0
    return x


QUANTS = {
    "token": lambda s: qk.InputQuant(),
    "token unsigned": lambda s: qk.InputQuant(signed=False),
    "token 5 bits": lambda s: qk.InputQuant(bits=5),
    "tensor": lambda s: qk.InputQuant(granularity="tensor"),
    "static": lambda s: qk.InputQuant(granularity="tensor", scale=0.07, zero_point=-117),
    "static unsigned": lambda s: qk.InputQuant(granularity="tensor", scale=0.2, zero_point=130, signed=False),
    "channel": lambda s: qk.InputQuant(granularity="channel", scale=s),
}


def test_the_layout_is_what_the_header_says(native, rng):
    """Every code has a place of its own, and prepack puts it there."""
    for n, k in ((1, 1), (16, 64), (17, 65), (40, 200)):
        n_pad, k_pad = -(-n // 16) * 16, -(-k // 64) * 64
        at = np.array([[native.int8_offset(i, j, k_pad) for j in range(k_pad)] for i in range(n_pad)])
        assert_same(np.sort(at.reshape(-1)), np.arange(n_pad * k_pad))
        codes = random_codes(rng, (n, k))
        stored = cuda.int8_tiles(codes, n_pad, k_pad)
        assert_same(stored[at[:n, :k]], codes)
        stored[at[:n, :k]] = 0
        assert not stored.any()


def test_plans_and_the_shapes_of_these_tests(native):
    """The shapes take every kernel with and without shared K; a GPU with 132 multiprocessors is filled once."""
    taken = {}
    for m, k, n in SHAPES:
        _, channels, tokens, splits, _, _ = native.plan_gemm(m, n, -(-k // 64) * 64, 4, False)
        taken.setdefault((channels, tokens), set()).add(splits > 1)
    assert taken == {
        (16, 8): {True, False},
        (16, 16): {True, False},
        (64, 64): {True, False},
        (128, 128): {False},
    }
    for m, n, k in ((1, 4096, 4096), (1, 1024, 4096), (16, 512, 14336), (64, 4096, 4096), (200, 1024, 8192)):
        _, channels, tokens, splits, tiles, _ = native.plan_gemm(m, n, k, 132, False)
        assert tiles == -(-n // channels) * -(-m // tokens) and tiles * splits <= max(264, tiles)
        assert 2 * tiles * splits > 132, (m, n, k)
    assert native.plan_gemm(0, 0, 0, 132, False)[3:] == (1, 0, 1)


def check_matmul_int(rng, shape, x_dtype):
    m, k, n = shape
    w = weight(rng, n, k, zero_point=m % 2 == 1)
    x = random_codes(rng, (m, k), x_dtype)
    x_zp = 0 if m % 3 == 0 else 11
    poisoned_free_list()
    y = qk.matmul_int(torch.from_numpy(x), w, x_zp, backend="cuda")
    zp = 0 if w.zero_point is None else w.zero_point.astype(np.int64)
    assert_same(y.numpy(), ((x.astype(np.int64) - x_zp) @ (w.codes() - zp).T).astype(np.int32))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
def test_matmul_int(native, shape, x_dtype, rng):
    check_matmul_int(rng, shape, x_dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("quant", QUANTS)
def test_linear(native, shape, quant, rng):
    m, k, n = shape
    w = weight(rng, n, k, zero_point="unsigned" in quant, input_scale=quant in ("channel", "tensor"))
    x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
    q = QUANTS[quant](w.input_scale)
    for b, activation in ((None, None), (bias, "relu"), (bias, "relu6")):
        poisoned_free_list()
        tensor = None if b is None else torch.from_numpy(b)
        y = qk.linear(torch.from_numpy(x), w, tensor, activation, input_quant=q, backend="cuda")
        assert_same(y.numpy(), qk.reference.linear_int(x, w, q, b, activation))


@pytest.mark.parametrize("x_dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("out_dtype", [None, "float32", "bfloat16", "float16"])
def test_dtypes(native, x_dtype, out_dtype, rng):
    w, q = weight(rng, 70, 56, bits=4, zero_point=True), qk.InputQuant()
    x = torch.from_numpy(activations(rng, 6, 56)).clamp(-100, 100).to(getattr(torch, x_dtype))
    out = None if out_dtype is None else getattr(torch, out_dtype)
    y = qk.linear(x, w, input_quant=q, out_dtype=out, backend="cuda")
    expected = torch.from_numpy(qk.reference.linear_int(x.float().numpy(), w, q)).to(out or x.dtype)
    assert y.dtype == expected.dtype
    assert_same(y.float().numpy(), expected.float().numpy())


def check_linear_requant(shape, rounding, rng):
    m, k, n = shape
    for x_dtype, out_dtype, per_channel in ((np.int8, np.int8, True), (np.uint8, np.uint8, False)):
        x, w = random_codes(rng, (m, k), x_dtype), weight(rng, n, k, zero_point=per_channel)
        bias = rng.integers(-(10**5), 10**5, n).astype(np.int32) if per_channel else None
        scale = rng.uniform(0.2, 2, n if per_channel else 1) / (3000 * k**0.5)
        r = qk.Requant.from_scale(scale, zero_point=7, rounding=rounding, output_scale=0.11)
        activation = "relu6" if per_channel else None
        options = {"x_zero_point": 3, "activation": activation, "out_dtype": out_dtype}
        expected = qk.linear_requant(x, w, r, bias, backend="reference", **options)
        tensor = None if bias is None else torch.from_numpy(bias)
        y = qk.linear_requant(torch.from_numpy(x), w, r, tensor, backend="cuda", **options)
        assert_same(y.numpy(), expected)


@pytest.mark.parametrize("shape", [(5, 65, 17), (33, 1100, 70), (130, 200, 258)], ids=str)
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_linear_requant(native, shape, rounding, rng):
    check_linear_requant(shape, rounding, rng)


@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_requantize(native, rounding, rng):
    """Every shift, with multipliers at the ends of their range: ties, saturation and 64-bit sums included."""
    shifts = np.repeat(np.arange(-31, 32), 4)
    multipliers = np.tile([2**30, 2**31 - 1, 0, int(rng.integers(2**30, 2**31))], 63)
    special = [0, 1, -1, 127, -128, 2**30, -(2**30), 2**31 - 1, -(2**31), 2**24 + 1]
    acc = np.concatenate(
        [np.tile(np.array(special, np.int32)[:, None], (1, 252)), rng.integers(-(2**31), 2**31, (30, 252))]
    ).astype(np.int32)
    for out_dtype in (np.int8, np.uint8):
        lo, hi = np.iinfo(out_dtype).min, np.iinfo(out_dtype).max
        r = qk.Requant(multipliers, shifts, int(lo) + 9, rounding)
        for a in (acc, np.ascontiguousarray(acc[:, :251])):
            r = qk.Requant(multipliers[: a.shape[1]], shifts[: a.shape[1]], int(lo) + 9, rounding)
            y = qk.requantize(torch.from_numpy(a), r, out_dtype=out_dtype, backend="cuda")
            assert_same(y.numpy(), qk.reference.requantize(a, r, lo, hi).astype(out_dtype))


@pytest.mark.parametrize(
    "shape", [(0, 4), (1, 0), (1, 1), (3, 15), (2, 16), (5, 17), (9, 131), (7, 1000)], ids=str
)
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantize_activations(native, shape, quant, dtype, rng):
    m, k = shape
    x = torch.from_numpy(np.clip(activations(rng, m, k), -6e4, 6e4)).to(getattr(torch, dtype))
    q = QUANTS[quant](rng.uniform(0.01, 3, k).astype(np.float32))
    codes, scale = qk.quantize_activations(x, q, backend="cuda")
    expected_codes, expected_scale = qk.reference.quantize_activations(x.float().numpy(), q)
    assert_same(codes.numpy(), expected_codes)
    assert_same(scale.numpy(), expected_scale)


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nan(native, quant, bad, rng):
    w = weight(rng, 20, 40, input_scale=quant == "channel")
    x = activations(rng, 5, 40)
    x[3, 17] = bad
    q = QUANTS[quant](w.input_scale)
    y = qk.linear(torch.from_numpy(x), w, activation="relu6", input_quant=q, backend="cuda").numpy()
    assert np.isnan(y[3]).all()
    if quant != "tensor":
        x[3, 17] = 0
        expected = qk.reference.linear_int(x, w, q, activation="relu6")
        assert_same(y[[0, 1, 2, 4]], expected[[0, 1, 2, 4]])
    x[3, 17] = bad
    assert np.isnan(qk.quantize_activations(torch.from_numpy(x), q, backend="cuda")[1].numpy()).any()


def test_strides_and_batches(native, rng):
    w = weight(rng, 21, 64)
    base = random_codes(rng, (4, 6, 64))
    views = {
        "batch": base,
        "vector": base[0, 0],
        "rows apart": random_codes(rng, (9, 96))[:, :64],
        "rows apart, unaligned": random_codes(rng, (9, 81))[:, :64],
        "starts unaligned": random_codes(rng, (9, 96))[:, 3:67],
        "transposed": random_codes(rng, (64, 9)).T,
        "every second column": random_codes(rng, (5, 128))[:, ::2],
    }
    for x in views.values():
        y = qk.matmul_int(torch.from_numpy(x), w, backend="cuda")
        assert_same(y.numpy(), (x.astype(np.int64) @ w.codes().astype(np.int64).T).astype(np.int32))


@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (127, 127), (-128, 127)])
def test_extremes(native, x_code, w_code):
    k = 131071
    w = qk.IntWeight.pack(np.full((3, k), w_code, np.int8), 1.0)
    for m in (2, 20):
        x = torch.full((m, k), x_code, dtype=torch.int8)
        assert (qk.matmul_int(x, w, backend="cuda") == k * x_code * w_code).all()


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_smooth_activations(native, activation):
    """Within 1e-6 + 2e-6 |y| of the float64 definition, from -90 to 90."""
    w = qk.IntWeight.pack(np.full((64, 1), 1, np.int8), 1.0)
    bias = np.linspace(-1, 1, 64).astype(np.float32)
    x = np.linspace(-90, 90, 401).astype(np.float32).reshape(-1, 1)
    q = qk.InputQuant(granularity="tensor", scale=1.0)
    expected = qk.reference.apply_activation(qk.reference.linear_int(x, w, q, bias), activation)
    y = qk.linear(torch.from_numpy(x), w, torch.from_numpy(bias), activation, input_quant=q, backend="cuda")
    error = np.abs(y.numpy().astype(np.float64) - expected)
    assert (error <= 1e-6 + 2e-6 * np.abs(expected)).all(), error.max()
