"""Decoding's operations between linear layers: kernels and the fast torch calls against the reference, and that against
torch's own operators in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import as_array, assert_same

import qkernels as qk
from qkernels import reference, registry
from qkernels.demo.smollm2.model import Config, rotate, rotations
from qkernels.errors import ArgumentError, DTypeError

WIDTHS = [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 257, 576, 1009]
HEADS = [
    (1, 1, 2),
    (2, 1, 6),
    (9, 3, 64),
    (4, 4, 10),
    (6, 2, 16),
    (8, 1, 18),
    (3, 3, 130),
    (5, 5, 72),
    (2, 2, 64),
]


def rows(op):
    return pytest.mark.parametrize("kernel", registry.kernels(op), ids=str)


def kinds(*arrays):
    """Copies as NumPy arrays, then as tensors."""
    yield [a.copy() for a in arrays]
    yield [torch.from_numpy(a.copy()) for a in arrays]


def floats(rng, *shape, spread=3.0):
    """Normal numbers of sizes that vary over decades from row to row."""
    rows = 10.0 ** rng.uniform(-spread, spread, (*shape[:-1], 1))
    return (rng.standard_normal(shape) * rows).astype(np.float32)


def token(rng, heads, kv_heads, head, length, position):
    """qkv, turn and store of one token at a position, whose store is NaN past it."""
    qkv = rng.standard_normal((1, (heads + 2 * kv_heads) * head)).astype(np.float32)
    turn = rotations(Config(0, heads * head, 0, 0, heads, kv_heads, 1e4, 0), position + 1)[position].numpy()
    store = rng.standard_normal((2 * kv_heads, length, head)).astype(np.float32)
    store[:, position:] = np.nan
    return qkv, turn, store


# ---- rms_norm --------------------------------------------------------------------------------------------------


@rows("rms_norm")
@pytest.mark.parametrize("k", WIDTHS)
def test_rms_norm(kernel, k, rng):
    for batch in ((1,), (5,), (2, 3), ()):
        x, residual = floats(rng, *batch, k), floats(rng, *batch, k)
        weight = floats(rng, k)
        for eps in (1e-5, 1.0):
            y = reference.rms_norm(x, weight, eps)
            for a, w in kinds(x, weight):
                assert_same(kernel(a, w, eps), y, 1e-5 * np.abs(y))
                np.testing.assert_array_equal(a, x)
            y = reference.rms_norm(x + residual, weight, eps)
            for a, w, r in kinds(x, weight, residual):
                assert_same(kernel(a, w, eps, r), y, 1e-5 * np.abs(y) + 1e-30)
                np.testing.assert_array_equal(a, x + residual)
                np.testing.assert_array_equal(r, residual)


def test_rms_norm_is_torchs(rng):
    """The call of the fast path, and views that it leaves to the careful one."""
    x, weight, residual = (torch.from_numpy(floats(rng, 4, 100)) for _ in range(3))
    weight = torch.nn.Parameter(weight[0], False)
    y = F.rms_norm(x.double(), (100,), weight.double(), 1e-6)
    assert_same(qk.rms_norm(x, weight, 1e-6), y, 1e-5 * y.abs().numpy())
    wide = torch.stack((x, x), -1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(qk.rms_norm(wide, weight, 1e-6), qk.rms_norm(x, weight, 1e-6))
    negative = torch.complex(x, -x).conj().imag  # a lazy minus of -x
    assert negative.is_neg()
    assert torch.equal(qk.rms_norm(negative, weight, 1e-6), qk.rms_norm(x, weight, 1e-6))
    there, total = residual.T.contiguous().T, x + residual
    expected = F.rms_norm(total.double(), (100,), weight.double(), 1e-6)
    assert_same(qk.rms_norm(x, weight, 1e-6, there), expected, 1e-5 * expected.abs().numpy())
    assert torch.equal(x, total)


@rows("rms_norm")
def test_rms_norm_of_extremes(kernel):
    x = np.float32([[1e-30, -1e-38, 0, 1e-45], [1e18, -1e18, 3e18, 1], [np.nan, 1, 1, 1], [0, 0, 0, 0]])
    weight = np.float32([1, -2, 3, 1e30])
    with np.errstate(all="ignore"):
        expected = reference.rms_norm(x, weight, 1e-6)
    np.testing.assert_allclose(kernel(x, weight, 1e-6), expected, rtol=1e-5, atol=1e-30)


# ---- swiglu ----------------------------------------------------------------------------------------------------


@rows("swiglu")
@pytest.mark.parametrize("n", WIDTHS)
def test_swiglu(kernel, n, rng):
    for batch in ((1,), (4,), (2, 3), ()):
        x = floats(rng, *batch, 2 * n, spread=1.5)
        y = reference.swiglu(x)
        for (a,) in kinds(x):
            assert_same(kernel(a), y, 1e-5 * np.abs(y) + 1e-6 * np.abs(x[..., n:]))
    gate, up = torch.from_numpy(x).double().chunk(2, -1)
    np.testing.assert_allclose(y, F.silu(gate) * up, rtol=1e-6)


def test_swiglu_keeps_what_is_not_finite():
    x = torch.tensor([[np.nan, 1, np.inf, -100.0, 2, np.nan, 3, 4]])
    y = qk.swiglu(x)[0]
    assert y[:2].isnan().all() and y[2] == np.inf and abs(y[3]) < 1e-30


# ---- decode_attention ------------------------------------------------------------------------------------------


@rows("decode_attention")
@pytest.mark.parametrize("sizes", HEADS, ids=str)
def test_decode_attention(kernel, sizes, rng):
    for position in (0, 1, 2, 3, 4, 7, 8, int(rng.integers(9, 298)), 299):
        length = position + 1 + int(rng.integers(3)) * (position < 299)
        qkv, turn, store = token(rng, *sizes, length, position)
        expected, after = None, store.copy()
        expected = reference.decode_attention(qkv, turn, after, position)
        for a, t, s in kinds(qkv, turn, store):
            y = kernel(a, t, s, position)
            assert_same(y, expected, 1e-5 * np.abs(expected).max())
            np.testing.assert_allclose(as_array(s), after, rtol=1e-5, atol=1e-6)  # NaN where it was


@pytest.mark.parametrize("sizes", HEADS, ids=str)
def test_decode_attention_is_torchs(sizes, rng):
    """A slice of a larger cache, decoded from the first position to the last, against rotate and SDPA in float64."""
    heads, kv_heads, head = sizes
    cache = torch.full((3, 2 * kv_heads, 44, head), float("nan"))
    kept = cache[1, :, :41]
    turns = rotations(Config(0, heads * head, 0, 0, heads, kv_heads, 1e4, 0), 41)
    seen = torch.from_numpy(rng.standard_normal((41, heads + 2 * kv_heads, head)).astype(np.float32))
    turned = rotate(seen, turns).double().transpose(0, 1)
    q, k, v = turned.split((heads, kv_heads, kv_heads))
    for position in range(41):
        y = qk.decode_attention(seen[position].view(1, -1), turns[position], kept, position)
        past = slice(position + 1)
        expected = F.scaled_dot_product_attention(
            q[None, :, position : position + 1], k[None, :, past], v[None, :, past], enable_gqa=True
        )
        torch.testing.assert_close(y.double(), expected.view(1, -1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept.double(), turned[heads:], rtol=1e-5, atol=1e-6)
    assert cache[[0, 2]].isnan().all() and cache[1, :, 41:].isnan().all()


@rows("decode_attention")
def test_decode_attention_of_extremes(kernel, rng):
    """Scores so far apart that one position takes all, and one NaN that reaches its own heads alone."""
    qkv, turn, store = token(rng, 4, 2, 16, 20, 19)
    qkv[:, : 4 * 16] *= 1e4
    after = store.copy()
    expected = reference.decode_attention(qkv, turn, after, 19)
    assert_same(kernel(qkv, turn, store, 19), expected, 1e-5)
    store[0, 3, 5] = np.nan
    y = kernel(qkv, turn, store, 19).reshape(4, 16)
    assert np.isnan(y[:2]).all()
    assert_same(y[2:], expected.reshape(4, 16)[2:], 1e-5)


# ---- arguments -------------------------------------------------------------------------------------------------


def refuses(error, says, call):
    with pytest.raises(error, match=says):
        call()


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_errors(make, rng):
    def f(*shape):
        return make(rng.standard_normal(shape).astype(np.float32))

    x, w = f(3, 8), f(8)
    refuses(ArgumentError, r"weight has shape \(7,\)", lambda: qk.rms_norm(x, f(7), 1e-5))
    refuses(ArgumentError, r"must be \(3, 8\)", lambda: qk.rms_norm(x, w, 1e-5, f(8)))
    refuses(ArgumentError, "eps is 0", lambda: qk.rms_norm(x, w, 0.0))
    refuses(ArgumentError, "contiguous copy", lambda: qk.rms_norm(f(8, 3).T, w, 1e-5, f(3, 8)))
    refuses(ArgumentError, "no dimension", lambda: qk.rms_norm(f(), w, 1e-5))
    refuses(DTypeError, "float64", lambda: qk.rms_norm(make(np.ones((2, 8))), w, 1e-5))
    refuses(ArgumentError, "must be even", lambda: qk.swiglu(f(2, 7)))
    refuses(DTypeError, "a list", lambda: qk.swiglu([1.0, 2.0]))
    qkv, turn, store = f(1, 8 * 4), f(8, 2, 2), f(4, 5, 4)
    call = qk.decode_attention
    assert call(qkv, turn, store, 4).shape == (1, 16)
    refuses(ArgumentError, "position is 5; accepted: 0..4", lambda: call(qkv, turn, store, 5))
    refuses(ArgumentError, "position is -1", lambda: call(qkv, turn, store, -1))
    refuses(DTypeError, "position is 1.0", lambda: call(qkv, turn, store, 1.0))
    refuses(ArgumentError, "head even", lambda: call(f(1, 24), turn, f(4, 5, 3), 0))
    refuses(ArgumentError, "head even", lambda: call(qkv, turn, f(3, 5, 4), 0))
    refuses(ArgumentError, "multiple of 2", lambda: call(f(1, 7 * 4), f(7, 2, 2), store, 0))
    refuses(ArgumentError, "multiple of 2", lambda: call(f(2, 8 * 4), turn, store, 0))
    refuses(ArgumentError, r"accepted: \(8, 2, 2\)", lambda: call(qkv, f(8, 4), store, 0))
    refuses(ArgumentError, "strides", lambda: call(qkv, turn, f(5, 4, 4).swapaxes(0, 1), 0))
    refuses(ArgumentError, "strides", lambda: call(qkv, turn, f(4, 5, 8)[..., ::2], 0))


def test_written_memory(rng):
    x = floats(rng, 2, 8)
    x.flags.writeable = False
    refuses(ArgumentError, "writeable", lambda: qk.rms_norm(x, x[0], 1e-5, x.copy()))
    t = torch.from_numpy(floats(rng, 2, 8))
    refuses(DTypeError, "all torch", lambda: qk.rms_norm(t, t[0].numpy(), 1e-5))
    refuses(ArgumentError, "cpu", lambda: qk.swiglu(t.to("meta")))


def test_force_isa_reaches_the_fast_path(rng):
    """The scalar kernels sum in another order, so wide rows differ in some last bit."""
    x, w = torch.from_numpy(floats(rng, 64, 1009)), torch.ones(1009)
    with qk.force_isa("scalar"):
        slow = qk.rms_norm(x, w, 1e-5)
    scalar = next(k for k in registry.kernels("rms_norm") if k.isa == "scalar")
    assert torch.equal(slow, scalar(x, w, 1e-5))
    best = registry.kernels("rms_norm")[0]
    assert torch.equal(qk.rms_norm(x, w, 1e-5), best(x, w, 1e-5))
    assert best is scalar or not torch.equal(slow, qk.rms_norm(x, w, 1e-5))
