"""The binary core of the CUDA kernels on the emulator: bit for bit the reference."""

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels import cuda_binary

# M, K, N: empty, one, bits and channels at every edge of a byte, a word and a tile, K that blocks share, large tiles
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (1, 512, 16),
    (5, 513, 17),
    (8, 511, 31),
    (9, 1000, 63),
    (3, 17000, 18),
    (17, 130, 65),
    (33, 2100, 70),
    (64, 63, 64),
    (130, 200, 258),
]


@pytest.fixture(params=[0, 1, 7], ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    return cuda_builds.emulate(monkeypatch, request.param)


def poison():
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), 0xA5, dtype=torch.uint8)


def weight(rng, n, k, ternary):
    """Unlike in rows: some are nearly all +1, some nearly all 0."""
    codes = rng.choice(np.array([-1, 0, 1] if ternary else [-1, 1], np.int8), (n, k))
    codes[::3] = np.where(rng.random(codes[::3].shape) < 0.95, 1, codes[::3])
    if ternary:
        codes[1::3] = np.where(rng.random(codes[1::3].shape) < 0.9, 0, codes[1::3])
    alpha = rng.uniform(0.01, 3, n).astype(np.float32)
    return (qk.TernaryWeight if ternary else qk.BinaryWeight).pack(codes, alpha)


def bits_of(rng, m, k):
    """Random rows, one of ones; the bits past K are set at random, too, and must not be looked at."""
    x = rng.integers(0, 256, (m, -(-k // 8))).astype(np.uint8)
    x[: m // 3] = 255
    return torch.from_numpy(x)


both = pytest.mark.parametrize("ternary", [False, True], ids=["binary", "ternary"])
each = pytest.mark.parametrize("shape", SHAPES, ids=str)


@both
def test_the_layout_is_what_the_header_says(native, ternary, rng):
    """Every bit of every plane has a place of its own, and prepack puts it there."""
    for n, k in ((1, 1), (16, 512), (17, 700)):
        layout = native.binary_layout(n, k, ternary)
        w = weight(rng, n, k, ternary)
        block, _ = cuda_binary.binary_block(w)
        codes = block[layout["codes"] :][: layout["n_pad"] * layout["row_bytes"]].copy()
        places, planes = set(), [w.codes() > 0, w.codes() < 0][: 1 + ternary]
        for p, plane in enumerate(planes):
            for i in range(n):
                for j in range(k):
                    byte = native.binary_byte(i, p, j, layout["plane_bytes"], layout["row_bytes"])
                    places.add((byte, j % 8))
                    assert codes[byte] >> (j % 8) & 1 == plane[i, j]
        assert len(places) == n * k * len(planes)
        assert np.bitwise_count(codes).sum() == sum(p.sum() for p in planes)  # nothing beyond


@both
@each
def test_matmul_binary(native, shape, ternary, rng):
    m, k, n = shape
    w, x = weight(rng, n, k, ternary), bits_of(rng, m, k)
    signs = np.unpackbits(x.numpy(), axis=1, count=k, bitorder="little").astype(np.int64) * 2 - 1
    poison()
    y = qk.matmul_binary(x, w, backend="cuda")
    assert_same(y.numpy(), (signs @ w.codes().astype(np.int64).T).astype(np.int32))


@both
@each
def test_linear_binary(native, shape, ternary, rng):
    m, k, n = shape
    w, x = weight(rng, n, k, ternary), bits_of(rng, m, k)
    bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    scales = torch.from_numpy(rng.uniform(0.1, 2, (m, 1)).astype(np.float32))
    value = rng.integers(-k // 4 - 1, k // 4 + 1, n)
    calls = [
        {"x_scale": scales, "bias": bias, "activation": "relu"},
        {"x_scale": 0.37, "out_dtype": torch.bfloat16},
        {"bias": bias, "out_dtype": torch.float16},
        {"x_scale": scales, "bias": bias, "sign": True},
        {"sign": True},
        {"threshold": qk.Threshold(value, rng.random(n) < 0.5)},
    ]
    for options in calls:
        poison()
        y = qk.linear_binary(x, w, **options, backend="cuda")
        assert_same(y, qk.linear_binary(x, w, **options, backend="reference"))


QUANTS = [
    qk.InputQuant(bits=1),
    qk.InputQuant(bits=1, granularity="tensor"),
    qk.InputQuant(bits=1, granularity="tensor", scale=0.7),
]


@both
@each
def test_linear(native, shape, ternary, rng):
    m, k, n = shape
    dtype = ("float32", "bfloat16", "float16")[(SHAPES.index(shape) + ternary) % 3]
    w = weight(rng, n, k, ternary)
    x = torch.from_numpy(rng.standard_normal((m, k)) * rng.uniform(0.01, 9, (m, 1))).to(getattr(torch, dtype))
    if m and k:
        x[0, 0] = -0.0
    bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    for q in QUANTS:
        for b, activation in ((None, None), (bias, "relu6")):
            poison()
            options = {"input_quant": q, "out_dtype": torch.float32}
            y = qk.linear(x, w, b, activation, **options, backend="cuda")
            assert_same(y, qk.linear(x, w, b, activation, **options, backend="reference"))
        codes = qk.pack_signs(x, backend="cuda")
        assert_same(codes, qk.pack_signs(x, backend="reference"))
        got, scale = qk.pack_signs(x, q, backend="cuda")
        expected, expected_scale = qk.pack_signs(x, q, backend="reference")
        assert_same(got, expected)
        assert_same(scale, expected_scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_becomes_nan(native, bad, rng):
    """3e38 twice: finite numbers whose sum is not."""
    w, x = weight(rng, 20, 70, False), torch.from_numpy(rng.standard_normal((5, 70)).astype(np.float32))
    good = qk.linear(x, w, input_quant=QUANTS[0], backend="cuda")
    x[3, 1] = x[3, 65] = bad
    y = qk.linear(x, w, input_quant=QUANTS[0], backend="cuda")
    assert torch.isnan(y[3]).all()
    assert_same(y[[0, 1, 2, 4]], good[[0, 1, 2, 4]])
    assert torch.isnan(qk.linear(x, w, input_quant=QUANTS[1], backend="cuda")).all()
    if not abs(bad) < np.inf:
        y = qk.linear(x, w, input_quant=QUANTS[2], backend="cuda")
        assert torch.isnan(y[3]).all() and not torch.isnan(y[:3]).any()


def test_refusals(native, rng):
    w, x = weight(rng, 8, 16, False), bits_of(rng, 2, 16)
    cases = [
        ({"x_nonzero": x}, "x_nonzero is given"),
        ({"activation": qk.DPReLU(1.0, 0.1)}, "the activation is a DPReLU"),
        ({"threshold": qk.Threshold(np.zeros(8, np.int32), None, np.ones(8, np.int32))}, "multiplicity"),
    ]
    for options, why in cases:
        with pytest.raises(qk.UnsupportedError, match=why):
            qk.linear_binary(x, w, **options, backend="cuda")


def test_strides_and_batches(native, rng):
    w = weight(rng, 21, 64, False)
    wide = bits_of(rng, 9, 200)
    for x in (wide[:, :8], wide[:, 3:11], wide.reshape(3, 3, -1)[..., :8], wide[0, :8], wide[::2, :16:2]):
        assert_same(qk.matmul_binary(x, w, backend="cuda"), qk.matmul_binary(x, w, backend="reference"))
