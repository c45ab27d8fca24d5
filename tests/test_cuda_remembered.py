"""Remembered calls of ``linear`` on a device, for every core, on the emulator: the bits of the checked ones."""

import sys

import numpy as np
import pytest
import torch
from helpers import assert_same
from test_cuda_compile import CASES, Q, each_case, emulated, matrix, traced  # noqa: F401 (fixtures)

import qkernels as qk
from qkernels import cuda, cuda_linear, registry
from qkernels.ops import linear_request


@each_case
def test_a_remembered_call_is_the_checked_one(emulated, case, rng):  # noqa: F811
    _, make, options = CASES[case]
    w = make(rng)
    types = (torch.float32, None), (torch.bfloat16, torch.float32), (torch.float16, torch.bfloat16)
    for dtype, out_dtype in types:
        x = torch.from_numpy(rng.standard_normal((2, 3, 96))).to(dtype)
        key = dtype, "relu", options.get("input_quant"), options.get("compute_dtype"), out_dtype, None
        assert cuda_linear.same_as_before(x, w, None, key) is None
        asked = {"activation": "relu", **options, "out_dtype": out_dtype, "backend": "cuda"}
        request = linear_request(x, w, **asked)
        cuda_linear.keep_plan(registry.pick(request).run, request, key)
        for i, usual in enumerate((x, x[0, 0], x[:, :0], x.reshape(6, 96)[1:], x.new_zeros(11, 96))):
            bias = torch.randn(24) if i % 2 == 0 else None
            expected = qk.linear(usual, w, bias, **asked)
            assert_same(cuda_linear.same_as_before(usual, w, bias, key), expected)
        odd = [(a, None) for a in (x[..., :95], x.new_zeros(96, 3).T, x[0, 0, 0], torch._neg_view(x))]
        biases = (
            torch.randn(23),
            torch.randn(24).double(),
            torch.randn(48)[::2],
            torch._neg_view(torch.randn(24)),
        )
        for unusual, bias in (*odd, *((x, b) for b in biases)):
            assert cuda_linear.same_as_before(unusual, w, bias, key) is None
    assert cuda_linear.same_as_before(x, np.zeros(3), None, key) is None


def test_a_remembered_call_makes_one_native_call(emulated, rng):  # noqa: F811
    """No check, no upload, no size of scratch memory computed again: of every core."""

    class Counting:
        def __init__(self, weight):
            self.weight, self.calls = weight, []

        def __getattr__(self, name):
            self.calls.append(name)
            return getattr(self.weight, name)

    for _, make, options in CASES.values():
        w, x = make(rng), torch.from_numpy(matrix(rng, 3))
        key = x.dtype, None, options.get("input_quant"), options.get("compute_dtype"), None, None
        request = linear_request(x, w, backend="cuda", **options)
        cuda_linear.keep_plan(registry.pick(request).run, request, key)
        plan = w._cuda_plans[key, -1, True]
        plan._weight = counting = Counting(plan._weight)
        for _ in range(3):
            cuda_linear.same_as_before(x, w, None, key)
        assert counting.calls == ["scratch_bytes", "linear", "linear", "linear"]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
def test_public_calls_remember_on_a_device(traced, monkeypatch, rng):  # noqa: F811
    """qk.linear keeps the plan of whichever CUDA row took the call, and asks for it first."""
    kept, mode = [], traced[0]
    monkeypatch.setattr(sys.modules["qkernels.ops.linear"], "observed", lambda torch, x: False)
    monkeypatch.setattr(cuda_linear, "keep_plan", lambda run, r, options: kept.append((run.name, options)))
    monkeypatch.setattr(cuda_linear.Linear, "__call__", lambda self, r: self.name)
    for case, (core, make, options) in CASES.items():
        w = make(rng)
        with mode:
            x = torch.empty(3, 96, device="cuda:0")
        assert qk.linear(x, w, **options) == core
        assert kept[-1][0] == core and kept[-1][1][0] is torch.float32, case
        w.__dict__["_cuda_plans"] = {
            (kept[-1][1], 0, True): type("Kept", (), {"shape": w.shape, "run": lambda *a: "kept"})()
        }
        assert qk.linear(x, w, **options) == "kept"


def test_a_remembered_call_is_that_of_its_number_of_tokens(emulated, rng):  # noqa: F811
    w = qk.IntWeight.quantize(matrix(rng), 4)
    for m, name in ((3, "INT4"), (40, "INT8"), (16, "INT4"), (17, "INT8")):
        x = torch.from_numpy(matrix(rng, m))
        key = x.dtype, None, Q, None, None, None
        if m in (3, 40):
            assert cuda_linear.same_as_before(x, w, None, key) is None
            request = linear_request(x, w, input_quant=Q, backend="cuda")
            cuda_linear.keep_plan(registry.pick(request).run, request, key)
        plan = w._cuda_plans[key, -1, m <= cuda.FEW]
        assert type(plan._weight).__name__ == {"INT4": "Int4Weight", "INT8": "Int8Weight"}[name]
        assert_same(
            cuda_linear.same_as_before(x, w, None, key), qk.linear(x, w, input_quant=Q, backend="reference")
        )
