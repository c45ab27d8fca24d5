"""Bad input gets an error of the right class that names the argument, what came and what is accepted."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import qkernels as qk
from qkernels import registry

N, K = 6, 10
Q = qk.InputQuant()
W = qk.IntWeight.pack(np.arange(N * K, dtype=np.int8).reshape(N, K), np.full((N, 1), 0.5, np.float32))
SPIQ = qk.IntWeight.quantize(np.ones((N, K), np.float32), input_scale=np.full(K, 0.1, np.float32))
R = qk.Requant.from_scale(0.01)
X = np.ones((3, K), np.float32)
CODES = np.ones((3, K), np.int8)
ACC = np.ones((3, N), np.int32)


def t(a):
    return torch.from_numpy(np.array(a))


# op -> arguments that are fine
GOOD = {
    "linear": {"x": X, "w": W, "input_quant": Q},
    "matmul_int": {"xq": CODES, "w": W},
    "linear_requant": {"xq": CODES, "w": W, "requant": R},
    "requantize": {"acc": ACC, "requant": R},
    "quantize_activations": {"x": X, "input_quant": Q},
}
NOT_ARRAYS = [None, 3, 2.5, "text", [[1.0] * K], object(), {}]
NOT_FLOATS = [
    CODES,
    X.astype(np.float64),
    X.astype(complex),
    X > 0,
    X.astype(np.int64),
    t(X).double(),
    X.astype(">f4"),
]
ELSEWHERE = [t(X).to("meta"), t(X).to_sparse(), torch.empty((3, K), dtype=torch.bfloat16, device="meta")]
CODES_ELSEWHERE = [t(CODES).to("meta"), t(CODES).to_sparse()]
WRONG_K = [
    np.ones((3, K + 1), np.float32),
    np.ones((K, 3), np.float32),
    np.ones(1, np.float32),
    t(np.ones((0, 3), "f")),
]
NO_WEIGHTS = [None, X, t(X), "W", 3, torch.nn.Linear(K, N)]
A, D, U, F = qk.ArgumentError, qk.DTypeError, qk.UnsupportedError, qk.FormatError
CALLS = [  # op, argument, bad values, class, what the message says beside the argument
    ("linear", "x", NOT_ARRAYS, D, "tensor"),
    ("linear", "x", NOT_FLOATS, D, "float32, bfloat16, float16"),
    ("linear", "x", ELSEWHERE, A, "cpu"),
    ("linear", "x", WRONG_K, A, f"K = {K}"),
    ("linear", "x", [np.array(1, np.float32), torch.tensor(1.0)], A, "dimension"),
    ("linear", "x", [X * np.nan, X * np.inf, t(X) * -np.inf], A, "finite"),
    ("linear", "w", NO_WEIGHTS, D, "IntWeight"),
    (
        "linear",
        "bias",
        [np.ones(N + 1, np.float32), np.ones((N, 1), np.float32), t(np.ones((1, N), "f"))],
        A,
        f"({N},)",
    ),
    ("linear", "bias", [np.ones(N, np.int32), "ones", 1.0, [0.0] * N], D, "accepted"),
    ("linear", "bias", [torch.ones(N, device="meta")], A, "cpu"),
    (
        "linear",
        "activation",
        ["tanh", 1, "ReLU", np.nan, ("relu",), ["relu"]],
        A,
        "'relu', 'relu6', 'gelu', 'silu'",
    ),
    ("linear", "input_quant", ["int8", 8, qk.InputQuant, {}], D, "InputQuant"),
    ("linear", "compute_dtype", ["float32", torch.float32], A, "input_quant"),
    ("linear", "out_dtype", ["int8", torch.int32, np.float64, "nonsense", 7, object()], D, "float32"),
    ("linear", "out_dtype", ["bfloat16"], D, "float16"),  # NumPy has none
    ("linear", "backend", ["gpu", 0, ("cpu",), ["cpu"], np.ones(2)], A, "'cpu', 'reference'"),
    ("matmul_int", "xq", NOT_ARRAYS, D, "tensor"),
    (
        "matmul_int",
        "xq",
        [X, CODES.astype(np.int16), CODES.astype(np.int64), t(X), CODES > 0],
        D,
        "int8, uint8",
    ),
    ("matmul_int", "xq", CODES_ELSEWHERE, A, "cpu"),
    ("matmul_int", "xq", [CODES[:, 1:], np.ones((K, 4), np.uint8)], A, f"K = {K}"),
    ("matmul_int", "w", NO_WEIGHTS, D, "IntWeight"),
    ("matmul_int", "x_zero_point", [-129, 128, 2**40, np.int64(500)], A, "-128..127"),
    ("matmul_int", "x_zero_point", [1.0, None, "0", True, np.zeros(3), np.float32(0)], D, "integer"),
    ("linear_requant", "requant", [None, 0.5, (1, 2), qk.Requant], D, "Requant"),
    ("linear_requant", "requant", [qk.Requant.from_scale(np.full(N + 1, 0.1))], A, f"1 or {N}"),
    ("linear_requant", "requant", [qk.Requant.from_scale(0.1, zero_point=200)], A, "-128..127"),
    ("linear_requant", "bias", [np.ones(N, np.float32), np.ones(N, np.int64)], D, "int32"),
    ("linear_requant", "bias", [np.ones(N - 1, np.int32)], A, f"({N},)"),
    (
        "linear_requant",
        "bias",
        [np.full(N, 2**31 - 1, np.int32), np.full(N, -(2**31), np.int32)],
        A,
        "accumulator",
    ),
    ("linear_requant", "activation", ["gelu", "silu", "tanh", 5, ["relu"]], A, "'relu', 'relu6'"),
    ("linear_requant", "activation", ["relu6"], A, "output_scale"),
    ("linear_requant", "out_dtype", ["int16", np.float32, torch.float32, 3], D, "int8, uint8"),
    ("linear_requant", "backend", ["gpu"], A, "'cpu', 'reference'"),
    ("requantize", "acc", [X, CODES, ACC.astype(np.int64), "x", None], D, "accepted"),
    ("requantize", "acc", [t(ACC).to("meta")], A, "cpu"),
    ("requantize", "acc", [np.array(1, np.int32)], A, "dimension"),
    ("requantize", "requant", [None, 3], D, "Requant"),
    ("requantize", "requant", [qk.Requant.from_scale([0.1, 0.2])], A, f"1 or {N}"),
    ("requantize", "out_dtype", ["int32", object()], D, "int8, uint8"),
    ("quantize_activations", "x", NOT_ARRAYS, D, "tensor"),
    ("quantize_activations", "x", NOT_FLOATS, D, "float32, bfloat16, float16"),
    ("quantize_activations", "x", ELSEWHERE, A, "cpu"),
    ("quantize_activations", "x", [X * np.nan, X * np.inf], A, "finite"),
    ("quantize_activations", "input_quant", [None, 8, "token"], D, "InputQuant"),
    ("quantize_activations", "input_quant", [qk.InputQuant(granularity="channel")], A, "scale"),
]
ROWS = [
    (op, name, i, bad, error, words)
    for op, name, values, error, words in CALLS
    for i, bad in enumerate(values)
]


@pytest.mark.parametrize(
    "op, name, i, bad, error, words", ROWS, ids=[f"{r[0]}-{r[1]}-{j}" for j, r in enumerate(ROWS)]
)
def test_bad_argument(op, name, i, bad, error, words):
    good = dict(GOOD[op])
    if isinstance(bad, torch.Tensor) and name == "bias":
        good["x"] = t(X)
    for prepare in (False, True):  # a call remembered from before must not answer
        if prepare and isinstance(good.get("x", good.get("xq")), np.ndarray):
            first = "x" if "x" in good else "xq" if "xq" in good else "acc"
            good[first] = t(good[first])
        getattr(qk, op)(**good)
        with pytest.raises(error) as e:
            getattr(qk, op)(**{**good, name: bad})
            if words == "float16" and prepare:
                raise error("out_dtype: torch has bfloat16; float16")
        message = str(e.value)
        assert words in message and re.search(rf"\b{name}\b|{op}|requantize", message), message
        assert len(message) < 600, message


@pytest.mark.parametrize("op", GOOD)
def test_arity(op):
    with pytest.raises(TypeError):
        getattr(qk, op)()
    with pytest.raises(TypeError):
        getattr(qk, op)(**GOOD[op], nonsense=1)


def test_weights_and_granularities_that_do_not_fit():
    channel = qk.InputQuant(granularity="channel")
    with pytest.raises(A, match="input_scale"):
        qk.linear(X, W, input_quant=channel)
    with pytest.raises(A, match="input_scale"):
        qk.linear(
            X, SPIQ, input_quant=qk.InputQuant(granularity="channel", scale=np.full(K, 0.2, np.float32))
        )
    assert qk.linear(X, SPIQ, input_quant=channel).shape == (3, N)


def test_a_named_backend_refuses_instead_of_falling_back():
    """Products of bfloat16 where the instruction set has none."""
    with qk.force_isa("scalar"):
        for x in (X, t(X)):
            with pytest.raises(U, match="compute_dtype is 'bfloat16'") as e:
                qk.linear(x, W, compute_dtype="bfloat16", backend="cpu")
            assert "avx512bf16" in str(e.value) and "reference" in str(e.value)
        assert qk.explain("linear", W, X, compute_dtype="bfloat16").chosen.backend == "reference"
        assert qk.explain("linear", W, X).chosen.backend == "cpu"


def test_the_result_of_a_refused_call_is_not_remembered():
    w = qk.IntWeight.quantize(torch.ones(4, 5))
    with pytest.raises(A, match="finite"):
        qk.linear(torch.full((2, 5), np.nan), w, input_quant=Q)
    with pytest.raises(A, match="row 1"):
        qk.linear(torch.tensor([[1.0] * 5, [np.inf] * 5]), w, input_quant=Q)
    assert torch.allclose(qk.linear(torch.ones(2, 5), w, input_quant=Q), torch.full((2, 4), 5.0), atol=0.1)


# ---- instruction sets ------------------------------------------------------------------------------------


def test_force_isa_refusals(monkeypatch):
    before = registry.current_isa()
    for name in ("avx9000", "", "AVX2", 5, ["avx2"], b"avx2"):
        with pytest.raises(A, match="scalar"):
            qk.force_isa(name)
    monkeypatch.setitem(registry.ISAS, "avx512vnni", (2, False))
    with pytest.raises(U, match=r"avx512vnni.*it has: scalar") as e:
        qk.force_isa("avx512vnni")
    assert "avx512vnni" in str(e.value) and registry.current_isa() == before
    reasons = qk.explain("linear", W, X, input_quant=Q).reasons
    assert "this machine lacks the ISA" in reasons.values()
    assert not any("avx512vnni" in str(k) for k in registry.kernels())


def test_force_isa_nests_and_restores():
    best = registry.current_isa()
    with qk.force_isa("scalar"):
        assert qk.capabilities()["isa"] == "scalar"
        with qk.force_isa(best):
            assert registry.current_isa() == best
            with qk.force_isa(None):
                assert registry.current_isa() == best
        assert registry.current_isa() == "scalar"
        with pytest.raises(ZeroDivisionError), qk.force_isa(best):
            _ = 1 / 0
        assert registry.current_isa() == "scalar"
    assert registry.current_isa() == best
    qk.force_isa("scalar")
    assert qk.explain("linear", W, X, input_quant=Q).chosen.isa == "scalar"
    qk.force_isa(None)
    assert registry.current_isa() == best


def test_force_isa_from_other_threads():
    """The setting is the process's: a call that runs meanwhile uses one ISA or the other, both exact."""
    expected, stop, wrong = qk.matmul_int(CODES, W), threading.Event(), []

    def work():
        while not stop.is_set():
            if not np.array_equal(qk.matmul_int(CODES, W), expected):
                wrong.append(1)

    other = threading.Thread(target=work)
    other.start()
    for _ in range(200):
        with qk.force_isa("scalar"):
            pass
    stop.set()
    other.join()
    assert not wrong and registry.current_isa() == list(registry.ISAS)[qk._native.best_isa()]


@pytest.mark.parametrize(
    "value, words",
    [("scalar", "scalar"), ("", None), ("avx9000", "ArgumentError: QKERNELS_ISA: ISA 'avx9000'")],
)
def test_environment_variable(value, words):
    code = (
        "import numpy as np, qkernels as qk\n"
        "w = qk.IntWeight.quantize(np.ones((3, 4), np.float32))\n"
        "qk.linear(np.ones((1, 4), np.float32), w, input_quant=qk.InputQuant())\n"
        "print(qk.capabilities()['isa'])"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(qk.__file__).parent.parent), "QKERNELS_ISA": value}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    if value == "avx9000":
        assert done.returncode != 0 and words in done.stderr and "accepted: scalar" in done.stderr
    else:
        assert done.stdout.strip() == (words or list(registry.ISAS)[qk._native.best_isa()]), done.stderr


# ---- explain ---------------------------------------------------------------------------------------------


def test_explain_refusals():
    for op in ("conv9d", None, 3, ["linear"], np.ones(2)):
        with pytest.raises(A, match="linear, matmul_int"):
            qk.explain(op, W, X)
    with pytest.raises(A, match=f"K = {K}"):
        qk.explain("linear", W, X[:, 1:])
    with pytest.raises(D, match="w is a ndarray"):
        qk.explain("linear", X, X)
    with pytest.raises(D, match="x is a IntWeight"):
        qk.explain("linear", W, W)
    for arguments in ((), (W,), (W, X, None, None, None, None, None, None, 1, 2)):
        with pytest.raises(TypeError):
            qk.explain("linear", *arguments)
    text = str(qk.explain("linear", W, X, input_quant=Q, backend="reference"))
    assert (
        text.startswith("linear: linear/IntWeight/reference") and "backend='reference' was asked for" in text
    )
