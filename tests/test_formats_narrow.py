"""IntWeight below 8 bits and MixedIntWeight: layouts byte by byte, rounding, refusals, files."""

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels.formats.bits import pack_rows, row_bytes, to_signed, to_unsigned, unpack_rows


@pytest.mark.parametrize("bits", range(1, 9))
def test_pack_rows_is_the_bitstream_of_the_documentation(bits, rng):
    for n, k in ((0, 3), (2, 0), (1, 1), (3, 7), (2, 8), (5, 33)):
        u = rng.integers(0, 2**bits, (n, k)).astype(np.uint8)
        packed = pack_rows(u, bits)
        assert packed.shape == (n, row_bytes(k, bits)) and packed.dtype == np.uint8
        for row in range(n):
            stream = int.from_bytes(packed[row].tobytes(), "little")
            assert [stream >> (bits * i) & (2**bits - 1) for i in range(k)] == u[row].tolist()
            assert stream >> (bits * k) == 0
        assert_same(unpack_rows(packed, k, bits), u)


GOLDEN = {
    8: ([-128, -1, 0, 127], "80ff007f"),
    4: ([-8, -1, 0, 7, 3], "f87003"),
    3: ([-4, -1, 0, 3, 2], "3c26"),
    2: ([-2, -1, 0, 1, 1], "4e01"),
}


@pytest.mark.parametrize("bits", GOLDEN)
def test_golden_bytes(bits):
    codes, expected = GOLDEN[bits]
    w = qk.IntWeight.pack(np.array([codes]), 0.5, bits=bits)
    assert w.packed.tobytes().hex() == expected
    assert w.codes().tolist() == [codes] and w.dense().tolist() == [[c * 0.5 for c in codes]]


def test_golden_bytes_of_mixed_rows():
    w = qk.MixedIntWeight.pack(np.array([[-8, -1, 3], [1, -2, 0]]), [1.0, 2.0], [4, 2])
    assert w.packed.tobytes().hex() == "f80309" and w.row_bits.tolist() == [4, 2]
    assert w.dense().tolist() == [[-8, -1, 3], [2, -4, 0]] and w.bits == 4
    assert w.nbytes == 3 + 2 + 8


@pytest.mark.parametrize("bits", range(2, 9))
def test_signed_and_unsigned_are_inverse(bits):
    half = 2 ** (bits - 1)
    codes = np.arange(-half, half, dtype=np.int8)
    assert_same(to_signed(to_unsigned(codes, bits), bits), codes)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("group_size", [None, 16, 20])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantize_is_within_half_a_step(bits, group_size, symmetric, rng):
    if bits == 8 and group_size and not symmetric:
        pytest.skip("8-bit groups have no zero points")
    W = rng.standard_normal((7, 50)).astype(np.float32) + np.float32(0.5)
    W[3] = 0
    w = qk.IntWeight.quantize(W, bits, group_size, symmetric=symmetric)
    step = w.per_code(w.scale)
    error = np.abs(w.dense() - W)
    assert (error <= step * 0.5 * (1 + 1e-5)).all()
    assert (w.dense()[3] == 0).all()
    assert w.scale.shape == (7, -(-50 // group_size) if group_size else 1)
    codes, half = w.codes(), 2 ** (bits - 1)
    assert codes.min() >= (-half + 1 if symmetric else -half) and codes.max() <= half - 1
    again = qk.IntWeight.pack(codes, w.scale, w.zero_point, bits, group_size)
    assert_same(again.dense(), w.dense())
    assert_same(
        qk.IntWeight.quantize(torch.from_numpy(W), bits, group_size, symmetric=symmetric).dense().numpy(),
        w.dense(),
    )


def test_convolution_weights_are_matrices_in_channel_tap_order(rng):
    W = rng.standard_normal((5, 3, 2, 2)).astype(np.float32)
    s = rng.uniform(0.5, 2, 3).astype(np.float32)
    w = qk.IntWeight.quantize(W, bits=4, input_scale=s)
    assert w.shape == (5, 3, 2, 2) and w.matrix_shape == (5, 12) and w.dense().shape == W.shape
    flat = qk.IntWeight.quantize(W.reshape(5, 12), bits=4, input_scale=np.repeat(s, 4))
    assert_same(w.codes(), flat.codes())
    np.testing.assert_allclose(w.dense(), W, atol=float(w.scale.max()))
    with pytest.raises(qk.ArgumentError, match="conv2d"):
        qk.linear(np.zeros((1, 12), np.float32), w, input_quant=qk.InputQuant())


def test_mixed_precision_follows_the_thesis(rng):
    """b_n = b + trunc((g_n - mean) / std), clipped to 2..8."""
    g = np.array([0.0, 1.0, 2.0, 3.0, 100.0, 2.0])
    w = qk.MixedIntWeight.quantize(rng.standard_normal((6, 9)), bits=4, sensitivity=g)
    expected = 4 + np.trunc((g - g.mean()) / g.std())
    assert w.row_bits.tolist() == expected.tolist() and w.row_bits[4] > 4
    same = qk.MixedIntWeight.quantize(np.ones((3, 9)), bits=5)
    assert same.row_bits.tolist() == [5, 5, 5]
    for row in range(6):
        one = qk.IntWeight.quantize(w.dense()[row : row + 1], bits=int(w.row_bits[row]))
        assert_same(one.dense(), w.dense()[row : row + 1])


def test_mixed_uses_more_bits_where_it_matters(rng):
    W = rng.standard_normal((200, 64)) * rng.uniform(0.1, 3, (200, 1))
    w = qk.MixedIntWeight.quantize(W, bits=4)
    assert w.row_bits.mean() + 0.5 >= 4 and set(w.row_bits) > {4}
    uniform = qk.IntWeight.quantize(W, bits=4)
    assert np.linalg.norm(w.dense() - W) < np.linalg.norm(uniform.dense() - W)


REFUSED = {
    "code": (
        lambda: qk.IntWeight.pack(np.array([[8]]), 1.0, bits=4),
        qk.FormatError,
        ["8..8", "-8..7", "subtract 8"],
    ),
    "no shape": (
        lambda: qk.IntWeight(np.zeros((1, 1), np.uint8), np.ones((1, 1), np.float32), bits=4),
        qk.FormatError,
        ["shape is None"],
    ),
    "packed": (
        lambda: qk.IntWeight(np.zeros((1, 2), np.uint8), np.ones((1, 1), np.float32), bits=4, shape=(1, 5)),
        qk.FormatError,
        ["(1, 2)", "(1, 3)"],
    ),
    "group scales": (
        lambda: qk.IntWeight.pack(np.zeros((4, 70), np.int8), np.ones((4, 2)), bits=4, group_size=32),
        qk.FormatError,
        ["(4, 2)", "(4, 3)", "group_size=32", "last group is short"],
    ),
    "zero point": (
        lambda: qk.IntWeight.pack(np.zeros((1, 4), np.int8), 1.0, 121, bits=4),
        qk.FormatError,
        ["121", "-120..120"],
    ),
    "8-bit groups": (
        lambda: qk.IntWeight.pack(
            np.zeros((1, 32), np.int8), np.ones((1, 2)), np.ones((1, 2), int), group_size=16
        ),
        qk.UnsupportedError,
        ["zero_point", "group_size=16"],
    ),
    "tensor groups": (
        lambda: qk.IntWeight.quantize(np.ones((1, 32)), 4, 16, "tensor"),
        qk.ArgumentError,
        ["tensor", "group_size=16"],
    ),
    "mixed code": (
        lambda: qk.MixedIntWeight.pack([[3]], [1.0], [2]),
        qk.FormatError,
        ["codes[0, 0]", "3", "-2..1"],
    ),
    "mixed width": (
        lambda: qk.MixedIntWeight.pack([[1]], [1.0], [9]),
        qk.FormatError,
        ["row_bits", "2 to 8"],
    ),
    "mixed bits": (
        lambda: qk.MixedIntWeight.quantize(np.ones((2, 2)), bits=1),
        qk.ArgumentError,
        ["bits", "1"],
    ),
    "sensitivity": (
        lambda: qk.MixedIntWeight.quantize(np.ones((2, 2)), sensitivity=[1, 2, 3]),
        qk.ArgumentError,
        ["sensitivity", "(3,)", "(2,)"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case):
    call, error, fragments = REFUSED[case]
    with pytest.raises(error) as e:
        call()
    assert [f for f in fragments if f not in str(e.value)] == [], str(e.value)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
def test_files(tmp_path, framework, rng):
    W = rng.standard_normal((6, 50)).astype(np.float32)
    weights = {
        "four": qk.IntWeight.quantize(W, 4, 16, symmetric=False),
        "three": qk.IntWeight.quantize(W, 3),
        "mixed": qk.MixedIntWeight.quantize(W, 4, input_scale=np.ones(50, np.float32)),
        "conv": qk.IntWeight.quantize(W.reshape(6, 2, 5, 5), 2),
    }
    qk.save(tmp_path / "w.safetensors", weights)
    loaded = qk.load(tmp_path / "w.safetensors", framework)
    for name, w in weights.items():
        assert type(loaded[name]) is type(w) and loaded[name].shape == w.shape
        assert_same(np.asarray(loaded[name].dense()), w.dense())
