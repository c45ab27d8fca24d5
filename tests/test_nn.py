"""qkernels.nn.Linear: a torch module like any other."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels.errors import ArgumentError, DTypeError, UnsupportedError

K, N = 40, 24
QUANTS = {
    "weight-only": None,
    "token": qk.InputQuant(),
    "tensor": qk.InputQuant(granularity="tensor"),
    "static": qk.InputQuant(granularity="tensor", scale=0.03),
    "unsigned": qk.InputQuant(granularity="tensor", scale=0.02, signed=False, zero_point=120),
    "channel": qk.InputQuant(granularity="channel"),
}
each_quant = pytest.mark.parametrize("quant", QUANTS)


def layer(rng, quant="token", bias=True, n=N, k=K, **options):
    """A module and what it was made from."""
    W = torch.from_numpy(rng.standard_normal((n, k), dtype=np.float32))
    s = torch.from_numpy(rng.uniform(0.02, 0.05, k).astype(np.float32)) if quant == "channel" else None
    symmetric = options.pop("symmetric", True)
    w = qk.IntWeight.quantize(W, input_scale=s, symmetric=symmetric)
    b = torch.from_numpy(rng.standard_normal(n, dtype=np.float32)) if bias else None
    return qk.nn.Linear(w, b, QUANTS[quant], **options), w, b


def inputs(rng, *shape):
    return torch.from_numpy(rng.standard_normal((*shape, K), dtype=np.float32))


@each_quant
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("activation", [None, "gelu"])
def test_equals_the_function(quant, symmetric, activation, rng):
    m, w, b = layer(rng, quant, symmetric=symmetric, activation=activation)
    x = inputs(rng, 2, 3)
    assert_same(m(x), qk.linear(x, w, b, activation, QUANTS[quant]))
    assert (m.in_features, m.out_features) == (K, N) and m.weight.shape == (N, K)
    assert m.input_quant == QUANTS[quant] and list(m.parameters()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_computes_in_the_dtype_of_x(dtype, rng):
    m, w, b = layer(rng)
    x = inputs(rng, 5).to(dtype)
    for module in (m, copy.deepcopy(m).to(dtype), copy.deepcopy(m).double()):
        assert module.scale.dtype == module.bias.dtype == torch.float32
        assert_same(module(x), qk.linear(x, w, b, input_quant=qk.InputQuant()))
    wide, _, _ = layer(rng, out_dtype=torch.float32)
    assert wide(x).dtype == torch.float32


def test_numpy_weights_become_buffers(rng):
    w = qk.IntWeight.quantize(rng.standard_normal((N, K), dtype=np.float32), symmetric=False)
    m = qk.nn.Linear(w, rng.standard_normal(N), qk.InputQuant())
    assert all(isinstance(b, torch.Tensor) for b in m.buffers())
    assert m.packed.data_ptr() == w.packed.ctypes.data  # shared, not copied
    x = inputs(rng, 4)
    assert_same(m(x), qk.linear(x, w, m.bias, input_quant=qk.InputQuant()))


@each_quant
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(quant, assign, rng):
    source, target = layer(rng, quant)[0], layer(rng, quant)[0]
    if quant == "static":
        other = qk.nn.Linear(target.weight, target.bias, qk.InputQuant(granularity="tensor", scale=0.7))
        target = other
    x = inputs(rng, 6)
    before = target(x)
    assert (before != source(x)).any()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert_same(target(x), source(x))


def test_state_dict_holds_portable_arrays_only(rng):
    m = layer(rng)[0]
    m(inputs(rng, 3))
    assert set(m.state_dict()) == {"packed", "scale", "bias"}
    assert set(layer(rng, "unsigned", symmetric=False)[0].state_dict()) == {
        "packed", "scale", "zero_point", "bias", "x_scale", "x_zero_point"}  # fmt: skip
    assert set(layer(rng, "channel", bias=False)[0].state_dict()) == {"packed", "scale", "input_scale"}
    stored = sum(t.numel() * t.element_size() for t in layer(rng, bias=False)[0].state_dict().values())
    assert stored == m.weight.nbytes
    assert len(pickle.dumps(m)) < m.weight.nbytes + 4000


def test_loading_leaves_shared_arrays_alone(rng):
    """Frozen weights and other modules keep their numbers when one module on the same memory loads others."""
    m, w, b = layer(rng)
    other = qk.nn.Linear(w, b, qk.InputQuant())
    x = inputs(rng, 3)
    y, dense = other(x), w.dense().clone()
    m.load_state_dict(layer(rng)[0].state_dict())
    assert_same(w.dense(), dense)
    assert_same(other(x), y)
    assert (m(x) != y).any()


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("packed", torch.zeros(N, K), "packed has dtype torch.float32; accepted: torch.uint8"),
        ("packed", torch.zeros(N, K + 1, dtype=torch.uint8), "size mismatch"),
        ("scale", torch.full((N, 1), float("nan")), "scale[0, 0] is nan"),
        ("scale", -torch.ones(N, 1), "scale[0, 0] is -1"),
        ("x_scale", torch.tensor(0.0), "scale is 0.0"),
    ],
)
def test_load_refuses(name, value, fragment, rng):
    model = torch.nn.Sequential(layer(rng, "static")[0])
    state = {**model.state_dict(), f"0.{name}": value}
    with pytest.raises(RuntimeError) as e:
        model.load_state_dict(state)
    assert fragment in str(e.value) and "0" in str(e.value)


def test_load_strict(rng):
    dynamic, static = layer(rng)[0], layer(rng, "static")[0]
    with pytest.raises(RuntimeError, match=r"Unexpected key.*x_scale"):
        dynamic.load_state_dict(static.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*x_scale"):
        static.load_state_dict(dynamic.state_dict())
    partial = {"bias": torch.ones(N)}
    dynamic.load_state_dict(partial, strict=False)
    assert_same(dynamic.bias, torch.ones(N))


@each_quant
def test_copies_and_pickles(quant, rng):
    m, _, _ = layer(rng, quant, symmetric=False)
    x = inputs(rng, 3)
    y = m(x)
    file = io.BytesIO()
    torch.save(m, file)
    file.seek(0)
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), torch.load(file, weights_only=False)):
        assert_same(other(x), y)
        assert other.packed.data_ptr() != m.packed.data_ptr()


def test_assigned_buffers_count(rng):
    m, w, b = layer(rng)
    x = inputs(rng, 3)
    m(x)
    m.bias = b * 2
    assert_same(m(x), qk.linear(x, w, b * 2, input_quant=qk.InputQuant()))
    m.scale = w.scale * 2
    assert_same(m.weight.scale, w.scale * 2)
    assert_same(m(x), qk.linear(x, m.weight, b * 2, input_quant=qk.InputQuant()))


def test_meta_device_and_to_empty(rng):
    m = layer(rng)[0]
    state, x = m.state_dict(), inputs(rng, 2)
    y = m(x)
    m = m.to("meta")
    with pytest.raises(ArgumentError, match="meta"):
        m(x)
    m = m.to_empty(device="cpu")
    m.load_state_dict(state)
    assert_same(m(x), y)


def test_refuses(rng):
    _, w, b = layer(rng)
    cases = [
        (
            (torch.zeros(3, 4),),
            DTypeError,
            "weight is a Tensor; accepted: qkernels.BinaryWeight.*qkernels.IntWeight",
        ),
        ((w, b, "token"), DTypeError, "input_quant is a str; accepted: InputQuant"),
        ((w, b, None, "tanh"), ArgumentError, "activation is 'tanh'"),
        ((w, b[:3]), ArgumentError, r"bias has shape \(3,\).*must be \(24,\)"),
        ((w, b, None, None, torch.int8), DTypeError, "out_dtype is torch.int8"),
        ((w, b, qk.InputQuant(granularity="channel")), ArgumentError, "the weight has no input_scale"),
    ]
    for arguments, error, text in cases:
        with pytest.raises(error, match=text):
            qk.nn.Linear(*arguments)
    with pytest.raises(ArgumentError, match=r"K = 40"):
        layer(rng)[0](torch.zeros(2, 3))


def test_from_float(rng):
    linear = torch.nn.Linear(K, N)
    stats = inputs(rng, 50).abs().amax(0)
    x = inputs(rng, 20) * 0.5
    for recipe in ("int8", "int8-tensor", "int8-static", "int8-spiq"):
        m = qk.nn.Linear.from_float(linear, recipe, stats)
        error = (m(x) - linear(x)).norm() / linear(x).norm()
        assert error < 0.04, (recipe, error)
    with pytest.raises(ArgumentError, match="stats is None, and the recipe is static"):
        qk.nn.Linear.from_float(linear, "int8-static")
    with pytest.raises(ArgumentError, match=r"stats has shape \(3,\); accepted: \(40,\)"):
        qk.nn.Linear.from_float(linear, "int8-spiq", torch.ones(3))
    with pytest.raises(DTypeError, match="linear is a Conv2d"):
        qk.nn.Linear.from_float(torch.nn.Conv2d(1, 1, 1), "int8")


def test_repr(rng):
    text = repr(layer(rng, "static", activation="gelu")[0])
    assert (
        "in_features=40, out_features=24, bias=True, format=IntWeight, bits=8, input=static per tensor, "
        "activation=gelu" in text
    )
    assert "input=" not in repr(layer(rng, "weight-only")[0])


# torch.compile


@each_quant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_into_one_graph(quant, dtype, rng):
    torch._dynamo.reset()
    m = torch.nn.Sequential(layer(rng, quant, activation="gelu")[0], torch.nn.LayerNorm(N, dtype=dtype))
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    for batch in (1, 5, 7):
        x = inputs(rng, batch, 2).to(dtype)
        assert_same(compiled(x), m(x), tolerance=1e-2 if dtype is torch.bfloat16 else 1e-5)


def test_compiles_with_inductor(rng):
    torch._dynamo.reset()
    m = layer(rng)[0]
    compiled = torch.compile(m, fullgraph=True)
    x = inputs(rng, 4)
    assert_same(compiled(x), m(x))


def test_compiled_module_sees_loaded_weights(rng):
    torch._dynamo.reset()
    m, other = layer(rng, "static")[0], layer(rng, "static")[0]
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    x = inputs(rng, 3)
    assert_same(compiled(x), m(x))
    m.load_state_dict({**other.state_dict(), "x_scale": torch.tensor(0.05)})
    assert_same(compiled(x), m(x))
    assert (m(x) != other(x)).any()


@each_quant
def test_exports(quant, rng):
    m = torch.nn.Sequential(
        layer(rng, quant)[0]
    )  # torch 2.13 miscounts absent buffers of the outermost module
    x = inputs(rng, 3)
    exported = torch.export.export(m, (x,))
    assert_same(exported.module()(x), m(x))


@each_quant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck(quant, dtype, rng):
    m = layer(rng, quant)[0]
    captured = []
    ops = torch.ops.qkernels
    op = (ops.linear_float if quant == "weight-only" else ops.linear_int).default

    class Capture(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is op:
                captured.append(args)
            return func(*args, **(kwargs or {}))

    x = inputs(rng, 3).to(dtype)
    with Capture():
        assert_same(m._compiled(x), m(x))
    torch.library.opcheck(op, captured[0])


def test_unsupported_is_said_when_buffers_changed(rng):
    m = layer(rng)[0]
    m.scale = m.scale * 2
    with pytest.raises(UnsupportedError, match="call the module once"):
        m._compiled(inputs(rng, 2))
