"""What is said and chosen for CUDA tensors, without a GPU: fake tensors, and the emulated kernels."""

import cuda_builds
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qkernels as qk
from qkernels import _torch_device, cuda, registry

Q = qk.InputQuant()
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU says")


@pytest.fixture
def w(rng):
    return qk.IntWeight.quantize(rng.standard_normal((24, 32)).astype(np.float32))


def on_cuda(*shape, dtype=torch.float32, device="cuda:0"):
    with FakeTensorMode():
        return torch.empty(shape, dtype=dtype, device=device)


@needs_no_gpu
def test_no_cpu_kernel_takes_a_tensor_of_a_device(w):
    x = on_cuda(3, 32)
    with pytest.raises(qk.UnsupportedError, match="would have to leave") as e:
        qk.linear(x, w, input_quant=Q)
    assert "cuda-sm80" in str(e.value) and "reference: x is on cuda:0" in str(e.value)
    for backend in ("cpu", "reference"):
        with pytest.raises(qk.UnsupportedError, match="x is on cuda:0"):
            qk.linear(x, w, input_quant=Q, backend=backend)
    codes = on_cuda(3, 32, dtype=torch.int8)
    for call in (
        lambda: qk.matmul_int(codes, w),
        lambda: qk.linear_requant(codes, w, qk.Requant(2**30, 0)),
        lambda: qk.requantize(on_cuda(3, 4, dtype=torch.int32), qk.Requant(2**30, 0)),
        lambda: qk.quantize_activations(x, Q),
        lambda: qk.linear(x, w),
    ):
        with pytest.raises(qk.UnsupportedError, match="x is on cuda:0"):
            call()


def test_operations_without_device_kernels_refuse_devices_by_name():
    with pytest.raises(qk.ArgumentError, match=r"on device cuda:0 .*accepted: a dense tensor on cpu\. Call"):
        qk.add_requant(on_cuda(3, 4, dtype=torch.int8), on_cuda(3, 4, dtype=torch.int8), 0.1, 0.1, 0.1)
    with pytest.raises(qk.ArgumentError, match="accepted: a dense tensor on cpu or cuda"):
        qk.linear(torch.empty(3, 4, device="meta"), qk.IntWeight.pack(np.ones((2, 4), np.int8), 1.0))


@pytest.mark.parametrize("there, here", [("cuda:0", "cpu"), ("cuda:0", "cuda:1"), ("cpu", "cuda:1")])
def test_one_call_has_one_device(w, there, here):
    def tensor(device, *shape, dtype=torch.float32):
        return (
            torch.zeros(shape, dtype=dtype)
            if device == "cpu"
            else on_cuda(*shape, dtype=dtype, device=device)
        )

    says = f"bias is on {here}, x is on {there}; accepted: one device"
    with pytest.raises(qk.ArgumentError, match=says):
        qk.linear(tensor(there, 3, 32), w, tensor(here, 24), input_quant=Q)
    with pytest.raises(qk.ArgumentError, match=says):
        codes, bias = tensor(there, 3, 32, dtype=torch.int8), tensor(here, 24, dtype=torch.int32)
        qk.linear_requant(codes, w, qk.Requant(2**30, 0), bias)


@needs_no_gpu
def test_an_explicit_backend_does_not_fall_back(w):
    with pytest.raises(qk.UnsupportedError, match=r"built without CUDA|no CUDA device|does not load"):
        qk.linear(torch.zeros(3, 32), w, input_quant=Q, backend="cuda")
    with pytest.raises(qk.ArgumentError, match="backend is 'gpu'"):
        qk.linear(torch.zeros(3, 32), w, input_quant=Q, backend="gpu")


@needs_no_gpu
def test_explain_and_capabilities_tell(w, monkeypatch):
    told = str(qk.explain("linear", w, torch.zeros(3, 32), input_quant=Q))
    assert "not linear/IntWeight/cuda-sm80: x is on the CPU" in told
    told = str(qk.explain("linear", w, on_cuda(3, 32), input_quant=Q))
    assert told.startswith("linear: no kernel takes this call")
    state = qk.capabilities()["cuda"]
    assert state["available"] is False and state["reason"] in told
    assert not registry.kernels(device="cuda")
    monkeypatch.setattr(cuda, "native", None)
    monkeypatch.setattr(cuda, "_why_missing", "cannot import name '_cuda'")
    assert qk.capabilities()["cuda"]["reason"].startswith("qkernels was built without CUDA")


@pytest.fixture
def emulated(monkeypatch):
    return cuda_builds.emulate(monkeypatch)


def test_explain_names_what_the_cuda_kernel_lacks(emulated, w, rng):
    x = torch.zeros(3, 32)
    grouped = qk.IntWeight.quantize(rng.standard_normal((24, 32)), bits=8, group_size=16)
    for weight, options, reason in (
        (w, {}, "weight-only"),
        (grouped, {"input_quant": Q}, "group-wise scales"),
        (w, {"input_quant": qk.InputQuant(power=0.5)}, "power"),
    ):
        told = qk.explain("linear", weight, x, backend="cuda", **options)
        assert told.chosen is None or told.chosen.core != "gemm"
        (said,) = [r for k, r in told.reasons.items() if str(k) == "linear/IntWeight/cuda-sm80"]
        assert reason in said
    assert qk.explain("linear", w, x, input_quant=Q, backend="cuda").chosen.arch == "sm80"
    assert qk.explain("linear", w, x, input_quant=Q).chosen.backend == "cpu"
    assert any(k.op == "linear" for k in registry.kernels(device="cuda"))
    with pytest.raises(qk.UnsupportedError, match="the emulator takes CPU tensors"):
        qk.linear(np.zeros((3, 32), np.float32), w, input_quant=Q, backend="cuda")


def test_a_weight_is_prepacked_once(emulated, w, monkeypatch):
    made, upload = [], cuda.upload
    monkeypatch.setattr(cuda, "upload", lambda array, where: made.append(array) or upload(array, where))
    for _ in range(3):
        qk.linear(torch.randn(3, 32), w, input_quant=Q, backend="cuda")
        qk.matmul_int(torch.ones(3, 32, dtype=torch.int8), w, backend="cuda")
    assert len(made) == 1


def test_the_fake_of_the_operator_keeps_the_device():
    import qkernels._torch_ops  # noqa: F401 -- operators are made at the first need

    with FakeTensorMode():
        x = torch.empty(2, 3, 40, device="cuda:0")
        block = torch.empty(4096, dtype=torch.uint8, device="cuda:0")
        numbers = (0, 8, True, 1.0, 0, 0, torch.bfloat16)
        y = torch.ops.qkernels.linear_int(x, block, None, 24, *numbers)
        assert (y.device, y.dtype, y.shape) == (torch.device("cuda:0"), torch.bfloat16, (2, 3, 24))


@needs_no_gpu
def test_compiled_code_is_told_what_is_missing(w, monkeypatch):
    """Of the CUDA rows and of Triton's."""
    monkeypatch.setattr(cuda, "native", None)
    monkeypatch.setattr(cuda, "_why_missing", "cannot import name '_cuda'")
    with pytest.raises(qk.UnsupportedError) as e:
        _torch_device.block_on_device(on_cuda(3, 32), w, Q, None, None, None)
    told = str(e.value)
    assert told.startswith("linear: under torch.compile: no kernel takes this call")
    assert "linear/IntWeight/cuda-sm80: qkernels was built without CUDA" in told
    assert "linear/IntWeight/triton: torch sees no CUDA GPU" in told and "BinaryWeight" not in told


def test_native_checks_what_reaches_it(emulated, w):
    """A block of another shape, scratch memory that is too small, arrays that are not there."""
    tensor, facts = cuda.INT8.tensor(w, torch.device("cpu"))
    with pytest.raises(ValueError, match="not a prepacked weight of this shape"):
        cuda.INT8.view(tensor, 24, 80, facts)
    with pytest.raises(ValueError, match="out of range"):
        cuda.INT8.view(tensor, -1, 32, facts)
    weight = cuda.INT8.view(tensor, 24, 32, facts)
    x, out = torch.randn(3, 32), torch.empty(3, 24)
    numbers = (0, x.data_ptr(), 0, 3, 32, *cuda.quantization(Q), 0, 0, 0, out.data_ptr())
    memory = torch.empty(weight.scratch_bytes(3), dtype=torch.uint8)
    with pytest.raises(ValueError, match="scratch memory is too small"):
        weight.linear(*numbers, memory.data_ptr(), memory.numel() - 1)
    with pytest.raises(qk.ArgumentError, match="without memory"):
        weight.linear(0, 0, *numbers[2:], memory.data_ptr(), memory.numel())
    weight.linear(*numbers, memory.data_ptr(), memory.numel())
    assert torch.equal(out, qk.linear(x, w, input_quant=Q))
