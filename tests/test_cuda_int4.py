"""int8 activations against 4-bit weights with groups, the CUDA kernel on the emulator: bit for bit the reference."""

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same
from test_linear_float import CASES

import qkernels as qk
from qkernels import cuda_int4

# M, K, N: one, edges of tiles in every direction, short last groups in either half of 64 k, several tiles of tokens
SHAPES = [(1, 33, 1), (2, 65, 17), (7, 300, 65), (8, 97, 130), (16, 2100, 20), (17, 130, 70), (70, 200, 150)]
GROUPS = [32, 64, 96, 128]


@pytest.fixture(params=[0, 1, 7], ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    return cuda_builds.emulate(monkeypatch, request.param)


MAKERS = {
    "integers": lambda rng, n, k, g, s: qk.IntWeight.pack(
        rng.integers(-8, 8, (n, k)).astype(np.int8), s, None, 4, g, rng.uniform(0.1, 3, k).astype(np.float32)
    ),
    "2 bits": lambda rng, n, k, g, s: qk.IntWeight.pack(
        rng.integers(-2, 2, (n, k)).astype(np.int8), s, None, 2, g
    ),
    "power": lambda rng, n, k, g, s: qk.PowerWeight.pack(
        rng.integers(-8, 8, (n, k)).astype(np.int8), s, 4, 0.5, g
    ),
    "log": lambda rng, n, k, g, s: CASES["LogWeight"]["4 bits"](rng, n, k, g, s, None),
    "e2m1": lambda rng, n, k, g, s: CASES["FloatWeight"]["e2m1 float32"](rng, n, k, g, s, None),
}
QUANTS = [
    qk.InputQuant(),
    qk.InputQuant(granularity="tensor", bits=6),
    qk.InputQuant(signed=False),
    qk.InputQuant(granularity="tensor", scale=0.05),
]


@pytest.mark.parametrize("decoder", [0, 1])
def test_the_layout_is_what_the_header_says(native, decoder, rng):
    """A bijection onto the bits of the words, and prepack in NumPy agrees with the header."""
    codes = rng.integers(0, 16, (32, 128)).astype(np.uint8)
    seen, words = np.zeros(codes.size // 8, np.uint32), np.zeros(codes.size // 8, np.uint32)
    for n in range(32):
        for k in range(128):
            for bit in (1, 2, 4, 8):
                word, bits = native.int4_place(n, k, 128, decoder, bit)
                assert bits.bit_count() == 1 and not int(seen[word]) & bits
                seen[word] |= np.uint32(bits)
            word, bits = native.int4_place(n, k, 128, decoder, int(codes[n, k]))
            words[word] |= np.uint32(bits)
            lane = (
                word // 4 % 32
            )  # the registers of A: channel g or g + 8, and 8t .. 8t + 7 of an instruction's 32 k
            assert lane == n % 8 * 4 + k % 32 // 8 and word % 4 == k % 64 // 32 * 2 + k % 8 // 4
    assert (seen == 0xFFFFFFFF).all()
    assert_same(cuda_int4.fragments(codes, decoder), words)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_linear(native, maker, shape, rng):
    m, k, n = shape
    for i, group in enumerate(g for g in GROUPS if g < k):
        scale = rng.uniform(1e-3, 1e-1, (n, -(-k // group))).astype(np.float32)
        w = MAKERS[maker](rng, n, k, group, scale)
        x = torch.from_numpy((rng.standard_normal((m, k)) * rng.uniform(0.01, 50, (m, 1))).astype(np.float32))
        x = x.to((torch.float32, torch.bfloat16, torch.float16)[i % 3])
        bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i % 2 else None
        options = {"input_quant": QUANTS[(i + m) % 4], "out_dtype": torch.float32}
        activation = (None, "relu")[i % 2]
        explained = qk.explain("linear", x, w, bias, activation, **options, backend="cuda").chosen
        assert str(explained).endswith("cuda-sm80-int4")
        for size in (64, 16384, 262144):
            torch.full((size,), float("nan"))
        y = qk.linear(x, w, bias, activation, **options, backend="cuda")
        assert_same(y, qk.linear(x, w, bias, activation, **options, backend="reference"))


def test_extremes(native):
    """The longest sums: 16 * -8 * 255 over a group."""
    k = 16384
    w = qk.IntWeight.pack(np.full((3, 2 * k), -8, np.int8), np.ones((3, 2), np.float32), None, 4, k)
    q = qk.InputQuant(granularity="tensor", scale=1.0, signed=False)
    y = qk.linear(torch.full((2, 2 * k), 255.0), w, input_quant=q, backend="cuda")
    assert (y == -8.0 * 255 * 2 * k).all()


def test_refusals(native, rng):
    scale, codes = np.ones((8, 4), np.float32), rng.integers(-8, 8, (8, 80)).astype(np.int8)
    x, q = torch.zeros(2, 80), qk.InputQuant()
    odd = qk.IntWeight.pack(codes, scale, None, 4, 20)
    with pytest.raises(qk.UnsupportedError, match="group_size is 20; this kernel takes multiples of 32"):
        qk.linear(x, odd, input_quant=q, backend="cuda")
    zero = qk.IntWeight.pack(codes, scale[:, :3], np.ones((8, 3), np.int16), 4, 32)
    with pytest.raises(qk.UnsupportedError, match="the weight has zero points"):
        qk.linear(x, zero, input_quant=q, backend="cuda")
    plain, static = (
        qk.IntWeight.pack(codes, scale[:, :3], None, 4, 32),
        {"granularity": "tensor", "scale": 0.1},
    )
    with pytest.raises(qk.UnsupportedError, match="input_quant has a zero point"):
        qk.linear(x, plain, input_quant=qk.InputQuant(**static, zero_point=3), backend="cuda")
