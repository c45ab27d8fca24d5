"""Narrow weights and ONNX's own tests against independent implementations: onnxruntime, compressed-tensors, gguf.

An importer of each library's layout is written out here: it says how that layout maps to IntWeight.
"""

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from helpers import assert_same
from oracles import onnx

import qkernels as qk
from qkernels import reference

SHAPES = [(1, 16), (3, 32), (17, 64), (40, 384), (5, 272)]  # N, K
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
BLOCKED = [
    (s, g) for s in SHAPES for g in (None, 16, 32, 128) if not g or s[1] % g == 0
]  # no short last block
each_blocked_shape = pytest.mark.parametrize(("shape", "group_size"), BLOCKED, ids=str)
zero_points = pytest.mark.parametrize("zero_points", [False, True])


def codes_of(rng, shape, bits=4, signed=True):
    """Codes over the full range."""
    least = -(2 ** (bits - 1)) if signed else 0
    return rng.integers(least, least + 2**bits, shape).astype(np.int8 if signed else np.uint8)


def scales_of(rng, shape, group_size):
    n, k = shape
    count = -(-k // group_size) if group_size else 1
    return rng.uniform(0.001, 0.1, (n, count)).astype(np.float32)


def pairs(u):
    """Unsigned 4-bit codes two a byte along the last axis, even ones low; an odd end is filled with 0."""
    u = np.concatenate([u, np.zeros((*u.shape[:-1], u.shape[-1] % 2), np.uint8)], axis=-1)
    return u[..., 0::2] | (u[..., 1::2] << 4)


# onnxruntime: MatMulNBits


def from_matmul_nbits(b, scales, zero_points, k, block):
    """IntWeight of a MatMulNBits constant: b uint8 (N, blocks, block / 2), scales float32 (N, blocks), zero points
    uint8 (N, ceil(blocks / 2)) or None, which means 8."""
    n, count = scales.shape
    u = np.stack([b & 15, b >> 4], axis=-1).reshape(n, -1)[:, :k]
    codes = u.view(np.int8) - np.int8(8)
    zp = None
    if zero_points is not None:
        zp = np.stack([zero_points & 15, zero_points >> 4], axis=-1).reshape(n, -1)[:, :count]
        zp = zp.astype(np.int16) - 8
    return qk.IntWeight.pack(codes, scales, zp, bits=4, group_size=block)


def matmul_nbits(rng, shape, block, with_zero_points):
    (n, k), count = shape, -(-shape[1] // block)
    u = np.zeros((n, count * block), np.uint8)
    u[:, :k] = codes_of(rng, shape, signed=False)
    scales = scales_of(rng, shape, block)
    zp = pairs(codes_of(rng, (n, count), signed=False)) if with_zero_points else None
    return pairs(u).reshape(n, count, block // 2), scales, zp


def run_matmul_nbits(x, b, scales, zp, block, accuracy_level):
    n, k = len(b), x.shape[1]
    inputs = {"x": x, "b": b, "scales": scales.ravel()}
    if zp is not None:
        inputs["zp"] = zp.ravel()
    about = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": accuracy_level}
    return onnx.run("MatMulNBits", inputs, np.float32, onnx.MICROSOFT, **about)


@each_shape
@zero_points
@pytest.mark.parametrize("block", [16, 32, 128])
def test_onnx_matmul_nbits_is_dense(shape, block, zero_points, rng):
    """In float32 a row of the identity picks a column of the weight: code, zero point and scale to the bit."""
    b, scales, zp = matmul_nbits(rng, shape, block, zero_points)
    w = from_matmul_nbits(b, scales, zp, shape[1], block)
    expected = run_matmul_nbits(np.eye(shape[1], dtype=np.float32), b, scales, zp, block, accuracy_level=0)
    assert_same(w.dense(), np.ascontiguousarray(expected.T))


@zero_points
@pytest.mark.parametrize("block", [32, 64, 128])
def test_onnx_matmul_nbits_linear(block, zero_points, rng):
    """Accuracy level 4 quantizes activations to int8 as `linear` does, with a scale a block where `linear` has one a
    row: both are within the rounding of 8 bits of the float product."""
    b, scales, zp = matmul_nbits(rng, (96, 512), block, zero_points)
    w = from_matmul_nbits(b, scales, zp, 512, block)
    x = rng.standard_normal((7, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ w.dense().astype(np.float64).T
    ours = qk.linear(x, w, input_quant=qk.InputQuant())
    theirs = run_matmul_nbits(x, b, scales, zp, block, accuracy_level=4)
    for y in (ours, theirs):
        assert np.linalg.norm(y - exact) < 0.012 * np.linalg.norm(exact)


# onnxruntime: (De)QuantizeLinear


@each_blocked_shape
@zero_points
@pytest.mark.parametrize("signed", [True, False])
def test_onnx_dequantize_linear_is_dense(shape, group_size, zero_points, signed, rng):
    """int4 and uint4, per channel and in blocks along K; unsigned codes and zero points shift by 8."""
    codes, scale = codes_of(rng, shape, signed=signed), scales_of(rng, shape, group_size)
    zp = codes_of(rng, scale.shape, signed=signed) if zero_points else None
    if not signed and zp is None:
        zp = np.zeros(scale.shape, np.uint8)
    inputs = {"x": onnx.Nibbles(codes, signed), "s": scale if group_size else scale[:, 0]}
    if zp is not None:
        inputs["z"] = onnx.Nibbles(zp if group_size else zp[:, 0], signed)
    how = {"axis": 1, "block_size": group_size} if group_size else {"axis": 0}
    expected = onnx.run("DequantizeLinear", inputs, np.float32, **how)
    shift = 0 if signed else 8
    zp = None if zp is None else zp.astype(np.int16) - shift
    w = qk.IntWeight.pack(codes.astype(np.int16) - shift, scale, zp, bits=4, group_size=group_size)
    assert_same(w.dense(), expected)


@each_blocked_shape
def test_onnx_quantize_linear_is_codes(shape, group_size, rng):
    """With the scales that `quantize` finds, QuantizeLinear finds the codes: division, ties to even."""
    weight = rng.standard_normal(shape).astype(np.float32)
    weight[:, ::5] = np.rint(weight[:, ::5] * 4) / 4  # some land on ties
    w = qk.IntWeight.quantize(weight, bits=4, group_size=group_size)
    how = {"axis": 1, "block_size": group_size} if group_size else {"axis": 0}
    inputs = {"x": weight, "s": w.scale if group_size else w.scale[:, 0]}
    inputs["z"] = onnx.Nibbles(np.zeros(inputs["s"].shape, np.int8))
    assert_same(w.codes(), onnx.run("QuantizeLinear", inputs, onnx.FOUR_BITS[True], **how))


# the node tests of ONNX

HALF = {np.dtype(np.int8): 0, np.dtype(np.uint8): 128}  # what brings codes to int8


def signed_codes(codes, zero_point, half):
    zp = None if zero_point is None else np.atleast_1d(np.asarray(zero_point)).astype(np.int16) - half
    return (codes.astype(np.int16) - half).astype(np.int8), zp


@pytest.mark.parametrize(
    "name",
    [
        "test_dequantizelinear",
        "test_dequantizelinear_axis",
        "test_dequantizelinear_int4",
        "test_dequantizelinear_uint4",
        "test_dequantizelinear_int2",
        "test_dequantizelinear_uint2",
    ],
)
def test_node_dequantize_linear(name):
    """Codes of 8, 4 and 2 bits with a zero point a tensor or a channel. (Blocks have 8-bit zero points there.)"""
    attributes, inputs, expected = onnx.node_tests("DequantizeLinear")[name]
    x, scale, zp = inputs["x"], np.atleast_1d(inputs["x_scale"]), inputs["x_zero_point"]
    bits = int(name[-1]) if name[-1].isdigit() else 8
    axis = attributes.get("axis", 1) if scale.size > 1 else None
    rows = x[None] if axis is None else np.moveaxis(x, axis, 0)
    half = 0 if x.dtype.kind == "i" else 2 ** (bits - 1)
    codes, zp = signed_codes(rows.reshape(len(rows), -1), zp, half)
    dense = qk.IntWeight.pack(codes, scale, zp, bits=bits).dense().reshape(rows.shape)
    assert_same(dense[0] if axis is None else np.moveaxis(dense, 0, axis), expected)


@pytest.mark.parametrize(
    "name",
    [
        "test_quantizelinear",
        "test_quantizelinear_axis",
        "test_quantizelinear_int4",
        "test_quantizelinear_uint4",
    ],
)
def test_node_quantize_linear(name):
    """A static scale and zero point a tensor or a channel, of 8 and 4 bits."""
    attributes, inputs, expected = onnx.node_tests("QuantizeLinear")[name]
    x, scale = inputs["x"], np.atleast_1d(inputs["y_scale"])
    zp = np.atleast_1d(inputs["y_zero_point"])
    axis = attributes.get("axis", 1) if scale.size > 1 else None
    rows, wanted = (a.reshape(1, -1) if axis is None else np.moveaxis(a, axis, 0) for a in (x, expected))
    about = {
        "bits": 4 if name.endswith("4") else 8,
        "signed": expected.dtype.kind == "i",
        "granularity": "tensor",
    }
    for row, codes, s, z in zip(rows, wanted, scale, zp, strict=True):
        iq = qk.InputQuant(scale=float(s), zero_point=int(z), **about)
        q, _ = reference.quantize_activations(row.reshape(1, -1).astype(np.float32), iq)
        assert_same(q, codes.reshape(1, -1))


def test_node_matmul_integer():
    for _, inputs, expected in onnx.node_tests("MatMulInteger").values():
        w, w_zp = signed_codes(inputs["B"].T, inputs["b_zero_point"], 128)
        x_zp = int(inputs["a_zero_point"][0])
        assert_same(reference.matmul_int(inputs["A"], w, x_zp, w_zp[:, None]), expected)


def test_node_qlinear_matmul():
    """float32 scales, 2-D and stacked, int8 and uint8: `float` rounding."""
    checked = 0
    for _, inputs, expected in onnx.node_tests("QLinearMatMul").values():
        if inputs["a_scale"].dtype != np.float32:
            continue
        a_s, b_s, y_s = (np.float32(inputs[f"{t}_scale"].item()) for t in "aby")
        a_zp, b_zp, y_zp = (int(inputs[f"{t}_zero_point"].item()) for t in "aby")
        r = qk.Requant.from_scale(a_s * b_s / y_s, y_zp, "float")
        half = HALF[inputs["b"].dtype]
        stacks = (a.reshape(-1, *a.shape[-2:]) for a in (inputs["a"], inputs["b"], expected))
        for a, b, y in zip(*stacks, strict=True):
            w, w_zp = signed_codes(b.T, b_zp, half)
            got = reference.linear_requant(a, w, r, x_zp=a_zp, w_zp=w_zp[:, None], out_dtype=expected.dtype)
            assert_same(got, y)
            checked += 1
    assert checked >= 6


# compressed-tensors


def from_int32(words, bits, shape):
    """The portable bytes of compressed-tensors' int32 words: the same bits, offset codes instead of two's complement,
    rows that end at a word instead of a byte."""
    flip = np.zeros(words.shape[1] * 32, np.uint8)
    flip[bits - 1 : shape[1] * bits : bits] = 1  # the sign bit of each code
    stream = np.unpackbits(words.numpy().view(np.uint8), axis=1, bitorder="little") ^ flip
    return np.packbits(stream, axis=1, bitorder="little")[:, : -(-shape[1] * bits // 8)]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [*SHAPES, (3, 1), (2, 33), (4, 71)], ids=str)
def test_compressed_tensors_packing(bits, shape, rng):
    codes = codes_of(rng, shape, bits)
    words = pack_to_int32(torch.from_numpy(codes), bits)
    w = qk.IntWeight.pack(codes, np.ones((shape[0], 1), np.float32), bits=bits)
    assert_same(w.packed, from_int32(words, bits, shape))
    assert_same(w.codes(), unpack_from_int32(words, bits, torch.Size(shape)).numpy())


# gguf


def from_q4_0(blocks):
    """IntWeight of Q4_0 blocks: uint8 (N, blocks, 18): float16 scale, then byte j holds codes j and j + 16, plus 8.

    A negative scale s turns over: s * (u - 8) = |s| * ((7 - u) + 1).
    """
    n, count = blocks.shape[:2]
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0].astype(np.float32)
    u = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1).view(np.int8)
    codes = np.where(scale[..., None] < 0, 7 - u, u - 8).reshape(n, count * 32)
    zp = np.where(scale < 0, -1, 0)
    return qk.IntWeight.pack(codes, np.abs(scale), zp, bits=4, group_size=32)


@pytest.mark.parametrize("shape", [(1, 32), (3, 64), (17, 384)], ids=str)
def test_gguf_q4_0_is_dense(shape, rng):
    n, k = shape
    kind = gguf.GGMLQuantizationType.Q4_0
    blocks = gguf.quants.quantize(rng.standard_normal(shape).astype(np.float32), kind).reshape(n, k // 32, 18)
    blocks[:, 0, 2:] = rng.integers(0, 256, (n, 16))  # all codes, not only those that quantize uses
    expected = gguf.quants.dequantize(blocks.reshape(n, -1), kind)
    assert_same(from_q4_0(blocks).dense(), expected)
