"""save and load."""

import json
import struct

import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes
from safetensors.numpy import load_file, save_file

import qkernels as qk
from qkernels.errors import ArgumentError, DTypeError, FormatError, UnsupportedError


def weights(rng, torch_kind=False):
    W = rng.standard_normal((7, 12), dtype=np.float32)
    s = rng.uniform(0.5, 2, 12).astype(np.float32)
    if torch_kind:
        W, s = torch.from_numpy(W), torch.from_numpy(s)
    return {
        "plain": qk.IntWeight.quantize(W),
        "tensor.wise": qk.IntWeight.quantize(W, granularity="tensor"),
        "zero points": qk.IntWeight.quantize(W, symmetric=False),
        "spiq": qk.IntWeight.quantize(W, input_scale=s),
        "spiq.packed": qk.IntWeight.pack(random_codes(rng, (3, 0)), 0.5),
        "power": qk.PowerWeight.quantize(W, 5, 0.6),
        "log": qk.LogWeight.quantize(W, 3, input_scale=s),
        "nvfp4": qk.FloatWeight.quantize(W, "e2m1", scale_kind="e4m3"),
        "e5m2": qk.FloatWeight.quantize(W, "e5m2", granularity="tensor"),
        "means": qk.CodebookWeight.quantize(W, 3, granularity="channel"),
        "nf4": qk.CodebookWeight.quantize(W, 4, "nf4"),
        "": qk.IntWeight.pack(random_codes(rng, (4, 6)).T, 0.25, -3),
    }


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@pytest.mark.parametrize("torch_kind", [False, True])
def test_round_trip(framework, torch_kind, rng, tmp_path):
    saved = weights(rng, torch_kind)
    qk.save(tmp_path / "w.safetensors", saved)
    loaded = qk.load(tmp_path / "w.safetensors", framework)
    assert list(loaded) == list(saved)
    for name, w in saved.items():
        other = loaded[name]
        assert (other.shape, other.bits, other.group_size) == (w.shape, w.bits, w.group_size)
        assert isinstance(other.packed, torch.Tensor if framework == "torch" else np.ndarray)
        assert other.arrays().keys() == w.arrays().keys()
        for field, a in w.numpy().arrays().items():
            assert_same(other.numpy().arrays()[field], a)


def test_the_file_is_plain_safetensors(rng, tmp_path):
    """The layout that the module documents: other programs can read it."""
    w = qk.IntWeight.pack(np.array([[-128, 1], [2, 127]], np.int8), [0.5, 2.0])
    qk.save(tmp_path / "w", {"a": w})
    tensors = load_file(tmp_path / "w")
    assert set(tensors) == {"a.packed", "a.scale"}
    assert tensors["a.packed"].tolist() == [[128, 1], [2, 127]] and tensors["a.scale"].tolist() == [
        [0.5],
        [2.0],
    ]
    data = (tmp_path / "w").read_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
    described = {"format": "IntWeight", "version": 1, "bits": 8, "group_size": None, "shape": [2, 2]}
    described["arrays"] = ["packed", "scale"]
    assert json.loads(header["__metadata__"]["qkernels"]) == {"version": 1, "weights": {"a": described}}


def test_empty_and_replaced(rng, tmp_path):
    path = tmp_path / "w"
    qk.save(path, {})
    assert qk.load(path) == {}
    qk.save(str(path), weights(rng))
    before = path.read_bytes()
    with pytest.raises(DTypeError):
        qk.save(path, {"a": np.ones(3)})
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w"]


def test_save_refuses(tmp_path, rng):
    w = weights(rng)["plain"]
    for bad, text in (
        [[w], "weights is a list"],
        [{1: w}, "weights[1]"],
        [{"a": None}, "NoneType; accepted: names"],
    ):
        with pytest.raises(DTypeError) as e:
            qk.save(tmp_path / "w", bad)
        assert text in str(e.value)
    with pytest.raises(FileNotFoundError):
        qk.save(tmp_path / "no" / "w", {"a": w})
    assert list(tmp_path.iterdir()) == []


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "w"
    with pytest.raises(FileNotFoundError):
        qk.load(path)
    with pytest.raises(ArgumentError, match="framework is 'jax'; accepted: 'numpy', 'torch'"):
        qk.load(path, "jax")
    for content in (b"", b"text", bytes(100), b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(FormatError, match="is not a safetensors file with qkernels metadata"):
            qk.load(path)
    save_file({"a": np.ones(3, np.float32)}, path)
    with pytest.raises(FormatError, match="qkernels metadata"):
        qk.load(path)


def described(**changes):
    entry = {"format": "IntWeight", "version": 1, "bits": 8, "group_size": None, "shape": [2, 3]}
    return {**entry, "arrays": ["packed", "scale"], **changes}


GOOD = {"a.packed": np.zeros((2, 3), np.uint8), "a.scale": np.ones((2, 1), np.float32)}
FILES = {
    "newer file": (dict(version=2), UnsupportedError, ["version 2", "accepted: 1"]),
    "no weights": (dict(weights=None), FormatError, ["contradicts itself"]),
    "list": (dict(weights=[1]), FormatError, ["contradicts itself"]),
    "unknown format": (
        dict(weights={"a": described(format="Nf4")}),
        UnsupportedError,
        ["'a'", "'Nf4'", "IntWeight version 1"],
    ),
    "newer format": (dict(weights={"a": described(version=9)}), UnsupportedError, ["version 9"]),
    "odd format": (dict(weights={"a": described(format=[1])}), FormatError, ["contradicts itself"]),
    "no format": (dict(weights={"a": {}}), FormatError, ["format"]),
    "bits": (dict(weights={"a": described(bits=9)}), UnsupportedError, ["bits is 9"]),
    "shape": (dict(weights={"a": described(shape=[3, 2])}), FormatError, ["packed has shape (2, 3)"]),
    "odd shape": (dict(weights={"a": described(shape=[6])}), FormatError, ["contradicts itself"]),
    "text shape": (dict(weights={"a": described(shape="23")}), FormatError, ["contradicts itself"]),
    "array missing": (
        dict(weights={"a": described(arrays=["packed", "scale", "zero_point"])}),
        FormatError,
        ["a.zero_point"],
    ),
    "array unknown": (dict(weights={"a": described(arrays=["packed", "scale", "x"])}), FormatError, ["a.x"]),
    "array unclaimed": (dict(weights={"a": described(arrays=["packed"])}), FormatError, ["scale"]),
    "weight unclaimed": (dict(weights={}), FormatError, ["a.packed, a.scale"]),
    "name": (dict(weights={"b": described()}), FormatError, ["b.packed"]),
    "dtype": (dict(tensors={"a.packed": np.zeros((2, 3), np.int8)}), FormatError, ["packed has dtype int8"]),
    "scale nan": (
        dict(tensors={"a.scale": np.full((2, 1), np.nan, np.float32)}),
        FormatError,
        ["scale[0, 0] is nan"],
    ),
    "scale shape": (
        dict(tensors={"a.scale": np.ones((1, 2), np.float32)}),
        FormatError,
        ["scale has shape (1, 2)"],
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_load_refuses_contradictions(case, tmp_path):
    changes, error, fragments = FILES[case]
    header = {"version": 1, "weights": {"a": described()}, **changes}
    tensors = {**GOOD, **header.pop("tensors", {})}
    save_file(tensors, tmp_path / "w", {"qkernels": json.dumps(header)})
    with pytest.raises(error) as e:
        qk.load(tmp_path / "w")
    assert [f for f in ["load", *fragments] if f not in str(e.value)] == []


def test_load_survives_any_damage(rng, tmp_path):
    """Every damaged file gives weights or an error of this package, never another one."""
    path = tmp_path / "w"
    qk.save(path, weights(rng))
    good = np.frombuffer(path.read_bytes(), np.uint8)
    header = 8 + int(good[:8].view(np.uint64)[0])
    refused = 0
    for i in range(600):
        data = good.copy()
        if i % 3 == 0:
            data = data[: rng.integers(len(data))]
        elif i % 3 == 1:
            data[rng.integers(8 if i % 2 else header)] = rng.integers(256)
        else:
            at = rng.integers(len(data), size=5)
            data[at] = rng.integers(256, size=5)
        path.write_bytes(data.tobytes())
        try:
            for w in qk.load(path).values():
                w.dense()
        except (FormatError, UnsupportedError):
            refused += 1
    assert refused > 300
