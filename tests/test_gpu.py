"""Every kernel for tensors on a device against the reference: on a GPU where there is one, and the CUDA kernels on
the emulator everywhere. On a GPU with fresh numbers in each run (QKERNELS_TEST_SEED repeats one).
"""

import itertools
import os
import pickle
import time

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same
from test_cuda_compile import arguments
from test_cuda_float import check_product
from test_linear_float import CASES, check, weight

import qkernels as qk
from qkernels import _torch_ops, cuda, registry

GPU = torch.cuda.is_available()
ROWS = [k for k in registry._table if k.backend in registry.DEVICE_BACKENDS]
SHAPES = [
    (0, 8, 8),
    (3, 0, 5),
    (1, 1, 1),
    (1, 300, 130),
    (7, 97, 33),
    (16, 1030, 20),
    (40, 130, 70),
    (130, 200, 258),
]
# On a GPU, once a row: the reference takes seconds for each.
BIG = [(1, 4096, 4096), (5, 2048, 4096), (64, 4096, 1024), (300, 1024, 1000), (1100, 384, 1300)]
QUANTS = [
    qk.InputQuant(),
    qk.InputQuant(bits=4, signed=False),
    qk.InputQuant(granularity="tensor"),
    qk.InputQuant(granularity="tensor", scale=0.07, zero_point=-117),
    qk.InputQuant(granularity="tensor", scale=0.2, zero_point=130, signed=False),
    qk.InputQuant(power=0.5, bits=4),
    qk.InputQuant(power=0.5),
    qk.InputQuant(bits=1),
    None,
]
RUN_SEED = int(time.time()) if GPU and "QKERNELS_TEST_SEED" not in os.environ else 0
needs_gpu = pytest.mark.skipif(not GPU, reason="no GPU")


@pytest.fixture
def rng(rng):
    seed = RUN_SEED or int(rng.integers(2**31))
    print(f"seed of this run {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=["gpu", "emulator"])
def device(request, monkeypatch):
    """Where the tensors of a test are. The emulator replaces the CUDA module; its device memory is the CPU's."""
    if request.param == "gpu":
        if not GPU:
            pytest.skip("no GPU")
        return torch.device("cuda", torch.cuda.current_device())
    if "kernel" in request.fixturenames and request.getfixturevalue("kernel").backend != "cuda":
        pytest.skip("the emulator runs the CUDA kernels")
    cuda_builds.emulate(monkeypatch, 3)
    return torch.device("cpu")


def poison(device):
    """Fill memory that the next results will likely come from."""
    for size in (64, 1024, 16384, 262144, *((1 << 22, 1 << 24) if device.type == "cuda" else ())):
        torch.full((size,), float("nan"), device=device)


def big_shapes(device):
    small = device.type != "cuda" or os.environ.get("QKERNELS_GPU_SHAPES") == "small"
    return [] if small else BIG


def makers(kernel, rng):
    """Ways to make a weight for a row; for rows without one, one way."""
    if kernel.format is None:
        return {"": lambda n, k, i: None}
    cases = dict(CASES[kernel.format])
    if kernel.format == "CodebookWeight":
        cases["integers"] = integer_book
    # every second weight has no groups
    return {c: lambda n, k, i, make=make: weight(rng, make, n, k, i * (i % 2)) for c, make in cases.items()}


def integer_book(rng, n, k, group_size, scale, input_scale):
    codes = rng.integers(0, 8, (n, k)).astype(np.uint8)
    book = np.array([[-100, -7, -1, 0, 2, 5, 60, 127]], np.float32)
    return qk.CodebookWeight.pack(codes, book, scale, 3, group_size, input_scale)


def refused(kernel, call):
    """Whether a row refuses a call, by the reason that it is there to give."""
    try:
        call()
    except qk.UnsupportedError as e:
        assert "no kernel takes this call" not in str(e) or str(kernel) in str(e)
        return True
    except (qk.ArgumentError, qk.FormatError):  # what no kernel takes: an accumulator that could overflow
        return True
    return False


def run_linear(kernel, device, rng, w, shape, i, quant):
    m, k, n = shape
    dtype = (torch.float32, torch.bfloat16, torch.float16)[i % 3]
    x = torch.from_numpy(rng.standard_normal((m, k)) * 3).to(dtype)
    bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if i % 2 else None
    activation = (None, "relu", "relu6")[i % 5 % 3]
    options = {"input_quant": quant, "out_dtype": torch.float32}
    on_device = x.to(device), w, None if bias is None else bias.to(device), activation
    if refused(kernel, lambda: qk.explain("linear", *on_device, **options, backend=kernel.backend)):
        return False
    if qk.explain("linear", *on_device, **options, backend=kernel.backend).chosen is not kernel:
        return False
    poison(device)
    y = kernel(*on_device, **options)
    assert y.device == device and y.dtype == torch.float32
    if kernel.exactness == "exact":
        assert_same(y.cpu(), qk.linear(x, w, bias, activation, **options, backend="reference"))
    elif kernel.backend == "cuda":
        check_product(y.cpu(), x, w, bias, activation)
    else:
        check(y.cpu(), x, w, bias, activation, "bfloat16" if dtype is torch.bfloat16 else "float32", 4e-6)
    if device.type == "cuda":
        for _ in range(5):
            assert torch.equal(kernel(*on_device, **options), y), "another result in another run"
    return True


def run_codes(kernel, device, rng, w, shape, i):
    m, k, n = shape
    dtype = (np.int8, np.uint8)[i % 2]
    info = np.iinfo(dtype)
    x = torch.from_numpy(rng.integers(info.min, info.max + 1, (m, k)).astype(dtype))
    zero = int(rng.integers(info.min, info.max + 1)) if i % 3 == 0 else 0
    if kernel.op == "matmul_int":
        args, options = (w,), {"x_zero_point": zero}
    else:
        scale = rng.uniform(0.2, 2, n if i % 4 else 1) / (3000 * max(k, 1) ** 0.5)
        rounding = ("single", "double", "float")[i % 3]
        requant = qk.Requant.from_scale(scale, zero_point=7, rounding=rounding)
        bias = torch.from_numpy(rng.integers(-(10**5), 10**5, n).astype(np.int32)) if i % 2 else None
        args, options = (w, requant, bias), {"x_zero_point": zero, "activation": (None, "relu")[i % 2]}
    there = [a.to(device) if torch.is_tensor(a) else a for a in args]
    if refused(kernel, lambda: kernel(x.to(device), *there, **options)):
        return False
    poison(device)
    y = kernel(x.to(device), *there, **options)
    assert_same(y.cpu(), getattr(qk, kernel.op)(x, *args, **options, backend="reference"))
    return True


def run_bits(kernel, device, rng, w, shape, i):
    m, k, n = shape
    x = torch.from_numpy(rng.integers(0, 256, (m, -(-k // 8))).astype(np.uint8))
    bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32))
    value = rng.integers(-k // 4 - 1, k // 4 + 1, n)
    options = [{"bias": bias, "activation": "relu"}, {"bias": bias, "sign": True}]
    options += [{"threshold": qk.Threshold(value, rng.random(n) < 0.5)}, {"x_scale": 0.3}]
    options = options[i % 4] if kernel.op == "linear_binary" else {}
    there = {o: v.to(device) if torch.is_tensor(v) else v for o, v in options.items()}
    poison(device)
    y = kernel(x.to(device), w, **there)
    assert_same(y.cpu(), getattr(qk, kernel.op)(x, w, **options, backend="reference"))
    return True


def run_elementwise(kernel, device, rng, shape, i, quant):
    m, k, _ = shape
    if kernel.op == "requantize":
        acc = torch.from_numpy(rng.integers(-(2**31), 2**31, (m, k)).astype(np.int32))
        scale = rng.uniform(1e-9, 1e-6, k if i % 2 and k else 1)
        args = acc, qk.Requant.from_scale(scale, 3, ("single", "double", "float")[i % 3])
    elif (quant is None or quant.bits == 1) and kernel.op != "pack_signs":
        return False
    else:
        x = torch.from_numpy(rng.standard_normal((m, k)).astype(np.float32))
        args = x.to((torch.float32, torch.bfloat16, torch.float16)[i % 3]), quant
    there = args[0].to(device), args[1]
    if refused(kernel, lambda: kernel(*there)):
        return False
    poison(device)
    found, expected = kernel(*there), getattr(qk, kernel.op)(*args, backend="reference")
    for a, b in zip(found, expected) if isinstance(found, tuple) else [(found, expected)]:
        assert_same(a.cpu(), b)
    return True


RUNS = {"linear": run_linear, "matmul_int": run_codes, "linear_requant": run_codes}
RUNS |= dict.fromkeys(("requantize", "quantize_activations", "pack_signs"), run_elementwise)
RUNS |= {"matmul_binary": run_bits, "linear_binary": run_bits}


@pytest.mark.parametrize("kernel", ROWS, ids=str)
def test_rows(kernel, device, rng):
    """Each row with each way to make its weight, over all shapes in turn; a row that takes none of them fails."""
    if kernel.op not in RUNS:
        pytest.skip("tested elsewhere")
    i = int(rng.integers(100))
    quants = QUANTS if kernel.op in ("linear", "quantize_activations") else [None]
    if kernel.format not in ("BinaryWeight", "TernaryWeight"):
        quants = [q for q in quants if q is None or q.bits > 1]
    turns = [(make, quant) for make in makers(kernel, rng).values() for quant in quants]

    def runs(make, quant, shape):
        run = RUNS[kernel.op]
        if kernel.format is None:
            return run(kernel, device, rng, shape, i, quant)
        w = make(shape[2], shape[1], i)
        if kernel.op == "linear":
            return run(kernel, device, rng, w, shape, i, quant)
        return run(kernel, device, rng, w, shape, i)

    taken = []  # turns
    for turn in turns:
        for shape in SHAPES[i % 3 :: 3] if len(turns) > 20 else SHAPES:
            i += 1
            if runs(*turn, shape) and turn not in taken:
                taken.append(turn)
    assert taken, "the row refused everything"
    for shape in big_shapes(device):
        turn = taken[int(rng.integers(len(taken)))]
        for _ in range(2):  # with groups or without
            i += 1
            runs(*turn, shape)


@needs_gpu
def test_streams_graphs_and_devices(rng):
    """The current stream is used, a captured call computes new inputs, and each device has its own weights."""
    w, q = qk.IntWeight.quantize(rng.standard_normal((512, 1024)).astype(np.float32)), qk.InputQuant()
    for m in (1, 64, 300):
        x = torch.from_numpy(rng.standard_normal((m, 1024)).astype(np.float32))
        expected = qk.linear(x, w, input_quant=q, backend="reference")
        here = x.cuda()
        side = torch.cuda.Stream()
        torch.cuda.synchronize()
        with torch.cuda.stream(side):
            torch.cuda._sleep(10**7)
            late = torch.zeros_like(here).copy_(here)
            y = qk.linear(late, w, input_quant=q)
        side.synchronize()
        assert_same(y.cpu(), expected)
        graph, static = torch.cuda.CUDAGraph(), torch.zeros_like(here)
        qk.linear(static, w, input_quant=q)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            out = qk.linear(static, w, input_quant=q)
        for _ in range(3):
            static.copy_(here)
            out.fill_(float("nan"))
            graph.replay()
            assert_same(out.cpu(), expected)
        for i in range(torch.cuda.device_count()):
            assert_same(qk.linear(x.to(f"cuda:{i}"), w, input_quant=q).cpu(), expected)


@needs_gpu
@pytest.mark.parametrize("choice", ["wgmma_single", "wgmma_pair"])
def test_wgmma_small(choice, rng):
    """The kernels of sm_90 on shapes of a few tiles, small enough for compute-sanitizer; exact."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("not sm_90")
    cuda.native.force_gemm(choice)
    try:
        for m, k, n in ((70, 200, 130), (300, 1030, 257), (5, 64, 16)):
            x = torch.from_numpy(rng.integers(-128, 128, (m, k)).astype(np.int8))
            w = qk.IntWeight.pack(rng.integers(-127, 128, (n, k)).astype(np.int8), np.float32(1))
            poison(torch.device("cuda"))
            y = qk.matmul_int(x.cuda(), w, backend="cuda")
            assert_same(y.cpu(), qk.matmul_int(x, w, backend="reference"))
    finally:
        cuda.native.force_gemm("any")


@needs_gpu
def test_mixed_devices_are_refused(rng):
    w, q = qk.IntWeight.quantize(rng.standard_normal((24, 32)).astype(np.float32)), qk.InputQuant()
    with pytest.raises(qk.ArgumentError, match="bias is on cpu, x is on cuda:0"):
        qk.linear(torch.zeros(3, 32, device="cuda:0"), w, torch.zeros(24), input_quant=q)


@needs_gpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_becomes_nan(bad, rng):
    w, q = qk.IntWeight.quantize(rng.standard_normal((24, 32)).astype(np.float32)), qk.InputQuant()
    x = torch.from_numpy(rng.standard_normal((5, 32)).astype(np.float32))
    expected = qk.linear(x, w, input_quant=q)
    x[3, 17] = bad
    y = qk.linear(x.cuda(), w, input_quant=q).cpu()
    assert y[3].isnan().all()
    rest = [0, 1, 2, 4]
    assert_same(y[rest], expected[rest])


def case_of(kernel, device, rng):
    """A weight, activations (7 or 40, 320), a bias and the options of a call that a row of ``linear`` takes."""
    x = torch.from_numpy(rng.standard_normal((40, 320)).astype(np.float32)).to(device)
    bias = torch.from_numpy(rng.standard_normal(256).astype(np.float32)).to(device)
    signs = kernel.format in ("BinaryWeight", "TernaryWeight")
    quants = [q for q in QUANTS if q is None or q.bits > 1 or signs]
    for i in (0, 1, 3, 5, 7, 9):  # without groups, and with several
        for make in makers(kernel, rng).values():
            w = make(256, 320, i)
            for quant, rows in itertools.product(quants, (7, 40)):
                options = {"input_quant": quant, "activation": "relu", "backend": kernel.backend}
                asked = lambda w=w, x=x[:rows], o=options: qk.explain("linear", x, w, bias, **o)  # noqa: E731
                if not refused(kernel, asked) and asked().chosen is kernel:
                    return x[:rows], w, bias, options
    raise AssertionError("the row refused everything")


LINEAR_ROWS = [k for k in ROWS if k.op == "linear"]


@pytest.mark.parametrize("kernel", LINEAR_ROWS, ids=str)
def test_the_operator_of_every_row(kernel, device, rng):
    """The bits of the eager call; on a GPU in the hands of torch: opcheck, torch.compile, modules, each device."""
    x, w, bias, options = case_of(kernel, device, rng)
    eager = qk.linear(x, w, bias, **options)
    chosen, name, args = arguments(x, w, bias, **options)
    assert chosen is kernel
    if device.type != "cuda":
        assert_same(getattr(_torch_ops, f"_{name}_cuda")(*args), eager)
        return
    op = getattr(torch.ops.qkernels, name)
    assert_same(op(*args).cpu(), eager.cpu())
    torch.library.opcheck(op.default, args)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, b: qk.linear(x, w, b, **options) * 2, fullgraph=True)
    assert_same(compiled(x, bias).cpu(), (eager * 2).cpu())
    for mode in ("default", "reduce-overhead") if kernel.format == "IntWeight" else ():
        layer = qk.nn.Linear(w, bias.cpu(), options["input_quant"], "relu").cuda()
        # Never called before: its weight is uploaded while it is traced.
        whole = torch.compile(layer, fullgraph=True, mode=mode)
        for rows in (7, 3, 7):
            expected = layer(x[:rows]).cpu()
            for _ in range(3):
                assert_same(whole(x[:rows]).cpu(), expected)
    for i in range(torch.cuda.device_count()):
        assert_same(compiled(x.to(f"cuda:{i}"), bias.to(f"cuda:{i}")).cpu(), (eager * 2).cpu())


@needs_gpu
@pytest.mark.parametrize("kernel", LINEAR_ROWS, ids=str)
def test_every_row_in_a_graph(kernel, rng):
    """A captured call computes new inputs; a weight that was never uploaded is refused while one is captured."""
    x, w, bias, options = case_of(kernel, torch.device("cuda"), rng)
    static, graph = torch.zeros_like(x), torch.cuda.CUDAGraph()
    for _ in range(2):  # the second call is the remembered one
        expected = qk.linear(x, w, bias, **options)
        qk.linear(static, w, bias, **options)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        out = qk.linear(static, w, bias, **options)
    for _ in range(3):
        static.copy_(x)
        out.fill_(float("nan"))
        graph.replay()
        assert_same(out.cpu(), expected.cpu())
    fresh = pickle.loads(pickle.dumps(w))
    with (
        pytest.raises(qk.ArgumentError, match="make one call before"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        qk.linear(static, fresh, bias, **options)
