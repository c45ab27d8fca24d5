"""Binary and ternary weights against NumPy's bit counts, faiss and gguf."""

import gguf
import numpy as np
import pytest
from helpers import assert_same

import qkernels as qk

SHAPES = [(1, 1, 1), (3, 64, 5), (7, 100, 33), (2, 1000, 40)]  # M, K, N
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def signs(rng, shape):
    return (rng.integers(0, 2, shape) * 2 - 1).astype(np.int8)


def packed_bits(codes):
    return np.packbits(codes > 0, axis=1, bitorder="little")


@each_shape
def test_numpy_bit_counts(shape, rng):
    """The product of signs is K - 2 popcount(x xor w) (thesis eq. 3.39)."""
    m, k, n = shape
    x, w = packed_bits(signs(rng, (m, k))), packed_bits(signs(rng, (n, k)))
    differ = np.bitwise_count(x[:, None] ^ w[None]).sum(2, dtype=np.int32)
    weight = qk.BinaryWeight(w, np.ones(n, np.float32), (n, k))
    assert_same(qk.matmul_binary(x, weight), k - 2 * differ)


@each_shape
def test_faiss_hamming(shape, rng):
    faiss = pytest.importorskip("faiss")
    m, k, n = shape
    x, w, distances = signs(rng, (m, k)), signs(rng, (n, k)), np.zeros((m, n), np.int32)
    x_bits, w_bits = packed_bits(x), packed_bits(w)
    pointers = (faiss.swig_ptr(a) for a in (x_bits, w_bits))
    faiss.hammings(*pointers, m, n, x_bits.shape[1], faiss.swig_ptr(distances))
    assert_same(qk.matmul_binary(x_bits, qk.BinaryWeight.pack(w)), k - 2 * distances)


def from_tq1_0(blocks, k):
    """Codes and float32 scales of TQ1_0: blocks of 256 with 48 + 4 bytes of base-3 digits and a float16 scale.

    Byte j of a part holds one code of each run of the part's length: digit i, most significant first, is code
    i * length + j; a byte is its digits' number times 256 / 243, rounded up.
    """
    n, codes = len(blocks), []
    for part, digits in ((blocks[..., :32], 5), (blocks[..., 32:48], 5), (blocks[..., 48:52], 4)):
        value = part.astype(np.uint16)
        for _ in range(digits):  # the byte is a fraction of 256: times 3, the integer part is the next digit
            value = value * 3
            codes.append((value >> 8).astype(np.int8) - np.int8(1))
            value &= 255
    return np.concatenate(codes, axis=-1).reshape(n, k), half_scales(blocks)


def from_tq2_0(blocks, k):
    """TQ2_0: 64 bytes, in each half byte j holds codes j, j + 32, j + 64, j + 96 plus 1, two bits each, low first."""
    parts = blocks[..., :64].reshape(*blocks.shape[:2], 2, 1, 32)
    u = parts >> np.array([0, 2, 4, 6], np.uint8).reshape(4, 1) & 3
    return u.reshape(len(blocks), k).astype(np.int8) - np.int8(1), half_scales(blocks)


def half_scales(blocks):
    return np.ascontiguousarray(blocks[..., -2:]).view(np.float16)[..., 0].astype(np.float32)


@pytest.mark.parametrize(("name", "importer"), [("TQ1_0", from_tq1_0), ("TQ2_0", from_tq2_0)])
@pytest.mark.parametrize("shape", [(1, 256), (5, 512), (3, 1024)], ids=str)
def test_gguf_ternary_is_dense(name, importer, shape, rng):
    """All blocks of a row have one scale here, as a TernaryWeight has it."""
    n, k = shape
    kind = gguf.GGMLQuantizationType[name]
    codes = rng.integers(-1, 2, shape).astype(np.int8)
    codes[:, ::256] = 1  # so that the largest number of each block is the scale
    alpha = rng.uniform(0.01, 1, (n, 1)).astype(np.float16).astype(np.float32)
    raw = gguf.quants.quantize(codes * alpha, kind)
    found, scales = importer(raw.reshape(n, k // 256, -1), k)
    assert_same(found, codes)
    assert (scales == scales[:, :1]).all()
    weight = qk.TernaryWeight.pack(found, scales[:, 0])
    assert_same(weight.dense(), gguf.quants.dequantize(raw, kind))
