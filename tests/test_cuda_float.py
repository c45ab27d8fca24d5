"""The float core of the CUDA kernels on the emulator: its layout, every decoder, and products within the table of
docs/numerics.md.
"""

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import as_array, assert_same
from test_linear_float import CASES, check, weight

import qkernels as qk
from qkernels import cuda_float

# M, K, N: empty, one, every tile of tokens with edges, K that blocks share, more channels than a tile has
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (1, 2300, 67),
    (2, 64, 16),
    (3, 131, 33),
    (4, 1100, 130),
    (5, 65, 17),
    (8, 2300, 37),
    (13, 97, 130),
    (16, 1030, 20),
    (31, 130, 70),
    (64, 63, 64),
    (70, 200, 258),
]
GROUPS = [None, 16, 17, 32, 50, 64, 100, 128]
MANY = (130, 70, 1100)  # large enough for tiles of 256 channels on the emulator's four multiprocessors


@pytest.fixture(params=[0, 1, 7], ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    return cuda_builds.emulate(monkeypatch, request.param)


@pytest.fixture
def forwards(monkeypatch):
    return cuda_builds.emulate(monkeypatch)


def poison():
    for size in (64, 1024, 16384, 262144):
        torch.full((size,), float("nan"))


def int_weight(rng, n, k, group_size, zero_point, bits=4):
    groups = -(-k // group_size) if group_size is not None and group_size < k else 1
    scale = rng.uniform(1e-3, 1e-1, (n, groups)).astype(np.float32)
    scale = scale if rng.random() < 0.5 else scale.astype(np.float16).astype(np.float32)
    half = 2 ** (bits - 1)
    codes = rng.integers(-half, half, (n, k)).astype(np.int8)
    zero = rng.integers(-half - 2, half + 2, scale.shape) if zero_point else None
    return qk.IntWeight.pack(codes, scale, zero, bits, group_size)


def book_weight(rng, n, k, group_size):
    groups = -(-k // group_size) if group_size is not None and group_size < k else 1
    scale = rng.uniform(1e-3, 1e-1, (n, groups)).astype(np.float32)
    return qk.CodebookWeight.pack(
        rng.integers(0, 16, (n, k)).astype(np.uint8),
        rng.standard_normal((1, 16)).astype(np.float32),
        scale,
        4,
        group_size,
    )


def run(x, w, bias=None, activation=None, compute=None, **options):
    """The kernel's result, held to the reference; what it multiplies is checked as well."""
    poison()
    y = qk.linear(x, w, bias, activation, backend="cuda", compute_dtype=compute, **options)
    check_product(y, x, w, bias, activation, compute)
    return y


def check_product(y, x, w, bias=None, activation=None, compute=None):
    """A weight-only result of the CUDA kernels within the table of docs/numerics.md."""
    q = w.numpy().lookup()
    name = str(x.dtype).removeprefix("torch.")
    name = cuda_float.compute_name(name, compute, cuda_float.half_holds(q.table))
    if name != "float16":
        return check(y, x, w, bias, activation, name)
    # float16 products are exact where the table is and x is not scaled: else both are rounded, as to bfloat16.
    rounded = q.table.astype(np.float16).astype(np.float32)
    if (rounded == q.table).all() and q.input_scale is None:
        return check(y, x, w, bias, activation, "float32")
    return check(y, x, w, bias, activation, "float32", tolerance=2.0**-10 + 2.0**-20 + 2e-6)


# ---- the layout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [0, *GROUPS[1:]])
def test_positions(forwards, group):
    """Every element has a position of its own, in units of its group alone, and the other way round."""
    for k in (1, 15, 33, 64, 300):
        if group >= k:
            continue
        layout = forwards.float_layout(16, k, group, False, False, False)
        at = np.array([forwards.position_of(i, group) for i in range(k)])
        assert_same(at, cuda_float.positions(k, group))
        back = np.array([forwards.element_at(p, group, k) for p in range(layout["k_pad"])])
        assert_same(back[at], np.arange(k))
        back[at] = -1
        assert (back == -1).all()
        if group and group <= 16:  # what one instruction multiplies, of four lanes
            assert_same(at // 32 * 2 + at % 8 // 4, np.arange(k) // group)
        elif group:
            assert_same(at // (-(-group // 64) * 64 if group > 32 else 32), np.arange(k) // group)


@pytest.mark.parametrize("decoder", [cuda_float.INTEGERS, cuda_float.TABLE])
def test_codes_are_where_the_header_says(forwards, decoder, rng):
    """A bijection onto the bits of the words, and prepack in NumPy agrees with the header."""
    n_pad, k_pad = 32, 128
    seen = np.zeros(n_pad * k_pad // 8, np.uint64)
    codes = rng.integers(0, 16, (n_pad, k_pad)).astype(np.uint8)
    words = np.zeros(n_pad * k_pad // 8, np.uint32)
    for n in range(n_pad):
        for p in range(k_pad):
            for bit in (1, 2, 4, 8):
                word, _, _, bits = forwards.float_place(n, p, k_pad, decoder, bit)
                assert bits.bit_count() == 1 and not int(seen[word]) & bits
                seen[word] |= np.uint64(bits)
            word, _, _, bits = forwards.float_place(n, p, k_pad, decoder, int(codes[n, p]))
            words[word] |= np.uint32(bits)
    assert (seen == 0xFFFFFFFF).all()
    assert_same(cuda_float.fragments(codes, decoder), words)


def test_a_lane_has_what_an_instruction_wants(forwards):
    """Word s of lane 4g + t, register r, element i is channel g (+ 8 for odd r) and one of the k that lane t's two
    registers of B hold: B's register r / 2 of instruction s is 4 bytes of the lane's 16 of activations."""
    for n in range(16):
        for p in range(64):
            word, register, element, _ = forwards.float_place(n, p, 64, 0, 1)
            lane, s = word // 4, word % 4
            assert n == lane // 4 + register % 2 * 8
            # activations: half of 32 numbers, lane t's 8 of them, then registers b0 b1 of two instructions
            assert p == s // 2 * 32 + lane % 4 * 8 + s % 2 * 4 + register // 2 * 2 + element
    at = sorted(forwards.scale_index(n, g, 3) for n in range(32) for g in range(3))
    assert at == list(range(96))


def test_plans(forwards):
    """The thresholds, for 132 multiprocessors: (tokens, channels, splits, tiles)."""

    def plans_of(*ms):
        return {m: forwards.plan_float(m, 8192, 8192, 128, 1, 132) for m in ms}

    plans = plans_of(1, 4, 8, 9, 16, 17, 64, 128, 4096)
    assert [p[:2] for p in plans.values()] == [
        (8, 32),
        (8, 32),
        (8, 32),
        (16, 128),
        (16, 128),
        (32, 128),
        (64, 128),
        (64, 128),
        (64, 256),
    ]
    assert plans[1][2:] == (1, 256) and plans[16][2:] == (6, 64)
    assert forwards.plan_float(100, 64, 64, 0, 0, 132)[:2] == (4, 32)  # float32: always on CUDA cores
    forwards.force_float("cuda_cores")
    assert [p[:2] for p in plans_of(1, 2, 3, 5).values()] == [(1, 32), (4, 32), (4, 32), (8, 32)]
    forwards.force_float("tiles")
    assert [p[:2] for p in plans_of(1, 8, 64).values()] == [(8, 128), (8, 128), (64, 128)]
    with pytest.raises(ValueError, match="accepted: any, cuda_cores, tiles"):
        forwards.force_float("gemv")


# ---- products -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integers(native, shape, dtype, rng):
    m, k, n = shape
    for i in range(2):
        group = GROUPS[(int(rng.integers(8)) + 4 * i) % 8]
        w = int_weight(rng, n, k, group, zero_point=i == 1)
        x = torch.from_numpy(rng.standard_normal((m, k)) * 3).to(getattr(torch, dtype))
        bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i else None
        run(x, w, bias, ("relu", None)[i], out_dtype=torch.float32)


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize(
    "m, kernel",
    [(m, "any") for m in (1, 2, 7, 8, 33)] + [(m, "cuda_cores") for m in (1, 2, 4)] + [(6, "tiles")],
)
def test_groups(native, group, m, kernel, rng):
    native.force_float(kernel)
    for make in (
        lambda: int_weight(rng, 37, 530, group, zero_point=False),
        lambda: int_weight(rng, 37, 530, group, zero_point=True),
        lambda: book_weight(rng, 37, 530, group),
    ):
        x = torch.from_numpy(rng.standard_normal((m, 530)))
        run(x.to(torch.bfloat16), make(), out_dtype=torch.float32)
        run(x.to(torch.float16), make(), out_dtype=torch.float32)


FEW_BITS = [
    (name, case)
    for name, cases in CASES.items()
    for case in cases
    if name != "MixedIntWeight"
    and (case.split()[0] in ("1", "2", "3", "4", "signs", "ternary") or case.startswith("e2m1"))
]


@pytest.mark.parametrize("name, case", FEW_BITS)
def test_formats(forwards, name, case, rng):
    """Every format of up to 4 bits; what has more tables than one is refused with that reason."""
    for i, (m, k, n) in enumerate([(1, 131, 33), (3, 300, 37), (6, 131, 20), (20, 97, 130), (70, 70, 18)]):
        w = weight(rng, CASES[name][case], n, k, i + int(rng.integers(6)))
        x = torch.from_numpy(rng.standard_normal((m, k)) * 3)
        x = x.to((torch.float32, torch.bfloat16, torch.float16)[i % 3])
        if cuda_float.weight_reason(w) is not None:
            assert case.split()[-1] in ("channel", "group")
            with pytest.raises(qk.UnsupportedError, match="a table for each row or group"):
                qk.linear(x, w, backend="cuda")
            continue
        for compute in (None, "float32", "bfloat16"):
            if compute == "float32" or x.dtype != torch.float16:
                run(x, w, compute=compute, out_dtype=torch.float32)


def test_too_many_bits(forwards, rng):
    w = qk.IntWeight.quantize(rng.standard_normal((8, 16)).astype(np.float32), bits=8)
    with pytest.raises(qk.UnsupportedError, match="the weight has 8 bits; this core takes up to 4"):
        qk.linear(torch.zeros(2, 16), w, backend="cuda")


def test_large_tiles(native, rng):
    m, k, n = MANY
    assert native.plan_float(m, n, k, 0, 1, 4)[:2] == (64, 256)
    for w in (int_weight(rng, n, k, 32, True), book_weight(rng, n, k, None)):
        run(torch.from_numpy(rng.standard_normal((m, k))).to(torch.bfloat16), w, out_dtype=torch.float32)


@pytest.mark.parametrize("m", [1, 4, 8, 40])
def test_shared_k(native, m, rng):
    """Blocks that share a K add their parts in one order: equal bits whichever arrives last."""
    k, n = 4096, 20
    assert native.plan_float(m, n, k, 128, 1, 4)[2] > 1
    w = int_weight(rng, n, k, 128, True)
    x = torch.from_numpy(rng.standard_normal((m, k))).to(torch.bfloat16)
    y = run(x, w, out_dtype=torch.float32)
    for seed in (0, 1, 12):
        native.set_schedule(seed)
        assert_same(qk.linear(x, w, backend="cuda", out_dtype=torch.float32), y)


def test_rows_in_place_and_not(native, rng):
    """Rows that the core reads where they are, and those that are copied first, give the same bits."""
    w = int_weight(rng, 21, 128, 64, False)
    for m in (2, 9):
        wide = torch.from_numpy(rng.standard_normal((m, 200))).to(torch.float16)
        for start in (0, 8, 3):  # aligned, aligned, not
            view = wide[:, start : start + 128]
            y = run(view, w, out_dtype=torch.float32)
            assert_same(qk.linear(view.contiguous(), w, backend="cuda", out_dtype=torch.float32), y)


def test_what_is_not_finite_spoils_its_row_alone(native, rng):
    for group, zero in ((None, False), (16, True), (48, True)):
        w = int_weight(rng, 33, 97, group, zero)
        for m in (3, 9):
            x = torch.from_numpy(rng.standard_normal((m, 97)).astype(np.float32))
            good = qk.linear(x, w, backend="cuda")
            x[1, 50] = float("nan")
            y = qk.linear(x, w, backend="cuda")
            assert torch.isnan(y[1]).all()
            keep = [i for i in range(m) if i != 1]
            assert_same(as_array(y)[keep], as_array(good)[keep])


@pytest.mark.parametrize("value", [65504.0, 2.0**-24, -65504.0])
def test_extreme_activations(forwards, value, rng):
    w = int_weight(rng, 20, 70, None, False)
    x = torch.full((5, 70), value, dtype=torch.float16)
    run(x, w, out_dtype=torch.float32)
    run(x[:1], w, out_dtype=torch.float32)
