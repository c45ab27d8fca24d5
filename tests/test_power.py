"""Tables of integers and power codes on the integer core: every kernel against the reference, bit for bit."""

import math

import numpy as np
import pytest
import torch
from helpers import assert_same
from test_narrow import activations, int_weight, mixed_weight, poison

import qkernels as qk
from qkernels import cpu, registry
from qkernels.formats import WeightFormat
from qkernels.formats.lookup import Lookup
from qkernels.memory import aligned
from qkernels.ops.table import TABLE_FORMATS

SHAPES = [
    (0, 20, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (2, 3, 63),
    (3, 63, 65),
    (4, 65, 64),
    (5, 130, 129),
    (6, 64, 65),
    (7, 33, 63),
    (8, 67, 1),
    (9, 130, 65),
    (17, 97, 130),
    (130, 40, 66),
]
GROUPS = [None, 16, 18, 64]
POWERS = {
    "a4": qk.InputQuant(bits=4, power=0.5),
    "a4 unsigned": qk.InputQuant(bits=4, power=0.5, signed=False),
    "a4 static": qk.InputQuant(bits=4, power=0.5, granularity="tensor", scale=0.2),
    "a8": qk.InputQuant(power=0.5),
    "a8 unsigned": qk.InputQuant(power=0.5, signed=False),
    "a8 tensor": qk.InputQuant(power=0.5, granularity="tensor"),
    "a8 static": qk.InputQuant(power=0.5, granularity="tensor", scale=3e-4),
    "a5": qk.InputQuant(bits=5, power=0.5),
    "a7 unsigned": qk.InputQuant(bits=7, power=0.5, signed=False, granularity="tensor"),
    "a2": qk.InputQuant(bits=2, power=0.5),
}
UNIFORM = {
    "w8a8": qk.InputQuant(),
    "a4 uniform": qk.InputQuant(bits=4),
    "zero point": qk.InputQuant(granularity="tensor", scale=0.04, zero_point=130, signed=False),
}
QUANTS = {**POWERS, **UNIFORM}


def rows(op, *formats):
    found = [
        k for k in registry.kernels(op) if k.format in formats and k.tag is None and k.core != "gemm_float"
    ]
    return pytest.mark.parametrize("kernel", found, ids=str)


def few(kernel, shapes):
    """The reference compared with itself needs no more than to run."""
    return shapes[::4] if kernel.backend == "reference" else shapes


class Table(WeightFormat):
    """Any int8 table of up to 16 entries, under the name of a format that has one."""

    def __init__(self, index, table, scale, group_size, multiplier=1.0, input_scale=None):
        self.index, self.table, self.scale = index, table.astype(np.int8), scale
        self.group_size, self.multiplier, self.input_scale = group_size, multiplier, input_scale
        self.shape, self.bits = index.shape, int(math.log2(table.size))

    @property
    def is_grouped(self):
        return self.group_size is not None and self.group_size < self.shape[1]

    def int_table(self):
        return self.table, self.multiplier

    def lookup(self):
        values = self.table.astype(np.float32)[None] * np.float32(self.multiplier)
        size = self.group_size if self.is_grouped else None
        return Lookup(self.bits, self.index, values, self.scale, None, size, self.input_scale)

    def numpy(self):
        return self

    def integers(self):
        return self.table[self.index]


def table_weight(name, rng, n, k, bits=4, group_size=None, zero=None, input_scale=False):
    """Random tables, both ends of int8 among them; ``zero``: whether 0 is in (at any index) or not."""
    zero = bool(rng.integers(2)) if zero is None else zero
    table = rng.permutation(np.setdiff1d(np.arange(-127, 127), [0]))[: 2**bits]
    if bits > 1:
        table[rng.permutation(2**bits)[:2]] = -128, 127
    if zero:
        table[rng.integers(2**bits)] = 0
    count = -(-k // group_size) if group_size is not None and group_size < k else 1
    scale = rng.uniform(1e-3, 1e-1, (n, count)).astype(np.float32)
    s = rng.uniform(0.1, 3, k).astype(np.float32) if input_scale else None
    kind = type(name, (Table,), {})
    index = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
    return kind(index, table, scale, group_size, float(rng.choice([0.25, 1.0, 8.0])), s)


def test_reference_is_the_formula(rng):
    """In Python's integers: what is multiplied, and where it rounds."""
    for name, q in QUANTS.items():
        w = table_weight("PowerWeight", rng, 7, 33)
        x, bias = activations(rng, 5, 33), rng.standard_normal(7).astype(np.float32)
        codes, s = qk.quantize_activations(x, q, backend="reference")
        value = codes.astype(object)
        if q.power is not None:
            value = np.vectorize(lambda c: c * abs(c), otypes=[object])(value)
        acc = (value - (q.zero_point or 0)) @ w.integers().astype(object).T
        exact = np.vectorize(np.float32)(acc)
        expected = exact * (w.scale * np.float32(w.multiplier)).T * s.reshape(-1, 1) + bias
        assert_same(qk.reference.linear_int(x, w, q, bias), expected)
        assert q.is_split == (name.startswith(("a8", "a5", "a7")))


@pytest.mark.parametrize("signed", [True, False])
def test_split_covers_every_code(signed):
    q = np.arange(-127, 128) if signed else np.arange(256)
    values = qk.reference.power_values(q)
    assert (values == [int(c) * abs(int(c)) for c in q]).all()
    high, low, factor = qk.reference.split_power(values, signed)
    assert (factor * high + low == values).all()
    lo, hi = qk.InputQuant(power=0.5, signed=signed).operand_limits
    assert lo <= high.min() and high.max() <= hi and (lo, hi) == ((-126, 126) if signed else (0, 255))
    assert (low.min(), low.max()) == ((-64, 63) if signed else (0, 255)) or not signed
    assert lo <= low.min() and low.max() <= hi


# ---- tables ----------------------------------------------------------------------------------------------


@rows("linear", *TABLE_FORMATS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_tables(kernel, bits, rng):
    for group_size in GROUPS:
        for i, (m, k, n) in enumerate(few(kernel, SHAPES)):
            q = list(QUANTS.values())[(i + bits + (group_size or 0)) % len(QUANTS)]
            w = table_weight(kernel.format, rng, n, k, bits, group_size, input_scale=bool(rng.integers(2)))
            x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
            poison(rng)
            y = kernel(x, w, bias, "relu" if i % 2 else None, input_quant=q)
            assert_same(y, qk.reference.linear_int(x, w, q, bias, "relu" if i % 2 else None))


@rows("matmul_int", *TABLE_FORMATS)
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_matmul_int_of_tables(kernel, bits, rng):
    for m, k, n in few(kernel, [*SHAPES, (1, 20000, 5), (7, 9000, 66)]):
        for dtype in (np.int8, np.uint8):
            w = table_weight(kernel.format, rng, n, k, bits)
            info = np.iinfo(dtype)
            x = rng.integers(info.min, info.max + 1, (m, k)).astype(dtype)
            zero = int(rng.integers(info.min, info.max + 1))
            poison(rng)
            expected = (x.astype(np.int64) - zero) @ w.integers().astype(np.int64).T
            assert_same(kernel(x, w, zero), expected.astype(np.int32))


@rows("linear_requant", *TABLE_FORMATS)
def test_linear_requant_of_tables(kernel, rng):
    for m, k, n in SHAPES[3:]:
        w = table_weight(kernel.format, rng, n, k)
        x = rng.integers(-128, 128, (m, k)).astype(np.int8)
        r = qk.Requant.from_scale(rng.uniform(1e-5, 1e-3, n), zero_point=3)
        bias = rng.integers(-999, 999, n).astype(np.int32)
        expected = qk.reference.linear_requant(x, w.integers(), r, bias, 5)
        assert_same(kernel(x, w, r, bias=bias, x_zero_point=5), expected)


def real_weights(rng, n, k, bits):
    """Weights of the formats themselves, whose values are integers of int8."""
    W = rng.standard_normal((n, k)).astype(np.float32)
    yield qk.PowerWeight.quantize(W, bits=bits, exponent=0.5)
    yield qk.PowerWeight.quantize(torch.from_numpy(W), bits=bits, exponent=0.5, group_size=16)
    yield qk.PowerWeight.quantize(W, bits=bits, exponent=1.0)
    yield qk.LogWeight.quantize(W, bits=bits)
    if bits == 4:
        yield qk.FloatWeight.quantize(W, "e2m1", group_size=16)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_formats_that_have_a_table(bits, rng):
    for w in real_weights(rng, 65, 70, bits):
        for q in (qk.InputQuant(), *POWERS.values()):
            x = activations(rng, 5, 70)
            y = qk.linear(x, w, input_quant=q)
            assert_same(y, qk.linear(x, w, input_quant=q, backend="reference"))
            codes, s = qk.quantize_activations(x, q)
            scaled = codes * s if q.power is None else qk.power_dequantize(codes, s)
            dense = w.numpy().dense()
            exact = scaled.astype(np.float64) @ dense.astype(np.float64).T
            bound = np.abs(scaled).astype(np.float64) @ np.abs(dense).astype(np.float64).T
            assert (np.abs(y - exact) <= 2e-6 * bound + 1e-30).all()


def test_power_on_power_is_integers(rng):
    """PowerQuant W4/A4: weights and activations multiply as sign(q) q^2 (thesis 3.1.3)."""
    codes = rng.integers(-7, 8, (9, 40)).astype(np.int8)
    w = qk.PowerWeight.pack(codes, 1.0, bits=4, exponent=0.5)
    xq = rng.integers(-7, 8, (3, 40))
    xq[:, 0] = 7
    x = (np.sign(xq) * xq * xq * 4.0).astype(np.float32)
    square = codes.astype(np.int64) * abs(codes.astype(np.int64))
    y = qk.linear(x, w, input_quant=POWERS["a4"])
    assert_same(y, (x.astype(np.int64) @ square.T).astype(np.float32))
    assert_same(qk.matmul_int(xq.astype(np.int8), w), (xq @ square.T).astype(np.int32))


def test_weights_without_integers_are_refused(rng):
    x, codes = activations(rng, 2, 20), np.zeros((1, 20), np.int8)
    for w in (
        qk.PowerWeight.quantize(rng.standard_normal((4, 20)), exponent=0.37),
        qk.PowerWeight.quantize(rng.standard_normal((4, 20)), bits=8, exponent=0.5),
    ):
        for call in (
            lambda w=w: qk.linear(x, w, input_quant=qk.InputQuant()),
            lambda w=w: qk.linear(x, w, input_quant=POWERS["a4"], backend="reference"),
            lambda w=w: qk.matmul_int(codes, w),
            lambda w=w: qk.linear_requant(codes, w, qk.Requant(2**30, 8)),
            lambda w=w: cpu.packed(w),
        ):
            with pytest.raises(qk.UnsupportedError, match="int_table"):
                call()
        assert qk.explain("linear", w, x, input_quant=qk.InputQuant()).chosen is None


def test_accumulators_of_tables_are_bounded(rng):
    w = table_weight("PowerWeight", rng, 1, 131072)
    x = np.ones((1, 131072), np.float32)
    for q in (qk.InputQuant(), POWERS["a8 unsigned"]):
        with pytest.raises(qk.ArgumentError, match="accumulator"):
            qk.linear(x, w, input_quant=q)
    narrow = Table(w.index, np.arange(-8, 8), w.scale, None)
    narrow = type("PowerWeight", (Table,), {})(narrow.index, narrow.table, w.scale, None)
    for q in (qk.InputQuant(), POWERS["a8 unsigned"]):
        assert_same(qk.linear(x, narrow, input_quant=q), qk.reference.linear_int(x, narrow, q))


def test_a_tampered_table_block_is_refused(rng):
    w = table_weight("PowerWeight", rng, 64, 40)
    good = cpu.packed_tensor(w)
    wrap = lambda block: qk._native.PackedWeight(block.ctypes.data, block.nbytes, block)  # noqa: E731
    x, y = activations(rng, 3, 40), np.empty((3, 64), np.float32)
    for byte in range(208):
        for change in (1, 0x80, 0xFF):
            block = aligned(good.nbytes)
            block[:] = good
            block[byte] ^= change
            try:
                plan = cpu.linear_plan(wrap(block), POWERS["a8"], 0, 0, None, registry.current_isa())
            except ValueError:
                assert not 192 <= byte < 208
                continue
            # the numbers of the table; grouped, with one group; has_zero_point; exact_padding
            assert byte >= 192 or byte in (64, 72, 96), byte
            assert plan.run(x.ctypes.data, 3, 40, 0, y.ctypes.data, 1) == -1
    block = aligned(good.nbytes)
    block[:] = good
    block[184] = 0  # not a table after all: offsets are missing then
    with pytest.raises(ValueError, match="prepacked"):
        wrap(block)
    with pytest.raises(ValueError, match="table"):
        qk._native.PrepackSource(1, 1, 1, False, 5, 0, 0, 0, 0, 0, 1, 1, 0, good.ctypes.data)


# ---- power codes of activations with other weights ---------------------------------------------------------


@rows("linear", "IntWeight", "MixedIntWeight", "BinaryWeight", "TernaryWeight")
@pytest.mark.parametrize("quant", POWERS)
def test_power_activations(kernel, quant, rng):
    q = POWERS[quant]
    for i, (m, k, n) in enumerate(few(kernel, SHAPES)):
        scale = bool(rng.integers(2))
        W = rng.standard_normal((n, k)).astype(np.float32)
        if kernel.format == "IntWeight":
            bits, group_size = (2, 3, 4, 5, 8)[i % 5], GROUPS[i % 4]
            grouped = group_size is not None and group_size < k
            zero = bool(rng.integers(2)) and not (bits == 8 and grouped)
            w = int_weight(rng, n, k, bits, group_size, zero, input_scale=scale)
        elif kernel.format == "MixedIntWeight":
            w = mixed_weight(rng, n, k, input_scale=scale)
        else:
            w = getattr(qk, kernel.format).quantize(W)
        x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
        poison(rng)
        y = kernel(x, w, bias, input_quant=q)
        assert_same(y, qk.reference.linear_int(x, w, q, bias))


@rows("linear", "IntWeight", "PowerWeight")
@pytest.mark.parametrize("x_code, w_code", [(127, 127), (-127, 127), (127, -128), (-127, -128)])
def test_extremes(kernel, x_code, w_code):
    """The largest sums there are: K at the bound, every product of one sign, and int64 beyond float32's integers."""
    k = 131071
    w = np.full((3, k), w_code, np.int8)
    w[1, ::2] = -w_code if w_code != -128 else 127
    if kernel.format == "IntWeight":
        weight = qk.IntWeight.pack(w, 1.0)
    else:
        values = np.array([w_code, -w_code if w_code != -128 else 127])
        weight = type("PowerWeight", (Table,), {})(
            (w != w_code).astype(np.uint8), values, np.ones((3, 1), np.float32), None
        )
    x = np.full((2, k), np.sign(x_code), np.float32)
    exact = w.astype(np.int64).sum(1) * x_code * abs(x_code)
    s = np.float32(1) / np.float32(127**2)
    assert_same(kernel(x, weight, input_quant=POWERS["a8"]), np.tile(exact.astype(np.float32) * s, (2, 1)))


@rows("linear", "IntWeight", "PowerWeight")
def test_blocks_of_k_and_threads(kernel, rng):
    if kernel.backend == "reference":
        pytest.skip("is what the others are compared with")
    x, before = activations(rng, 110, 8300), torch.get_num_threads()
    for group_size, q in ((None, POWERS["a8"]), (70, POWERS["a8"]), (None, POWERS["a4"])):
        if kernel.format == "IntWeight":
            w = int_weight(rng, 66, 8300, 4, group_size)
        else:
            w = table_weight("PowerWeight", rng, 66, 8300, 4, group_size)
        expected = qk.reference.linear_int(x, w, q)
        try:
            for threads, m in ((1, 3), (1, 110), (5, 110)):
                torch.set_num_threads(threads)
                assert_same(kernel(x[:m], w, input_quant=q), expected[:m])
        finally:
            torch.set_num_threads(before)


@rows("linear", "PowerWeight")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(kernel, dtype, rng):
    w = table_weight("PowerWeight", rng, 65, 70)
    x = torch.from_numpy(activations(rng, 3, 70)).to(getattr(torch, dtype)).reshape(3, 1, 70)
    for q in (POWERS["a8"], POWERS["a4 static"]):
        y = kernel(x, w, torch.ones(65), "relu6", q)
        expected = qk.reference.linear_int(x.float().numpy()[:, 0], w, q, np.ones(65, np.float32), "relu6")
        assert_same(y, torch.from_numpy(expected).to(x.dtype).reshape(3, 1, 65))


def test_remembered_calls_tell_power_codes_apart(rng):
    w, x = qk.PowerWeight.quantize(torch.randn(30, 40), exponent=0.5), torch.randn(3, 40)
    quants = [qk.InputQuant(), POWERS["a8"], qk.InputQuant(bits=4), POWERS["a4"], qk.InputQuant(power=0.5)]
    assert quants[1] == quants[4] and hash(quants[1]) == hash(quants[4]) and len(set(quants)) == 4
    expected = [qk.linear(x, w, input_quant=q, backend="reference") for q in quants]
    for _ in range(3):
        for q, e in zip(quants, expected):
            assert_same(qk.linear(x, w, input_quant=q), e)
    assert not torch.equal(expected[0], expected[1]) and not torch.equal(expected[2], expected[3])


def test_layers_and_compiled_code(rng):
    x, w = torch.randn(5, 40), qk.IntWeight.quantize(torch.randn(30, 40), bits=4)
    power = qk.PowerWeight.quantize(torch.randn(30, 40), exponent=0.5)
    for q in (POWERS["a4"], POWERS["a8 static"]):
        layer = qk.nn.Linear(w, torch.randn(30), q)
        y = qk.linear(x, w, layer.bias, input_quant=q, backend="reference")
        assert_same(layer(x), y)
        assert_same(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), y)
        f = torch.compile(
            lambda x, q=q: qk.linear(x, power, input_quant=q), fullgraph=True, backend="aot_eager"
        )
        assert_same(f(x), qk.linear(x, power, input_quant=q, backend="reference"))
        with pytest.raises(qk.UnsupportedError, match="power"):
            qk.nn.Conv2d(
                qk.IntWeight.quantize(torch.randn(4, 3, 3, 3)),
                input_quant=qk.InputQuant(power=0.5, granularity="tensor"),
            )


# ---- quantization and back ---------------------------------------------------------------------------------


@rows("quantize_activations", None)
@pytest.mark.parametrize("quant", POWERS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_quantize(kernel, quant, dtype, rng):
    q = POWERS[quant]
    for m, k in [(0, 4), (1, 0), (1, 1), (3, 15), (2, 16), (5, 17), (4, 64), (9, 131), (40, 300)]:
        x = activations(rng, m, k) * rng.uniform(1e-3, 30, (m, 1)).astype(np.float32)
        if m > 3 and k > 3:
            x[0], x[1, :2], x[1, 3] = 0, (0.0, -0.0), np.float32(1e-40)
            x[2], x[3, 0] = np.float32(2.0**-101), np.float32(3e38 if dtype != "float16" else 6e4)
        x = (
            torch.from_numpy(x)
            .clamp(-6e4 if dtype == "float16" else -3.3e38, 3.3e38)
            .to(getattr(torch, dtype))
        )
        codes, scale = kernel(x, q)
        expected_codes, expected_scale = qk.reference.quantize_activations(x.float().numpy(), q)
        assert_same(codes.numpy(), expected_codes)
        assert_same(scale.numpy().reshape(expected_scale.shape), expected_scale)
        assert (
            expected_codes.size == 0
            or q.limits[0] <= expected_codes.min() <= expected_codes.max() <= q.limits[1]
        )


@rows("quantize_activations", None)
def test_codes_are_rounded_roots(kernel):
    """Of all integers, in integers; and of the squares of half numbers, which are ties, to even."""
    x = np.arange(-66000, 66000, dtype=np.float32)[None]
    root = np.array([(math.isqrt(4 * abs(int(v))) + 1) // 2 for v in x[0]])
    for signed in (True, False):
        q = qk.InputQuant(power=0.5, granularity="tensor", scale=1.0, signed=signed)
        expected = np.sign(x) * np.minimum(root, 127) if signed else np.where(x > 0, np.minimum(root, 255), 0)
        codes, scale = kernel(x, q)
        assert (codes == expected).all() and scale == 1
    half = np.arange(127, dtype=np.float32) + np.float32(0.5)
    codes, _ = kernel((half * half)[None], qk.InputQuant(power=0.5, granularity="tensor", scale=1.0))
    assert (codes[0] == np.minimum(np.rint(half), 127)).all()


@rows("quantize_activations", None)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(kernel, bad):
    for quant in POWERS.values():
        for k, at in ((1, 0), (20, 19), (200, 3)):
            x = np.ones((3, k), np.float32)
            x[1, at] = bad
            with pytest.raises(qk.ArgumentError, match=r"finite|nan|inf"):
                kernel(x, quant)
            with pytest.raises(qk.ArgumentError, match=r"row 1|finite"):
                qk.linear(x, qk.IntWeight.pack(np.ones((2, k), np.int8), 1.0), input_quant=quant)


@rows("power_dequantize", None)
@pytest.mark.parametrize("exponent", [0.5, 1, 1 / 16, 0.37, 4])
def test_power_dequantize(kernel, exponent, rng):
    every = np.arange(-128, 128).astype(np.int8)[None]
    power = np.sign(every) * np.abs(every.astype(np.float64)) ** (1 / exponent)
    assert_same(kernel(every, 0.3, exponent), power.astype(np.float32) * np.float32(0.3))
    every = np.arange(256).astype(np.uint8)[None]
    assert_same(
        kernel(every, 2.0, exponent), (every.astype(np.float64) ** (1 / exponent)).astype(np.float32) * 2
    )
    for shape in ((0, 4), (3, 0), (1,), (2, 1), (3, 17), (2, 5, 65), (2, 40000)):
        codes = rng.integers(-128, 128, shape).astype(np.int8)
        scale = rng.uniform(0.01, 2, (*shape[:-1], 1)).astype(np.float32)
        table = qk.reference.quantize.power_table(exponent)[0]
        expected = table[codes.view(np.uint8)] * scale
        assert_same(kernel(codes, scale, exponent), expected)
        assert_same(kernel(codes[..., ::-1], scale, exponent), expected[..., ::-1])
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            y = kernel(torch.from_numpy(codes), torch.from_numpy(scale), exponent, out_dtype=dtype)
            assert_same(y, torch.from_numpy(expected).to(dtype))


def test_dequantized_codes_are_near(rng):
    """Half a step of the root: |sqrt(|x| / s) - q| <= 1/2, up to float32's rounding."""
    x = activations(rng, 40, 100)
    for quant in (POWERS["a8"], POWERS["a4"], POWERS["a5"]):
        codes, s = qk.quantize_activations(x, quant)
        root = np.sqrt(np.abs(x.astype(np.float64)) / s)
        assert (np.abs(np.abs(codes.astype(np.float64)) - root) <= 0.5 + 1e-4).all()
        back = qk.power_dequantize(codes, s, bits=quant.bits)
        assert (np.sign(back) * np.sign(x) >= 0).all()
        assert_same(back.max(1), (s[:, 0] * codes.max(1).astype(np.float32) ** 2))


def test_what_power_refuses():
    for options in (
        {"bits": 1},
        {"granularity": "channel"},
        {"granularity": "tensor", "scale": 1.0, "zero_point": 3},
    ):
        with pytest.raises(qk.ArgumentError, match=r"power=0\.5|bits=1"):
            qk.InputQuant(power=0.5, **options)
    for power in (0.37, 1, 2.0, True, "half", float("nan")):
        with pytest.raises(qk.UnsupportedError, match="power"):
            qk.InputQuant(power=power)
    codes = np.array([[-9, 3]], np.int8)
    for options, words in (
        ({"bits": 4}, "-9"),
        ({"bits": 9}, "bits"),
        ({"exponent": 0}, "exponent"),
        ({"exponent": float("nan")}, "exponent"),
        ({"scale": np.ones((2, 1), np.float32)}, "scale"),
        ({"scale": np.inf}, "scale"),
    ):
        with pytest.raises(qk.ArgumentError, match=words):
            qk.power_dequantize(codes, **{"scale": 1.0, **options})
    with pytest.raises(qk.DTypeError, match="int16"):
        qk.power_dequantize(codes.astype(np.int16), 1.0)
