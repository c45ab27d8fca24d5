"""Importers and exporters against the dequantization of the libraries whose layouts they read: gguf, onnxruntime,
compressed-tensors (its own layouts, and its reader of AWQ), AutoRound (GPTQ)."""

import gguf
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from helpers import assert_same, garbage
from oracles import gptq, onnx

import qkernels as qk
from qkernels import interop

ERRORS = (qk.ArgumentError, qk.DTypeError, qk.FormatError, qk.UnsupportedError)
each_kind_of_array = pytest.mark.parametrize("like", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])


def random_words(rng, shape):
    """int32 of all bits."""
    return rng.integers(-(2**31), 2**31, shape).astype(np.int32)


def half_scales(rng, shape, negative=False):
    """float16 over many orders of magnitude, subnormals among them."""
    s = (2.0 ** rng.uniform(-20, 4, shape)).astype(np.float16)
    return np.where(rng.random(shape) < 0.3, -s, s).astype(np.float16) if negative else s


def stream(codes, bits, words):
    """One bitstream in int32 words, by Python's integers."""
    whole = sum(int(c) << (bits * i) for i, c in enumerate(codes))
    return np.frombuffer(whole.to_bytes(4 * words, "little"), np.int32)


def assert_equal_arrays(got, expected):
    assert set(got) == set(expected)
    for name, a in expected.items():
        if hasattr(a, "dtype"):
            assert type(got[name]) is type(a), name
            assert_same(got[name], a)
            assert got[name].dtype == a.dtype
        else:
            assert got[name] == a, name


# GPTQ

# K, N, group_size; the oracle takes N <= K
GPTQ = [(32, 32, 16), (96, 64, 32), (128, 32, 128), (160, 64, 64), (96, 32, None), (160, 96, 48)]
each_gptq = pytest.mark.parametrize("shape", GPTQ, ids=str)
gptq_bits = pytest.mark.parametrize("bits", [2, 3, 4, 8])
gptq_formats = pytest.mark.parametrize("version", ["gptq", "gptq_v2"])


def gptq_layer(rng, shape, bits, version, symmetric=False, negative=False):
    """Arrays of random codes; of "gptq" no stored zero of all ones, on which libraries differ."""
    k, n, size = shape
    groups = -(-k // size) if size else 1
    zeros = rng.integers(0, 2**bits - (version == "gptq"), (groups, n))
    if symmetric:
        zeros[:] = 2 ** (bits - 1) - (version == "gptq")
    return {
        "qweight": random_words(rng, (k * bits // 32, n)),
        "qzeros": np.stack([stream(row, bits, n * bits // 32) for row in zeros]),
        "scales": half_scales(rng, (groups, n), negative),
        "g_idx": (np.arange(k) // (size or k)).astype(np.int32),
    }


@each_gptq
@gptq_bits
@gptq_formats
@pytest.mark.parametrize("symmetric", [True, False])
def test_gptq_is_what_auto_round_dequantizes(shape, bits, version, symmetric, rng):
    layer = gptq_layer(rng, shape, bits, version, symmetric)
    w = interop.from_gptq(**layer, bits=bits, group_size=shape[2], checkpoint_format=version)
    expected = gptq.dequantize(version, bits, shape[2] or shape[0], **layer).T
    assert (w.zero_point is None and w.offset is None) == symmetric
    added = w.offset is not None  # 8-bit groups: a float32 product and a sum more
    tolerance = w.per_code(w.scale) * 512 * 2.0**-23 if added else None
    assert_same(w.dense(), np.ascontiguousarray(expected), tolerance)
    assert added == (bits == 8 and not symmetric and w.is_grouped)


@each_gptq
@gptq_bits
@gptq_formats
@each_kind_of_array
def test_gptq_round_trip(shape, bits, version, like, rng):
    layer = {name: like(a) for name, a in gptq_layer(rng, shape, bits, version).items()}
    w = interop.from_gptq(**layer, bits=bits, group_size=shape[2] or -1, checkpoint_format=version)
    assert_equal_arrays(interop.to_gptq(w, version), layer)


@gptq_bits
@gptq_formats
@pytest.mark.parametrize("size", [32, 48])
def test_gptq_act_order(bits, version, size, rng):
    """Groups scattered over the inputs: the weight's columns are in the order perm."""
    shape = 160, 64, size
    layer = gptq_layer(rng, shape, bits, version, symmetric=bits == 8)
    layer["g_idx"] = rng.permutation(layer["g_idx"])
    options = {"bits": bits, "group_size": size, "checkpoint_format": version}
    w, perm = interop.from_gptq_act_order(**layer, **options)
    expected = gptq.dequantize(version, bits, size, **layer).T
    assert_same(w.dense(), np.ascontiguousarray(expected[:, perm]))
    assert_equal_arrays(interop.to_gptq(w, version, perm=perm), layer)
    x = rng.standard_normal((3, 160)).astype(np.float32)
    y = qk.linear(x[:, perm], w, backend="reference")
    assert_same(
        y, x.astype(np.float64) @ expected.T.astype(np.float64), np.abs(x) @ np.abs(expected.T) * 1e-6
    )
    with pytest.raises(qk.UnsupportedError, match=r"act-order.*Use from_gptq_act_order"):
        interop.from_gptq(**layer, **options)
    layer["g_idx"][layer["g_idx"] == 1] = 0
    with pytest.raises(qk.UnsupportedError, match="g_idx gives its groups"):
        interop.from_gptq_act_order(**layer, **options)


def test_gptq_without_act_order_has_the_identity_as_order(rng):
    layer = gptq_layer(rng, (64, 32, 16), 4, "gptq")
    w, perm = interop.from_gptq_act_order(**{n: torch.from_numpy(a) for n, a in layer.items()}, group_size=16)
    assert perm.dtype is torch.int64 and perm.tolist() == list(range(64))
    assert_same(w.dense().numpy(), interop.from_gptq(**layer, group_size=16).dense())


@gptq_bits
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
def test_gptq_of_auto_round_itself(bits, rng):
    """Packed by AutoRound's layer from floats on its grid."""
    k, n, size, half = 128, 64, 32, 2 ** (bits - 1)
    codes = rng.integers(0, 2**bits, (n, k))
    zero = rng.integers(1, 2**bits, (n, k // size))
    scale = torch.from_numpy(half_scales(rng, (n, k // size)).astype(np.float32))
    values = scale.repeat_interleave(size, 1) * torch.from_numpy(codes - np.repeat(zero, size, axis=1))
    linear = torch.nn.Linear(k, n, bias=False)
    linear.weight.data = values
    layer = gptq.layer("gptq", bits, size, k, n)
    layer.pack(linear, scale, torch.from_numpy(zero.astype(np.float32)))
    w = interop.from_gptq(layer.qweight, layer.qzeros, layer.scales, bits=bits, group_size=size)
    assert_same(w.codes().numpy(), (codes - half).astype(np.int8))
    exact = bits < 8  # groups of 8 bits have an offset
    assert_same(w.dense(), values, None if exact else w.per_code(w.scale.numpy()) * 512 * 2.0**-23)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_zero_of_all_ones_is_zero_of_nothing(bits, rng):
    """zero - 1 modulo 2**bits: a stored field of ones is the zero point 0, as exllama and GPTQModel read it."""
    layer = gptq_layer(rng, (32, 32, 32), bits, "gptq")
    layer["qzeros"][:] = -1
    w = interop.from_gptq(**layer, bits=bits, group_size=32)
    assert (w.zero_point == -(2 ** (bits - 1))).all() and (w.dense() >= 0).all()
    assert_equal_arrays(interop.to_gptq(w), layer)


def test_gptq_last_words_that_are_not_full(rng):
    """K = 70 and N = 37 of 4 bits: 9 words of K, 5 of N, what is past them is 0."""
    k, n = 70, 37
    codes, zeros = rng.integers(0, 16, (n, k)), rng.integers(0, 16, (3, n))
    layer = {
        "qweight": np.stack([stream(row, 4, 9) for row in codes]).T.copy(),
        "qzeros": np.stack([stream(row, 4, 5) for row in zeros]),
        "scales": half_scales(rng, (3, n)),
        "g_idx": (np.arange(k) // 32).astype(np.int32),
    }
    w = interop.from_gptq(**layer, group_size=32, checkpoint_format="gptq_v2")
    assert w.shape == (n, k)
    assert_same(w.codes() + np.int8(8), codes.astype(np.int8))
    assert_same(w.zero_point + np.int16(8), zeros.T.astype(np.int16))
    assert_equal_arrays(interop.to_gptq(w, "gptq_v2"), layer)
    again = interop.from_gptq(*list(layer.values())[:3], None, 4, 32, "gptq_v2", in_features=k)
    assert_same(again.dense(), w.dense())


@gptq_bits
def test_gptq_negative_scales_turn_codes_over(bits, rng):
    layer = gptq_layer(rng, (64, 32, 32), bits, "gptq_v2", negative=True)
    w = interop.from_gptq(**layer, bits=bits, group_size=32, checkpoint_format="gptq_v2")
    expected = gptq.dequantize("gptq_v2", bits, 32, **layer).T
    tolerance = w.per_code(w.scale) * 512 * 2.0**-23 if bits == 8 else None
    assert_same(w.dense(), np.ascontiguousarray(expected), tolerance)
    again = interop.from_gptq(
        **interop.to_gptq(w, "gptq_v2"), bits=bits, group_size=32, checkpoint_format="gptq_v2"
    )
    assert_same(again.dense(), w.dense())


# AWQ

AWQ = [(16, 8, 16), (64, 40, 32), (100, 64, 48), (128, 8, None), (33, 24, 16)]  # K, N, group_size
each_awq = pytest.mark.parametrize("shape", AWQ, ids=str)


def awq_layer(rng, shape, negative=False):
    k, n, size = shape
    groups = -(-k // size) if size else 1
    return {
        "qweight": random_words(rng, (k, n // 8)),
        "qzeros": random_words(rng, (groups, n // 8)),
        "scales": half_scales(rng, (groups, n), negative),
    }


def awq_dense(layer, size, zero_point=True):
    """By compressed-tensors' converter of AutoAWQ checkpoints: float32 (N, K)."""
    tensors = [None if a is None else torch.from_numpy(a) for a in layer.values()]
    q, s, z = AutoAWQConverter(zero_point=zero_point)._convert_gemm_module(tensors[0], tensors[2], tensors[1])
    repeat = size or q.shape[1]
    k, s = q.shape[1], s.float().repeat_interleave(repeat, 1)
    z = 0 if z is None else z.repeat_interleave(repeat, 1)[:, :k]
    return (s[:, :k] * (q - z).float()).numpy()


@each_awq
@pytest.mark.parametrize("negative", [False, True])
def test_awq_is_what_compressed_tensors_dequantizes(shape, negative, rng):
    layer = awq_layer(rng, shape, negative)
    w = interop.from_awq(**layer, group_size=shape[2])
    assert_same(w.dense(), awq_dense(layer, shape[2]))
    layer["qzeros"] = None
    w = interop.from_awq(**layer, group_size=shape[2])
    assert negative or w.zero_point is None
    assert_same(w.dense(), awq_dense(layer, shape[2], zero_point=False))


@each_awq
@each_kind_of_array
def test_awq_round_trip(shape, like, rng):
    layer = {name: like(a) for name, a in awq_layer(rng, shape).items()}
    assert_equal_arrays(interop.to_awq(interop.from_awq(**layer, group_size=shape[2])), layer)


def test_awq_golden_bytes():
    """Channels 0 to 7 have the codes 0 to 7: nibbles 0 2 4 6 1 3 5 7, low first."""
    w = interop.from_awq(np.array([[0x75316420]], np.int32), None, np.ones((1, 8), np.float16), None)
    assert w.codes()[:, 0].tolist() == [-8, -7, -6, -5, -4, -3, -2, -1]


# MatMulNBits

NBITS = [
    (1, 16, 16),
    (3, 32, 32),
    (17, 64, 16),
    (5, 100, 32),
    (9, 300, 128),
    (2, 20, 64),
    (4, 512, 256),
]  # N, K, block
each_nbits = pytest.mark.parametrize("shape", NBITS, ids=str)
nbits_bits = pytest.mark.parametrize("bits", [4, 8])


def nbits_node(rng, shape, bits, zeros):
    """Constants whose padding is the zero point, as to_matmul_nbits writes it. zeros: None, "integer" or "real"."""
    n, k, size = shape
    count = -(-k // size)
    node = {"scales": (2.0 ** rng.uniform(-10, 2, (n, count))).astype(np.float32), "bits": bits}
    z = rng.integers(0, 2**bits, (n, count)) if zeros == "integer" else np.full((n, count), 2 ** (bits - 1))
    u = np.repeat(z, size, axis=1)
    u[:, :k] = rng.integers(0, 2**bits, (n, k))
    per = 8 // bits
    node["b"] = sum(u[:, i::per] << (bits * i) for i in range(per)).astype(np.uint8).reshape(n, count, -1)
    if zeros == "integer":
        z = np.pad(z, ((0, 0), (0, -count % per)))
        node["zero_points"] = sum(z[:, i::per] << (bits * i) for i in range(per)).astype(np.uint8)
    if zeros == "real":
        node["zero_points"] = rng.uniform(-1, 2**bits, (n, count)).astype(np.float32)
    return {**node, "in_features": k, "block_size": size}


def run_nbits(node):
    """The weight by onnxruntime on the identity; 8 bits with real zero points, which it does not run on CPUs, by the
    operator's formula in float64."""
    if node["bits"] == 8 and getattr(node.get("zero_points"), "dtype", None) == np.float32:
        u = node["b"].reshape(len(node["b"]), -1)[:, : node["in_features"]].astype(np.float64)
        at = np.arange(node["in_features"]) // node["block_size"]
        return ((u - node["zero_points"][:, at]) * node["scales"][:, at]).astype(np.float32)
    inputs = {"x": np.eye(node["in_features"], dtype=np.float32), "b": node["b"], "s": node["scales"].ravel()}
    if "zero_points" in node:
        inputs["z"] = (
            node["zero_points"] if node["zero_points"].dtype == np.float32 else node["zero_points"].ravel()
        )
    about = {"K": node["in_features"], "N": len(node["b"]), "bits": node["bits"], "accuracy_level": 0}
    y = onnx.run("MatMulNBits", inputs, np.float32, onnx.MICROSOFT, block_size=node["block_size"], **about)
    return np.ascontiguousarray(y.T)


@each_nbits
@nbits_bits
@pytest.mark.parametrize("zeros", [None, "integer", "real"])
def test_matmul_nbits_is_what_onnxruntime_computes(shape, bits, zeros, rng):
    node = nbits_node(rng, shape, bits, zeros)
    w = interop.from_matmul_nbits(**node)
    assert (w.offset is not None) == (zeros == "real" or (bits == 8 and zeros is not None and w.is_grouped))
    tolerance = None if w.offset is None else w.per_code(w.scale) * 1024 * 2.0**-23
    assert_same(w.dense(), run_nbits(node), tolerance)


@each_nbits
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [None, "integer"])
@each_kind_of_array
def test_matmul_nbits_round_trip(shape, bits, zeros, like, rng):
    node = {k: like(v) if hasattr(v, "dtype") else v for k, v in nbits_node(rng, shape, bits, zeros).items()}
    w = interop.from_matmul_nbits(**node)
    assert_equal_arrays(interop.to_matmul_nbits(w, node["block_size"]), node)
    flat = {**node, "scales": node["scales"].reshape(-1)}
    if zeros:
        flat["zero_points"] = node["zero_points"].reshape(-1)
    assert_same(interop.from_matmul_nbits(**flat).dense(), w.dense())


@each_nbits
@nbits_bits
def test_matmul_nbits_real_zero_points_come_back_as_the_same_weight(shape, bits, rng):
    w = interop.from_matmul_nbits(**nbits_node(rng, shape, bits, "real"))
    again = interop.from_matmul_nbits(**interop.to_matmul_nbits(w, shape[2]))
    assert_same(again.offset, w.offset)
    assert_same(again.dense(), w.dense())


@pytest.mark.parametrize(("size", "block"), [(None, 256), (128, 128), (96, 32), (48, 16)])
@nbits_bits
def test_matmul_nbits_splits_groups(size, block, bits, rng):
    w = qk.IntWeight.quantize(rng.standard_normal((5, 300)), bits, size, symmetric=bits == 8)
    node = interop.to_matmul_nbits(w)
    assert node["block_size"] == block
    assert_same(run_nbits(node), w.dense())
    assert_same(interop.from_matmul_nbits(**node).dense(), w.dense())


# gguf

KINDS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
each_gguf = pytest.mark.parametrize("kind", KINDS)
GGUF = [(1, 32), (3, 64), (17, 384), (2, 1056)]


def gguf_blocks(rng, shape, kind):
    """Random codes of all values, scales and minima; negative scales where ggml writes them."""
    n, k = shape
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = rng.integers(0, 256, (n, k // 32, size)).astype(np.uint8)
    blocks[..., :2] = half_scales(rng, (n, k // 32, 1), kind != "Q8_0").view(np.uint8)
    if kind.endswith("_1"):
        blocks[..., 2:4] = half_scales(rng, (n, k // 32, 1), True).view(np.uint8)
    return blocks.reshape(n, -1)


@each_gguf
@pytest.mark.parametrize("shape", GGUF, ids=str)
def test_gguf_is_what_gguf_dequantizes(kind, shape, rng):
    t = gguf.GGMLQuantizationType[kind]
    values = rng.standard_normal(shape).astype(np.float32)
    for data in (gguf_blocks(rng, shape, kind), gguf.quants.quantize(values, t)):
        w = interop.from_gguf(data, kind)
        assert w.shape == shape and (w.offset is not None) == kind.endswith("_1")
        assert_same(w.dense(), gguf.quants.dequantize(data, t))
        assert_same(w.lookup().dense(), w.dense(), w.per_code(w.scale) * 1e-4 + np.abs(w.dense()) * 1e-6)


@each_gguf
@each_kind_of_array
@pytest.mark.parametrize("shape", GGUF, ids=str)
def test_gguf_round_trip(kind, like, shape, rng):
    data = like(gguf_blocks(rng, shape, kind))
    w = interop.from_gguf(data, gguf.GGMLQuantizationType[kind])
    back = interop.to_gguf(w, kind)
    assert type(back) is type(data)
    assert_same(back, data)


def test_gguf_files(rng, tmp_path):
    """Tensors as GGUFReader gives them."""
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "none")
    data = {kind: gguf_blocks(rng, (4, 96), kind) for kind in KINDS}
    for kind, blocks in data.items():
        writer.add_tensor(kind, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensors = gguf.GGUFReader(tmp_path / "w.gguf").tensors
    assert [t.name for t in tensors] == KINDS
    for t in tensors:
        w = interop.from_gguf(t.data, t.tensor_type)
        assert w.shape == (4, 96)
        assert_same(w.dense(), gguf.quants.dequantize(data[t.name], t.tensor_type))


@pytest.mark.parametrize(("bits", "kind"), [(4, "Q4_0"), (4, "Q4_1"), (5, "Q5_0"), (5, "Q5_1"), (8, "Q8_0")])
@pytest.mark.parametrize("size", [None, 32, 96])
def test_gguf_of_quantized_weights(bits, kind, size, rng):
    """IntWeight.quantize to ggml: larger groups split, scales rounded to float16 when asked."""
    w = qk.IntWeight.quantize(rng.standard_normal((6, 192)), bits, size, symmetric=not kind.endswith("_1"))
    with pytest.raises(qk.UnsupportedError, match=r"scale\[0, 0\] is .*, which float16 would make"):
        interop.to_gguf(w, kind)
    data = interop.to_gguf(w, kind, round_scale=True)
    error = np.abs(gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]) - w.dense())
    assert (error <= w.per_code(w.scale) * 2**bits * 2.0**-10).all()
    w = qk.IntWeight.pack(w.codes(), 0.125, None, bits)
    exact = gguf.quants.dequantize(interop.to_gguf(w, kind), gguf.GGMLQuantizationType[kind])
    assert_same(exact, w.dense())


# compressed-tensors

PACKED = [
    (1, 32, None),
    (16, 64, 32),
    (17, 96, 32),
    (40, 71, None),
    (3, 5, None),
    (5, 128, 128),
]  # N, K, group_size
each_packed = pytest.mark.parametrize("shape", PACKED, ids=str)
symmetric = pytest.mark.parametrize("symmetric", [True, False])


def scheme_of(bits, size, symmetric):
    how = {"strategy": "group", "group_size": size} if size else {"strategy": "channel"}
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, symmetric=symmetric, **how)
    )


def compressed(rng, shape, bits, symmetric, compressor):
    """The state of a layer that compressed-tensors compressed, and what it decompresses that to."""
    n, k, size = shape
    groups = -(-k // size) if size else 1
    scheme, half = scheme_of(bits, size, symmetric), 2 ** (bits - 1)
    scale = torch.from_numpy((2.0 ** rng.uniform(-10, 2, (n, groups))).astype(np.float32))
    zero = torch.from_numpy(rng.integers(-half, half, (n, groups)).astype(np.int8))
    codes = torch.from_numpy(rng.integers(-half, half, (n, k)).astype(np.float32))
    zeros = 0 if symmetric else zero.repeat_interleave(size or k, 1).float()
    state = {"weight": (codes - zeros) * scale.repeat_interleave(size or k, 1), "weight_scale": scale}
    if not symmetric:
        state["weight_zero_point"] = zero
    state = compressor.compress(state, scheme)
    return state, compressor.decompress(dict(state), scheme)["weight"]


@each_packed
@symmetric
@pytest.mark.parametrize("bits", range(2, 9))
def test_pack_quantized_is_what_compressed_tensors_decompresses(shape, symmetric, bits, rng):
    state, dense = compressed(rng, shape, bits, symmetric, PackedQuantizationCompressor)
    w = interop.from_pack_quantized(**state, bits=bits, group_size=shape[2])
    assert not symmetric or (w.zero_point is None and w.offset is None)
    tolerance = None if w.offset is None else w.per_code(w.scale.numpy()) * 512 * 2.0**-23
    assert_same(w.dense(), dense, tolerance)
    assert_equal_arrays(interop.to_pack_quantized(w, symmetric=symmetric), state)
    arrays = {name: a.numpy() for name, a in state.items()}
    again = interop.from_pack_quantized(**arrays, bits=bits, group_size=shape[2])
    assert_equal_arrays(interop.to_pack_quantized(again, symmetric=symmetric), arrays)


@each_packed
@symmetric
def test_int_quantized_is_what_compressed_tensors_decompresses(shape, symmetric, rng):
    state, dense = compressed(rng, shape, 8, symmetric, IntQuantizationCompressor)
    w = interop.from_int_quantized(**state, group_size=shape[2])
    tolerance = None if w.offset is None else w.per_code(w.scale.numpy()) * 512 * 2.0**-23
    assert_same(w.dense(), dense, tolerance)
    assert_equal_arrays(interop.to_int_quantized(w, symmetric=symmetric), state)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_compressed_tensors_scales_keep_their_dtype(dtype, rng):
    state, _ = compressed(rng, (16, 64, 32), 4, False, PackedQuantizationCompressor)
    state["weight_scale"] = state["weight_scale"].to(getattr(torch, dtype))
    w = interop.from_pack_quantized(**state, group_size=32)
    assert_equal_arrays(interop.to_pack_quantized(w, dtype), state)


def test_compressed_tensors_per_tensor(rng):
    codes = torch.from_numpy(rng.integers(-128, 128, (6, 40)).astype(np.int8))
    scale, zero = torch.tensor([0.25]), torch.tensor([-3], dtype=torch.int8)
    scheme = QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=8, symmetric=False, strategy="tensor")
    )
    state = {"weight": codes, "weight_scale": scale, "weight_zero_point": zero}
    w = interop.from_int_quantized(**state)
    assert_same(w.dense(), IntQuantizationCompressor.decompress(dict(state), scheme)["weight"])


# bitsandbytes

# Its wheel is 43 MB of CUDA libraries, so it is no requirement of these tests: version 0.50.2's quantize_4bit and
# dequantize_4bit gave the same bits for nf4 and fp4, blocks of 64 and 128, nested or not. Here the layout is read
# weight by weight.
NORMAL = qk.CodebookWeight.quantize(np.ones((1, 64)), codebook="nf4").codebook[0]
BNB = [(1, 64, 64), (5, 128, 32), (7, 384, 128), (40, 256, 64)]


def bnb_layer(rng, shape, nested):
    n, k, size = shape
    blocks = n * k // size
    layer = {
        "weight": rng.integers(0, 256, (n * k // 2, 1)).astype(np.uint8),
        "quant_map": rng.permutation(NORMAL),
    }
    layer |= {"absmax": rng.uniform(0, 4, blocks).astype(np.float32), "shape": (n, k), "block_size": size}
    if nested:
        layer["absmax"] = rng.integers(0, 256, blocks).astype(np.uint8)
        layer["nested_absmax"] = rng.uniform(0.1, 1, -(-blocks // 256)).astype(np.float32)
        layer["nested_quant_map"] = np.linspace(-0.9, 1, 256, dtype=np.float32)
        layer["nested_offset"] = 0.95
    return layer


@pytest.mark.parametrize("shape", BNB, ids=str)
@pytest.mark.parametrize("nested", [False, True])
@each_kind_of_array
def test_bitsandbytes_weight_by_weight(shape, nested, like, rng):
    layer = bnb_layer(rng, shape, nested)
    n, k, size = shape
    expected = np.empty(n * k, np.float32)
    for i in range(n * k):
        code = layer["weight"][i // 2, 0] >> (0 if i % 2 else 4) & 15
        s = layer["absmax"][i // size]
        if nested:
            s = layer["nested_quant_map"][s] * layer["nested_absmax"][i // size // 256] + np.float32(0.95)
        expected[i] = layer["quant_map"][code] * s
    arrays = {name: like(a) if hasattr(a, "dtype") else a for name, a in layer.items()}
    w = interop.from_bitsandbytes(**arrays)
    assert isinstance(w, qk.CodebookWeight) and type(w.packed) is type(arrays["weight"])
    assert_same(np.asarray(w.dense()), expected.reshape(n, k))
    if not nested:
        assert_equal_arrays(interop.to_bitsandbytes(w), arrays)


def test_bitsandbytes_refusals(rng):
    layer = bnb_layer(rng, (5, 128, 32), True)
    for change, error, said in (
        ({"block_size": 48}, qk.ArgumentError, "block_size is 48; accepted: 32, 64"),
        ({"shape": (10, 64), "block_size": 128}, qk.UnsupportedError, "no block runs over the end of a row"),
        ({"shape": (6, 128)}, qk.FormatError, "weight has 320 bytes; shape .* needs 384"),
        ({"nested_absmax": None}, qk.DTypeError, "double quantization"),
        ({"nested_offset": -9.0}, qk.FormatError, "absmax of row 0, block 0 is -.*; accepted: 0 or more"),
        ({"nested_offset": "a"}, qk.DTypeError, "nested_offset"),
        ({"quant_map": np.ones(8, np.float32)}, qk.FormatError, "quant_map has shape"),
    ):
        with pytest.raises(error, match=said):
            interop.from_bitsandbytes(**{**layer, **change})
    W = rng.standard_normal((4, 96)).astype(np.float32)
    for w, said in (
        (qk.CodebookWeight.quantize(W, 3), "3 bits"),
        (qk.CodebookWeight.quantize(W, 4, granularity="channel"), "4 tables"),
        (qk.CodebookWeight.quantize(W, codebook="nf4", group_size=48), "K = 96 in groups of 48"),
        (qk.CodebookWeight.quantize(W, codebook="nf4"), "K = 96 in groups of 64"),
    ):
        with pytest.raises(qk.UnsupportedError, match=said):
            interop.to_bitsandbytes(w)
    with pytest.raises(qk.DTypeError, match="w is a IntWeight"):
        interop.to_bitsandbytes(qk.IntWeight.quantize(W, 4))


# refusals


def test_what_layouts_cannot_hold(rng):
    W = rng.standard_normal((16, 64)).astype(np.float32)
    w4 = qk.IntWeight.quantize(W, 4, 32)
    exact = qk.IntWeight.pack(w4.codes(), 0.5, bits=4)
    wide = qk.IntWeight.pack(w4.codes(), 0.5, np.full((1, 1), 9, np.int16), bits=4)
    image = qk.IntWeight.quantize(W.reshape(16, 16, 2, 2), 4)
    folded = qk.IntWeight.quantize(W, 4, 32, input_scale=np.full(64, 2.0))
    moved = qk.IntWeight.pack(w4.codes(), 0.5, bits=4, offset=0.3)
    exporters = [interop.to_gptq, interop.to_awq, interop.to_matmul_nbits, interop.to_pack_quantized]
    exporters += [lambda w: interop.to_gguf(w, "Q4_0"), lambda w: interop.to_gguf(w, "Q4_1")]
    for export in exporters:
        for w, said in (
            (image, "convolution"),
            (folded, "input_scale"),
            (qk.IntWeight.quantize(W, 7), "7 bits"),
        ):
            if export is interop.to_pack_quantized and w.bits == 7:
                continue
            with pytest.raises(qk.UnsupportedError, match=said):
                export(w)
        with pytest.raises(qk.DTypeError, match=r"MixedIntWeight; accepted: qkernels\.IntWeight"):
            export(qk.MixedIntWeight.quantize(W))
    for export in (*exporters[:2], exporters[3], exporters[4]):
        with pytest.raises(qk.UnsupportedError, match="w has an offset that is no integer zero point"):
            export(moved)
    for export in exporters[:5]:
        with pytest.raises(qk.UnsupportedError, match=r"zero point.* 17"):
            export(wide)
    for export in (interop.to_gptq, interop.to_awq):
        with pytest.raises(qk.UnsupportedError, match=r"scale\[0, 0\].*float16.*round_scale=True"):
            export(w4)
        back = {interop.to_gptq: interop.from_gptq, interop.to_awq: interop.from_awq}[export]
        near = back(**export(w4, round_scale=True), group_size=32)
        assert_same(near.scale, w4.scale.astype(np.float16).astype(np.float32))
        with pytest.raises(qk.UnsupportedError, match="float16"):
            export(qk.IntWeight.pack(w4.codes(), 1e6, bits=4), round_scale=True)
    with pytest.raises(qk.UnsupportedError, match="K = 63"):
        interop.to_gguf(qk.IntWeight.pack(w4.codes()[:, :63], 0.5, bits=4), "Q4_0")
    with pytest.raises(qk.UnsupportedError, match="N = 15"):
        interop.to_awq(qk.IntWeight.pack(w4.codes()[:15], 0.5, bits=4))
    with pytest.raises(qk.UnsupportedError, match="groups of 32, of which that must be a multiple"):
        interop.to_gguf(qk.IntWeight.pack(w4.codes(), np.full((16, 4), 0.5), bits=4, group_size=16), "Q4_0")
    with pytest.raises(qk.UnsupportedError, match="Q8_0 holds 128"):
        interop.to_gguf(qk.IntWeight.pack(w4.codes(), 0.5, 1), "Q8_0")
    with pytest.raises(qk.UnsupportedError, match="kind is Q6_K; accepted: Q4_0"):
        interop.to_gguf(exact, "Q6_K")
    with pytest.raises(qk.ArgumentError, match=r"perm is no permutation of 0\.\.63"):
        interop.to_gptq(exact, perm=np.zeros(64, np.int64))
    with pytest.raises(qk.UnsupportedError, match="no float32 zero point gives with scale"):
        interop.to_matmul_nbits(qk.IntWeight.pack(w4.codes(), 0.0, bits=4, offset=1.0))
    with pytest.raises(qk.ArgumentError, match="bfloat16"):
        interop.to_pack_quantized(exact, "bfloat16")
    assert "weight_zero_point" in interop.to_pack_quantized(exact, symmetric=False)
    asymmetric = qk.IntWeight.pack(w4.codes(), 0.5, 1, bits=4)
    with pytest.raises(
        qk.UnsupportedError, match="has a zero point, 9 of codes from 0 on; the layout has none but 8"
    ):
        interop.to_pack_quantized(asymmetric, symmetric=True)


def cases(rng):
    """Importers with arguments they take."""
    state, _ = compressed(rng, (16, 64, 32), 4, False, PackedQuantizationCompressor)
    wide, _ = compressed(rng, (16, 64, 32), 8, False, IntQuantizationCompressor)
    return [
        (interop.from_gptq, {**gptq_layer(rng, (64, 32, 32), 4, "gptq"), "bits": 4, "group_size": 32}),
        (
            interop.from_gptq_act_order,
            {**gptq_layer(rng, (64, 32, 32), 3, "gptq"), "bits": 3, "group_size": 32},
        ),
        (interop.from_awq, {**awq_layer(rng, (64, 16, 32)), "group_size": 32}),
        (interop.from_matmul_nbits, nbits_node(rng, (3, 100, 32), 4, "integer")),
        (interop.from_matmul_nbits, nbits_node(rng, (3, 100, 32), 8, "real")),
        (interop.from_gguf, {"data": gguf_blocks(rng, (2, 64), "Q5_1"), "kind": "Q5_1"}),
        (interop.from_pack_quantized, {**state, "bits": 4, "group_size": 32}),
        (interop.from_int_quantized, {**wide, "group_size": 32}),
        (interop.from_bitsandbytes, bnb_layer(rng, (5, 128, 32), True)),
    ]


def mutated(rng, a):
    """An argument that may be wrong: garbage, or an array of another shape, dtype, layout or of wild values."""
    if not hasattr(a, "dtype") or rng.random() < 0.3:
        numbers = [0, 1, 3, 7, 16, 33, 64, -1, -2, 2**31, "gptq_v2", "Q8_0", "Q6_K", True]
        return numbers[rng.integers(len(numbers))] if rng.random() < 0.5 else garbage(rng)
    a = a.numpy() if torch.is_tensor(a) else a
    changes = [
        lambda: a[:-1],
        lambda: a[..., :-1],
        lambda: a[None],
        lambda: a.reshape(-1),
        lambda: np.concatenate([a, a]),
        lambda: a[::-1],
        lambda: np.asfortranarray(a),
        lambda: a.astype(
            rng.choice(["int8", "uint8", "int16", "int64", "float32", "float64", "bool", ">i4"])
        ),
        lambda: a.view(np.uint8) * np.uint8(255) if a.dtype.itemsize == 1 else a * a.dtype.type(-1),
        lambda: np.where(rng.random(a.shape) < 0.1, np.nan, a).astype(a.dtype) if a.dtype.kind == "f" else ~a,
        lambda: a[:0],
        lambda: a[..., :0],
        lambda: torch.from_numpy(a.copy()),
        lambda: torch.from_numpy(a.copy()).to("meta"),
        lambda: torch.from_numpy(a.copy()).to_sparse(),
    ]
    with np.errstate(all="ignore"):
        return changes[rng.integers(len(changes))]()


@pytest.mark.parametrize("case", range(9))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_importers_refuse_what_they_cannot_read(case, rng):
    refused = 0
    load, arguments = cases(rng)[case]
    for _ in range(500):
        changed = dict(arguments)
        for name in rng.choice(list(changed), rng.integers(1, 3), replace=False):
            changed[name] = mutated(rng, changed[name])
        try:
            w = load(**changed)
        except ERRORS as e:
            refused += 1
            assert len(str(e)) > 20
            continue
        w = w[0] if isinstance(w, tuple) else w
        assert isinstance(w, qk.IntWeight | qk.CodebookWeight) and tuple(w.dense().shape) == w.shape
    assert refused > 100


def test_exporters_refuse_what_they_cannot_write(rng):
    W = rng.standard_normal((8, 64)).astype(np.float32)
    weights = [qk.IntWeight.quantize(W, b, g) for b in (2, 3, 4, 5, 8) for g in (None, 16, 32)]
    weights += [qk.IntWeight.pack(w.codes(), 0.5, 1, w.bits) for w in weights[::3]]
    weights += [
        qk.IntWeight.pack(w.codes()[:n, :k], 0.5, bits=w.bits)
        for w in weights[:3]
        for n, k in ((0, 64), (8, 0))
    ]
    weights += [qk.MixedIntWeight.quantize(W), qk.BinaryWeight.quantize(W), None, W]
    exporters = [interop.to_gptq, interop.to_awq, interop.to_matmul_nbits, interop.to_gguf]
    exporters += [interop.to_pack_quantized, interop.to_int_quantized, interop.to_bitsandbytes]
    weights += [
        qk.CodebookWeight.quantize(W, 4),
        qk.CodebookWeight.quantize(W, codebook="nf4", group_size=32),
    ]
    kinds = [*KINDS, None, "Q2_K", 3, gguf.GGMLQuantizationType.Q8_0]
    done = 0
    for _ in range(1500):
        export, w = exporters[rng.integers(len(exporters))], weights[rng.integers(len(weights))]
        w = garbage(rng) if rng.random() < 0.1 else w
        options = [kinds[rng.integers(len(kinds))]] if export is interop.to_gguf else []
        if rng.random() < 0.2 and export is not interop.to_bitsandbytes:
            options = [*options, garbage(rng)]
        elif export in (interop.to_gptq, interop.to_awq, interop.to_gguf):
            options = [*options, *(("gptq", None) if export is interop.to_gptq else ()), True]
        try:
            export(w, *options)
            done += 1
        except ERRORS as e:
            assert len(str(e)) > 20
    assert done > 200
