"""Narrow codes, groups and mixed widths: every width and kernel against the reference, bit for bit."""

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels import registry
from qkernels.reference.linear import fused_multiply_add

# M, K, N: what awkward shapes do to planes, groups and tiles; M on both sides of the largest register tile
SHAPES = [
    (0, 20, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (1, 64, 64),
    (2, 67, 65),
    (5, 130, 129),
    (6, 33, 17),
    (7, 256, 70),
    (40, 97, 130),
]
LONG = [(1, 20000, 5), (7, 9000, 66)]
GROUPS = [None, 16, 18, 32, 64, 1000]
GEMM = ("IntWeight", "MixedIntWeight")
QUANTS = {
    "w8a8": qk.InputQuant(),
    "unsigned": qk.InputQuant(signed=False),
    "static": qk.InputQuant(granularity="tensor", scale=0.04, zero_point=130, signed=False),
    "a4": qk.InputQuant(bits=4),
    "a4 unsigned": qk.InputQuant(bits=4, signed=False),
    "a4 static": qk.InputQuant(bits=4, granularity="tensor", scale=0.3, zero_point=-3),
    "a3 tensor": qk.InputQuant(bits=3, granularity="tensor"),
}


def rows(op, *formats):
    found = [k for k in registry.kernels(op) if k.format in (formats or GEMM)]
    return pytest.mark.parametrize("kernel", found, ids=str)


def extreme(rng, shape, bits):
    """Codes over the full range, both extremes among them."""
    half = 2 ** (bits - 1)
    q = rng.integers(-half, half, shape).astype(np.int8)
    if q.size > 1:
        q.flat[0], q.flat[-1] = -half, half - 1
    return q


def int_weight(rng, n, k, bits, group_size=None, zero_point=False, input_scale=False, per_tensor=False):
    count = -(-k // group_size) if group_size is not None and group_size < k else 1
    shape = (1, 1) if per_tensor else (n, count)
    half = 2 ** (bits - 1)
    zp = None
    if zero_point:
        most = 150 if bits == 8 else min(128 - half, half + 2)
        zp = rng.integers(-most, most, shape)
    return qk.IntWeight.pack(
        extreme(rng, (n, k), bits),
        rng.uniform(1e-3, 1e-1, shape).astype(np.float32),
        zero_point=zp,
        bits=bits,
        group_size=group_size,
        input_scale=rng.uniform(0.1, 3, k).astype(np.float32) if input_scale else None,
    )


def mixed_weight(rng, n, k, widths=(2, 3, 4, 5, 6, 7, 8), input_scale=False):
    bits = rng.choice(widths, n) if n else np.empty(0, np.int64)
    codes = np.array([extreme(rng, k, int(b)) for b in bits]).reshape(n, k).astype(np.int8)
    scale = rng.uniform(1e-3, 1e-1, n).astype(np.float32)
    s = rng.uniform(0.1, 3, k).astype(np.float32) if input_scale else None
    return qk.MixedIntWeight.pack(codes, scale, bits, input_scale=s)


def activations(rng, m, k):
    x = rng.standard_normal((m, k)).astype(np.float32) * np.float32(3)
    if x.size > 2:
        x.flat[rng.integers(x.size)] = -20
    return x


def poison(rng):
    """Results written by nobody are noticed: fill what the allocator will hand out."""
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), float("nan"))
        np.full(size, np.nan)


def weight_of(kernel, rng, n, k, bits, **options):
    if kernel.format == "MixedIntWeight":
        return mixed_weight(rng, n, k, input_scale=options.get("input_scale", False))
    return int_weight(rng, n, k, bits, **options)


@rows("matmul_int")
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero_point", [False, True])
def test_matmul_int(kernel, bits, zero_point, rng):
    for m, k, n in SHAPES + LONG:
        for dtype in (np.int8, np.uint8):
            w = weight_of(kernel, rng, n, k, bits, zero_point=zero_point)
            x = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (m, k)).astype(dtype)
            x_zp = int(rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1))
            zp = 0 if w.zero_point is None else w.zero_point.astype(np.int64)
            poison(rng)
            expected = (x.astype(np.int64) - x_zp) @ (w.codes().astype(np.int64) - zp).T
            assert_same(kernel(x, w, x_zp), expected.astype(np.int32))


@rows("linear_requant")
@pytest.mark.parametrize("bits", range(2, 9))
def test_linear_requant(kernel, bits, rng):
    for m, k, n in SHAPES[3:]:
        w = weight_of(kernel, rng, n, k, bits, zero_point=bits < 8)
        x = rng.integers(-128, 128, (m, k)).astype(np.int8)
        r = qk.Requant.from_scale(rng.uniform(1e-4, 1e-3, n), zero_point=3, rounding="double")
        bias = rng.integers(-999, 999, n).astype(np.int32)
        poison(rng)
        y = kernel(x, w, r, bias=bias, x_zero_point=5)
        expected = qk.reference.linear_requant(x, w.codes(), r, bias, 5, w.zero_point)
        assert_same(y, expected)


@rows("linear")
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("bits", range(2, 9))
def test_linear(kernel, quant, bits, rng):
    for group_size in GROUPS if kernel.format == "IntWeight" else [None]:
        for m, k, n in SHAPES:
            grouped = group_size is not None and group_size < k
            w = weight_of(
                kernel,
                rng,
                n,
                k,
                bits,
                group_size=group_size,
                zero_point=bool(rng.integers(2)) and not (bits == 8 and grouped),
                input_scale=bool(rng.integers(2)),
            )
            x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
            poison(rng)
            y = kernel(x, w, bias, input_quant=QUANTS[quant])
            assert_same(y, qk.reference.linear_int(x, w, QUANTS[quant], bias))


@rows("linear")
def test_long_rows_and_threads(kernel, rng):
    """Several blocks of K, groups in each, and more rows than a chunk; any number of threads."""
    if kernel.backend == "reference":
        pytest.skip("is what the others are compared with")
    x = activations(rng, 200, 9000)
    weights = [weight_of(kernel, rng, 70, 9000, 4)]
    if kernel.format == "IntWeight":
        weights += [int_weight(rng, 70, 9000, 4, 64), int_weight(rng, 70, 9000, 3, 70, zero_point=True)]
        weights += [int_weight(rng, 70, 9000, 8, 4000)]
    before = torch.get_num_threads()
    try:
        for w in weights:
            expected = qk.reference.linear_int(x, w, qk.InputQuant())
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                for m in (1, 5, 6, 200):
                    assert_same(kernel(x[:m], w, input_quant=qk.InputQuant()), expected[:m])
    finally:
        torch.set_num_threads(before)


@rows("linear")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_and_activations(kernel, dtype, rng):
    for w in (weight_of(kernel, rng, 33, 70, 4), weight_of(kernel, rng, 128, 128, 4, group_size=32)):
        x = torch.from_numpy(activations(rng, 3, w.shape[1])).to(getattr(torch, dtype))
        bias = torch.randn(w.shape[0])
        y = kernel(x, w, bias, "relu6", qk.InputQuant())
        expected = qk.reference.linear_int(x.float().numpy(), w, qk.InputQuant(), bias.numpy(), "relu6")
        assert_same(y, torch.from_numpy(expected).to(x.dtype))


def test_fused_multiply_add_rounds_once(rng):
    """Against exact rationals, on sums chosen to lie near ties of float32."""
    from fractions import Fraction

    a = (rng.integers(1, 2**24, 4000) * 2.0 ** rng.integers(-20, 5, 4000)).astype(np.float32)
    b = rng.standard_normal(4000).astype(np.float32)
    c = (-a * b * (1 + rng.choice([0, 2.0**-23, 2.0**-24, 1.0, 3e7], 4000))).astype(np.float32)
    got = fused_multiply_add(a, b, c)
    for i in range(len(a)):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        error = abs(Fraction(float(got[i])) - exact)
        for way in (-np.inf, np.inf):
            neighbour = np.nextafter(got[i], np.float32(way))
            other = abs(Fraction(float(neighbour)) - exact)
            assert error < other or (error == other and got[i : i + 1].view(np.int32)[0] % 2 == 0), i


def test_group_sizes_of_a_whole_row_are_not_grouped(rng):
    W = rng.standard_normal((5, 40)).astype(np.float32)
    per_channel = qk.IntWeight.quantize(W, bits=4)
    for size in (40, 64):
        w = qk.IntWeight.quantize(W, bits=4, group_size=size)
        assert not w.is_grouped and w.scale.shape == (5, 1)
        assert_same(w.dense(), per_channel.dense())
    x = activations(rng, 2, 40)
    assert_same(
        qk.linear(x, w, input_quant=qk.InputQuant()), qk.linear(x, per_channel, input_quant=qk.InputQuant())
    )


def test_grouped_codes_have_no_integer_result(rng):
    w, r = int_weight(rng, 8, 64, 4, 16), qk.Requant(2**30, 8)
    x = np.zeros((1, 64), np.int8)
    for call in (lambda: qk.matmul_int(x, w), lambda: qk.linear_requant(x, w, r)):
        with pytest.raises(qk.UnsupportedError, match="group_size=16"):
            call()


def test_torch_layers_of_every_width(rng):
    for bits, group_size, quant in ((4, 64, 8), (3, 32, 8), (2, None, 8), (4, None, 4)):
        w = qk.IntWeight.quantize(torch.randn(96, 200), bits=bits, group_size=group_size)
        q = qk.InputQuant(bits=quant)
        layer = qk.nn.Linear(w, torch.randn(96), q)
        x = torch.randn(3, 200)
        y = layer(x)
        assert torch.equal(y, qk.linear(x, w, layer.bias, input_quant=q, backend="reference"))
        other = qk.nn.Linear(
            qk.IntWeight.quantize(torch.randn(96, 200), bits=bits, group_size=group_size), None, q
        )
        other.bias = torch.zeros(96)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), y)
        assert torch.equal(torch.compile(layer, fullgraph=True)(x), y)
