"""qkernels.nn.Linear with every weight format: what it computes, holds, saves and compiles."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels.errors import ArgumentError, DTypeError, UnsupportedError
from qkernels.formats import FORMATS

N, K = 19, 75  # no multiples of a byte, a group or a panel
BITS1 = {"sign per token": qk.InputQuant(bits=1), "sign static": qk.InputQuant(1, "tensor", scale=0.3)}
QUANTS = {
    "token": qk.InputQuant(),
    "4 bits": qk.InputQuant(4, "tensor", signed=False),
    "static": qk.InputQuant(granularity="tensor", scale=0.03, zero_point=-5),
    "power": qk.InputQuant(power=0.5),
    "power of 4 bits": qk.InputQuant(4, power=0.5),
    **BITS1,
}


def with_offset(W):
    w = qk.IntWeight.quantize(W, 4, 16)
    return qk.IntWeight.pack(w.codes(), w.scale, bits=4, group_size=16, offset=0.1 * w.scale)


def sensitive(W):
    """Widths that differ from weight to weight, so that the packed bytes do."""
    return qk.MixedIntWeight.quantize(W, 4, sensitivity=W.abs().amax(1))


S = torch.linspace(0.5, 3, K)
WEIGHTS = {
    "int8": lambda W: qk.IntWeight.quantize(W, input_scale=S),
    "int4 grouped": lambda W: qk.IntWeight.quantize(W, 4, 32, symmetric=False),
    "int4 offset": with_offset,
    "mixed": sensitive,
    "power": lambda W: qk.PowerWeight.quantize(W, 4),
    "power squares": lambda W: qk.PowerWeight.quantize(W, 4, 0.5, 16, input_scale=S),
    "log": lambda W: qk.LogWeight.quantize(W, 4, 32),
    "log 6 bits": lambda W: qk.LogWeight.quantize(W, 6),
    "e4m3": lambda W: qk.FloatWeight.quantize(W),
    "e5m2": lambda W: qk.FloatWeight.quantize(W, "e5m2", granularity="tensor"),
    "mxfp4": lambda W: qk.FloatWeight.quantize(W, "e2m1", scale_kind="e8m0"),
    "nvfp4": lambda W: qk.FloatWeight.quantize(W, "e2m1", scale_kind="e4m3"),
    "nf4": lambda W: qk.CodebookWeight.quantize(W, 4, "nf4"),
    "k-means of rows": lambda W: qk.CodebookWeight.quantize(W, 3, granularity="channel"),
    "integer codebook": lambda W: qk.CodebookWeight.quantize(W, 2, [-2.0, -1.0, 0.0, 3.0], "channel"),
    "binary": qk.BinaryWeight.quantize,
    "ternary": qk.TernaryWeight.quantize,
}
INTEGERS = ("int8", "int4 grouped", "mixed", "power squares", "log", "mxfp4", "nvfp4", "integer codebook")
BITS = ("binary", "ternary")
CASES = {
    **{name: (name, None) for name in WEIGHTS},
    **{f"{n}, {q}": (n, QUANTS[q]) for n in (*INTEGERS, *BITS) for q in QUANTS if q not in BITS1},
    **{f"{n}, {q}": (n, QUANTS[q]) for n in BITS for q in BITS1},
}
each_weight = pytest.mark.parametrize("name", WEIGHTS)
each_case = pytest.mark.parametrize("case", CASES)
each_kept = pytest.mark.parametrize(
    "case", [*WEIGHTS, "power squares, power", "log, token", "binary, sign static"]
)
BLOCKS = {"_block", "_block_float", "_block_of_bits"}  # where cores keep their layouts


def floats(rng, *shape):
    return torch.from_numpy(
        (rng.standard_normal(shape) ** 3).astype(np.float32)
    )  # tails that exponents differ by


def layer(rng, case, **options):
    """A module and what it was made from."""
    name, quant = CASES[case]
    w, b = WEIGHTS[name](floats(rng, N, K)), floats(rng, N)
    return qk.nn.Linear(w, b, quant, **options), w, b


def test_every_format_is_here(rng):
    assert {type(WEIGHTS[name](floats(rng, N, K))) for name in WEIGHTS} == set(FORMATS.values())


@each_case
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_equals_the_function(case, kind, rng):
    name, quant = CASES[case]
    w, b, x = WEIGHTS[name](floats(rng, N, K)), floats(rng, N), floats(rng, 2, 3, K)
    m = qk.nn.Linear(w.numpy() if kind == "numpy" else w, b, quant, activation="gelu")
    y = m(x)
    assert_same(y, qk.linear(x, w, b, "gelu", quant))
    expected = qk.linear(x, w, b, "gelu", quant, backend="reference")
    assert_same(y, expected, tolerance=2e-2 * expected.abs().max().item())
    assert m.input_quant == quant and type(m.weight) is type(w) and m.weight.options() == w.options()
    assert_same(m.weight.dense(), w.dense())
    assert list(m.parameters()) == []


@each_case
def test_one_layout_is_made(case, rng):
    """That of the core which runs, once, whatever is called; arrays are the weight's own."""
    m, w, _ = layer(rng, case)
    quant = CASES[case][1]
    block = "_block_float" if quant is None else "_block_of_bits" if quant.bits == 1 else "_block"
    assert BLOCKS & set(m.weight.__dict__) == {block}
    before = m.weight.__dict__[block]
    for rows in (1, 40):
        m(floats(rng, rows, K))
    m._compiled(floats(rng, 2, K))
    assert BLOCKS & set(m.weight.__dict__) == {block} and m.weight.__dict__[block] is before
    assert m._layout.data_ptr() == before.ctypes.data
    for field, a in w.arrays().items():
        assert getattr(m, field).data_ptr() == a.data_ptr()


@each_kept
@pytest.mark.parametrize("assign", [False, True])
def test_state_dict_round_trip(case, assign, rng):
    (source, _, _), (target, w, _) = layer(rng, case), layer(rng, case)
    x, dense = floats(rng, 6, K), w.dense().clone()
    assert (target(x) != source(x)).any()
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert_same(target(x), source(x))
    assert_same(target.weight.dense(), source.weight.dense())
    assert_same(w.dense(), dense)  # the frozen weight it was made from


@each_kept
def test_state_dict_holds_the_arrays(case, rng):
    m, w, _ = layer(rng, case)
    static = {"x_scale"} if case.endswith("static") else set()
    fitted = {"exponent"} if case.startswith("power") else set()
    assert set(m.state_dict()) == {*w.arrays(), "bias", *static, *fitted}
    assert len(pickle.dumps(m)) < w.nbytes + 5000


def test_exponents_travel_and_are_checked(rng):
    source, target = layer(rng, "power")[0], layer(rng, "power")[0]
    assert source.weight.exponent != target.weight.exponent and "exponent=0." in repr(source)
    target.load_state_dict(source.half().state_dict())
    assert target.weight.exponent == source.weight.exponent and target.exponent.dtype == torch.float64
    for bad, said in ((float("nan"), "exponent is nan"), (5.0, "exponent is 5.0; accepted: 1/16 to 4")):
        with pytest.raises(RuntimeError, match=said):
            target.load_state_dict({**source.state_dict(), "exponent": torch.tensor(bad)})
    squares = qk.nn.Linear(qk.PowerWeight.quantize(floats(rng, N, K), 4, 0.5), None, qk.InputQuant())
    with pytest.raises(RuntimeError, match="int_table"):
        squares.load_state_dict({**squares.state_dict(), "exponent": torch.tensor(0.4)})


def test_load_refuses_other_dtypes_and_formats(rng):
    m = layer(rng, "mxfp4")[0]
    bad = {**m.state_dict(), "scale": m.scale.float()}
    with pytest.raises(RuntimeError, match=r"scale has dtype torch.float32; accepted: torch.uint8"):
        m.load_state_dict(bad)
    with pytest.raises(RuntimeError, match=r"Missing key.*codebook"):
        layer(rng, "k-means of rows")[0].load_state_dict(m.state_dict())
    ternary = layer(rng, "ternary")[0]
    state = {**ternary.state_dict(), "packed": torch.full_like(ternary.packed, 255)}
    with pytest.raises(RuntimeError, match="TernaryWeight: packed"):
        ternary.load_state_dict(state)


@each_kept
def test_copies_pickles_and_dtypes(case, rng):
    m = layer(rng, case)[0]
    x = floats(rng, 3, K)
    y, dtypes = m(x), {name: b.dtype for name, b in m.named_buffers()}
    for other in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)), copy.deepcopy(m).half(), m.double()):
        assert_same(other(x), y)
        assert {name: b.dtype for name, b in other.named_buffers()} == dtypes
    assert m(x.bfloat16()).dtype == torch.bfloat16


@each_kept
def test_meta_device_and_to_empty(case, rng):
    m, x = layer(rng, case)[0], floats(rng, 2, K)
    state, y = m.state_dict(), m(x)
    m = m.to("meta")
    repr(m)
    with pytest.raises(ArgumentError, match="meta"):
        m(x)
    m = m.to_empty(device="cpu")
    for b in m.buffers():  # the memory may hold anything
        b.fill_(1) if b.dtype == torch.uint8 else b.fill_(float("nan") if b.is_floating_point() else 0)
    m.half()
    m.load_state_dict(state)
    assert_same(m(x), y)


@each_kept
def test_assigned_buffers_count(case, rng):
    m, w, _ = layer(rng, case)
    x, dense = floats(rng, 3, K), w.dense().clone()
    before = m(x)
    name = "alpha" if case.startswith(BITS) else "codebook" if case == "k-means of rows" else "scale"
    old = getattr(m, name)
    new = old // 2 if old.dtype == torch.uint8 else old * 1.5
    setattr(m, name, new)
    assert_same(getattr(m.weight, name), new)
    assert (m(x) != before).any()
    assert_same(w.dense(), dense)


@pytest.mark.parametrize("case", [*WEIGHTS, "binary, sign static", "ternary, sign per token", "log, token"])
def test_compiles_into_one_graph(case, rng):
    torch._dynamo.reset()
    m = torch.nn.Sequential(layer(rng, case, activation="silu")[0], torch.nn.ReLU())
    compiled = torch.compile(m, fullgraph=True, backend="aot_eager")
    for rows in (1, 5):
        x = floats(rng, rows, 2, K)
        assert_same(compiled(x), m(x))
    m[0].load_state_dict(layer(rng, case)[0].state_dict())
    assert_same(compiled(x), m(x))


@pytest.mark.parametrize("case", ["power", "binary, sign static"])
def test_exports(case, rng):
    m, x = torch.nn.Sequential(layer(rng, case)[0]), floats(rng, 3, K)
    assert_same(torch.export.export(m, (x,)).module()(x), m(x))


@pytest.mark.parametrize("shape", [(0, K), (N, 0), (1, 1), (129, 3)], ids=str)
def test_awkward_shapes(shape, rng):
    W = floats(rng, *shape)
    for make in (
        qk.IntWeight.quantize,
        lambda W: qk.PowerWeight.quantize(W, 4, 0.4),
        qk.BinaryWeight.quantize,
    ):
        w, x = make(W), floats(rng, 4, shape[1])
        m = qk.nn.Linear(w, floats(rng, shape[0]))
        expected = qk.linear(x, w, m.bias, backend="reference")
        assert_same(m(x), expected, tolerance=1e-2 * (1 + (x.abs() @ w.dense().abs().T).numpy()))
        assert_same(m._compiled(x), m(x))


def test_refuses(rng):
    w = {name: make(floats(rng, N, K)) for name, make in WEIGHTS.items()}
    image = qk.PowerWeight.quantize(floats(rng, 4, 3, 2, 2), 4, 0.5)
    cases = [
        (
            (w["e4m3"], None, qk.InputQuant()),
            UnsupportedError,
            "FloatWeight is not integers.*input_quant=None",
        ),
        ((w["power"], None, qk.InputQuant(power=0.5)), UnsupportedError, "nn.Linear: .*PowerWeight"),
        ((w["int4 offset"], None, qk.InputQuant()), UnsupportedError, "nn.Linear: w has an offset"),
        ((w["int8"], None, qk.InputQuant(1)), DTypeError, "accepted with bits=1: qkernels.BinaryWeight"),
        ((w["log"], None, qk.InputQuant(granularity="channel")), ArgumentError, "has no input_scale"),
        ((image,), ArgumentError, r"shape \(4, 3, 2, 2\); accepted: \(N, K\)"),
    ]
    for arguments, error, said in cases:
        with pytest.raises(error, match=said):
            qk.nn.Linear(*arguments)
    with pytest.raises(DTypeError, match=r"weight is a PowerWeight; accepted: qkernels\.IntWeight"):
        qk.nn.Conv2d(image)


def test_repr(rng):
    assert "format=FloatWeight, kind=e4m3, scale_kind=float32" in repr(layer(rng, "e4m3")[0])
    text = repr(layer(rng, "power squares, power of 4 bits")[0])
    assert "format=PowerWeight, bits=4, group_size=16, exponent=0.5" in text
    assert "input=dynamic per token, input_bits=4, input_power=0.5" in text
