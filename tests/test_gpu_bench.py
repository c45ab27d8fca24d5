"""bench/gpu.py without a GPU: that its calls, copies, floors and goals are what they say, on the emulator."""

import importlib.util

import cuda_builds
import pytest
import torch

from qkernels import cuda


@pytest.fixture
def bench(monkeypatch):
    spec = importlib.util.spec_from_file_location("bench_gpu", cuda_builds.ROOT / "bench" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cuda_builds.emulate(monkeypatch)

    class Contestant(module.Contestant):
        def __init__(self, name, kind, weight_bytes, io, calls, check):
            self.name, self.kind, self.weight_bytes, self.io = name, kind, weight_bytes, io
            self.results = [call() for call in calls]
            self.error = max(check(y) for y in self.results)
            self.copies = self.count = len(calls)
            self.samples = [1.0, 2.0, 3.0]

    monkeypatch.setattr(module, "DEVICE", "cpu")
    monkeypatch.setattr(module, "Contestant", Contestant)
    monkeypatch.setattr(module, "copies_of", lambda weight_bytes: 3)
    monkeypatch.setattr(module.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    return module


def test_every_contestant_computes_the_layer(bench):
    """In both numbers of tokens, with each copy of the weight; copies are made once and are memory of their own."""
    layer = bench.Layer(64, 256)
    for m in (1, 20):
        made = [(name, make) for name, make in bench.contestants(layer, m) if name.startswith("cuda")]
        assert len(made) == len(layer.cases) + 1
        for name, make in made:
            c = make()
            assert c.name == name and c.copies == 3 and c.error < 0.15
            assert all(torch.equal(y, c.results[0]) for y in c.results)
    weights = layer.kept["cuda", "w8a8"]
    blocks = {cuda.INT8.tensor(w, torch.device("cpu"))[0].data_ptr() for w in weights}
    assert len(blocks) == 3


def test_a_wrong_product_is_found(bench, monkeypatch):
    layer = bench.Layer(64, 256)
    monkeypatch.setattr(bench.qk, "linear", lambda x, w, **o: torch.zeros(x.shape[0], 64))
    for name, make in bench.contestants(layer, 3):
        if name.startswith("cuda") and "requant" not in name:
            with pytest.raises(AssertionError):
                make()


def test_copies_are_not_prepacked_again(bench, monkeypatch):
    """8192 x 8192 takes seconds to prepack, and there are dozens of copies."""
    layer = bench.Layer(64, 256)
    made = []
    upload = cuda.upload
    monkeypatch.setattr(cuda, "upload", lambda *a: made.append(a) or upload(*a))
    for name, make in bench.contestants(layer, 3):
        if name.startswith("cuda"):
            before = len(made)
            make()
            assert len(made) - before <= (4 if "requant" in name else 1), name  # a Requant has three vectors


def test_floor_and_goals(bench):
    c = bench.Contestant("cuda w4a16 g128", "bf16", 1000, (2, 2), [lambda: None], lambda y: 0.1)
    row = bench.row_of(c, {"M": 1, "N": 8192, "K": 8192}, 1e9)
    assert row["bytes"] == 1000 + 2 * (8192 + 8192) and row["us"] == 2.0
    assert row["floor_us"] == pytest.approx(row["bytes"] / 1e3) and row["gbps"] == pytest.approx(33.768 / 2)
    other = row | {"name": "torch bf16", "us": 5.0}
    found = {g["goal"]: g for g in bench.goals([row, other])}
    assert found["w4a16 8192^2 M = 1, 16 us / time"]["met"]
    ratio = found["w4a16 g128 / torch bf16, 8192 x 8192 M = 1"]
    assert ratio["value"] == 2.5 and not ratio["met"]
    assert not list(bench.goals([row | {"M": 7}]))
