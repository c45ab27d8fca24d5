"""qkernels under torch.compile, torch.export and fake tensors, and its operator on its own."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import qkernels as qk
from qkernels import _torch_ops

QUANTS = {
    "token": qk.InputQuant(),
    "tensor": qk.InputQuant(granularity="tensor"),
    "static": qk.InputQuant(granularity="tensor", scale=0.05, zero_point=3),
    "unsigned": qk.InputQuant(signed=False),
    "channel": qk.InputQuant(granularity="channel"),
    "power": qk.InputQuant(power=0.5),
    "power of 4 bits": qk.InputQuant(bits=4, power=0.5, granularity="tensor", signed=False),
}
each_quant = pytest.mark.parametrize("quant", QUANTS)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


def weight(n=24, k=20, quant="token", zero_point=False, seed=0):
    W = torch.randn(n, k, generator=torch.Generator().manual_seed(seed))
    s = torch.linspace(0.01, 0.1, k) if quant == "channel" else None
    return qk.IntWeight.quantize(W, input_scale=s, symmetric=not zero_point)


def operator_arguments(w, quant, x, bias=None, activation=1, out_dtype=torch.float32):
    q = QUANTS[quant]
    mode = qk.cpu.input_mode(q)
    scale, zero_point = (q.scale, q.zero_point) if quant == "static" else (1.0, 0)
    n = w.shape[0]
    quant = mode, q.bits, q.signed, scale, zero_point
    return x, _torch_ops.layout(w), bias, n, *quant, activation, out_dtype, q.power is not None


# ---- the operator ----------------------------------------------------------------------------------------


@each_quant
def test_opcheck(quant):
    w = weight(quant=quant)
    cases = [
        (torch.randn(3, 20), torch.randn(24), torch.float32),
        (torch.randn(2, 3, 20, dtype=torch.bfloat16), None, torch.float16),
        (torch.randn(0, 20), torch.randn(24, dtype=torch.bfloat16), torch.float32),
        (torch.randn(20, 4).T, None, torch.float32),
    ]
    for x, bias, out_dtype in cases:
        arguments = operator_arguments(w, quant, x, bias, out_dtype=out_dtype)
        torch.library.opcheck(torch.ops.qkernels.linear_int.default, arguments)


@each_quant
@pytest.mark.parametrize("shape", [(20,), (1, 20), (2, 3, 20), (0, 20)], ids=str)
def test_operator_equals_eager(quant, shape):
    w, x, bias = weight(quant=quant), torch.randn(shape), torch.randn(24)
    y = torch.ops.qkernels.linear_int(*operator_arguments(w, quant, x, bias))
    assert torch.equal(y, qk.linear(x, w, bias, "relu", QUANTS[quant]))


def test_a_tampered_block_is_refused():
    """The block travels as a tensor in graphs and files: whatever its bytes say, nothing outside of it is read."""
    w, x = weight(), torch.randn(3, 20)
    arguments = list(operator_arguments(w, "token", x))
    good = arguments[1].clone()
    run = torch.ops.qkernels.linear_int
    expected = run(*arguments)
    arguments[1] = good
    assert torch.equal(run(*arguments), expected)
    for size in (0, 1, 127, 128, 200, good.numel() - 64, good.numel() - 1):
        arguments[1] = good[:size].clone()
        with pytest.raises(ValueError, match="prepacked"):
            run(*arguments)
    arguments[1] = torch.cat([good, good])[4:]
    with pytest.raises(ValueError, match="prepacked"):
        run(*arguments)
    flags = (64, 72, 96)  # grouped, has_zero_point, exact_padding: of one group both values are valid
    for byte in (b for b in range(184) if b not in flags):  # the header
        for change in (1, 0x80, 0xFF):
            arguments[1] = good.clone()
            arguments[1][byte] ^= change
            with pytest.raises(ValueError):
                run(*arguments)
                pytest.fail(f"byte {byte} ^ {change:#x} was accepted")
    for start in range(320, good.numel(), 97):  # numbers, not addresses: any value computes
        arguments[1] = good.clone()
        arguments[1][start : start + 8] = 0x7F
        assert run(*arguments).shape == (3, 24)


def test_operator_refuses_wrong_arguments():
    w, x, bias = weight(), torch.randn(3, 20), torch.randn(24)
    good = dict(
        zip(
            ["x", "packed", "bias", "n", "mode", "bits", "signed", "scale", "zero", "act", "out", "power"],
            operator_arguments(w, "token", x, bias),
            strict=True,
        )
    )
    assert torch.equal(
        torch.ops.qkernels.linear_int(*good.values()), qk.linear(x, w, bias, "relu", QUANTS["token"])
    )
    bad = [
        {"x": torch.randn(3, 19)},
        {"x": torch.tensor(1.0)},
        {"x": x.double()},
        {"x": x.int()},
        {"n": 23},
        {"n": 25},
        {"n": -1},
        {"mode": 4},
        {"mode": -1},
        {"mode": 3},  # per channel without input_scale
        {"mode": 2, "scale": 0.0},
        {"mode": 2, "scale": float("nan")},
        {"mode": 2, "scale": 1e300},
        {"mode": 2, "zero": 128},
        {"zero": 1},
        {"bits": 1},
        {"bits": 9},
        {"power": True, "mode": 3},
        {"power": True, "mode": 2, "zero": 1},
        {"act": 5},
        {"act": -1},
        {"bias": torch.randn(23)},
        {"bias": torch.randn(24, 1)},
        {"out": torch.int8},
        {"out": torch.float64},
        {"packed": good["packed"].view(torch.int8)},
        {"packed": torch.cat([good["packed"][:, None]] * 2, 1)[:, 0]},
        {"x": torch.full((3, 20), float("nan"))},
    ]
    for change in bad:
        with pytest.raises((ValueError, TypeError, NotImplementedError, RuntimeError)) as e:
            torch.ops.qkernels.linear_int(*{**good, **change}.values())
        assert not isinstance(e.value, SystemError), change


@pytest.mark.parametrize("group_size", [None, 16])
@pytest.mark.parametrize("quant", ["token", "power", "power of 4 bits"])
def test_opcheck_of_tables(quant, group_size):
    """Weights whose codes index a table travel as the same block."""
    w = qk.PowerWeight.quantize(torch.randn(24, 20), exponent=0.5, group_size=group_size)
    arguments = operator_arguments(w, quant, torch.randn(3, 20), torch.randn(24))
    torch.library.opcheck(torch.ops.qkernels.linear_int.default, arguments)
    y = torch.ops.qkernels.linear_int(*arguments)
    assert torch.equal(
        y, qk.linear(arguments[0], w, arguments[2], "relu", QUANTS[quant], backend="reference")
    )
    with pytest.raises(qk.UnsupportedError, match="int_table"):
        _torch_ops.layout(qk.PowerWeight.quantize(torch.randn(24, 20), exponent=0.3))


# ---- weight-only -----------------------------------------------------------------------------------------

FLOAT_WEIGHTS = {  # one of each kind that the block of the float core knows
    "int8": lambda W: qk.IntWeight.quantize(W, input_scale=torch.linspace(0.5, 2, W.shape[1])),
    "grouped": lambda W: qk.IntWeight.quantize(W, 3, 16, symmetric=False),
    "power": lambda W: qk.PowerWeight.quantize(W, 4, 0.37),
    "rows": lambda W: qk.CodebookWeight.quantize(W, 2, granularity="channel"),
    "signs": qk.BinaryWeight.quantize,
}
each_float = pytest.mark.parametrize("make", FLOAT_WEIGHTS)


def float_arguments(w, x, bias=None, exact=False, activation=1, out_dtype=torch.float32):
    return x, _torch_ops.layout_of_floats(w), bias, w.shape[0], exact, activation, out_dtype


@each_float
def test_opcheck_of_floats(make):
    w, op = FLOAT_WEIGHTS[make](torch.randn(24, 20)), torch.ops.qkernels.linear_float
    cases = [
        (torch.randn(3, 20), torch.randn(24), torch.float32),
        (torch.randn(2, 3, 20, dtype=torch.bfloat16), None, torch.float16),
        (torch.randn(0, 20), torch.randn(24, dtype=torch.bfloat16), torch.float32),
        (torch.randn(20, 4).T, None, torch.float32),
    ]
    for x, bias, out_dtype in cases:
        for exact in (False, True):
            arguments = float_arguments(w, x, bias, exact, out_dtype=out_dtype)
            torch.library.opcheck(op.default, arguments)
            compute_dtype = "float32" if exact else None
            y = qk.linear(x, w, bias, "relu", compute_dtype=compute_dtype, out_dtype=out_dtype)
            assert torch.equal(op(*arguments), y)


def test_a_tampered_block_of_floats_is_refused():
    run, w, x = (
        torch.ops.qkernels.linear_float,
        FLOAT_WEIGHTS["grouped"](torch.randn(24, 20)),
        torch.randn(3, 20),
    )
    arguments = list(float_arguments(w, x))
    good = arguments[1].clone()
    for size in (0, 1, 63, 128, good.numel() - 64, good.numel() - 1):
        arguments[1] = good[:size].clone()
        with pytest.raises(ValueError, match="prepacked"):
            run(*arguments)
    for byte in range(16):  # what it is, and its version
        arguments[1] = good.clone()
        arguments[1][byte] ^= 0x80
        with pytest.raises(ValueError):
            run(*arguments)
            pytest.fail(f"byte {byte} was accepted")
    for change in ({3: 23}, {3: -1}, {5: 9}, {6: torch.int8}, {0: torch.randn(3, 19)}, {2: torch.randn(23)}):
        arguments = list(float_arguments(w, x))
        for place, value in change.items():
            arguments[place] = value
        with pytest.raises((ValueError, TypeError)):
            run(*arguments)


@each_float
def test_compiled_function_with_float_activations(make):
    """The weight was never used before, in a function and in a module; a batch of any size is one graph."""
    w, bias = FLOAT_WEIGHTS[make](torch.randn(24, 20)), torch.randn(24)
    module = torch.nn.Sequential(qk.nn.Linear(FLOAT_WEIGHTS[make](torch.randn(20, 24)), activation="gelu"))
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    f = lambda x: module(qk.linear(x * 2, w, bias, "silu", compute_dtype="float32")) + 1  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend=backend)
    for rows in (3, 5, 17):
        x = torch.randn(rows, 20)
        assert torch.equal(compiled(x), f(x))
    assert len(graphs) == 1


# ---- torch.compile ---------------------------------------------------------------------------------------


@each_quant
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_compiled_function_with_a_captured_weight(quant, kind):
    """The weight was never used before: it is prepacked while the function is traced."""
    w = weight(quant=quant)
    w = w.numpy() if kind == "numpy" else w
    q, bias, x = QUANTS[quant], torch.randn(24), torch.randn(5, 20)

    def f(x):
        return qk.linear(x * 2, w, bias, activation="relu", input_quant=q) + 1

    assert torch.equal(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x))


def test_compiled_function_follows_its_weight():
    """Another weight of the same shape must not run on the block that was traced."""
    q = qk.InputQuant()

    def f(x, w):
        return qk.linear(x, w, input_quant=q)

    compiled, x = torch.compile(f, fullgraph=True, backend="aot_eager"), torch.randn(5, 20)
    weights = [weight(seed=0), weight(seed=1), weight(seed=2, zero_point=True), weight(30, 20, seed=3)]
    for w in (*weights, *weights):
        assert torch.equal(compiled(x, w), f(x, w))


def test_inductor_and_dynamic_batch():
    w, q = weight(), qk.InputQuant()
    model = torch.nn.Sequential(
        qk.nn.Linear(w, torch.randn(24), q, activation="gelu"),
        torch.nn.LayerNorm(24),
        qk.nn.Linear(weight(8, 24), None, q),
    )
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch in (3, 5, 64):
        x = torch.randn(batch, 20)
        torch.testing.assert_close(compiled(x), model(x), atol=0.05, rtol=0.05)  # LayerNorm rounds elsewhere


def test_dynamic_batch_does_not_recompile():
    w, q, graphs = weight(), qk.InputQuant(), []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda x: qk.linear(x, w, input_quant=q), fullgraph=True, dynamic=True, backend=backend
    )
    for batch in (3, 5, 9, 64):
        x = torch.randn(batch, 20)
        assert torch.equal(compiled(x), qk.linear(x, w, input_quant=q))
    assert len(graphs) == 1


def test_compiled_with_parameters_that_train():
    """A layer that needs gradients in front: eager drops them at the compressed layer, compiled code does too."""
    model = torch.nn.Sequential(torch.nn.Linear(20, 20), qk.nn.Linear(weight(), None, qk.InputQuant()))
    x = torch.randn(4, 20)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, model(x), atol=0.05, rtol=0.05)
    assert not model(x).requires_grad and not compiled.requires_grad


@pytest.mark.parametrize(
    "options, words",
    [
        ({"compute_dtype": "bfloat16"}, "compute_dtype"),
        ({"input_quant": QUANTS["token"], "backend": "reference"}, "backend"),
        ({"input_quant": QUANTS["token"], "activation": "tanh"}, "activation"),
    ],
    ids=["compute_dtype", "backend", "activation"],
)
def test_compiled_refusals(options, words):
    w = weight()
    compiled = torch.compile(lambda x: qk.linear(x, w, **options), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=words):
        compiled(torch.randn(2, 20))


def test_compiled_k_mismatch_names_the_shapes():
    w, q = weight(), qk.InputQuant()
    compiled = torch.compile(lambda x: qk.linear(x, w, input_quant=q), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="K = 20"):
        compiled(torch.randn(2, 21))


# ---- export, fake tensors, other observers ---------------------------------------------------------------


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    model = torch.nn.Sequential(qk.nn.Linear(weight(), torch.randn(24), qk.InputQuant(), "relu")).eval()
    x = torch.randn(4, 20)
    batch = torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},), strict=strict)
    for rows in (4, 7):
        x = torch.randn(rows, 20)
        assert torch.equal(program.module()(x), model(x))


def test_export_of_a_function_prepacks_real_memory():
    w = weight()

    class Model(torch.nn.Module):
        def forward(self, x):
            return qk.linear(x, w, input_quant=QUANTS["token"])

    x = torch.randn(4, 20)
    program = torch.export.export(Model(), (x,), strict=False)
    assert type(w._packed_tensor) is torch.Tensor
    assert torch.equal(program.module()(x), Model()(x))


def test_fake_tensors():
    w, q = weight(), qk.InputQuant()
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, 5, 20)
        for _ in range(2):
            y = qk.linear(x, w, input_quant=q, out_dtype=torch.bfloat16)
            assert y.shape == (3, 5, 24) and y.dtype == torch.bfloat16
            assert qk.linear(x, w).shape == (3, 5, 24)
    qk.linear(torch.randn(2, 20), w, input_quant=q)
    assert qk.linear(x, w, input_quant=q).shape == (3, 5, 24)  # after real calls, outside of the mode
    codes = FakeTensorMode().from_tensor(torch.zeros(3, 20, dtype=torch.int8))
    acc = FakeTensorMode().from_tensor(torch.zeros(3, 20, dtype=torch.int32))
    for call in (
        lambda: qk.linear(x, w, backend="reference"),
        lambda: qk.linear(
            torch.randn(3, 20), w, bias=FakeTensorMode().from_tensor(torch.ones(24)), input_quant=q
        ),
        lambda: qk.quantize_activations(x, q),
        lambda: qk.matmul_int(codes, w),
        lambda: qk.linear_requant(codes, w, qk.Requant.from_scale(0.01)),
        lambda: qk.requantize(acc, qk.Requant.from_scale(0.01)),
    ):
        with pytest.raises((qk.ArgumentError, qk.DTypeError)):
            call()


def test_a_dprelu_has_no_operator():
    w = qk.BinaryWeight.quantize(torch.randn(24, 20))
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(qk.UnsupportedError, match="is a DPReLU"):
        qk.linear(torch.empty(3, 20), w, None, qk.DPReLU(0.1, 0.2), qk.InputQuant(bits=1))


def test_observers_see_the_operator():
    """torch.jit.trace, make_fx and dispatch modes record an operator, not an empty tensor that nobody fills."""
    from torch.fx.experimental.proxy_tensor import make_fx

    w, q, x = weight(), qk.InputQuant(), torch.randn(3, 20)
    f = lambda x: qk.linear(x, w, input_quant=q)  # noqa: E731
    f(x)
    other = torch.randn(3, 20)
    assert torch.equal(torch.jit.trace(f, x, check_trace=False)(other), f(other))
    assert torch.equal(make_fx(f)(x)(other), f(other))


def test_unusual_tensors():
    w, q = weight(), qk.InputQuant()
    x = torch.randn(3, 20)
    expected = qk.linear(x, w, input_quant=q)
    negative = torch._neg_view(-x)
    assert negative.is_neg() and negative.is_contiguous()

    class Mine(torch.Tensor):
        pass

    for _ in range(2):
        assert torch.equal(qk.linear(negative, w, input_quant=q), expected)
        assert torch.equal(qk.linear(x.as_subclass(Mine), w, input_quant=q), expected)
        assert torch.equal(qk.linear(torch.nn.Parameter(x), w, input_quant=q), expected)
        imaginary = torch.complex(torch.zeros(3, 20), -x).conj().imag
        assert imaginary.is_neg() and torch.equal(qk.linear(imaginary, w, input_quant=q), expected)
        bias = torch._neg_view(torch.ones(24))
        assert torch.equal(
            qk.linear(x, w, bias, input_quant=q), qk.linear(x, w, -torch.ones(24), input_quant=q)
        )
        with pytest.raises(qk.ArgumentError, match="memory"):
            qk.linear(torch._efficientzerotensor((3, 20)), w, input_quant=q)
