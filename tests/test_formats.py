"""IntWeight: layout, rounding, validation."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import assert_same, garbage, random_codes

from qkernels.errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from qkernels.formats import IntWeight

KINDS = {"numpy": np.asarray, "torch": torch.from_numpy}
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (1, 7), (3, 64), (17, 31), (64, 129)]

each_kind = pytest.mark.parametrize("kind", KINDS)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def weights(rng, shape):
    return rng.standard_normal(shape, dtype=np.float32)


def is_kind(x, kind):
    return isinstance(x, torch.Tensor if kind == "torch" else np.ndarray)


@each_kind
@each_shape
def test_pack_keeps_codes(kind, shape, rng):
    q = random_codes(rng, shape)
    s = rng.uniform(0.01, 1, (shape[0], 1)).astype(np.float32)
    zp = rng.integers(-128, 128, s.shape).astype(np.int16)
    w = IntWeight.pack(KINDS[kind](q), KINDS[kind](s), KINDS[kind](zp))
    assert w.shape == shape and w.bits == 8 and w.group_size is None
    assert all(is_kind(a, kind) for a in (w.packed, w.scale, w.zero_point, w.codes(), w.dense()))
    assert_same(w.codes(), KINDS[kind](q))
    assert_same(w.numpy().packed, q.view(np.uint8))
    again = IntWeight.pack(w.codes(), w.scale, w.zero_point)
    assert_same(again.packed, w.packed)
    assert_same(w.numpy().dense(), (q.astype(np.float32) - zp) * s)


def test_golden_bytes():
    w = IntWeight.pack(np.array([[-128, -1, 0, 127], [1, 2, -2, 64]], np.int8), [0.5, 2.0])
    assert w.packed.dtype == np.uint8 and w.packed.tobytes().hex() == "80ff007f0102fe40"
    assert w.scale.shape == (2, 1) and w.zero_point is None and w.input_scale is None
    assert w.dense().tolist() == [[-64.0, -0.5, 0.0, 63.5], [2.0, 4.0, -4.0, 128.0]]
    assert w.nbytes == 8 + 2 * 4 and w.bits_per_weight == 16.0


def test_quantize_worked_example():
    """thesis eq. 1.7 by hand: the scale is 1/2; 0.25, 0.75 and -1.25 over it are ties, to even."""
    w = IntWeight.quantize(np.array([[63.5, 0.25, 0.75, -1.25, -63.5]], np.float32))
    assert w.scale.item() == 0.5
    assert w.codes().tolist() == [[127, 0, 2, -2, -127]]


def test_quantize_asymmetric_worked_example():
    """min -1, max 254: scale 1, zero point rint(-128 + 1) = -127, codes -128..127."""
    w = IntWeight.quantize(np.array([[-1.0, 0.0, 127.0, 254.0]], np.float32), symmetric=False)
    assert w.scale.item() == 1.0 and w.zero_point.item() == -127 and w.zero_point.dtype == np.int16
    assert w.codes().tolist() == [[-128, -127, 0, 127]]
    assert w.dense().tolist() == [[-1.0, 0.0, 127.0, 254.0]]


@each_shape
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantize_error_is_half_a_step(shape, granularity, symmetric, rng):
    W = weights(rng, shape)
    w = IntWeight.quantize(W, granularity=granularity, symmetric=symmetric)
    assert w.scale.shape == ((shape[0], 1) if granularity == "channel" else (1, 1))
    step = 0.5 if symmetric else 1.0  # an asymmetric zero point is rounded too
    assert_same(w.dense(), W, tolerance=np.broadcast_to(w.scale, shape) * (step + 1e-4))
    if symmetric and W.size:
        assert np.abs(w.codes()).max() == 127 and w.codes().min() >= -127 and w.zero_point is None
    if not symmetric:
        assert (w.dense()[W == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_torch_equals_numpy(dtype, rng):
    W = torch.from_numpy(weights(rng, (9, 33))).to(dtype)
    t = IntWeight.quantize(W.requires_grad_())
    n = IntWeight.quantize(W.detach().float().numpy())
    assert_same(t.numpy().packed, n.packed)
    assert_same(t.numpy().scale, n.scale)
    assert t.dense().dtype == torch.float32


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_and_tiny_channels_get_scale_one(symmetric):
    W = np.zeros((3, 4), np.float32)
    W[1], W[2, 0] = 2.0**-110, 1.0
    w = IntWeight.quantize(W, symmetric=symmetric)
    assert w.scale[:2].tolist() == [[1.0], [1.0]] and w.scale[2] < 1
    assert not w.codes()[:2].any() and not w.dense()[:2].any()
    tensor = IntWeight.quantize(np.zeros((2, 3)), granularity="tensor", symmetric=symmetric)
    assert tensor.scale.tolist() == [[1.0]] and not tensor.codes().any()


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_input_scale_folds(granularity, rng):
    """SPIQ: the codes are those of W * diag(s); dense() divides s out again (thesis eq. 3.10-3.11)."""
    W, s = weights(rng, (8, 21)), rng.uniform(0.1, 3, 21).astype(np.float32)
    w = IntWeight.quantize(W, granularity=granularity, input_scale=s)
    plain = IntWeight.quantize(W * s, granularity=granularity)
    assert_same(w.codes(), plain.codes())
    assert_same(w.scale, plain.scale)
    assert_same(w.input_scale, s)
    assert_same(w.dense(), plain.dense() / s)
    assert w.nbytes == plain.nbytes + s.nbytes
    assert_same(IntWeight.pack(w.codes(), w.scale, input_scale=s).dense(), w.dense())


@each_kind
def test_arrays_are_shared(kind, rng):
    q = KINDS[kind](random_codes(rng, (4, 6)))
    w = IntWeight.pack(q, 1.0)
    q[0, 0] = 42
    assert w.codes()[0, 0] == 42 and w.numpy().codes()[0, 0] == 42
    assert (w.numpy() is w) == (kind == "numpy")


def test_pack_accepts_strided_and_wide_integers(rng):
    q = random_codes(rng, (6, 10))
    w = IntWeight.pack(q.T, np.float64(0.5), zero_point=3)
    assert_same(w.codes(), np.ascontiguousarray(q.T))
    assert w.scale.shape == w.zero_point.shape == (1, 1) and w.zero_point.item() == 3
    assert_same(IntWeight.pack(q.astype(np.int64), 1.0).codes(), q)
    per_channel = IntWeight.pack(q, np.ones(6), zero_point=-7)
    assert per_channel.zero_point.tolist() == [[-7]] * 6


@each_kind
def test_copies_and_pickles(kind, rng):
    w = IntWeight.quantize(KINDS[kind](weights(rng, (5, 9))), symmetric=False)
    object.__setattr__(w, "_layout", object())  # what a backend may attach
    for other in (pickle.loads(pickle.dumps(w)), copy.deepcopy(w), copy.copy(w)):
        assert_same(other.dense(), w.dense())
        assert other.shape == w.shape and not hasattr(other, "_layout")


def test_k_bound():
    """K * 128 * max|code - zero_point| must stay below 2**31."""
    most = 131071
    w = IntWeight.pack(np.full((1, most), -128, np.int8), 1.0)
    assert w.code_extreme == 128
    with pytest.raises(FormatError, match=r"K = 131072 .*accepted: K <= 131071"):
        IntWeight.pack(np.zeros((1, most + 1), np.int8), 1.0)
    assert IntWeight.pack(np.zeros((2, 3), np.int8), [1.0, 1.0], [[-5], [100]]).code_extreme == 228
    with pytest.raises(FormatError, match="accepted: K <= 65793"):
        IntWeight.pack(np.zeros((1, 65794), np.int8), 1.0, 127)


Q = np.zeros((2, 3), np.int8)
W = np.ones((2, 3), np.float32)
BAD_PACK = {
    "float codes": (dict(codes=W), DTypeError, ["codes", "float32", "integers"]),
    "unsigned codes": (
        dict(codes=Q.view(np.uint8) + 200),
        FormatError,
        ["codes", "200..200", "-128..127", "subtract 128"],
    ),
    "1-d codes": (dict(codes=Q[0]), FormatError, ["codes", "(3,)", "(N, K)"]),
    "text": (dict(codes=[["a"]]), DTypeError, ["codes", "list", "accepted"]),
    "scale shape": (
        dict(scale=np.ones((3, 1))),
        FormatError,
        ["scale", "(3, 1)", "(2, 3)", "(2, 1)", "(1, 1)"],
    ),
    "scale row": (dict(scale=np.ones((1, 3))), FormatError, ["scale", "(1, 3)", "(2, 1)"]),
    "scale negative": (dict(scale=[1, -2]), FormatError, ["scale[1, 0]", "-2", "finite and not negative"]),
    "scale nan": (dict(scale=[np.nan, 1]), FormatError, ["scale[0, 0]", "nan"]),
    "scale inf": (dict(scale=1e39), FormatError, ["scale[0, 0]", "inf"]),
    "scale complex": (dict(scale=1j), DTypeError, ["scale", "complex128", "real"]),
    "zero_point float": (dict(zero_point=0.5), DTypeError, ["zero_point", "float64", "integers"]),
    "zero_point shape": (dict(zero_point=[1, 2]), FormatError, ["zero_point", "(2, 1)", "(1, 1)"]),
    "zero_point range": (dict(zero_point=40000), FormatError, ["zero_point", "40000", "-32768..32767"]),
    "bits": (dict(bits=1), UnsupportedError, ["bits", "1", "2 to 8", "BinaryWeight"]),
    "group_size": (dict(group_size=15), UnsupportedError, ["group_size", "15", "None", "16"]),
    "input_scale shape": (dict(input_scale=np.ones(2)), FormatError, ["input_scale", "(2,)", "(3,)"]),
    "input_scale zero": (dict(input_scale=[1, 0, 1]), FormatError, ["input_scale[1]", "0.0", "2**-126"]),
    "input_scale nan": (dict(input_scale=[1, 1, np.nan]), FormatError, ["input_scale[2]", "nan"]),
}


@pytest.mark.parametrize("case", BAD_PACK)
def test_pack_refuses(case):
    arguments, error, fragments = BAD_PACK[case]
    with pytest.raises(error) as e:
        IntWeight.pack(**{"codes": Q, "scale": 1.0, **arguments})
    assert [f for f in ["IntWeight", *fragments] if f not in str(e.value)] == []


BAD_QUANTIZE = {
    "1-d": (dict(W=W[0]), ArgumentError, ["W", "(3,)", "(N, K)"]),
    "nan": (dict(W=[[1, np.nan]]), ArgumentError, ["W[0, 1]", "nan", "finite"]),
    "inf": (dict(W=[[1, 2], [-np.inf, 3]]), ArgumentError, ["W[1, 0]", "-inf", "finite"]),
    "above float32": (dict(W=[[1e300]]), ArgumentError, ["W[0, 0]", "inf"]),
    "span": (dict(W=[[3e38, -3e38]], symmetric=False), ArgumentError, ["W", "rescale"]),
    "input_scale overflow": (
        dict(W=W * 1e30, input_scale=[1e30, 1, 1]),
        ArgumentError,
        ["input_scale", "rescale"],
    ),
    "bool": (dict(W=W > 0), DTypeError, ["W", "bool", "real"]),
    "string": (dict(W="weights"), DTypeError, ["W", "str", "accepted"]),
    "granularity": (dict(granularity="row"), ArgumentError, ["granularity", "'row'", "'channel', 'tensor'"]),
    "bits": (dict(bits=9), UnsupportedError, ["bits", "9", "2 to 8"]),
    "group_size": (dict(group_size=8), UnsupportedError, ["group_size", "8", "None", "16"]),
    "input_scale shape": (dict(input_scale=np.ones((1, 3))), FormatError, ["input_scale", "(1, 3)", "(3,)"]),
    "input_scale negative": (dict(input_scale=[1, 1, -1]), FormatError, ["input_scale[2]", "-1"]),
    "device": (dict(W=torch.empty(2, 3, device="meta")), ArgumentError, ["W", "meta", "cpu"]),
}


@pytest.mark.parametrize("case", BAD_QUANTIZE)
def test_quantize_refuses(case):
    arguments, error, fragments = BAD_QUANTIZE[case]
    with pytest.raises(error) as e:
        IntWeight.quantize(**{"W": W, **arguments})
    assert [f for f in ["IntWeight.quantize", *fragments] if f not in str(e.value)] == []


def test_constructor_checks_the_layout():
    good = IntWeight.quantize(W, symmetric=False)
    fields = good.__getstate__()
    IntWeight(**fields)
    for bad, error, name in [
        (dict(packed=Q), DTypeError, "packed has dtype int8"),
        (dict(packed=None), DTypeError, "packed is None"),
        (dict(scale=[[1.0], [1.0]]), DTypeError, "scale has dtype float64; accepted: an array of float32"),
        (dict(shape=(2,)), FormatError, "shape is"),
        (dict(shape=(2, -3)), FormatError, "shape is"),
        (dict(packed=good.packed[0], shape=None), FormatError, "shape is"),
        (dict(packed=good.packed[:1]), FormatError, r"packed has shape \(1, 3\)"),
        (dict(shape=(3, 2)), FormatError, "packed has shape"),
        (dict(scale=good.scale.astype(np.float64)), DTypeError, "scale has dtype float64"),
        (dict(scale=good.scale[:, 0]), FormatError, "scale has shape"),
        (dict(zero_point=good.zero_point.astype(np.int8)), DTypeError, "zero_point has dtype int8"),
        (dict(zero_point=good.zero_point[:1]), FormatError, "zero_point has shape"),
        (dict(scale=torch.ones(2, 1)), DTypeError, "arrays of NumPy and of torch"),
    ]:
        with pytest.raises(error, match=name):
            IntWeight(**{**fields, **bad})


def test_scale_zero_switches_a_channel_off():
    assert IntWeight.pack(Q + 5, [0.0, 1.0]).dense().tolist() == [[0.0] * 3, [5.0] * 3]


def test_formats_and_reference_need_numpy_alone():
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'safetensors', 'rich', 'ml_dtypes', 'scipy', 'matplotlib'):
            raise ImportError(name)
sys.meta_path.insert(0, Block())
import numpy as np
from qkernels import reference
from qkernels.formats import IntWeight
from qkernels.quant import InputQuant
y = reference.linear_int(np.ones((1, 4), np.float32), IntWeight.quantize(np.ones((2, 4))), InputQuant())
assert y.tolist() == [[4.0, 4.0]], y
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_constructors_survive_any_argument(rng):
    """Whatever comes in: a weight that computes, or an error of this package."""
    good = {"codes": Q, "W": W, "packed": Q.view(np.uint8), "scale": np.ones((2, 1), np.float32)}
    makers = {
        IntWeight.pack: ["codes", "scale", "zero_point", "bits", "group_size", "input_scale"],
        IntWeight.quantize: ["W", "bits", "group_size", "granularity", "input_scale", "symmetric"],
        IntWeight: ["packed", "scale", "zero_point", "bits", "group_size", "shape", "input_scale"],
    }
    built = 0
    for i in range(3000):
        make = list(makers)[i % 3]
        arguments = {name: good[name] for name in makers[make] if name in good}
        for name in rng.choice(makers[make], rng.integers(1, 3), replace=False):
            arguments[name] = garbage(rng)
        try:
            with np.errstate(all="ignore"):
                w = make(**arguments)
                assert w.dense().shape == w.shape
            built += 1
        except (ArgumentError, DTypeError, FormatError, UnsupportedError) as e:
            assert str(e).startswith("IntWeight")
    assert built > 20
