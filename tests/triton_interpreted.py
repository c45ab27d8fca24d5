"""Triton kernels interpreted, on CPU tensors. tests/test_triton.py runs this file with TRITON_INTERPRET=1."""

import json

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from helpers import assert_same, random_codes
from qkernels.triton_kernels import layout, run, tuned
from test_linear_float import CASES, SHAPES, activations, check, mass, weight
from test_narrow import extreme, poison

import qkernels as qk
from qkernels import _torch_device, cpu, registry
from qkernels.formats.operand import why_no_integers
from qkernels.ops import linear_request

ROWS = [k for k in registry.kernels(device="cuda") if k.backend == "triton"]
CONFIGS = [  # tiles of other shapes than the default's
    {"BN": 16, "BM": 16, "tiles": 1, "warps": 4, "stages": 1, "waves": 1, "most_splits": 1, "fuse": 0},
    {"BN": 64, "BM": 32, "tiles": 3, "warps": 4, "stages": 1, "waves": 1, "most_splits": 1, "fuse": 0},
]
EDGES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (2, 31, 65),
    (17, 33, 31),
    (3, 65, 33),
    (5, 131, 37),
    (1, 257, 67),
]


def rows(op, core=None):
    return pytest.mark.parametrize(
        "kernel", [k for k in ROWS if k.op == op and core in (None, k.core)], ids=str
    )


def expected(op, *args, **options):
    return getattr(qk, op)(*args, backend="reference", **options)


def int_weight(rng, n, k, bits=8, group_size=None, zero=False, input_scale=False):
    grouped = group_size is not None and group_size < k
    shape = (n, -(-k // group_size)) if grouped else (n, 1)
    most = 150 if bits == 8 else 128 - 2 ** (bits - 1)
    zp = rng.integers(-most, most + 1, shape) if zero else None
    scale = rng.uniform(1e-3, 1e-1, shape).astype(np.float32)
    s = rng.uniform(0.1, 3, k).astype(np.float32) if input_scale else None
    return qk.IntWeight.pack(extreme(rng, (n, k), bits), scale, zp, bits, group_size, s)


def table_weight(rng, kernel, n, k, i):
    """A weight of a format whose codes the integer core multiplies, or None."""
    makers = list(CASES[kernel.format].values())
    for j in range(len(makers)):
        w = weight(rng, makers[(i + j) % len(makers)], n, k, i)
        if w.offset is None and why_no_integers(w) is None:
            return w
    return None


def test_all_rows_are_here():
    assert len(ROWS) == len([k for k in registry._table if k.backend == "triton"]) >= 30


def test_cpu_tensors_never_come_here_by_themselves(rng):
    w, x = int_weight(rng, 3, 5), torch.ones(2, 5)
    for options in ({}, {"input_quant": qk.InputQuant()}):
        assert qk.explain("linear", w, x, **options).chosen.backend == "cpu"
        assert qk.explain("linear", w, x, **options, backend="triton").chosen.backend == "triton"
    with pytest.raises(qk.UnsupportedError, match="NumPy array"):
        qk.linear(x.numpy(), w, backend="triton")


# ---- integer products --------------------------------------------------------------------------------------------


@rows("matmul_int")
@pytest.mark.parametrize("x_dtype", [np.int8, np.uint8])
def test_matmul_int(kernel, x_dtype, rng):
    """All formats; IntWeight of every width, with and without zero points."""
    for i, (m, k, n) in enumerate(EDGES):
        if kernel.format != "IntWeight" and i % 2:
            continue
        widths = [8, 2 + i % 7] if kernel.format == "IntWeight" else [None]
        for bits in widths:
            w = (
                table_weight(rng, kernel, n, k, i)
                if bits is None
                else int_weight(rng, n, k, bits, zero=i % 2)
            )
            if w is None or w.is_grouped:
                continue
            x = torch.from_numpy(random_codes(rng, (m, k), x_dtype))
            x_zp = int(rng.integers(np.iinfo(x_dtype).min, np.iinfo(x_dtype).max + 1)) if i % 3 else 0
            poison(rng)
            assert_same(kernel(x, w, x_zp), expected("matmul_int", x, w, x_zp))


@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (127, 127), (-128, 127), (127, -128)])
def test_extremes_at_the_longest_k(x_code, w_code):
    k = 131071
    w = qk.IntWeight.pack(np.full((3, k), w_code, np.int8), 1.0)
    x = torch.full((2, k), x_code, dtype=torch.int8)
    assert (qk.matmul_int(x, w, backend="triton") == k * x_code * w_code).all()


def test_zero_points_wrap_and_come_back():
    """Corrections pass 2**31 on the way."""
    k = 60000
    w = qk.IntWeight.pack(np.full((2, k), 127, np.int8), 1.0, zero_point=-128)
    x = torch.full((1, k), 127, dtype=torch.int8)
    assert (qk.matmul_int(x, w, -13, backend="triton") == k * 140 * 255).all()


def test_strides_and_batches(rng):
    for w in (int_weight(rng, 21, 34), int_weight(rng, 21, 34, 4)):
        base = torch.from_numpy(random_codes(rng, (4, 6, 80)))
        views = (
            base[..., :34],
            base[0, 0, 3:37],
            base[:, ::2, 40:74],
            base[0, :, :68:2],
            base.swapaxes(0, 1)[..., 5:39],
        )
        for x in (*views, base[0, 0, :34].expand(5, 34)):
            assert_same(qk.matmul_int(x, w, backend="triton"), expected("matmul_int", x, w))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['BN']}x{c['BM']}")
@pytest.mark.parametrize("splits", [1, 4])
def test_tiles_and_splits_never_change_a_bit(config, splits, rng):
    m, k, n = 18, 330, 41
    x, q = torch.from_numpy(rng.standard_normal((m, k)).astype(np.float32)), qk.InputQuant()
    zero = qk.InputQuant(granularity="tensor", scale=0.03, zero_point=-7)
    for bits, group_size, quant in [
        (8, None, q),
        (4, None, zero),
        (4, 128, zero),
        (4, 33, q),
        (4, 17, zero),
        (8, 64, q),
    ]:
        w = int_weight(rng, n, k, bits, group_size, zero=bits < 8)
        out = torch.full((m, n), float("nan"))
        y = run.linear_int(x, w, quant, None, None, out, config, splits)
        assert_same(y, expected("linear", x, w, input_quant=quant))
    codes = torch.from_numpy(random_codes(rng, (m, k)))
    w = int_weight(rng, n, k, zero=True)
    out = torch.full((m, n), -77, dtype=torch.int32)
    assert_same(run.matmul_int(codes, w, 3, out, config, splits), expected("matmul_int", codes, w, 3))


# ---- linear with quantized activations ---------------------------------------------------------------------------

QUANTS = {
    "token": qk.InputQuant(),
    "tensor": qk.InputQuant(granularity="tensor"),
    "token 4 bits": qk.InputQuant(bits=4),
    "unsigned": qk.InputQuant(signed=False),
    "unsigned 3 bits tensor": qk.InputQuant(bits=3, granularity="tensor", signed=False),
    "static": qk.InputQuant(granularity="tensor", scale=0.021),
    "static zero": qk.InputQuant(granularity="tensor", scale=0.021, zero_point=-100),
    "static unsigned zero": qk.InputQuant(granularity="tensor", scale=0.05, signed=False, zero_point=113),
    "power": qk.InputQuant(bits=4, power=0.5),
    "power unsigned tensor": qk.InputQuant(bits=4, granularity="tensor", signed=False, power=0.5),
    "power static": qk.InputQuant(bits=3, granularity="tensor", scale=0.3, power=0.5),
}


@rows("linear", "gemm")
@pytest.mark.parametrize("name", QUANTS)
def test_linear(kernel, name, rng, monkeypatch):
    """Quantized by the kernel of its own and, where the core takes it, in the core, by turns."""
    quant = QUANTS[name]
    turn = list(QUANTS).index(name)
    edges = EDGES if kernel.format == "IntWeight" else EDGES[turn % 3 :: 3]  # an IntWeight meets every shape
    for i, (m, k, n) in enumerate(edges, turn):
        if kernel.format == "IntWeight":
            bits, group_size = (8, 4, 4, 3, 5)[i % 5], (None, 32, 64, 17, 128)[i // 2 % 5]
            grouped = group_size is not None and group_size < k
            w = int_weight(rng, n, k, bits, group_size, i % 2 and not (bits == 8 and grouped), i % 3 == 0)
        else:
            w = table_weight(rng, kernel, n, k, i)
        if w is None:
            continue
        x = torch.from_numpy(rng.standard_normal((m, k)) * 3).to(
            (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        )
        if i % 4 == 0:
            x = torch.cat([x, torch.full((m, 3), float("nan"), dtype=x.dtype)], 1)[:, :k]
        options = {
            "bias": torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i % 2 else None,
            "activation": (None, "relu", "relu6")[i // 3 % 3],
            "out_dtype": (None, torch.float32, torch.bfloat16, torch.float16)[i // 2 % 4],
            "input_quant": quant,
        }
        monkeypatch.setitem(tuned.INTERPRETED, "fuse", 8 * (i % 3 != 0))
        poison(rng)
        assert_same(kernel(x, w, **options), expected("linear", x, w, **options))


def test_granularity_channel(rng):
    w, quant = int_weight(rng, 33, 70, input_scale=True), qk.InputQuant(granularity="channel")
    x = torch.from_numpy(rng.standard_normal((5, 70)).astype(np.float32))
    y = qk.linear(x, w, input_quant=quant, backend="triton")
    assert_same(y, expected("linear", x, w, input_quant=quant))


# ---- codes to codes ----------------------------------------------------------------------------------------------


def requant(rng, n, rounding, out, output_scale=None):
    m = np.where(rng.random(n) < 0.1, 0, rng.integers(2**30, 2**31, n))
    zp = int(rng.integers(np.iinfo(out).min, np.iinfo(out).max + 1))
    return qk.Requant(m, rng.integers(-31, 32, n), zp, rounding, output_scale)


@rows("requantize")
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
@pytest.mark.parametrize("out", [np.int8, np.uint8])
def test_requantize(kernel, rounding, out, rng):
    for shape in [(0, 3), (3, 0), (1, 1), (2, 3, 31), (40, 1100)]:
        size = 2.0 ** rng.uniform(0, 31, shape)
        acc = (rng.choice([-1, 1], shape) * size).astype(np.int32)
        acc[rng.random(shape) < 0.05] = -(2**31)
        acc[rng.random(shape) < 0.05] = 2**31 - 1
        acc = torch.from_numpy(acc)
        for n in (shape[-1], 1):
            r = requant(rng, n, rounding, out)
            poison(rng)
            assert_same(kernel(acc, r, out), expected("requantize", acc, r, out))


@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_requantize_ties(rounding):
    """Halves of both signs: where the three roundings differ."""
    acc = torch.arange(-4000, 4001, dtype=torch.int32)
    r = qk.Requant(2**30, 4, 3, rounding)
    assert_same(qk.requantize(acc, r, backend="triton"), expected("requantize", acc, r))


@rows("linear_requant")
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_linear_requant(kernel, rounding, rng):
    for i, (m, k, n) in enumerate(EDGES):
        out, x_dtype = (np.int8, np.uint8)[i % 2], (np.int8, np.uint8)[i // 2 % 2]
        w = table_weight(rng, kernel, n, k, i)
        if kernel.format == "IntWeight":
            w = int_weight(rng, n, k, (8, 4, 6)[i % 3], zero=i % 2)
        if w is None or w.is_grouped:
            continue
        r = qk.Requant.from_scale(rng.uniform(1e-4, 3e-2, n if i % 3 else 1), 5, rounding, 0.05)
        x = torch.from_numpy(random_codes(rng, (m, k), x_dtype))
        bias = torch.from_numpy(rng.integers(-5000, 5000, n).astype(np.int32)) if i % 2 else None
        args = x, w, r, bias, int(rng.integers(0, 128)) if i % 3 else 0, (None, "relu", "relu6")[i % 3], out
        poison(rng)
        assert_same(kernel(*args), expected("linear_requant", *args))


@rows("quantize_activations")
def test_quantize_activations(kernel, rng):
    quants = [
        *QUANTS.values(),
        qk.InputQuant(bits=8, power=0.5),
        qk.InputQuant(power=0.5, signed=False),
    ]
    for i, (m, k) in enumerate([(0, 3), (2, 0), (1, 1), (5, 33), (3, 5000)]):
        x = torch.from_numpy(rng.standard_normal((2, m, k)) * 3).to(
            (torch.float32, torch.bfloat16, torch.float16)[i % 3]
        )
        for quant in [
            *quants,
            qk.InputQuant(granularity="channel", scale=rng.uniform(0.01, 1, k).astype(np.float32)),
        ]:
            for y, e in zip(kernel(x, quant), expected("quantize_activations", x, quant)):
                assert_same(y, e)


# ---- float activations -------------------------------------------------------------------------------------------


def float16_error(w):
    """What rounding the table to float16 adds, relative to mass."""
    t = w.numpy().lookup().table
    return 0.0 if (t.astype(np.float16) == t).all() else 2.0**-11


@pytest.mark.parametrize(
    "kernel, case",
    [(k, case) for k in ROWS if k.core == "gemm_float" for case in CASES[k.format]],
    ids=lambda v: str(v),
)
def test_linear_float(kernel, case, rng):
    make, turn = CASES[kernel.format][case], int(rng.integers(100))
    for i, (m, k, n) in enumerate([s for s in SHAPES if s[0] * s[1] * s[2] < 40000][turn % 4 :: 4], turn):
        w, kind = weight(rng, make, n, k, i), ("float32", "bfloat16", "float16")[i % 3]
        x = activations(rng, m, k, ("torch ", "strided ")[kind == "float32" and i % 2] + kind)
        bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i % 2 else None
        compute = (None, "float32", "bfloat16")[i // 3 % 3]
        out = torch.float32 if mass(x.float().numpy(), w).max(initial=0) > 1e4 else None
        poison(rng)
        y = kernel(x, w, bias, (None, "relu", "gelu")[i % 3], compute_dtype=compute, out_dtype=out)
        dtype = str(run.product_dtype(x, w, compute)).removeprefix("torch.")
        if dtype == "float16":
            check(y, x, w, bias, (None, "relu", "gelu")[i % 3], "float32", 2e-6 + float16_error(w))
        else:
            check(y, x, w, bias, (None, "relu", "gelu")[i % 3], dtype)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c['BN']}x{c['BM']}")
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("group_size", [None, 16, 17, 32, 64, 96, 128, 320])
def test_float_tiles_and_splits(config, splits, group_size, rng):
    m, k, n = 17, 330, 37
    w = int_weight(rng, n, k, 4, group_size, zero=True)
    x = torch.from_numpy(rng.standard_normal((m, k))).to(torch.bfloat16)
    out = torch.full((m, n), float("nan"))
    check(run.linear_float(x, w, None, None, None, out, config, splits), x, w, compute="bfloat16")


def test_not_finite_spoils_its_row_alone(rng):
    w, x = int_weight(rng, 17, 50, 4), torch.ones(6, 50)
    x[2, 49], x[4, 0] = float("nan"), float("inf")
    y = qk.linear(x, w, backend="triton")
    bad = ~torch.isfinite(y).all(1)
    assert bad.tolist() == [False, False, True, False, True, False]


# ---- layouts -----------------------------------------------------------------------------------------------------


def test_golden_words():
    """layout.py's own examples: bytes of two planes, words of four."""
    codes = np.arange(128).reshape(1, 128) % 16
    u = layout.cut_units(128, 32, 2)
    assert (u.unit, u.together, u.padded, u.units) == (64, 2, 32, 2)
    words = layout.pack(codes.astype(np.uint8), u)
    assert words.dtype == np.uint8 and words.tolist()[0] == [17 * (j % 16) for j in range(32)] * 2
    u = layout.cut_units(128, 16, 4, least=16)
    assert (u.unit, u.together, u.padded, u.units) == (64, 4, 16, 2)
    words = layout.pack(codes.astype(np.uint8), u).view(np.uint16)
    assert words.tolist()[0] == [0x1111 * j for j in range(16)] * 2


@pytest.mark.parametrize("planes, least", [(1, 32), (1, 16), (2, 32), (4, 16)])
@pytest.mark.parametrize("group_size", [None, 16, 17, 31, 32, 33, 48, 64, 65, 96, 128, 200, 256])
def test_units_hold_every_code_once(planes, least, group_size, rng):
    for k in (1, 15, 129, 300, 640):
        u = layout.cut_units(k, group_size, planes, least)
        assert u.length % u.unit == 0 and u.words >= least and u.groups % u.together == 0
        assert u.together == 1 or u.together * u.padded == u.unit
        codes = rng.integers(0, 16, (3, k)).astype(np.uint8)
        words = layout.pack(codes, u)
        bits = [(words.astype(np.int64) >> 4 * p & 15).reshape(3, u.units, 1, u.words) for p in range(planes)]
        rows = (
            np.concatenate(bits, 2).reshape(3, u.groups, u.padded)
            if planes > 1
            else words.reshape(3, -1, u.padded)
        )
        found = [rows[:, i // u.size, i % u.size] for i in range(k)]
        assert (np.stack(found, 1) == codes).all() and rows.sum() == codes.sum()


@triton.jit
def fma_kernel(x, y, z, out, half):
    i = tl.arange(0, 2)
    a, b, c = tl.load(x + i), tl.load(y + i), tl.load(z + i)
    tl.store(out + i, tl.fma(a, b, c))
    tl.store(half + i, (c * 1.00390625).to(tl.bfloat16))


def test_interpreter_corrections():
    """What tests here rest on: a fused multiply-add rounds once, bfloat16 is rounded to even."""
    x, z = torch.tensor([1 + 2.0**-12, 3.0]), torch.tensor([-(1 + 2.0**-11), 1.0])
    out, half = torch.empty(2), torch.empty(2, dtype=torch.bfloat16)
    fma_kernel[(1,)](x, x, z, out, half)
    assert out.tolist() == [2.0**-24, 10.0]
    assert_same(half, (z * (1 + 2.0**-8)).to(torch.bfloat16))


# ---- the torch operators on a device -----------------------------------------------------------------------------


def on_operator(kernel, x, w, bias, activation, out_dtype, **options):
    """A call as the operator on CUDA tensors computes it, from one tensor and a text; and these two."""
    request = linear_request(x, w, bias, activation, out_dtype=out_dtype, backend="triton", **options)
    packed, layout = _torch_device.prepacked(kernel, request)
    quant, compute_dtype = options.get("input_quant"), options.get("compute_dtype")
    given = (compute_dtype,) if quant is None else cpu.quant_numbers(quant)
    number, op = cpu.ACTIVATIONS[activation], kernel.run.operator
    run_it = lambda packed, layout, x=x, n=w.shape[0]: _torch_device.run_on_device(  # noqa: E731
        op, x, packed, bias, n, given, number, out_dtype, layout
    )
    return run_it, packed, layout


def operator_cases(rng):
    scale = np.array([0.5, 2, 1.25], np.float32).repeat(32)
    W = rng.standard_normal((37, 96)).astype(np.float32)
    yield qk.IntWeight.quantize(W), list(QUANTS.values())[1::2]
    yield (
        qk.IntWeight.quantize(W, 8, symmetric=False, input_scale=scale),
        [qk.InputQuant(granularity="channel"), None],
    )
    yield qk.IntWeight.quantize(W, 4, 16, symmetric=False), [qk.InputQuant(), None]
    yield qk.IntWeight.quantize(W, 3, 17), [qk.InputQuant(bits=5), None]
    yield qk.PowerWeight.quantize(W, 4, 0.5), [qk.InputQuant(bits=4, power=0.5), None]
    yield qk.CodebookWeight.quantize(W, 4, granularity="channel"), [None]
    yield qk.CodebookWeight.quantize(W, 6), [None]
    yield qk.TernaryWeight.quantize(W), [qk.InputQuant(), None]


def test_operators_give_the_bits_of_linear(rng):
    """8-bit weight-only, tables of rows, power activations: what no kernel of CUDA C++ takes."""
    for i, (w, quants) in enumerate(operator_cases(rng)):
        for j, quant in enumerate(quants, i):
            dtype = (torch.float32, torch.bfloat16, torch.float16)[j % 3]
            x = torch.from_numpy(rng.standard_normal(((3, 96), (96,), (2, 2, 96))[j % 3])).to(dtype)
            bias = torch.from_numpy(rng.standard_normal(37).astype(np.float32)) if j % 2 else None
            options = {"compute_dtype": "float32"} if quant is None and j % 4 == 3 else {"input_quant": quant}
            asked = {"activation": (None, "relu")[j % 2], "out_dtype": (dtype, torch.float32)[j // 2 % 2]}
            kernel = qk.explain("linear", x, w, bias, **asked, **options, backend="triton").chosen
            poison(rng)
            y = kernel(x, w, bias, **asked, **options)
            call, packed, layout = on_operator(kernel, x, w, bias, **asked, **options)
            poison(rng)
            assert_same(call(packed.clone(), layout), y)
            assert packed.dtype is torch.uint8 and packed.is_contiguous()


def test_a_weight_lies_on_a_device_once(rng):
    """What the operator takes are the bytes that eager calls read."""
    w, x = int_weight(rng, 33, 70, 4, 32, True), torch.ones(2, 70)
    kernel = qk.explain("linear", x, w, backend="triton").chosen
    _, packed, _ = on_operator(kernel, x, w, None, None, torch.float32)
    arrays = run.float_arrays(w, x.device, torch.bfloat16)
    assert arrays.block is packed and arrays.nbytes == packed.numel()
    for part in (arrays.codes, arrays.scale, arrays.zero):
        assert packed.data_ptr() <= part.data_ptr() < packed.data_ptr() + packed.numel()
        assert (part.data_ptr() - packed.data_ptr()) % 256 == 0 and part.is_contiguous()


def test_a_tensor_that_does_not_fit_its_layout_is_refused(rng):
    w, x = int_weight(rng, 33, 70, 8, None, True), torch.ones(2, 70)
    kernel = qk.explain("linear", x, w, input_quant=qk.InputQuant(), backend="triton").chosen
    call, packed, layout = on_operator(kernel, x, w, None, None, torch.float32, input_quant=qk.InputQuant())
    name, version, shape, facts = json.loads(layout)
    units, inner, square, parts = facts
    good = call(packed, layout)
    others = [
        [["table", *p[1:]] if p[0] == "codes" else p for p in parts],
        parts[1:],
        [["x", *p[1:]] for p in parts],
    ]
    others += [[[p[0], p[1], p[2], p[3] + step] for p in parts] for step in (-256, 4, 1 << 20)]
    others += [
        [[p[0], "float32", *p[2:]] for p in parts],
        [[p[0], p[1], [64, *p[2][1:]], p[3]] for p in parts],
    ]
    bad = [[units, inner, square, other] for other in others]
    bad += [
        [[*units[:2], 7, *units[3:]], inner, square, parts],
        [units, [33, 71], square, parts],
        [units[:3], *facts[1:]],
    ]
    for wrong in bad:
        with pytest.raises((TypeError, ValueError, AttributeError, RuntimeError)):
            call(packed, json.dumps([name, version, shape, wrong]))
            pytest.fail(f"{wrong} was accepted")
    for tensor, change in (
        (packed[:-256], {}),
        (packed, {"x": x[:, :69]}),
        (packed, {"n": 32}),
        (packed.clone()[:256], {}),
    ):
        with pytest.raises(ValueError):
            call(tensor, layout, **change)
    assert_same(call(packed, layout), good)
