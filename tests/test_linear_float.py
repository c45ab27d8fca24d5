"""Weight-only products: every gemm_float kernel against the reference, within the table of docs/numerics.md."""

import math

import numpy as np
import pytest
import torch
from helpers import as_array, assert_same
from test_narrow import extreme, mixed_weight, poison

import qkernels as qk
from qkernels import _torch_ops, cpu_float, reference, registry  # noqa: F401  (torch.ops.qkernels)
from qkernels.memory import aligned

TOLERANCE = {"float32": 2e-6, "bfloat16": 2e-6}  # times sum |x| |W| + |bias|, of random numbers
LEAST = {
    "float32": 2.0**-149,
    "bfloat16": 2.0**-126,
}  # what a product loses below: vdpbf16ps and tiles have no subnormals
OUT = {
    "float32": (0, 0),
    "bfloat16": (2.0**-8, 0),
    "float16": (2.0**-11, 2.0**-25),
}  # half a unit of the result
SLOPE = {"gelu": 1.13, "silu": 1.1}  # of the activation, at most
# M, K, N: empty, one, a lane less and more, primes, M on both sides of a register tile, several blocks of K
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (2, 7, 0),
    (1, 1, 1),
    (2, 3, 63),
    (1, 31, 64),
    (3, 64, 65),
    (4, 33, 9),
    (5, 97, 17),
    (6, 65, 15),
    (7, 131, 129),
    (8, 67, 8),
    (9, 257, 7),
    (17, 130, 16),
    (130, 37, 66),
    (200, 19, 70),
    (1, 2300, 67),
    (6, 2300, 31),
]
GROUPS = [None, 16, 17, 32, 64, 128]
ACTIVATIONS = [None, "relu", "relu6", "gelu", "silu"]
KERNELS = [k for k in registry.kernels("linear") if k.core == "gemm_float"]


def int_case(bits):
    def make(rng, n, k, group_size, scale, input_scale):
        grouped = group_size is not None and group_size < k
        zero = offset = None
        half = 2 ** (bits - 1)
        if rng.random() < 0.5 and not (bits == 8 and grouped):
            most = 150 if bits == 8 else min(128 - half, half + 2)
            zero = rng.integers(-most, most, scale.shape)
        if rng.random() < 0.4:
            offset = like_scale(rng, rng.standard_normal(scale.shape) * scale.max(initial=1e-3) * half)
        codes = extreme(rng, (n, k), bits)
        return qk.IntWeight.pack(codes, scale, zero, bits, group_size, input_scale, offset)

    return make


def mixed_case(rng, n, k, group_size, scale, input_scale):
    w = mixed_weight(rng, n, k)
    s = np.resize(scale[:, :1], (n, 1))
    return qk.MixedIntWeight.pack(w.codes(), s, w.row_bits, input_scale=input_scale)


def signs_case(name, values):
    def make(rng, n, k, group_size, scale, input_scale):
        codes = rng.choice(np.array(values, np.int8), (n, k))
        return getattr(qk, name).pack(codes, np.resize(scale[:, :1], n))

    return make


def power_case(bits, exponent):
    def make(rng, n, k, group_size, scale, input_scale):
        return qk.PowerWeight.pack(extreme(rng, (n, k), bits), scale, bits, exponent, group_size, input_scale)

    return make


def log_case(bits):
    def make(rng, n, k, group_size, scale, input_scale):
        codes = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
        return qk.LogWeight.pack(codes, scale, bits, group_size, input_scale)

    return make


def float_case(kind, scale_kind):
    bits, last = (4, 7) if kind == "e2m1" else (8, 0x7E if kind == "e4m3" else 0x7B)

    def make(rng, n, k, group_size, scale, input_scale):
        codes = rng.integers(0, last + 1, (n, k)) | (rng.integers(0, 2, (n, k)) << (bits - 1))
        options, least, most = {}, 0, 255
        if scale_kind != "float32":
            least, most = (110, 140) if scale_kind == "e8m0" else (1, 0x7F)
            scale = rng.integers(least, most, scale.shape).astype(np.uint8)
        if scale_kind == "e4m3":
            options["tensor_scale"] = np.float32(rng.uniform(1e-3, 1e-1))
        return qk.FloatWeight.pack(codes, scale, kind, group_size, input_scale, scale_kind, **options)

    return make


def book_case(bits, tables):
    def make(rng, n, k, group_size, scale, input_scale):
        groups = -(-k // group_size) if group_size is not None and group_size < k else 1
        count = max({"tensor": 1, "channel": n, "group": n * groups}[tables], 1)
        book = rng.standard_normal((count, 2**bits)).astype(np.float32)
        codes = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
        scale = None if rng.random() < 0.3 else scale
        return qk.CodebookWeight.pack(codes, book, scale, bits, group_size, input_scale)

    return make


CASES = {
    "IntWeight": {f"{b} bits": int_case(b) for b in range(2, 9)},
    "MixedIntWeight": {"2 to 8 bits": mixed_case},
    "BinaryWeight": {"signs": signs_case("BinaryWeight", (-1, 1))},
    "TernaryWeight": {"ternary": signs_case("TernaryWeight", (-1, 0, 1))},
    "PowerWeight": {
        f"{b} bits a={a:.3g}": power_case(b, a)
        for b, a in (
            (2, 0.5),
            (3, 0.7),
            (4, 0.5),
            (4, 1 / 3),
            (5, 4),
            (6, 0.5),
            (7, 0.9),
            (8, 0.5),
            (8, 1 / 16),
        )
    },
    "LogWeight": {f"{b} bits": log_case(b) for b in (2, 4, 5, 8)},
    "FloatWeight": {
        f"{kind} {s}": float_case(kind, s)
        for kind in ("e4m3", "e5m2", "e2m1")
        for s in ("float32", "e8m0", "e4m3")
    },
    "CodebookWeight": {
        f"{b} bits {t}": book_case(b, t)
        for b, t in (
            *((b, "tensor") for b in range(1, 9)),
            *((b, t) for b in (1, 3, 4, 8) for t in ("channel", "group")),
        )
    },
}
EACH = [pytest.param(k, c, id=f"{k}-{c}") for k in KERNELS for c in CASES[k.format]]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def like_scale(rng, a):
    """Half of the time numbers that float16 holds, some of them its subnormals: the layout stores those as float16."""
    a = np.asarray(a, np.float32)
    if rng.random() < 0.5 or np.abs(a).max(initial=0) > 6e4:
        return a
    a = a.astype(np.float16)
    return np.where(rng.random(a.shape) < 0.1, np.float16(2.0**-24) * np.float16(5), a).astype(np.float32)


def weight(rng, make, n, k, i=None):
    """A weight of a case; what scales it is the i-th of the group sizes and random granularities."""
    group_size = GROUPS[int(rng.integers(len(GROUPS))) if i is None else i % len(GROUPS)]
    count = -(-k // group_size) if group_size is not None and group_size < k else 1
    shape = (1, 1) if count == 1 and rng.random() < 0.3 else (n, count)
    scale = like_scale(rng, rng.uniform(1e-3, 1e-1, shape))
    input_scale = rng.uniform(0.1, 3, k).astype(np.float32) if rng.random() < 0.3 else None
    return make(rng, n, k, group_size, scale, input_scale)


def any_weight(rng, kernel, n, k, i):
    """A weight of one of the kernel's cases, in turn."""
    makers = list(CASES[kernel.format].values())
    return weight(rng, makers[i % len(makers)], n, k, i)


def activations(rng, m, k, kind):
    """x as a kernel gets it: a NumPy dtype, or a torch one with every row's end a gap."""
    x = rng.standard_normal((m, k)) * 3
    if kind in ("float32", "float16"):
        return x.astype(kind)
    dtype = getattr(torch, kind.split()[-1])
    if not kind.startswith("strided"):
        return torch.from_numpy(x).to(dtype)
    wide = torch.full((m, k + 3), float("nan"), dtype=dtype)
    wide[:, 1 : k + 1] = torch.from_numpy(x).to(dtype)
    return wide[:, 1 : k + 1]


KINDS = ["float32", "float16", "torch float32", "torch bfloat16", "torch float16", "strided float32"]
KINDS += ["strided bfloat16"]


def computes(kernel, compute_dtype=None):
    """What a kernel multiplies."""
    bf16 = compute_dtype != "float32" and cpu_float.has_bf16(kernel.isa)
    return "bfloat16" if bf16 else "float32"


def mass(x, w, bias=None):
    """``sum_k |x / input_scale| (|scale * table| + |offset|) + |bias|``: what errors are relative to."""
    q = w.numpy().lookup()
    size = np.abs(q.values()).astype(np.float64) * q.per_code(q.scale.astype(np.float64))
    size = size if q.offset is None else size + np.abs(q.per_code(q.offset.astype(np.float64)))
    size = size if q.input_scale is None else size / q.input_scale
    total = np.abs(x.astype(np.float64)) @ size.T
    return total if bias is None else total + np.abs(bias)


def check(y, x, w, bias=None, activation=None, compute="float32", tolerance=None):
    """y against the reference's float32 result, before it is rounded to y's dtype."""
    x = as_array(x).astype(np.float32)
    x = x.reshape(math.prod(x.shape[:-1]), w.shape[1])
    bias = None if bias is None else as_array(bias).astype(np.float32)
    expected = reference.linear_float(x, w.numpy(), bias, activation, compute_dtype=compute)
    bound = mass(x, w, bias) * (TOLERANCE[compute] if tolerance is None else tolerance)
    q = w.numpy().lookup()
    bound = bound + LEAST[compute] * (w.shape[1] + 1) * max(1.0, q.scale.max(initial=0))
    bound = bound * SLOPE.get(activation, 1)
    bound = bound + (1e-6 + 2e-6 * np.abs(expected) if activation in SLOPE else 0)
    unit, least = OUT[str(y.dtype).removeprefix("torch.")]
    bound = bound + unit * (np.abs(expected) + bound) + least
    assert_same(as_array(y).astype(np.float64).reshape(expected.shape), expected, bound)


@pytest.mark.parametrize("kernel, case", EACH)
def test_matches_reference(kernel, case, rng):
    make = CASES[kernel.format][case]
    turn = int(rng.integers(100))
    for i, (m, k, n) in enumerate(SHAPES, turn):
        w, kind = weight(rng, make, n, k, i), KINDS[i % len(KINDS)]
        x, activation = activations(rng, m, k, kind), ACTIVATIONS[i // 2 % len(ACTIVATIONS)]
        out = [None, "float32", "float16", "bfloat16"][int(rng.integers(4))]
        out = None if out == "bfloat16" and not torch.is_tensor(x) else out
        huge = mass(as_array(x).astype(np.float32), w).max(initial=0) > 1e4  # float16 does not reach there
        out = "float32" if huge or case.endswith("0.0625") else out
        bias = rng.standard_normal(n).astype(np.float32) * 5 if rng.random() < 0.6 else None
        bias = torch.from_numpy(bias) if bias is not None and torch.is_tensor(x) else bias
        options = {"activation": activation, "out_dtype": out}
        if torch.is_tensor(x) and out is not None:
            options["out_dtype"] = getattr(torch, out)
        poison(rng)
        y = kernel(x, w, bias, **options)
        assert type(y) is type(x) and y.shape == (m, n)
        assert str(y.dtype).removeprefix("torch.") == (out or str(x.dtype).removeprefix("torch."))
        check(y, x, w, bias, activation, computes(kernel))


@each_kernel
@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_compute_dtype(kernel, compute_dtype, rng):
    """Named products, refused where the CPU lacks them; and how far bfloat16 is from float32."""
    for i in range(6):
        w, x = any_weight(rng, kernel, 70, 133, i), activations(rng, (1, 7)[i % 2], 133, "float32")
        if compute_dtype == "bfloat16" and not cpu_float.has_bf16(kernel.isa):
            with pytest.raises(qk.UnsupportedError, match="avx512bf16"):
                kernel(x, w, compute_dtype=compute_dtype)
            y = qk.linear(x, w, compute_dtype=compute_dtype, backend="reference")
        else:
            y = kernel(x, w, compute_dtype=compute_dtype)
        check(y, x, w, compute=compute_dtype)
        rounding = 2 * 2.0**-9 + 2.0**-18 if compute_dtype == "bfloat16" else 0
        check(y, x, w, tolerance=rounding + TOLERANCE[compute_dtype])


@each_kernel
def test_tails_of_tiles(kernel, rng):
    """Rows around 16 and 48, K around 32, groups that end inside of a tile, after a call that left NaN behind."""
    makers = list(CASES[kernel.format].values())
    for i, m in enumerate((*range(2, 34), 47, 48, 49, 63, 96, 97, 145)):
        k, n = (1, 2, 30, 31, 33, 63, 65, 97, 200)[i % 9], (1, 15, 16, 17, 47, 64, 65)[i % 7]
        group_size = (None, 32, 40, 17, 64, 128, 16, 48)[i % 8]
        count = -(-k // group_size) if group_size is not None and group_size < k else 1
        w = makers[i % len(makers)](
            rng, n, k, group_size, rng.uniform(1e-3, 1e-1, (n, count)).astype(np.float32), None
        )
        kernel(np.full((m + 1, k + 31), np.nan, np.float32), weight(rng, makers[0], n, k + 31))
        x = activations(rng, m, k, KINDS[i % len(KINDS)])
        poison(rng)
        y = kernel(x, w, out_dtype=torch.float32 if torch.is_tensor(x) else "float32")
        check(y, x, w, compute=computes(kernel))


@each_kernel
def test_subnormals(kernel, rng):
    """Activations below the smallest normal number are kept or 0, and do not disturb others."""
    for i, m in enumerate((1, 5, 20)):
        w, x = any_weight(rng, kernel, 40, 70, i), activations(rng, m, 70, "float32")
        x[:, ::3] *= np.float32(1e-39)
        check(kernel(x, w), x, w, compute=computes(kernel))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.isa == "amxbf16"], ids=str)
def test_rows_do_not_depend_on_each_other(kernel, rng):
    """However rows are cut into tiles, each has the same bits."""
    w = any_weight(rng, kernel, 70, 333, int(rng.integers(99)))
    x = activations(rng, 150, 333, "float32")
    all_rows = kernel(x, w)
    least = 64 // min(w.numpy().lookup().group_size or 64, 64)  # fewer rows of short groups take vectors
    for m in (1, 2, 7, 15, 16, 17, 31, 33, 40, 47, 48, 49, 97):
        if m > least:
            assert_same(kernel(x[5 : 5 + m], w), all_rows[5 : 5 + m])


@each_kernel
def test_hard_bound(kernel, rng):
    """Equal numbers, whose additions all round the same way: the right column of docs/numerics.md."""
    make = next(iter(CASES[kernel.format].values()))
    for m, k in ((1, 2300), (7, 2300), (1, 16384)):
        w, x = weight(rng, make, 3, k, 0), np.full((m, k), rng.uniform(1, 2), np.float32)
        check(kernel(x, w), x, w, compute=computes(kernel), tolerance=(k + 4) * 2.0**-24)


@each_kernel
def test_strides_batches_and_alignment(kernel, rng):
    w, compute = any_weight(rng, kernel, 21, 34, 0), computes(kernel)
    for dtype in ("float32", "float16"):
        base, flat = activations(rng, 24, 34, dtype).reshape(4, 6, 34), activations(rng, 9, 80, dtype)
        bytes_off = np.empty(9 * 34 * flat.itemsize + 1, np.uint8)[1:].view(flat.dtype).reshape(9, 34)
        bytes_off[:] = flat[:, :34]
        views = {
            "batch": base,
            "vector": base[0, 0],
            "rows apart": flat[:, 1:35],
            "every second row": flat[::2, :34],
            "backwards": flat[::-1, :34],
            "transposed": activations(rng, 34, 9, dtype).T,
            "every second column": flat[:, 1:69:2],
            "broadcast": np.broadcast_to(base[0, 0], (5, 34)),
            "swapped batch": base.swapaxes(0, 1),
            "empty batch": base[:, :0],
            "between elements": bytes_off,
        }
        for name, x in views.items():
            y = kernel(x, w)
            assert y.shape == (*x.shape[:-1], 21) and y.dtype == dtype, name
            check(y, x, w, compute=compute)
            if name not in ("backwards", "broadcast", "between elements"):
                t = kernel(torch.from_numpy(x), w)
                assert isinstance(t, torch.Tensor)
                assert_same(t.numpy(), y)


@each_kernel
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_not_finite_stays_in_its_row(kernel, bad, rng):
    """Padding of K and of groups included: what lies there must not make NaN of infinity times 0 elsewhere."""
    for i, (m, k, n) in enumerate([(2, 33, 65), (7, 35, 17), (130, 67, 3), (5, 1100, 64)]):
        w, x = any_weight(rng, kernel, n, k, i), activations(rng, m, k, "float32")
        good, row = kernel(x, w), int(rng.integers(m))
        x[row, rng.integers(k)] = bad
        y = kernel(x, w)
        others = np.arange(m) != row
        assert_same(y[others], good[others])
        assert not np.isfinite(y[row]).any()


@each_kernel
def test_extreme_scales(kernel, rng):
    """Scales and activations near both ends of float32; a scale of 0 gives zeros."""
    make = next(iter(CASES[kernel.format].values()))
    for m in (1, 3, 8):
        for scale, size in ((1e30, 1e-3), (1e-36, 1e3), (3e-39, 1), (1e-20, 1e20), (0, 1)):
            s = np.full((40, 1), scale, np.float32)
            w = make(rng, 40, 70, None, s, None)
            x = activations(rng, m, 70, "float32") * np.float32(size)
            y = kernel(x, w)
            q = w.numpy().lookup()
            if q.offset is None and not q.scale.any():
                assert (y == 0).all()
            check(y, x, w, compute=computes(kernel))


@each_kernel
def test_infinite_sums(kernel, rng):
    """Beyond the largest numbers of float32 and float16 comes infinity of the right sign."""
    codes = extreme(rng, (20, 40), 4)
    for scale, dtype in ((3e38, "float32"), (1e4, "float16")):
        w = simple(kernel.format, codes, scale)
        sign = np.sign(w.dense())
        x = (sign[:3] * 4).astype(dtype)
        y = kernel(x, w)[[0, 1, 2], [0, 1, 2]]
        assert (y == np.inf).all()
        assert (kernel(-x, w)[[0, 1, 2], [0, 1, 2]] == -np.inf).all()


def simple(name, codes, scale):
    """4-bit codes, whatever they stand for, with one scale."""
    low = codes.astype(np.uint8) & 15
    if name in ("BinaryWeight", "TernaryWeight"):
        return getattr(qk, name).pack(np.where(codes < 0, -1, 1), scale)
    if name == "MixedIntWeight":
        return qk.MixedIntWeight.pack(codes, np.full(len(codes), scale), np.full(len(codes), 4))
    if name == "IntWeight":
        return qk.IntWeight.pack(codes, scale, bits=4)
    if name == "PowerWeight":
        return qk.PowerWeight.pack(codes, scale)
    if name == "FloatWeight":
        return qk.FloatWeight.pack(low | 1, scale, "e2m1")
    if name == "LogWeight":
        return qk.LogWeight.pack(low | 4, scale)
    return qk.CodebookWeight.pack(low, np.linspace(-1, 1, 16).astype(np.float32), scale)


# ---- threads, plans, instruction sets ----------------------------------------------------------------------


@each_kernel
def test_threads_agree_bit_for_bit(kernel, rng):
    """However rows and panels are shared out; 50 and 197 rows could leave parts of one or two."""
    before, i = torch.get_num_threads(), int(rng.integers(99))
    try:
        for m, k, n in ((1, 2300, 1030), (9, 2300, 130), (25, 2300, 64), (50, 2300, 64), (197, 4200, 64)):
            if kernel.isa == "scalar" and m * k * n > 10**7:
                continue
            x, w = torch.from_numpy(activations(rng, m, k, "float32")), any_weight(rng, kernel, n, k, i)
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                results.append(kernel(x, w))
            assert_same(results[1], results[0])
            assert_same(results[2], results[0])
    finally:
        torch.set_num_threads(before)


@each_kernel
def test_the_remembered_call(kernel, rng):
    """Second and later calls of a layer skip the checks: same bits, other options and instruction sets not mixed up."""
    w = any_weight(rng, kernel, 33, 50, 3)
    x, bias = torch.from_numpy(activations(rng, 4, 50, "float32")), torch.randn(33)
    with qk.force_isa(kernel.isa):
        first = [qk.linear(x, w, bias), qk.linear(x, w, None, "relu"), qk.linear(x.bfloat16(), w, bias)]
        again = [qk.linear(x, w, bias), qk.linear(x, w, None, "relu"), qk.linear(x.bfloat16(), w, bias)]
        assert qk.explain("linear", x, w).chosen is kernel
    for a, b in zip(first, again):
        assert_same(a, b)
    check(first[0], x, w, bias, compute=computes(kernel))
    check(first[1], x, w, None, "relu", compute=computes(kernel))
    check(first[2], x.bfloat16(), w, bias, compute=computes(kernel))


# ---- the block ---------------------------------------------------------------------------------------------

HEADER = 25 * 8
NAMES = "magic n k bits segment segment_pad segments n_pad k_pad tables_of ramp short_table half_scale half_offset"
NAMES = f"{NAMES} has_offset has_input_scale total_bytes table32 table16 scale offset inv_input codes".split()


def wrap(block, size=None):
    return qk._native.PackedFloat(block.ctypes.data, block.nbytes if size is None else size, block)


def copied(block):
    other = aligned(block.nbytes)
    other[:] = block
    return other


BLOCKS = {
    "int4 groups": lambda rng: qk.IntWeight.pack(
        extreme(rng, (70, 50), 4), rng.uniform(0, 1, (70, 4)), rng.integers(-8, 8, (70, 4)), 4, 16
    ),
    "int8": lambda rng: qk.IntWeight.pack(extreme(rng, (5, 41), 8), 0.3, input_scale=rng.uniform(1, 2, 41)),
    "tables": lambda rng: book_case(3, "group")(rng, 66, 40, 16, np.ones((66, 3), np.float32), None),
    "signs": lambda rng: signs_case("BinaryWeight", (-1, 1))(rng, 64, 7, None, np.ones((64, 1)), None),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_a_tampered_block_is_refused(block, rng):
    """Whatever a header says is refused or computes inside of the block: one field changed, or two."""
    w = BLOCKS[block](rng)
    good, (n, k) = cpu_float.packed_tensor(w), w.shape
    fields = good[: 8 * len(NAMES)].view(np.int64)
    assert fields[NAMES.index("n")] == n and fields[NAMES.index("total_bytes")] == good.nbytes
    assert wrap(good).shape == w.shape
    for size in (0, 1, 8 * len(NAMES) - 1, 8 * len(NAMES), good.nbytes - 64, good.nbytes - 1):
        with pytest.raises(ValueError, match="prepacked"):
            wrap(good, size)
    with pytest.raises(ValueError, match="prepacked"):
        qk._native.PackedFloat(good.ctypes.data + 4, good.nbytes - 4, good)
    with pytest.raises(ValueError, match="prepacked"):
        qk._native.PackedFloat(0, good.nbytes, good)
    values = [0, 1, 2, 3, 7, 8, 9, 63, 64, 128, 2**31, 2**31 + 1, 2**32, 2**62, 2**63 - 1, -1, -64, -(2**63)]
    accepted, x = set(), rng.standard_normal((9, 2 * k + 64)).astype(np.float32)
    for trial in range(4000):
        bad = copied(good)
        header = bad[: 8 * len(NAMES)].view(np.int64)
        names = [NAMES[trial % len(NAMES)]] if trial < 2000 else list(rng.choice(NAMES, 2))
        for name in names:
            at, how = NAMES.index(name), rng.integers(3)
            if how == 0:
                header[at] = values[rng.integers(len(values))]
            elif how == 1:
                header[at] ^= np.int64(1) << np.int64(rng.integers(63))
            else:
                header[at] += rng.integers(-3, 4)
        if (header == fields).all():
            continue
        try:
            packed = wrap(bad)
        except ValueError:
            continue
        accepted |= {name for name in names if header[NAMES.index(name)] != fields[NAMES.index(name)]}
        bn, bk = packed.shape
        assert bn <= fields[NAMES.index("n_pad")] and bk <= fields[NAMES.index("k_pad")]
        y = np.empty((9, bn), np.float32)
        for exact in (True, False):
            plan = qk._native.FloatPlan(packed, registry.ISAS[registry.current_isa()][0], exact, 0, 0, 0)
            for m in (1, 9):
                assert plan.run(x.ctypes.data, m, x.shape[1], 0, y.ctypes.data, 1) == -1
    # n inside of the padding; flags that change numbers only
    fine = {"n", "k", "segment", "ramp", "short_table", "half_offset", "half_scale", "tables_of"}
    assert accepted <= fine, accepted - fine


@each_kernel
def test_random_bytes_after_the_header_compute(kernel, rng):
    """Codes, tables and scales are numbers, not addresses: any bytes give a result."""
    for i in range(4):
        w = any_weight(rng, kernel, 67, 45, int(rng.integers(99)))
        block = cpu_float.packed_tensor(w)
        start = int(block[: 8 * len(NAMES)].view(np.int64)[NAMES.index("table32")])
        block[start:] = rng.integers(0, 256, block.nbytes - start)
        x, y = rng.standard_normal((7, 45)).astype(np.float32), np.empty((7, 67), np.float32)
        plan = qk._native.FloatPlan(wrap(block), registry.ISAS[kernel.isa][0], bool(i % 2), 0, 0, 0)
        for m in (1, 7):
            assert plan.run(x.ctypes.data, m, 45, 0, y.ctypes.data, 1) == -1


def test_the_operator_refuses_another_shape(rng):
    """In graphs the block is a tensor and the width of the result an argument: both must agree."""
    w, x = BLOCKS["signs"](rng), torch.randn(3, 7)
    block = torch.from_numpy(cpu_float.packed_tensor(w))
    run = torch.ops.qkernels.linear_float
    assert run(x, block, None, 64, True, 0, torch.float32).shape == (3, 64)
    changed = block.clone()
    changed[: 8 * len(NAMES)].view(torch.int64)[NAMES.index("n")] = 63
    for arguments in ((x, changed, None, 64), (x, block, None, 63), (x[:, :6], block, None, 64)):
        with pytest.raises((ValueError, qk.ArgumentError)):
            run(*arguments, True, 0, torch.float32)


def test_sources_are_checked():
    source, good = qk._native.FloatSource, (3, 40, 4, 40, 0, False, False, False, 0, 0, 0, 0, 1, 1, 0)
    assert qk._native.packed_float_bytes(source(*good)) > 0
    changes = {0: -1, 1: -1, 2: 9, 3: 41, 4: 3, 7: True}
    for at, value in (*changes.items(), (2, 0), (3, 0), (3, -1), (4, -1)):
        with pytest.raises(ValueError, match="FloatSource"):
            source(*good[:at], value, *good[at + 1 :])
    out = aligned(64)
    with pytest.raises(ValueError, match="too small"):
        qk._native.prepack_float(source(*good), out.ctypes.data, out.nbytes)
