"""Formats whose codes index a table: PowerWeight, LogWeight, FloatWeight, CodebookWeight; lookup() of every format."""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers import assert_same, garbage

import qkernels as qk
from qkernels.formats.codebook import NF4, lloyd
from qkernels.formats.coded import nearest

MINIFLOATS = {
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 64), (7, 50), (17, 131), (4, 3, 3, 3)]
MAKERS = {
    **{f"power{b}": lambda W, b=b, **o: qk.PowerWeight.quantize(W, b, 0.5, **o) for b in (2, 3, 4, 8)},
    "power5, 0.7": lambda W, **o: qk.PowerWeight.quantize(W, 5, 0.7, **o),
    **{f"log{b}": lambda W, b=b, **o: qk.LogWeight.quantize(W, b, **o) for b in (2, 3, 4, 8)},
    **{
        f"{k} {s}": lambda W, k=k, s=s, **o: qk.FloatWeight.quantize(W, k, scale_kind=s, **o)
        for k in MINIFLOATS
        for s in ("float32", "e8m0", "e4m3")
    },
    "nf4": lambda W, **o: qk.CodebookWeight.quantize(W, 4, "nf4", **o),
    **{f"means{b}": lambda W, b=b, **o: qk.CodebookWeight.quantize(W, b, **o) for b in (1, 3, 4)},
}
INTEGERS = {
    "int3": lambda W, **o: qk.IntWeight.quantize(W, 3, symmetric=False, **o),
    "int8": lambda W, **o: qk.IntWeight.quantize(W, 8, **o),
    "mixed": lambda W, **o: qk.MixedIntWeight.quantize(W, 4, **o),
}


def weights(rng, shape):
    """Numbers over four orders of magnitude, a row of zeros, a row that is tiny."""
    W = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 2, shape)).astype(np.float32)
    if shape[0] > 3:
        W[1], W[2] = 0, W[2] * 2.0**-120
    return W


def same_weight(a, b):
    assert type(a) is type(b) and a.shape == b.shape and a.options() == b.options()
    assert a.arrays().keys() == b.arrays().keys()
    for name, array in a.numpy().arrays().items():
        assert_same(b.numpy().arrays()[name], array)


def pack_again(w):
    """The same weight from its codes."""
    options = {name: getattr(w, name) for name in ("group_size", "input_scale")}
    codes = w.codes().reshape(w.shape)
    if isinstance(w, qk.PowerWeight):
        return qk.PowerWeight.pack(codes, w.scale, w.bits, w.exponent, **options)
    if isinstance(w, qk.LogWeight):
        return qk.LogWeight.pack(codes, w.scale, w.bits, **options)
    if isinstance(w, qk.CodebookWeight):
        return qk.CodebookWeight.pack(codes, w.codebook, w.scale, w.bits, **options)
    options.update(scale_kind=w.scale_kind, tensor_scale=w.tensor_scale)
    return qk.FloatWeight.pack(codes, w.scale, w.kind, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", MAKERS)
def test_pack_of_codes_is_the_weight(make, shape, rng):
    W = weights(rng, shape)
    s = rng.uniform(0.5, 2, shape[1]).astype(np.float32)
    for options in ({}, {"group_size": 16}, {"granularity": "tensor"}, {"input_scale": s}):
        w = MAKERS[make](W, **options)
        assert w.shape == shape and w.dense().dtype == np.float32
        assert np.isfinite(w.dense()).all()
        assert (w.input_scale is None) == ("input_scale" not in options)
        same_weight(w, pack_again(w))
        t = MAKERS[make](torch.from_numpy(W), **options)
        assert all(torch.is_tensor(a) for a in (t.packed, t.scale, t.codes(), t.dense()) if a is not None)
        same_weight(w, t)
        same_weight(t, pack_again(t))
        assert_same(t.dense().numpy(), w.dense())


@pytest.mark.parametrize("shape", [s for s in SHAPES if np.prod(s)], ids=str)
@pytest.mark.parametrize("make", {**MAKERS, **INTEGERS})
def test_lookup_is_the_weight(make, shape, rng):
    """Also of convolutions, whose input_scale (I,) becomes (K,)."""
    W, s = weights(rng, shape), rng.uniform(0.5, 2, shape[1]).astype(np.float32)
    for options in ({"input_scale": s}, {"group_size": 16, "input_scale": s}):
        if make == "mixed":
            options.pop("group_size", None)
        w = {**MAKERS, **INTEGERS}[make](W, **options)
        found = w.lookup()
        n, k = w.matrix_shape
        assert found.index.shape == (n, k) and found.index.dtype == np.uint8
        assert found.index.max(initial=0) < 2**found.bits and found.table.shape[1] == 2**found.bits
        assert found.table.dtype == found.scale.dtype == np.float32 and np.isfinite(found.table).all()
        dense = w.dense().reshape(n, k)
        offset = 0 if found.offset is None else found.per_code(np.abs(found.offset)) / found.input_scale
        assert_same(found.dense(), dense.astype(np.float64), (np.abs(dense) + offset) * 3e-7 + 1e-37)


@pytest.mark.parametrize("shape", [(5, 19), (3, 2, 3, 3)], ids=str)
def test_lookup_of_signs(shape, rng):
    for w in (qk.BinaryWeight.quantize(weights(rng, shape)), qk.TernaryWeight.quantize(weights(rng, shape))):
        assert_same(w.lookup().dense(), w.dense().reshape(w.matrix_shape).astype(np.float64), 0.0)
        t = type(w)(*[torch.from_numpy(a) for a in w.arrays().values()], w.shape)
        assert_same(t.lookup().index, w.lookup().index)


GOLDEN = {
    "power": (qk.PowerWeight.pack([[-8, -1, 0, 7, 3]], 2.0), "f87003", [-128, -2, 0, 98, 18]),
    "log": (qk.LogWeight.pack([[7, 15, 1, 0, 14]], 2.0), "f7010e", [2, -2, 1 / 32, 0, -1]),
    "log3": (qk.LogWeight.pack([[1, 2, 3, 7, 4]], 1.0, bits=3), "d14e", [0.25, 0.5, 1, -1, 0]),
    "e2m1": (
        qk.FloatWeight.pack([[7, 9, 2, 0, 13]], 1.0, "e2m1"),
        "97020d",
        [6, -0.5, 1, 0, -3],
    ),
    "e4m3": (
        qk.FloatWeight.pack([[0x7E, 0x38, 0x81, 0]], [[128]], scale_kind="e8m0"),
        "7e388100",
        [896, 2, -0.00390625, 0],
    ),
    "e5m2": (
        qk.FloatWeight.pack([[0x7B, 0x3C, 0x81]], [[0x40]], "e5m2", scale_kind="e4m3", tensor_scale=0.5),
        "7b3c81",
        [57344, 1, -(2.0**-16)],
    ),
    "codebook": (
        qk.CodebookWeight.pack([[3, 0, 1, 2, 3]], [-1, 0, 0.5, 2], 2.0, bits=2),
        "9303",
        [4, -2, 0, 1, 4],
    ),
    "codebook1": (
        qk.CodebookWeight.pack([[1, 0, 0, 1], [1, 1, 1, 0]], [[-1, 3], [5, 7]], bits=1),
        "0907",
        [3, -1, -1, 3, 7, 7, 7, 5],
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_bytes(case):
    w, packed, values = GOLDEN[case]
    assert w.packed.tobytes().hex() == packed and w.dense().ravel().tolist() == values


def test_int_tables():
    """int8 numbers times a multiplier are the table exactly, for the formats that an integer core can take."""
    q = np.array([[1]])
    square = qk.PowerWeight.pack(q, 1.0).int_table()[0]
    assert square.tolist() == [0, 1, 4, 9, 16, 25, 36, 49, -64, -49, -36, -25, -16, -9, -4, -1]
    e2m1 = qk.FloatWeight.pack(q, 1.0, "e2m1").int_table()
    assert e2m1[1] == 0.5 and e2m1[0].tolist()[:8] == [0, 1, 2, 3, 4, 6, 8, 12]
    log = qk.LogWeight.pack(q, 1.0).int_table()
    assert log[1] == 2.0**-6 and log[0].tolist()[:8] == [0, 1, 2, 4, 8, 16, 32, 64]
    integers = qk.CodebookWeight.pack(q, [-128, 127, 3, 0], bits=2)
    exact = [qk.PowerWeight.pack(q, 1.0, b, a) for b in (2, 3, 4) for a in (0.5, 1.0)]
    exact += [qk.LogWeight.pack(q, 1.0, b) for b in (2, 3, 4)] + [integers]
    for w in exact:
        ints, multiplier = w.int_table()
        assert ints.dtype == np.int8 and ints.shape == (2**w.bits,) and isinstance(multiplier, float)
        assert_same(ints.astype(np.float32) * np.float32(multiplier), w.lookup().table[0])
    for w in (
        qk.PowerWeight.pack(q, 1.0, 5),
        qk.PowerWeight.pack(q, 1.0, 4, 0.6),
        qk.LogWeight.pack(q, 1.0, 5),
        qk.FloatWeight.pack(q, 1.0, "e4m3"),
        qk.CodebookWeight.pack(q, [-128, 128, 3, 0], bits=2),
        qk.CodebookWeight.pack(q, [0.5, 1, 3, 0], bits=2),
        qk.CodebookWeight.pack(np.array([[1], [1]]), [[1, 2], [3, 4]], bits=1),
        qk.IntWeight.pack(q, 1.0, bits=4),
    ):
        assert w.int_table() is None


@pytest.mark.parametrize("kind", MINIFLOATS)
def test_every_float_code_is_the_oracles(kind, rng):
    """ml_dtypes for all codes; its NaN and infinite ones are refused."""
    dtype, bits = MINIFLOATS[kind], 4 if kind == "e2m1" else 8
    values = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float32)
    good = np.isfinite(values)
    codes = np.arange(2**bits)[good][None]
    dense = qk.FloatWeight.pack(codes, 1.0, kind).dense()[0]
    assert_same(dense, values[good])
    assert_same(np.signbit(dense), np.signbit(values[good]))
    for code in np.arange(2**bits)[~good]:
        with pytest.raises(qk.FormatError, match=rf"code \[1, 2\] is {int(code):#04x}"):
            qk.FloatWeight.pack([[0, 1, 2], [3, 4, code]], 1.0, kind)


@pytest.mark.parametrize("kind", MINIFLOATS)
def test_float_rounding_is_the_oracles(kind, rng):
    """Random numbers, all midpoints and their neighbours: to nearest even; what is larger saturates."""
    dtype = MINIFLOATS[kind]
    largest = np.float32(ml_dtypes.finfo(dtype).max)
    values = np.sort(qk.FloatWeight.pack([[1]], 1.0, kind).lookup().table[0])
    mids = (values[1:] + values[:-1]) / 2
    x = np.concatenate([mids, np.nextafter(mids, np.float32(1e9)), np.nextafter(mids, np.float32(-1e9))])
    x = np.concatenate([x, values, largest * rng.uniform(-1, 1, 3000).astype(np.float32)])
    x = np.concatenate([x, (2.0 ** rng.uniform(-20, 2, 3000)).astype(np.float32), [largest]])
    w = qk.FloatWeight.quantize(x[None].astype(np.float32), kind)
    assert w.scale.tolist() == [[1.0]]
    assert_same(w.codes()[0], x.astype(np.float32).astype(dtype).view(np.uint8))


def test_mx_blocks(rng):
    """OCP MX: powers of two by the exponent of the largest; 7 in a block of scale 1 saturates to 6."""
    W = np.zeros((2, 40), np.float32)
    W[0, 0], W[0, 33], W[1, 5], W[1, 39] = 7, -0.3, 2.0**-60, 3e38
    w = qk.FloatWeight.quantize(W, "e2m1", scale_kind="e8m0")
    assert w.group_size == 32 and w.scale.tolist() == [[127, 123], [65, 252]]
    assert w.scale.dtype == np.uint8
    d = w.dense()
    assert d[0, 0] == 6 and d[0, 33] == -0.25 and d[1, 5] == 2.0**-60 and d[1, 39] == 2.0**127 * 1.5
    scale = np.arange(255)[None]
    w = qk.FloatWeight.pack(np.full((1, 255 * 16), 2), scale, "e2m1", 16, scale_kind="e8m0")
    expected = np.arange(255, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    assert_same(w.dense()[0, ::16].astype(np.float64), expected)


def test_nvfp4_blocks(rng):
    W = weights(rng, (6, 50))
    w = qk.FloatWeight.quantize(W, "e2m1", scale_kind="e4m3")
    amax = np.abs(W).max()
    assert w.group_size == 16 and w.scale.shape == (6, 4) and w.scale.dtype == np.uint8
    assert w.tensor_scale.shape == (1, 1) and w.tensor_scale[0, 0] == np.float32(float(amax) / (448 * 6))
    padded = np.pad(W, ((0, 0), (0, 14))).reshape(6, 4, 16)
    expected = np.abs(padded).max(2) / np.float32(6) / w.tensor_scale[0, 0]
    assert_same(w.scale, expected.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))
    s = np.repeat(w.float_scale(), 16, 1)[:, :50]
    codes = np.where(s > 0, W / np.where(s > 0, s, 1), 0).clip(-6, 6).astype(ml_dtypes.float4_e2m1fn)
    assert_same(w.dense(), codes.astype(np.float32) * s)
    assert not w.dense()[1:3].any() and w.dense()[0].any()


@pytest.mark.parametrize("make", [m for m in MAKERS if not m.startswith("power") and "e8m0" not in m])
def test_quantize_is_the_nearest_representable(make, rng):
    W = weights(rng, (6, 70))
    W[1:3] = rng.uniform(-1, 1, (2, 70))
    options = {} if make.startswith("means") else {"group_size": 20}
    w = MAKERS[make](W, **options)
    found = w.lookup()
    scale = np.broadcast_to(found.per_code(found.scale), W.shape).astype(np.float64)
    values = scale[..., None] * found.table[0].astype(np.float64)
    best = np.abs(values - W[..., None]).min(-1)
    error = np.abs(found.dense() - W)
    assert (error <= best + 1e-6 * np.abs(W)).all()
    assert (error > 0).any()


def test_power_rounds_the_power(rng):
    """Thesis eq. 3.13 by hand: max|w| 8, a = 1/2, 4 bits: 7 sqrt(|w| / 8)."""
    W = np.array([[8.0, -8.0, 2.0, -0.5, 0.04, 0.0, 0.042]], np.float32)
    w = qk.PowerWeight.quantize(W, 4, 0.5)
    assert w.codes().tolist() == [[7, -7, 4, -2, 0, 0, 1]]  # 3.5 is a tie, to even
    assert w.scale[0, 0] == np.float32(8 / 49)
    assert_same(w.dense(), (np.sign(w.codes()) * w.codes().astype(np.float32) ** 2) * w.scale)
    for a in (0.3, 0.5, 0.77, 1.0, 2.5):
        W = rng.standard_normal((5, 33)).astype(np.float32)
        w = qk.PowerWeight.quantize(W, 6, a)
        amax = np.abs(W).max(1, keepdims=True).astype(np.float64)
        expected = 31 * (np.abs(W.astype(np.float64)) / amax) ** a
        assert (np.abs(np.abs(w.codes()) - expected) <= 0.5 + 1e-9).all() and np.abs(w.codes()).max() == 31
        assert_same(np.abs(w.dense()).max(1, keepdims=True), amax, 1e-6 * amax)


def test_power_of_one_is_uniform(rng):
    W = rng.standard_normal((9, 40)).astype(np.float32)
    for bits in (2, 4, 8):
        a, b = qk.PowerWeight.quantize(W, bits, 1.0), qk.IntWeight.quantize(W, bits)
        assert (a.codes() == b.codes()).mean() > 0.99
        assert_same(a.scale, b.scale, 1e-6 * b.scale)


def test_exponent_search(rng):
    """Thesis eq. 3.14 and table 3.6: the best power is ahead of uniform and of logarithmic codes on bell curves."""

    def error(w, W):
        return np.linalg.norm(w.dense() - W)

    W = rng.standard_normal((64, 200)).astype(np.float32)
    best = qk.PowerWeight.quantize(W)
    assert 0.4 < best.exponent < 0.95
    assert error(best, W) < 0.95 * error(qk.IntWeight.quantize(W, 4), W)
    assert error(best, W) < 0.95 * error(qk.LogWeight.quantize(W, 4), W)
    grid = min(error(qk.PowerWeight.quantize(W, 4, a), W) for a in np.arange(0.3, 1.5, 0.02))
    assert error(best, W) < 1.005 * grid
    V = rng.laplace(size=(30, 100)).astype(np.float32)
    for options in ({"bits": 3}, {"group_size": 32}, {"granularity": "tensor"}):
        a = qk.search_exponent([W, torch.from_numpy(V)], **options)

        def total(a, options=options):
            return sum(error(qk.PowerWeight.quantize(w, exponent=a, **options), w) for w in (W, V))

        assert total(a) < 1.01 * min(map(total, np.arange(0.3, 1.5, 0.05)))
    assert qk.search_exponent(W) == qk.search_exponent([W]) == best.exponent


def test_search_without_scipy():
    program = """
import sys
sys.modules["scipy"] = sys.modules["scipy.optimize"] = None
import numpy as np, qkernels as qk
assert qk.PowerWeight.quantize(np.ones((2, 3)), 4, 0.5).dense().all()
try:
    qk.PowerWeight.quantize(np.ones((2, 3)))
except qk.UnsupportedError as e:
    assert "pip install scipy" in str(e) and "exponent=0.5" in str(e)
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_log_values():
    w = qk.LogWeight.quantize(np.array([[1, -0.76, 0.75, 0.74, 1 / 64, 0.0118, -1 / 128, 0.0]], np.float32))
    assert w.dense().tolist() == [[1, -1, 0.5, 0.5, 1 / 64, 1 / 64, 0, 0]]  # ties to the even m: 6, 0
    for bits in range(2, 9):
        table = qk.LogWeight.pack([[1]], 1.0, bits).lookup().table
        assert_same(table.astype(ml_dtypes.bfloat16).astype(np.float32), table)
        assert len(np.unique(table)) == 2**bits - 1 and table.max() == 1


def test_nf4_is_the_published_table(rng):
    """Dettmers et al. 2023: 16 quantiles; blocks of 64 by max|w|."""
    from scipy.stats import norm

    edge = 0.9677083  # of bitsandbytes' create_normal_map
    high, low = norm.ppf(np.linspace(edge, 0.5, 9))[:-1], -norm.ppf(np.linspace(edge, 0.5, 8))[:-1]
    quantiles = np.sort(np.concatenate([high, low, [0]]))
    assert_same(NF4, (quantiles / quantiles.max()).astype(np.float32), 1e-5)
    W = weights(rng, (6, 150))
    w = qk.CodebookWeight.quantize(W, 4, "nf4")
    assert w.group_size == 64 and w.scale.shape == (6, 3) and w.codebook.shape == (1, 16)
    padded = np.pad(W, ((0, 0), (0, 42))).reshape(6, 3, 64)
    amax = np.abs(padded).max(2)
    assert_same(w.scale, np.where(amax < 2.0**-100, np.float32(1), amax))
    codes = np.abs(padded[..., None] / w.scale[..., None, None] - NF4).argmin(-1).reshape(6, 192)[:, :150]
    assert_same(w.codes(), codes.astype(np.uint8))


def test_means(rng):
    """One Lloyd step changes nothing, and no table of the same size that scipy or numpy's quantiles give is better."""
    W = rng.laplace(size=(8, 500)).astype(np.float32)
    for granularity, group_size, rows in (
        ("tensor", None, W.reshape(1, -1)),
        ("channel", None, W),
        ("group", 100, W.reshape(-1, 100)),
        (None, 100, W.reshape(-1, 100)),
    ):
        w = qk.CodebookWeight.quantize(W, 3, granularity=granularity, group_size=group_size)
        assert w.codebook.shape == (len(rows), 8) and w.scale is None
        for i in (0, len(rows) - 1):
            code = w.codes().reshape(rows.shape)[i]
            means = np.array([rows[i][code == c].astype(np.float64).mean() for c in range(8)])
            assert_same(w.codebook[i], means.astype(np.float32), 1e-3)
            assert (np.abs(rows[i][:, None] - w.codebook[i]).argmin(1) == code).all()
    best = np.linalg.norm(qk.CodebookWeight.quantize(W, 4).dense() - W)
    assert best < 0.9 * np.linalg.norm(qk.PowerWeight.quantize(W, 4, granularity="tensor").dense() - W)


def test_means_of_few_values_are_these(rng):
    values = np.array([-3.0, -1.0, 0.25, 8.0], np.float32)
    W = rng.choice(values, (6, 90))
    for options in ({}, {"granularity": "channel"}, {"group_size": 40}):  # the last group is short
        assert_same(qk.CodebookWeight.quantize(W, 4, **options).dense(), W)
    assert_same(lloyd(np.full((2, 5), 7, np.float32), np.array([5, 2]), 4), np.full((2, 4), 7, np.float32))


def test_array_codebooks(rng):
    W = rng.standard_normal((5, 37)).astype(np.float32)
    table = np.array([0.5, -2.0, 0.0, 1.5], np.float32)  # in any order
    w = qk.CodebookWeight.quantize(W, 2, table)
    assert w.scale is None and w.codes().tolist() == np.abs(W[..., None] - table).argmin(-1).tolist()
    w = qk.CodebookWeight.quantize(W, 2, table, "channel")
    assert_same(w.scale, np.abs(W).max(1, keepdims=True) / np.float32(2))
    assert qk.CodebookWeight.quantize(W, 2, table, group_size=16).scale.shape == (5, 3)
    assert qk.CodebookWeight.quantize(W, 2, table, "tensor").scale.shape == (1, 1)


def test_nearest_is_exact(rng):
    for _ in range(50):
        values = np.sort(rng.standard_normal(rng.integers(2, 40)).astype(np.float32))
        mids = ((values[1:] + values[:-1]) / 2).astype(np.float32)
        x = np.concatenate(
            [rng.standard_normal(50).astype(np.float32), values, mids, np.nextafter(mids, np.float32(9))]
        )
        distance = np.abs(values.astype(np.float64) - x.astype(np.float64)[:, None])
        i = nearest(values, x)
        assert (distance[np.arange(x.size), i] == distance.min(1)).all()
    assert nearest(np.arange(5, dtype=np.float32), np.array([0.5, 1.5, 2.5, 3.5], np.float32)).tolist() == [
        0,
        2,
        2,
        4,
    ]


P = np.zeros((2, 2), np.uint8)
S = np.ones((2, 1), np.float32)
T = np.ones((1, 16), np.float32)
W = np.ones((2, 40), np.float32)
power, log, flt, book = qk.PowerWeight, qk.LogWeight, qk.FloatWeight, qk.CodebookWeight
REFUSED = {
    "power exponent": (lambda: power(P, S, 4, 0.06, None, (2, 3)), qk.ArgumentError, ["0.06", "1/16 to 4"]),
    "power nan": (lambda: power(P, S, 4, float("nan"), None, (2, 3)), qk.ArgumentError, ["nan", "1/16"]),
    "power text": (lambda: power.quantize(W, 4, "half"), qk.ArgumentError, ["'half'", "1/16..4"]),
    "power bits": (lambda: power.pack([[1]], 1.0, 9), qk.UnsupportedError, ["bits is 9", "2 to 8"]),
    "power code": (lambda: power.pack([[8]], 1.0), qk.FormatError, ["8..8", "-8..7"]),
    "power scale": (lambda: power.quantize(W * 1e-20, 8, 0.1), qk.ArgumentError, ["2**-126", "exponent"]),
    "power none": (lambda: qk.search_exponent([]), qk.ArgumentError, ["weights is empty"]),
    "padding": (lambda: log(P + 16, S, shape=(2, 3)), qk.FormatError, ["packed[0]", "4 highest bits"]),
    "padding3": (lambda: power(P + 128, S, 5, shape=(2, 3)), qk.FormatError, ["packed[0]", "1 highest"]),
    "no shape": (lambda: log(P, S), qk.FormatError, ["shape is None", "4 bits"]),
    "packed": (lambda: log(P, S, shape=(2, 5)), qk.FormatError, ["packed", "(2, 2)", "(2, 3)"]),
    "packed dtype": (lambda: log(P.view(np.int8), S, shape=(2, 3)), qk.DTypeError, ["packed", "int8"]),
    "two kinds": (lambda: log(P, torch.ones(2, 1), shape=(2, 3)), qk.DTypeError, ["NumPy and of torch"]),
    "log code": (lambda: log.pack([[16]], 1.0), qk.FormatError, ["16..16", "0..15"]),
    "log float code": (lambda: log.pack([[1.5]], 1.0), qk.DTypeError, ["float64", "integers"]),
    "log scale": (lambda: log(P, -S, shape=(2, 3)), qk.FormatError, ["scale[0, 0] is -1"]),
    "log groups": (lambda: log(P, S, 4, 8, (2, 3)), qk.UnsupportedError, ["group_size is 8", "16"]),
    "input_scale": (
        lambda: log(P, S, shape=(2, 3), input_scale=np.zeros(3, np.float32)),
        qk.FormatError,
        ["input_scale[0] is 0.0"],
    ),
    "kind": (lambda: flt(P, S, "e3m4"), qk.ArgumentError, ["'e3m4'", "'e4m3', 'e5m2', 'e2m1'"]),
    "kind dtype": (lambda: flt(P, S, None), qk.DTypeError, ["kind is None", "'e4m3'"]),
    "scale kind": (lambda: flt.quantize(W, scale_kind="mx"), qk.ArgumentError, ["'mx'", "'e8m0'"]),
    "scale dtype": (lambda: flt(P, S, scale_kind="e8m0"), qk.DTypeError, ["scale has dtype float32"]),
    "scale nan": (
        lambda: flt(P, np.array([[3], [255]], np.uint8), scale_kind="e8m0"),
        qk.FormatError,
        ["scale[1, 0] is 0xff", "e8m0: 0..0xfe"],
    ),
    "scale sign": (
        lambda: flt.pack([[1]], 0x81, scale_kind="e4m3", tensor_scale=1.0),
        qk.FormatError,
        ["0x81", "0..0x7e"],
    ),
    "scale bits": (lambda: flt.pack([[1]], 0.5, scale_kind="e8m0"), qk.DTypeError, ["scale", "float64"]),
    "no tensor_scale": (
        lambda: flt.pack([[1]], 1, scale_kind="e4m3"),
        qk.FormatError,
        ["tensor_scale is None", "'e4m3'"],
    ),
    "tensor_scale": (lambda: flt.pack([[1]], 1.0, tensor_scale=2.0), qk.FormatError, ["tensor_scale"]),
    "tensor_scale inf": (
        lambda: flt.pack([[1]], 1, scale_kind="e4m3", tensor_scale=np.inf),
        qk.FormatError,
        ["tensor_scale", "inf"],
    ),
    "tensor_scale shape": (
        lambda: flt.pack([[1]], 1, scale_kind="e4m3", tensor_scale=[1, 2]),
        qk.FormatError,
        ["tensor_scale", "(2, 1)", "(1, 1)"],
    ),
    "nan code": (lambda: flt.pack([[0x7F]], 1.0), qk.FormatError, ["0x7f", "e4m3", "0x7e"]),
    "nan code file": (lambda: flt(P + 0xFD, S, "e5m2"), qk.FormatError, ["0xfd", "e5m2"]),
    "table shape": (lambda: book(P, T[:, :8], shape=(2, 3)), qk.FormatError, ["(1, 8)", "(T, 16)", "1, 2"]),
    "table rows": (
        lambda: book(P, np.ones((3, 16), np.float32), shape=(2, 3)),
        qk.FormatError,
        ["(3, 16)", "one of 1, 2"],
    ),
    "table nan": (lambda: book(P, T * np.nan, shape=(2, 3)), qk.FormatError, ["codebook[0, 0] is nan"]),
    "table none": (lambda: book(P, None, shape=(2, 3)), qk.DTypeError, ["codebook is None"]),
    "book bits": (lambda: book.pack([[1]], T, bits=0), qk.UnsupportedError, ["bits is 0", "1 to 8"]),
    "book scale": (lambda: book(P, T, S[:1] * np.inf, shape=(2, 3)), qk.FormatError, ["scale[0, 0] is inf"]),
    "book name": (lambda: book.quantize(W, 4, "fp4"), qk.ArgumentError, ["'fp4'", "'nf4'"]),
    "nf4 bits": (lambda: book.quantize(W, 3, "nf4"), qk.ArgumentError, ["bits=3", "4 bits"]),
    "book array": (lambda: book.quantize(W, 2, [1, 2, 3]), qk.ArgumentError, ["(3,)", "(4,)"]),
    "book zero": (lambda: book.quantize(W, 1, [0, 0], "tensor"), qk.ArgumentError, ["no entry"]),
    "book groups": (lambda: book.quantize(W, granularity="group"), qk.ArgumentError, ["group_size=None"]),
    "book both": (lambda: book.quantize(W, 4, None, "channel", 16), qk.ArgumentError, ["'channel'", "16"]),
    "granularity": (lambda: log.quantize(W, granularity="row"), qk.ArgumentError, ["'row'", "'channel'"]),
    "tensor groups": (lambda: log.quantize(W, 4, 16, "tensor"), qk.ArgumentError, ["group_size=16"]),
    "W": (lambda: flt.quantize(W * np.inf), qk.ArgumentError, ["W[0, 0]", "inf", "finite"]),
    "overflow": (lambda: flt.quantize(W * 1e30, input_scale=[1e30] * 40), qk.ArgumentError, ["rescale"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, error, fragments = REFUSED[case]
    with pytest.raises(error) as e:
        call()
    assert [f for f in fragments if f not in str(e.value)] == [], str(e.value)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_files(framework, rng, tmp_path):
    W = weights(rng, (6, 2, 3, 3))
    saved = {name: make(W) for name, make in MAKERS.items()}
    saved["spiq"] = qk.FloatWeight.quantize(W, "e2m1", input_scale=[0.5, 2], scale_kind="e4m3")
    saved["searched"] = qk.PowerWeight.quantize(W, 3)
    saved["grouped"] = qk.CodebookWeight.quantize(torch.from_numpy(W), 4, group_size=16)
    qk.save(tmp_path / "w", saved)
    loaded = qk.load(tmp_path / "w", framework)
    for name, w in saved.items():
        same_weight(w, loaded[name])
        assert torch.is_tensor(loaded[name].packed) == (framework == "torch")
        assert_same(np.asarray(loaded[name].dense()), np.asarray(w.dense()))


CLASSES = {"PowerWeight": power, "LogWeight": log, "FloatWeight": flt, "CodebookWeight": book}
ARGUMENTS = {
    "": "packed scale codebook bits kind exponent group_size shape input_scale scale_kind tensor_scale",
    "pack": "codes scale codebook bits kind exponent group_size input_scale scale_kind tensor_scale",
    "quantize": "W bits kind exponent codebook group_size granularity input_scale scale_kind",
}


@pytest.mark.parametrize("name", CLASSES)
def test_constructors_survive_any_argument(name, rng):
    """Whatever comes in: a weight that computes, or an error of this package that names the class."""
    import inspect

    good = {"codes": P, "W": W[:, :3], "packed": P, "scale": S, "shape": (2, 3), "codebook": T}
    built = 0
    for i in range(600):
        method = list(ARGUMENTS)[i % 3]
        make = getattr(CLASSES[name], method) if method else CLASSES[name]
        takes = [a for a in ARGUMENTS[method].split() if a in inspect.signature(make).parameters]
        arguments = {a: good[a] for a in takes if a in good}
        if name == "FloatWeight" and method == "":
            arguments["shape"] = (2, 2)
        if name == "PowerWeight" and method == "quantize":
            arguments["exponent"] = 0.6
        for a in rng.choice(takes, rng.integers(3), replace=False):
            arguments[a] = garbage(rng)
        try:
            with np.errstate(all="ignore"):
                assert make(**arguments).dense() is not None
            built += 1
        except (qk.ArgumentError, qk.DTypeError, qk.FormatError, qk.UnsupportedError) as e:
            assert str(e).startswith((name, "search_exponent"))
    assert 150 < built < 550
