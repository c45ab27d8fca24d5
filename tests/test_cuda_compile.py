"""The torch operators of ``linear`` on a device for every core: on the emulator, where what they are on CUDA tensors
runs on CPU tensors, and traced for fake CUDA tensors.
"""

import json
import weakref

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import qkernels as qk
from qkernels import _torch_device, _torch_ops, cuda, nn, registry
from qkernels import triton_backend as triton
from qkernels.ops import linear_request

Q, SIGNS = qk.InputQuant(), qk.InputQuant(bits=1)
CPU = torch.device("cpu")


def matrix(rng, n=24, k=96):
    return rng.standard_normal((n, k)).astype(np.float32)


def codebook(rng, n, k):
    book = np.array([[-100, -7, -1, 0, 2, 5, 60, 127]], np.float32)
    return qk.CodebookWeight.pack(
        rng.integers(0, 8, (n, k)).astype(np.uint8), book, abs(matrix(rng, n, -(-k // 32))), 3, 32
    )


# The core, a weight, and the options: one of everything that the facts of a layout can say.
CASES = {
    "int8": ("int8", lambda r: qk.IntWeight.quantize(matrix(r)), {"input_quant": Q}),
    "int8 zero points": (
        *("int8", lambda r: qk.IntWeight.quantize(matrix(r), 5, symmetric=False)),
        {"input_quant": qk.InputQuant(granularity="tensor", scale=0.05, zero_point=-7)},
    ),
    "int8 channel": (
        *(
            "int8",
            lambda r: qk.IntWeight.quantize(matrix(r), input_scale=r.uniform(0.5, 2, 96).astype(np.float32)),
        ),
        {"input_quant": qk.InputQuant(granularity="channel")},
    ),
    "int8 tensor": (
        *("int8", lambda r: qk.IntWeight.quantize(matrix(r), 5)),
        {"input_quant": qk.InputQuant(bits=6, granularity="tensor", signed=False)},
    ),
    "int4": ("int4", lambda r: qk.IntWeight.quantize(matrix(r), 4, 32), {"input_quant": Q}),
    "int4 unsigned": (
        *("int4", lambda r: qk.IntWeight.quantize(matrix(r), 3, 64)),
        {"input_quant": qk.InputQuant(bits=5, granularity="tensor", signed=False)},
    ),
    "int4 zero points": (
        *("int4", lambda r: qk.IntWeight.quantize(matrix(r), 4, 17, symmetric=False)),
        {"input_quant": qk.InputQuant(granularity="tensor", scale=0.05, zero_point=-7)},
    ),
    "int4 table": (
        *("int4", lambda r: codebook(r, 24, 96)),
        {"input_quant": qk.InputQuant(granularity="tensor", scale=0.04)},
    ),
    "float": ("float", lambda r: qk.IntWeight.quantize(matrix(r), 4, 32, symmetric=False), {}),
    "float exact": (
        "float",
        lambda r: qk.PowerWeight.quantize(matrix(r), 4, 0.37),
        {"compute_dtype": "float32"},
    ),
    "float wide table": ("float", lambda r: qk.CodebookWeight.quantize(matrix(r) * 1e6, 4), {}),
    "signs": ("signs", lambda r: qk.BinaryWeight.quantize(matrix(r)), {"input_quant": SIGNS}),
    "signs static": (
        *("signs", lambda r: qk.TernaryWeight.quantize(matrix(r))),
        {"input_quant": qk.InputQuant(bits=1, granularity="tensor", scale=0.7)},
    ),
}
each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture
def emulated(monkeypatch):
    return cuda_builds.emulate(monkeypatch, 5)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def on_emulator():
    """The operators under other names, on CPU tensors what they are on CUDA tensors."""
    names = "linear_int", "linear_float", "linear_signs"
    library = torch.library.Library("qkernels_emulated", "DEF")
    for name in names:
        op = getattr(torch.ops.qkernels, name).default
        library.define(str(op._schema).removeprefix("qkernels::"))
        library.impl(name, getattr(_torch_ops, f"_{name}_cuda"), "CPU")
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        torch.library.register_fake(f"qkernels_emulated::{name}", op, lib=library)  # the fake of the real one
    yield torch.ops.qkernels_emulated
    library._destroy()


def arguments(x, w, bias=None, activation=None, backend="cuda", **options):
    """What a traced call passes to the operator on a device, and that operator's name."""
    request = linear_request(x, w, bias, activation, backend=backend, **options)
    kernel, seen = registry.pick(request), []

    class Operators:
        def __getattr__(self, name):
            return lambda *args: seen.append((name, args)) or args[0]

    packed, layout = _torch_device.prepacked(kernel, request)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops, "qkernels", Operators())
        exact = options.get("compute_dtype") == "float32"
        rest = options.get("input_quant"), exact, activation, options.get("out_dtype"), layout
        _torch_ops.linear_on_block(x, packed, bias, w.shape[0], *rest)
    return kernel, *seen[0]


INPUTS = [  # shape of x, its dtype, bias, activation, dtype of the result
    ((3, 96), torch.float32, torch.float32, "relu", None),
    ((96,), torch.bfloat16, None, None, torch.float32),
    ((2, 9, 96), torch.float16, torch.bfloat16, "relu6", None),
    ((0, 96), torch.float32, torch.float32, None, torch.bfloat16),
    ((96, 20), torch.float32, None, "relu", torch.float16),  # transposed
]


@each_case
def test_operators_give_the_bits_of_linear(emulated, on_emulator, case, rng):
    core, make, options = CASES[case]
    w = make(rng)
    for shape, dtype, bias_type, activation, out_dtype in INPUTS:
        x = torch.from_numpy(rng.standard_normal(shape)).to(dtype)
        x = x.T if shape == (96, 20) else x
        bias = None if bias_type is None else torch.randn(24).to(bias_type)
        asked = {**options, "out_dtype": out_dtype}
        kernel, name, args = arguments(x, w, bias, activation, **asked)
        assert kernel.run.name == core and name == kernel.run.operator
        for size in (64, 1024, 16384):
            torch.full((size,), float("nan"))
        y = getattr(on_emulator, name)(*args)
        assert_same(y, qk.linear(x, w, bias, activation, backend="cuda", **asked))
        if kernel.exactness == "exact":
            assert_same(y, qk.linear(x, w, bias, activation, backend="reference", **asked))
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(a) if torch.is_tensor(a) else a for a in args]
            fake = getattr(torch.ops.qkernels, name)(*fakes)
        assert (fake.shape, fake.stride(), fake.dtype) == (y.shape, y.stride(), y.dtype)


def test_what_an_operator_keeps_goes_with_its_tensor(emulated, on_emulator, rng):
    """One view of a prepacked tensor serves its calls, follows its memory, and is gone with it."""
    w, x = CASES["float"][1](rng), torch.from_numpy(matrix(rng, 3))
    _, name, args = arguments(x, w)
    run, packed = getattr(on_emulator, name), args[1].clone()
    expected = run(*args)
    for _ in range(3):
        assert_same(run(x, packed, *args[2:]), expected)
    assert len(packed._qkernels_calls) == 1
    packed.set_(torch.cat([args[1], args[1]])[args[1].numel() :].clone())
    assert_same(run(x, packed, *args[2:]), expected)
    assert len(packed._qkernels_calls) == 2
    packed.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        run(x, packed, *args[2:])
    gone = weakref.ref(packed)
    del packed
    assert gone() is None


def test_what_an_operator_keeps_answers_for_its_arguments_alone(emulated, on_emulator, rng):
    """One tensor, called with arguments that differ from one another in one place each."""
    static = {"granularity": "tensor", "scale": 0.1, "zero_point": 3}
    usual = {"input_quant": qk.InputQuant(**static), "activation": "relu", "out_dtype": None}
    quants = [
        static | change for change in ({"scale": 0.2}, {"zero_point": 5}, {"bits": 5}, {"signed": False})
    ]
    changes = [{}, *({"input_quant": qk.InputQuant(**q)} for q in quants)]
    changes += [{"activation": None}, {"out_dtype": torch.float16}, {"dtype": torch.float16}]
    floats, few = {"activation": "relu", "compute_dtype": None}, {"activation": "relu", "input_quant": SIGNS}
    one = {"input_quant": qk.InputQuant(bits=1, granularity="tensor", scale=0.5)}
    for make, calls in (
        (CASES["int8"][1], [usual | c for c in changes]),
        (
            CASES["float"][1],
            [floats | c for c in ({}, {"compute_dtype": "float32"}, {"dtype": torch.bfloat16})],
        ),
        (CASES["signs"][1], [few | c for c in ({}, one, {"activation": "silu"})]),
    ):
        w, tensors = make(rng), set()
        for options in calls:
            x = torch.from_numpy(matrix(rng, 3)).to(options.pop("dtype", torch.float32))
            _, name, args = arguments(x, w, **options)
            assert_same(getattr(on_emulator, name)(*args), qk.linear(x, w, backend="cuda", **options))
            tensors.add(args[1])
        (packed,) = tensors
        assert len(packed._qkernels_calls) == len(calls)


@each_case
def test_opcheck(emulated, on_emulator, case, rng):
    _, make, options = CASES[case]
    x, bias = torch.from_numpy(rng.standard_normal((3, 96)).astype(np.float32)), torch.randn(24)
    _, name, args = arguments(x, make(rng), bias, "relu", **options)
    torch.library.opcheck(getattr(on_emulator, name).default, args)


@each_case
def test_wrong_arguments_of_an_operator_are_refused(emulated, on_emulator, case, rng):
    """A graph may come from a file: nothing outside of the tensors is read, whatever it says."""
    _, make, options = CASES[case]
    x, bias = torch.from_numpy(rng.standard_normal((3, 96)).astype(np.float32)), torch.randn(24)
    _, name, args = arguments(x, make(rng), bias, **options)
    run, packed, layout = getattr(on_emulator, name), args[1], args[-1]
    expected = run(*args)
    kind, version, shape, facts = json.loads(layout)
    other = {"int8": "float", "int4": "float", "float": "int8", "signs": "int8"}[kind]
    changes = [
        *(
            {0: torch.randn(3, 95)},
            {0: x.double()},
            {0: torch.tensor(1.0)},
            {2: bias[:5]},
            {2: None, 3: 56},
            {3: -1},
        ),
        *({1: packed[:-16]}, {1: packed.view(torch.int8)}, {1: packed[::2]}, {1: packed[:0]}),
        *({1: torch.cat([packed, packed])}, {1: torch.cat([packed, packed])[1 : 1 + packed.numel()]}),
        *(
            {-1: ""},
            {-1: "[1, 2]"},
            {-1: json.dumps(["int3", version, shape, facts])},
            {-1: json.dumps([kind, 2, shape, facts])},
        ),
        *(
            {-1: json.dumps([other, version, shape, facts])},
            {-1: json.dumps([kind, version, shape, facts[:-1]])},
        ),
        {-1: json.dumps([kind, version, shape, ["x"] * len(facts)])},
    ]
    if kind in ("int4", "float"):
        changes.append({-1: json.dumps([kind, version, shape, [*facts[:-1], facts[-1][:5]]])})
    for change in changes:
        wrong = list(args)
        for place, value in change.items():
            wrong[place] = value
        with pytest.raises((TypeError, ValueError)):
            run(*wrong)
            pytest.fail(f"{list(change)} was accepted")
    assert_same(run(*args), expected)


# ---- what is traced -----------------------------------------------------------------------------------------------


@pytest.fixture
def traced(emulated, monkeypatch):
    """A machine whose CUDA tensors are fake: the mode that makes them, and what Dynamo hands to its backend."""
    mode, graphs = FakeTensorMode(allow_non_fake_inputs=True), []

    def upload(array, where):
        with mode:
            return torch.empty(array.nbytes, dtype=torch.uint8, device=where)

    monkeypatch.setattr(cuda, "upload", upload)
    monkeypatch.setattr(cuda, "refuses", lambda request: None)

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    return mode, graphs, backend


def operators(graph):
    return [n for n in graph.graph.nodes if "qkernels" in str(n.target)]


@each_case
def test_dynamo_traces_every_core(traced, case, rng):
    """One graph for every batch, in a function and in a module, on the tensor of the device that x is on."""
    core, make, options = CASES[case]
    mode, graphs, backend = traced
    w = make(rng)
    layer = nn.Linear(w, None, options.get("input_quant"), "gelu", torch.float16)
    layer._layout = None  # as _prepare leaves it on a device
    with mode:
        bias = torch.empty(24, device="cuda:0")
        f = torch.compile(
            lambda x, b: qk.linear(x, w, b, "relu", **options) * 2,
            backend=backend,
            fullgraph=True,
            dynamic=True,
        )
        for rows in (3, 5):
            y = f(torch.empty(2, rows, 96, device="cuda:0"), bias)
            assert (y.device, y.shape) == (torch.device("cuda:0"), (2, rows, 24))
        (graph,) = graphs
        (node,) = operators(graph)
        assert json.loads(node.args[-1])[0] == core and f"cuda_0_{core}" in str(node.args[1])
        y = f(torch.empty(2, 3, 96, device="cuda:1"), torch.empty(24, device="cuda:1"))
        assert y.device == torch.device("cuda:1") and f"cuda_1_{core}" in str(
            operators(graphs[-1])[0].args[1]
        )
        if "compute_dtype" in options:
            return
        y = torch.compile(layer, backend=backend, fullgraph=True)(torch.empty(3, 96, device="cuda:0"))
        assert (y.device, y.shape, y.dtype) == (torch.device("cuda:0"), (3, 24), torch.float16)
        assert json.loads(operators(graphs[-1])[0].args[-1])[0] == core


def test_compiled_code_follows_its_weight(traced, rng):
    """Another weight is another tensor, and where its facts are others, another graph: at most one for each."""
    mode, graphs, backend = traced
    makes = [CASES[c][1] for c in ("float", "float wide table", "float", "float")]
    makes += [CASES["float exact"][1], lambda r: qk.IntWeight.quantize(matrix(r, 16), 4)]
    weights = [make(rng) for make in makes]
    with mode:
        f = torch.compile(lambda x, w: qk.linear(x, w), backend=backend, fullgraph=True)
        for w in (*weights, *weights):
            before = len(graphs)
            x = torch.empty(3, 96, device="cuda:0")
            assert f(x, w).shape == (3, w.shape[0])
            assert len(graphs) <= before + 1 and len(graphs) <= len(weights)
    said = {operators(g)[0].args[-1] for g in graphs}
    assert len(said) == 4  # two of the weights differ in nothing but their codes


def test_any_input_quant_is_followed(traced, rng):
    """One made in the compiled function, and one that is its argument, whose numbers Dynamo holds for variable."""
    mode, graphs, backend = traced
    w = CASES["int8 zero points"][1](rng)
    quants = Q, qk.InputQuant(bits=6)
    quants += tuple(qk.InputQuant(granularity="tensor", scale=z / 30, zero_point=z) for z in (3, 4))
    with mode:
        x = torch.empty(3, 96, device="cuda:0")
        inside = lambda x: qk.linear(x, w, input_quant=qk.InputQuant(bits=6))  # noqa: E731
        assert torch.compile(inside, backend=backend, fullgraph=True)(x).shape == (3, 24)
        assert operators(graphs[-1])[0].args[4:9] == (0, 6, True, 1.0, 0)
        f = torch.compile(lambda x, q: qk.linear(x, w, input_quant=q), backend=backend, fullgraph=True)
        for q in quants:
            assert f(x, q).shape == (3, 24)
            mode_number, bits, signed, _, zero_point = operators(graphs[-1])[0].args[4:9]
            assert (mode_number, signed) == qk.cpu.quant_numbers(q)[:3:2]
            assert not isinstance(bits, int) or bits == q.bits
            assert not isinstance(zero_point, int) or zero_point == (q.zero_point or 0)


def test_few_tokens_may_have_a_kernel_of_their_own(traced, rng):
    """Compiled code is made once for either side, and for a weight that has one kernel for both, once."""
    mode, graphs, backend = traced
    w, other = qk.IntWeight.quantize(matrix(rng), 4), qk.BinaryWeight.quantize(matrix(rng))
    with mode:
        f = torch.compile(
            lambda x: qk.linear(x, w, input_quant=Q), backend=backend, fullgraph=True, dynamic=True
        )
        for rows in (3, 16, 17, 400, 5):
            f(torch.empty(rows, 96, device="cuda:0"))
        assert [json.loads(operators(g)[0].args[-1])[0] for g in graphs] == ["int4", "int8"]
        del graphs[:]
        g = torch.compile(
            lambda x: qk.linear(x, other, input_quant=SIGNS), backend=backend, fullgraph=True, dynamic=True
        )
        for rows in (3, 16, 17, 400):
            g(torch.empty(rows, 96, device="cuda:0"))
        assert len(graphs) == 1


@each_case
def test_make_fx_sees_the_operator(traced, case, rng):
    core, make, options = CASES[case]
    mode, w = traced[0], make(rng)
    with mode:
        x = torch.empty(3, 96, device="cuda:0")
    graph = make_fx(lambda x: qk.linear(x, w, **options) + 1)(x)
    (node,) = operators(graph)
    assert json.loads(node.args[-1])[0] == core and node.meta["val"].shape == (3, 24)
    assert node.meta["val"].device == torch.device("cuda:0")


def test_the_kernel_under_compile_is_that_of_eager_calls(traced, monkeypatch, rng):
    """Rows of Triton included, which take what CUDA C++ does not: 8-bit weight-only, power activations."""
    monkeypatch.setattr(triton, "refuses", lambda request: None)
    mode, chosen = traced[0], {}
    monkeypatch.setattr(_torch_device, "prepacked", lambda kernel, request: (str(kernel), ""))
    grouped = qk.IntWeight.quantize(matrix(rng), 8, 16)
    weights = {"8": CASES["int8"][1](rng), "4": CASES["int4"][1](rng), "8 groups": grouped}
    weights |= {"book": CASES["float wide table"][1](rng), "signs": CASES["signs"][1](rng)}
    quants = None, Q, SIGNS, qk.InputQuant(bits=4, power=0.5), qk.InputQuant(power=0.5)
    with mode:
        xs = [torch.empty(1, 96, dtype=d, device="cuda:0") for d in (torch.float32, torch.float16)]
    for name, w in weights.items():
        for x in xs:
            for q in quants:
                for backend in (None, "cuda", "triton"):
                    try:
                        kernel = str(registry.pick(linear_request(x, w, input_quant=q, backend=backend)))
                    except (qk.UnsupportedError, qk.DTypeError) as e:
                        with pytest.raises(qk.UnsupportedError, match=r"under torch\.compile: ") as refused:
                            _torch_device.block_on_device(x, w, q, None, None, backend)
                        told = str(refused.value).replace("under torch.compile: ", "")
                        assert told == str(e)
                        continue
                    assert _torch_device.block_on_device(x, w, q, None, None, backend)[0] == kernel
                    chosen[name, q, backend] = kernel
    assert chosen["8", None, None] == "linear/IntWeight/triton-float"
    assert chosen["8 groups", Q, None] == "linear/IntWeight/triton"
    assert chosen["4", quants[3], None] == "linear/IntWeight/triton"
    assert ("4", quants[4], None) not in chosen and chosen["signs", SIGNS, None].endswith("cuda-sm80-signs")


def test_what_cannot_be_traced_is_refused_by_name(traced, rng):
    mode, _, backend = traced
    w = CASES["int8"][1](rng)
    with mode:
        x = torch.empty(3, 96, device="cuda:0")
        for weight, options, reason in (
            (w, {}, "cuda-sm80-float: the weight has 8 bits; this core takes up to 4"),
            (w, {"input_quant": qk.InputQuant(power=0.5)}, "cuda-sm80: input_quant has a power"),
            (w, {"input_quant": Q, "backend": "reference"}, "accepted: None, 'cuda', 'triton'"),
            (CASES["float"][1](rng), {"compute_dtype": "bfloat16"}, "compute_dtype is 'bfloat16'"),
        ):
            with pytest.raises(Exception, match=reason) as e:
                torch.compile(
                    lambda x, w=weight, o=options: qk.linear(x, w, **o), backend=backend, fullgraph=True
                )(x)
            assert "torch.compile" in str(e.value)
        half = x.to(torch.float16)
        with pytest.raises(qk.UnsupportedError, match="float16 x where operators are traced"):
            qk.linear(half, CASES["float"][1](rng), compute_dtype="bfloat16")
