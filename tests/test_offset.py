"""IntWeight with an offset: what it stands for, that weight-only layers add it, and that integer products refuse it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk

SHAPES = [
    (1, 1, None),
    (3, 5, None),
    (4, 64, 32),
    (7, 50, 16),
    (5, 131, 128),
    (2, 40, 40),
]  # N, K, group_size
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_bits = pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])


def case(rng, shape, bits, zero_points=False, like=np.asarray):
    """Random codes over the full range, the extremes among them, scales and offsets over many orders of magnitude."""
    n, k, group_size = shape
    half = 2 ** (bits - 1)
    codes = rng.integers(-half, half, (n, k)).astype(np.int8)
    codes.flat[:2] = [-half, half - 1][: codes.size]
    groups = -(-k // group_size) if group_size else 1
    scale = (2.0 ** rng.uniform(-12, 4, (n, groups))).astype(np.float32)
    offset = (rng.standard_normal((n, groups)) * scale * half).astype(np.float32)
    zero = None
    if zero_points and not (bits == 8 and group_size and group_size < k):
        zero = rng.integers(-half, half, scale.shape).astype(np.int16)
    arrays = (None if a is None else like(a) for a in (scale, zero, offset))
    scale, zero, offset = arrays
    return qk.IntWeight.pack(like(codes), scale, zero, bits, group_size, offset=offset)


@each_bits
@each_shape
@pytest.mark.parametrize("zero_points", [False, True])
def test_dense_lookup_and_linear(bits, shape, zero_points, rng):
    w = case(rng, shape, bits, zero_points)
    n, k, size = shape
    expected = np.empty((n, k), np.float32)
    for i, j in np.ndindex(n, k):
        g = j // size if size and size < k else 0
        code = int(w.codes()[i, j]) - (0 if w.zero_point is None else int(w.zero_point[i, g]))
        expected[i, j] = np.float32(w.scale[i, g] * np.float32(code)) + w.offset[i, g]
    assert_same(w.dense(), expected)
    assert_same(w.lookup().dense(), expected, np.abs(expected) * 1e-6 + w.per_code(w.scale) * 1e-4)
    x = rng.standard_normal((3, k)).astype(np.float32)
    exact = x.astype(np.float64) @ expected.T.astype(np.float64)
    size = np.abs(x).astype(np.float64) @ np.abs(expected.T).astype(np.float64)
    assert_same(qk.linear(x, w, backend="reference"), exact, size * 1e-6 + 1e-30)


def test_golden_bytes():
    w = qk.IntWeight.pack([[-8, -1, 0, 7, 3]], 0.5, -8, bits=4, offset=-1)
    assert w.offset.tobytes().hex() == "000080bf" and w.offset.shape == (1, 1)
    assert w.dense().tolist() == [[-1.0, 2.5, 3.0, 6.5, 4.5]]
    assert w.nbytes == 3 + 4 + 2 + 4 and qk.IntWeight.quantize(np.ones((2, 3))).offset is None


def test_input_scale_divides_the_offset_too(rng):
    s = rng.uniform(0.5, 2, 40).astype(np.float32)
    w = case(rng, (3, 40, 16), 4)
    folded = qk.IntWeight.pack(w.codes(), w.scale, None, 4, 16, input_scale=s, offset=w.offset)
    assert_same(folded.dense(), w.dense() / s)
    x = rng.standard_normal((2, 40)).astype(np.float32)
    assert_same(qk.linear(x, folded, backend="reference"), x @ (w.dense() / s).T, 1e-3)


@pytest.mark.parametrize("like", [np.asarray, torch.from_numpy])
def test_files_pickles_and_modules_keep_it(like, rng, tmp_path):
    w = case(rng, (5, 131, 32), 4, True, like)
    qk.save(tmp_path / "w", {"a": w})
    kind = "torch" if torch.is_tensor(w.packed) else "numpy"
    copies = [
        qk.load(tmp_path / "w", kind)["a"],
        pickle.loads(pickle.dumps(w)),
        copy.deepcopy(w),
        w.numpy(),
    ]
    for other in copies:
        assert_same(other.offset, w.offset)
        assert_same(other.dense(), w.dense())
    layer = qk.nn.Linear(w, torch.ones(5))
    again = qk.nn.Linear(case(rng, (5, 131, 32), 4, True))
    again.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "bias"})
    x = torch.randn(3, 131, generator=torch.Generator().manual_seed(1))
    assert_same(again(x), qk.linear(x, w))
    assert_same(layer(x), qk.linear(x, w, torch.ones(5)))
    assert "offset" in layer.state_dict() and layer.half().offset.dtype is torch.float32


@pytest.mark.parametrize("like", [np.asarray, torch.from_numpy])
def test_integer_operations_refuse_it(like, rng):
    w = case(rng, (5, 24, None), 8, like=like)
    image = qk.IntWeight.pack(w.codes().reshape(5, 6, 2, 2), w.scale, offset=w.offset)
    x, xq = like(np.ones((2, 24), np.float32)), like(np.ones((2, 24), np.int8))
    y, yq = like(np.ones((1, 6, 4, 4), np.float32)), like(np.ones((1, 6, 4, 4), np.int8))
    r, quant = qk.Requant.from_scale(0.01), qk.InputQuant(granularity="tensor")
    calls = {
        "linear": lambda: qk.linear(x, w, input_quant=quant),
        "matmul_int": lambda: qk.matmul_int(xq, w),
        "linear_requant": lambda: qk.linear_requant(xq, w, r),
        "conv2d": lambda: qk.conv2d(y, image, input_quant=quant),
        "conv2d_int": lambda: qk.conv2d_int(yq, image),
        "conv2d_requant": lambda: qk.conv2d_requant(yq, image, r),
        "nn.Linear": lambda: qk.nn.Linear(w, input_quant=quant),
        "nn.Conv2d": lambda: qk.nn.Conv2d(image, input_quant=quant),
    }
    for name, call in calls.items():
        with pytest.raises(qk.UnsupportedError, match=rf"^{name}: w has an offset.*Leave out input_quant"):
            call()
    for backend in ("cpu", "reference"):
        with pytest.raises(qk.UnsupportedError, match="w has an offset"):
            qk.linear(x, w, input_quant=quant, backend=backend)
    with pytest.raises(qk.UnsupportedError, match="w has an offset"):
        qk.explain("linear", w, x, input_quant=quant)
    assert qk.conv2d(y, image).shape == (1, 5, 3, 3)  # weight-only takes it


def test_compiled_integer_layers_refuse_it(rng):
    w, quant = case(rng, (5, 24, None), 8, like=torch.from_numpy), qk.InputQuant()
    with pytest.raises(Exception, match="w has an offset"):
        torch.compile(lambda x: qk.linear(x, w, input_quant=quant), fullgraph=True)(torch.ones(2, 24))


def test_refusals(rng):
    w = case(rng, (4, 64, 32), 4)
    fields = {"bits": 4, "group_size": 32, "shape": (4, 64)}
    for bad, said in (
        (w.offset[:, :1], r"offset has shape \(4, 1\); it must be shaped like scale, \(4, 2\)"),
        (w.offset * np.float32(np.nan), r"offset\[0, 0\] is nan; accepted: finite"),
        (
            np.where(np.arange(8).reshape(4, 2) == 5, np.inf, w.offset).astype(np.float32),
            r"offset\[2, 1\] is inf",
        ),
    ):
        with pytest.raises(qk.FormatError, match=said):
            qk.IntWeight(w.packed, w.scale, offset=bad, **fields)
        with pytest.raises(qk.FormatError, match="offset"):
            qk.IntWeight.pack(w.codes(), w.scale, None, 4, 32, offset=bad)
    with pytest.raises(qk.DTypeError, match="offset has dtype float64; accepted: an array of float32"):
        qk.IntWeight(w.packed, w.scale, offset=w.offset.astype(np.float64), **fields)
    with pytest.raises(qk.DTypeError, match="arrays of NumPy and of torch"):
        qk.IntWeight(w.packed, w.scale, offset=torch.from_numpy(w.offset), **fields)
    with pytest.raises(qk.DTypeError, match="offset"):
        qk.IntWeight.pack(w.codes(), w.scale, None, 4, 32, offset="text")
