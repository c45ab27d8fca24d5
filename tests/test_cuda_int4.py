"""int8 activations against 4-bit weights, the CUDA kernels on the emulator: bit for bit the reference."""

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same
from test_linear_float import CASES

import qkernels as qk
from qkernels import cuda, cuda_int4

# M, K, N: one, edges of tiles in every direction, short last groups in either half of 64 k, both kernels and all tiles
SHAPES = [
    (1, 33, 1),
    (2, 65, 17),
    (7, 300, 65),
    (8, 97, 129),
    (16, 2100, 20),
    (17, 130, 70),
    (40, 300, 129),
    (60, 170, 300),
    (100, 130, 380),
]
# Multiples of 32, of which those of 64 are whole tiles, and what is padded to them.
GROUPS = [32, 64, 96, 128, 16, 24, 100]


@pytest.fixture(params=[0, 1, 7], ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    return cuda_builds.emulate(monkeypatch, request.param)


MAKERS = {
    "integers": lambda rng, n, k, g, s: qk.IntWeight.pack(
        rng.integers(-8, 8, (n, k)).astype(np.int8), s, None, 4, g, rng.uniform(0.1, 3, k).astype(np.float32)
    ),
    "zero points": lambda rng, n, k, g, s: qk.IntWeight.pack(
        *(rng.integers(-8, 8, (n, k)).astype(np.int8), s.astype(np.float16).astype(np.float32)),
        *(rng.integers(-8, 8, s.shape).astype(np.int16), 4, g),
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
    qk.InputQuant(granularity="tensor", scale=0.05, zero_point=-77),
    qk.InputQuant(granularity="tensor", scale=0.05, zero_point=201, signed=False),
]


def activations(rng, m, k, dtype=torch.float32):
    x = rng.standard_normal((m, k)) * rng.uniform(0.01, 50, (m, 1))
    return torch.from_numpy(x.astype(np.float32)).to(dtype)


def kernel_of(x, w, **options):
    return str(qk.explain("linear", x, w, **options, backend="cuda").chosen)


def assert_equals_reference(x, w, bias=None, activation=None, **options):
    for size in (64, 16384, 262144):
        torch.full((size,), float("nan"))
    y = qk.linear(x, w, bias, activation, **options, backend="cuda")
    assert_same(y, qk.linear(x, w, bias, activation, **options, backend="reference"))


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


def test_positions(native):
    """Every element has one position, groups start where an instruction does, and the two languages agree."""
    for group in (0, 16, 17, 24, 31, 32, 33, 64, 96, 100, 128):
        for k in (1, 15, 33, 100, 257, 640):
            inside = group if group < k else 0  # a group of all of K is none
            layout = native.int4_layout(16, k, group, False, False, False)
            assert layout["group"] == inside and layout["k_pad"] % 64 == 0
            at = [native.int4_element(p, k, group) for p in range(layout["k_pad"])]
            found = {e: p for p, e in enumerate(at) if e >= 0}
            assert len(found) == k == sum(e >= 0 for e in at)
            assert_same(np.array([found[e] for e in range(k)]), cuda_int4.positions(k, inside))
            assert all(found[e] % 32 == 0 for e in range(0, k, inside or k))
            assert layout["k_pad"] < -(-k // (inside or k)) * (inside + -inside % 32 or k) + 64


def test_plans(native):
    """The machine is filled where there is work for it, and the rounds of the kernel for few tokens fit."""
    for m in (1, 3, 8, 9, 16):
        for n, k, group in ((4096, 4096, 128), (8192, 8192, 128), (17, 50, 0), (4096, 1 << 20, 32)):
            for zeros in ((False, False), (True, True)):
                kernel, channels, tokens, tiles, groups, size = native.plan_int4(m, n, k, group, *zeros, 132)
                assert (kernel, channels, tokens) == ("skinny", 16, 8 if m <= 8 else 16) and tiles == -(
                    -n // 16
                )
                assert groups % 2 == 0 and size <= 48 << 10
                assert groups * (-(-m // 2) * 160 + 64) <= size
                if n == 4096:
                    assert tiles == 256
    assert native.plan_int4(1, 4096, 4096, 128, True, True, 132)[4] == 32  # one round
    expected = {
        (17, 4096): (64, 32, 64),
        (64, 4096): (64, 32, 128),
        (64, 8192): (64, 64, 128),
        (64, 14336): (128, 64, 112),
        (128, 4096): (64, 64, 128),
        (256, 4096): (128, 64, 128),
        (512, 4096): (128, 128, 128),
        (4096, 4096): (128, 128, 1024),
    }
    for (m, n), plan in expected.items():
        assert native.plan_int4(m, n, 4096, 128, False, False, 132)[:4] == ("tile", *plan)
    sizes = {native.plan_int4(m, n, k, 32, False, False, 4)[:3] for m, k, n in SHAPES}
    tiles = {("tile", *size) for size in ((64, 32), (64, 64), (128, 64), (128, 128))}
    assert sizes == {("skinny", 16, 8), ("skinny", 16, 16), *tiles}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("maker", MAKERS)
def test_linear(native, maker, shape, rng):
    m, k, n = shape
    groups = [g for g in GROUPS if g < k]
    most = 7 if m <= 17 else 3 if m == 40 else 1
    for i, group in enumerate(rng.permutation(groups)[:most].tolist()):
        scale = rng.uniform(1e-3, 1e-1, (n, -(-k // group))).astype(np.float32)
        w = MAKERS[maker](rng, n, k, group, scale)
        x = activations(rng, m, k, (torch.float32, torch.bfloat16, torch.float16)[i % 3])
        bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i % 2 else None
        options = {"input_quant": QUANTS[(i + m) % len(QUANTS)], "out_dtype": torch.float32}
        assert kernel_of(x, w, **options).endswith("cuda-sm80-int4")
        assert_equals_reference(x, w, bias, (None, "relu")[i % 2], **options)


@pytest.mark.parametrize("m", [1, 5, 16])
@pytest.mark.parametrize("group, groups", [(32, 301), (32, 130), (96, 5), (24, 97)], ids=str)
def test_many_groups(native, m, group, groups, rng):
    """Several rounds of shared memory, the last one short; rounds of fewer tiles than warps."""
    n, k = 17, group * groups - 7
    plan = native.plan_int4(m, n, k, group, True, True, 4)
    if m == 16 and groups > 97:
        assert plan[4] < groups
    for maker in ("integers", "zero points"):
        w = MAKERS[maker](rng, n, k, group, rng.uniform(1e-3, 1e-1, (n, groups)).astype(np.float32))
        assert_equals_reference(
            activations(rng, m, k), w, input_quant=QUANTS[4 if maker != "integers" else 0]
        )


@pytest.mark.parametrize(
    "m, k, n", [(1, 1, 1), (3, 64, 17), (8, 1100, 33), (16, 130, 129), (2, 0, 5)], ids=str
)
@pytest.mark.parametrize("maker", MAKERS)
def test_without_groups(native, maker, m, k, n, rng):
    """Few tokens run here, with a scale for all of K; more on the int8 core, to the same bits."""
    w = MAKERS[maker](rng, n, k, None, rng.uniform(1e-3, 1e-1, (n, 1)).astype(np.float32))
    for i, quant in enumerate(QUANTS):
        x = activations(rng, m, k)
        assert kernel_of(x, w, input_quant=quant).endswith("cuda-sm80-int4")
        assert_equals_reference(x, w, None, ("relu6", None)[i % 2], input_quant=quant)
    many = activations(rng, 17, k)
    assert kernel_of(many, w, input_quant=QUANTS[0]).endswith("cuda-sm80")
    some = qk.linear(many[:m], w, input_quant=QUANTS[0], backend="cuda")
    assert_same(qk.linear(many, w, input_quant=QUANTS[0], backend="cuda")[:m], some)


def test_zeros_keep_their_signs(native):
    """A product of a negative sum and a scale of 0 is -0 without groups; with them a sum starts from +0."""
    codes, x = np.full((3, 64), -3, np.int8), torch.ones(2, 64)
    for group in (None, 32):
        w = qk.IntWeight.pack(codes, np.zeros((3, 2 if group else 1), np.float32), None, 4, group)
        y = qk.linear(x, w, input_quant=qk.InputQuant(), backend="cuda")
        assert (torch.signbit(y) == (group is None)).all()
        assert_equals_reference(x, w, input_quant=qk.InputQuant())


def test_extremes(native):
    """The longest sums: 16 * -8 * 255 over a group, and what zero points make of it."""
    k = 16384
    w = qk.IntWeight.pack(np.full((3, 2 * k), -8, np.int8), np.ones((3, 2), np.float32), None, 4, k)
    q = qk.InputQuant(granularity="tensor", scale=1.0, signed=False)
    for m in (2, 17):
        y = qk.linear(torch.full((m, 2 * k), 255.0), w, input_quant=q, backend="cuda")
        assert (y == -8.0 * 255 * 2 * k).all()
    longest, one = 65536, np.ones((1, 1), np.float32)
    w = qk.IntWeight.pack(np.full((1, longest), -8, np.int8), one, np.full((1, 1), 120, np.int16), 4)
    y = qk.linear(torch.full((1, longest), 255.0), w, input_quant=q, backend="cuda")
    assert (y == -128.0 * 255 * longest).all()
    for signed, zero, value in ((True, 127, -128.0), (True, -128, 127.0), (False, 255, 0.0)):
        quant = qk.InputQuant(granularity="tensor", scale=1.0, zero_point=zero, signed=signed)
        codes, offsets = np.array([[7, -8] * 20] * 2, np.int8), np.array([[-120, 120]] * 2, np.int16)
        w = qk.IntWeight.pack(codes, np.ones((2, 2), np.float32), offsets, 4, 20)
        for m in (1, 18):
            assert_equals_reference(torch.full((m, 40), value - zero), w, input_quant=quant)


def test_what_is_not_finite(native, rng):
    """A row with such a value becomes NaN, and no other does; zero points do not change that."""
    w = MAKERS["zero points"](rng, 20, 70, 32, rng.uniform(1e-3, 1e-1, (20, 3)).astype(np.float32))
    for m in (3, 20):
        x = activations(rng, m, 70)
        x[1, 69] = float("inf")
        y = qk.linear(x, w, input_quant=qk.InputQuant(), backend="cuda")
        assert y[1].isnan().all() and y.isnan().sum() == 20


def test_scales_take_two_bytes_where_that_is_exact(native, rng):
    codes = rng.integers(-8, 8, (16, 64)).astype(np.int8)
    for scale, half in ((0.125, True), (0.1, False), (1e6, False)):
        w = qk.IntWeight.pack(codes, np.full((16, 2), scale, np.float32), None, 4, 32)
        assert cuda_int4.int4_block(w)[1][1] is half
        assert_equals_reference(activations(rng, 2, 64), w, input_quant=qk.InputQuant())


def test_refusals(native, rng):
    x, q = torch.zeros(17, 80), qk.InputQuant()
    scale, codes = np.ones((8, 4), np.float32), rng.integers(-8, 8, (8, 80)).astype(np.int8)

    def reasons(w, quant=q):
        return str(qk.explain("linear", x, w, input_quant=quant, backend="cuda"))

    assert "the weight has 5 bits; this kernel takes up to 4" in reasons(
        qk.IntWeight.pack(codes, scale, None, 5, 20)
    )
    assert "above 16 that is for the int8 kernel" in reasons(qk.IntWeight.pack(codes, scale[:, :1], None, 4))
    long = qk.IntWeight.pack(np.zeros((1, 65537), np.int8), np.ones((1, 1), np.float32), None, 4)
    assert kernel_of(torch.zeros(1, 65537), long, input_quant=q).endswith("cuda-sm80")
    power = qk.InputQuant(power=0.5)
    with pytest.raises(qk.UnsupportedError, match="input_quant has a power"):
        qk.linear(x, qk.IntWeight.pack(codes, scale, None, 4, 20), input_quant=power, backend="cuda")


def test_the_native_weight_checks_what_it_is_given(native):
    memory = torch.zeros(1 << 16, dtype=torch.uint8)

    def make(n=16, k=64, group=32, size=None, decoder=0):
        layout = native.int4_layout(n, k, group, False, False, False)
        size = layout["total_bytes"] if size is None else size
        return native.Int4Weight(
            *(0, memory.data_ptr(), size, memory, n, k, group, False, False, False, decoder, [0] * 16)
        )

    make()
    for wrong in ({"size": 256}, {"decoder": 2}, {"k": 70000, "group": 0}, {"group": -1}, {"n": -1}):
        with pytest.raises(ValueError):
            make(**wrong)


def test_sums_of_groups(native, rng):
    """What the quantization kernel leaves for zero points: seen through results that are those sums alone."""
    for k, group in ((640, 32), (640, 64), (700, 96), (1030, 128), (3000, 1024), (333, 24)):
        groups = -(-k // group)
        for g in {0, groups // 2, groups - 1}:
            scale = np.zeros((1, groups), np.float32)
            scale[0, g] = 1
            zeros = np.full((1, groups), -1, np.int16)
            w = qk.IntWeight.pack(np.zeros((1, k), np.int8), scale, zeros, 4, group)
            codes = rng.integers(-127, 128, (3, k)).astype(np.float32)
            quant = qk.InputQuant(granularity="tensor", scale=1.0)
            y = qk.linear(torch.from_numpy(codes), w, input_quant=quant, backend="cuda")
            assert_same(y[:, 0].numpy(), codes[:, g * group : (g + 1) * group].sum(1))


def test_the_scratch_memory_is_as_long_as_said(native, rng):
    block, facts = cuda_int4.int4_block(MAKERS["zero points"](rng, 5, 70, 32, np.ones((5, 3), np.float32)))
    held = torch.from_numpy(block)
    w = native.Int4Weight(0, held.data_ptr(), held.numel(), held, 5, 70, *facts)
    x, out = torch.zeros(3, 70), torch.zeros(3, 5)
    size = w.scratch_bytes(3)
    memory = torch.empty(size, dtype=torch.uint8)
    arguments = (0, x.data_ptr(), 0, 3, 70, *cuda.quantization(qk.InputQuant()), 0, 0, 0, out.data_ptr())
    w.linear(*arguments, memory.data_ptr(), size)
    with pytest.raises(ValueError, match="scratch memory is too small"):
        w.linear(*arguments, memory.data_ptr(), size - 1)
