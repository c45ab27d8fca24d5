"""Linear layers on a GPU, cold: the kernels of the registry beside torch's own, timed inside CUDA graphs in turns.

    python bench/gpu.py [--out FOLDER] [--quick] [--m 1,16,...]

A graph holds a call for each of several copies of the weight, together more than twice the L2 cache, so that every
call finds its weight in memory; a sample is a replay divided by the calls. Contestants take turns, and what is reported
is the median over rounds with its 10th and 90th percentile. floor: max(bytes / bandwidth, operations / peak), with the
read bandwidth measured in this run and the peak of the data sheet (none: left out).
"""

import argparse
import contextlib
import copy
import datetime
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import qkernels as qk
from qkernels import registry

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "cuda"  # tests put the emulator's here
LAYERS = [(4096, 4096), (8192, 8192), (14336, 4096), (4096, 14336)]  # N, K
SQUARE = [(4096, 4096, 4096), (8192, 8192, 8192)]  # M, N, K
MS = [1, 4, 16, 64, 256, 2048]
# Dense tensor-core operations a second by the data sheets: int8, bfloat16, fp8.
PEAKS = {
    r"H100.*PCIe": (1513e12, 756e12, 1513e12),
    r"H100|H200": (1979e12, 989e12, 1979e12),
    r"A100": (624e12, 312e12, None),
    r"L40S": (733e12, 362e12, 733e12),
    r"L4\b": (242e12, 121e12, 242e12),
}


def _ratio(a, b):
    """How many times as fast a row is as another."""
    return b["us"] / a["us"]


def peak_of(name, kind):
    found = next((v for pattern, v in PEAKS.items() if re.search(pattern, name)), None)
    return None if found is None or kind == "signs" else found[("int8", "bf16", "fp8").index(kind)]


def read_bandwidth():
    """Bytes a second of a copy of 1 GiB, read and write counted: the median of 20."""
    a = torch.empty(1 << 28, dtype=torch.int32, device="cuda")
    b = torch.empty_like(a)
    times = []
    for _ in range(25):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        b.copy_(a)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * a.numel() * 4 / statistics.median(times[5:])


class Contestant:
    """A way to compute one layer: ``calls``, one for each copy of its weight, captured in one graph.

    Few copies take turns until a graph has LEAST calls, beside which its launch is nothing.
    """

    LEAST = 32

    def __init__(self, name, kind, weight_bytes, io, calls, check):
        self.name, self.kind, self.samples = name, kind, []
        self.weight_bytes, self.io = weight_bytes, io  # io: bytes of an element of x, and of a result
        self.error, self.copies = check(calls[0]()), len(calls)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
        side.synchronize()
        calls = calls * math.ceil(self.LEAST / len(calls))
        self.graph, self.count = torch.cuda.CUDAGraph(), len(calls)
        with torch.cuda.graph(self.graph):
            for call in calls:
                call()

    def sample(self):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        self.graph.replay()
        end.record()
        end.synchronize()
        self.samples.append(start.elapsed_time(end) * 1e3 / self.count)


def copies_of(weight_bytes):
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(64, math.ceil(2 * l2 / weight_bytes)))


def again(w):
    """A weight that has been used on the device as an object of its own, with copies of what lies there."""
    arrays = {name: getattr(w, name) for name in w.array_names()}
    other = type(w)(**arrays, **w.options(), shape=w.shape)
    for name, kept in w.__dict__.items():
        if name.startswith(("_cuda", "_triton")):
            with contextlib.suppress(TypeError):  # views of a native module, which are made from the copies
                other.__dict__[name] = copy.deepcopy(kept)
    return other


class Layer:
    """One matrix, the weights that are made of it and torch's operands: made once for all numbers of tokens."""

    def __init__(self, n, k):
        gen = torch.Generator(device=DEVICE).manual_seed(n * 3 + k)
        self.n, self.k = n, k
        self.W = torch.randn(n, k, device=DEVICE, generator=gen) / k**0.5
        host = self.W.cpu().numpy()
        w8, w4 = qk.IntWeight.quantize(host), qk.IntWeight.quantize(host, bits=4, group_size=128)
        signs = qk.BinaryWeight.pack(np.where(host >= 0, 1, -1).astype(np.int8))
        q = {"input_quant": qk.InputQuant()}
        bits = {"input_quant": qk.InputQuant(bits=1), "out_dtype": torch.float32}
        self.w8 = w8
        self.cases = {  # weight, options, what multiplies
            "w8a8": (w8, q, "int8"),
            "w4a8 g128": (w4, q, "int8"),
            "w4a16 g128": (w4, {}, "bf16"),
            "power4 a16 g128": (qk.PowerWeight.quantize(host, exponent=0.5, group_size=128), {}, "bf16"),
            "nf4 a16 g64": (qk.CodebookWeight.quantize(host, codebook="nf4", group_size=64), {}, "bf16"),
            "signs": (signs, bits, "signs"),
        }
        self.kept = {}

    def copies(self, key, bytes_, make_first, make_more):
        """Copies of an operand, kept for the next number of tokens."""
        if key not in self.kept:
            first = make_first()
            self.kept[key] = [first, *(make_more(first) for _ in range(copies_of(bytes_) - 1))]
        return self.kept[key]


def contestants(layer, m):
    """Yields names, and functions that make a Contestant, or raise where the library has no such kernel."""
    n, k, W = layer.n, layer.k, layer.W
    gen = torch.Generator(device=DEVICE).manual_seed(m * 7 + n * 3 + k)
    x = torch.randn(m, k, device=DEVICE, generator=gen, dtype=torch.bfloat16)
    exact = x.float() @ W.T

    def check(y):
        error = ((y.float() - exact).norm() / exact.norm()).item()
        assert error < 0.15, f"relative error {error}"  # 4 bits and groups of 128 give 0.1
        return error

    def check_signs(y):
        signs = [torch.where(t >= 0, 1.0, -1.0) for t in (x.float(), W)]
        products = signs[0] @ signs[1].T * x.float().abs().mean(1, keepdim=True)
        torch.testing.assert_close(y, products, rtol=1e-5, atol=0)  # exact sums; the means in another order
        return 0.0

    def ours(name, backend, w, kind, io, call, check):
        """call(w): the result with a copy of w."""

        def first():
            own = again(w)
            call(own)  # prepacked and uploaded once: the others are copied on the device
            return own

        def make():
            weights = layer.copies((backend, name), w.nbytes, first, again)
            calls = [lambda v=v: call(v) for v in weights]
            return Contestant(f"{backend} {name}", kind, w.nbytes, io, calls, check)

        return f"{backend} {name}", make

    def codes():  # of x, as the products alone take them
        scale = x.float().abs().amax() / 127
        return (x.float() / scale).round().to(torch.int8), scale

    def products(backend):
        """int8 in, int8 out: one kernel, to compare with torch's products alone."""
        xq, scale = codes()
        out_scale = exact.abs().max().item() / 127
        requant = qk.Requant.from_scale(layer.w8.scale.reshape(-1) * scale.item() / out_scale)

        def call(v):
            return qk.linear_requant(xq, v, requant, backend=backend)

        return ours("int8 requant", backend, layer.w8, "int8", (1, 1), call, lambda y: check(y * out_scale))

    for backend in dict.fromkeys(r.backend for r in registry.kernels("linear", device="cuda")):
        for case, (w, options, kind) in layer.cases.items():

            def call(v, options=options, backend=backend):
                return qk.linear(x, v, backend=backend, **options)

            signs = kind == "signs"
            yield ours(case, backend, w, kind, (2, 4 if signs else 2), call, check_signs if signs else check)
        yield products(backend)

    def theirs(name, kind, bytes_, io, make_first, call, check=check):
        def make():
            weights = layer.copies(name, bytes_, make_first, torch.clone)
            return Contestant(name, kind, bytes_, io, [lambda v=v: call(v) for v in weights], check)

        return name, make

    yield theirs(
        "torch bf16", "bf16", 2 * n * k, (2, 2), W.bfloat16, lambda v: torch.nn.functional.linear(x, v)
    )
    xq, scale = codes()
    w_scale = torch.from_numpy(layer.w8.scale).to(DEVICE).reshape(1, -1)
    yield theirs(
        *(
            "torch _int_mm (product only)",
            "int8",
            n * k,
            (1, 4),
            lambda: torch.from_numpy(layer.w8.codes()).to(DEVICE),
        ),
        lambda v: torch._int_mm(xq, v.T),
        lambda y: check(y * w_scale * scale),
    )
    xs, ws = x.float().abs().max() / 448, W.abs().max() / 448
    x8 = (x.float() / xs).to(torch.float8_e4m3fn)
    yield theirs(
        *(
            "torch fp8 _scaled_mm (product only)",
            "fp8",
            n * k,
            (1, 2),
            lambda: (W / ws).to(torch.float8_e4m3fn),
        ),
        lambda v: torch._scaled_mm(x8, v.T, scale_a=xs, scale_b=ws, out_dtype=torch.bfloat16),
    )


def measure(layer, m, rounds, bandwidth):
    ready, rows = [], []
    shape = {"M": m, "N": layer.n, "K": layer.k}
    for name, make in contestants(layer, m):
        try:
            ready.append(make())
        except Exception as e:  # another library's refusal is a result too
            rows.append({"name": name, **shape, "skipped": f"{type(e).__name__}: {e}"[:300]})
            with contextlib.suppress(
                RuntimeError
            ):  # a fault of the device stays: the rows after it say so, too
                torch.cuda.synchronize()
    for i in range(rounds + 3):
        for c in ready:
            c.sample()
            if i < 3:
                c.samples.clear()
    return rows + [row_of(c, shape, bandwidth) for c in ready]


def row_of(c, shape, bandwidth):
    m, n, k = shape.values()
    total = c.weight_bytes + m * (k * c.io[0] + n * c.io[1])
    peak = peak_of(torch.cuda.get_device_name(), c.kind)
    floor = max(total / bandwidth, 2 * m * n * k / peak if peak else 0) * 1e6
    low, median, high = (statistics.quantiles(c.samples, n=10)[i] for i in (0, 4, 8))
    return {
        "name": c.name,
        **shape,
        "us": median,
        "us_p10": low,
        "us_p90": high,
        "bytes": total,
        "floor_us": floor,
        "percent_of_floor": 100 * floor / median,
        "tops": 2e-6 * m * n * k / median,
        "gbps": total / median / 1e3,
        "copies": c.copies,
        "calls": c.count,
        "error": c.error,
    }


# Goals on an H100: (what, row, against, shape (M, N, K), of two rows' figures, at least).
GOALS = [
    ("int8 4096^3, TOPS", "cuda int8 requant", None, (4096, 4096, 4096), lambda a, b: a["tops"], 1300),
    *(
        (f"w8a8 4096^2 M = {m}, 8 us / time", "cuda w8a8", None, (m, 4096, 4096), lambda a, b: 8 / a["us"], 1)
        for m in (1, 4, 16, 64)
    ),
    (
        "w4a16 8192^2 M = 1, 16 us / time",
        "cuda w4a16 g128",
        None,
        (1, 8192, 8192),
        lambda a, b: 16 / a["us"],
        1,
    ),
    *(
        (f"{row} / torch bf16, {n} x {k} M = {m}", f"cuda {row}", "torch bf16", (m, n, k), _ratio, least)
        for row, m, n, k, least in [("w4a16 g128", 1, 8192, 8192, 3)]
        + [("w4a8 g128", 64, n, k, 1.4) for n, k in LAYERS]
    ),
    *(
        (
            f"power4 / int4, {n} x {k} M = {m}",
            "cuda power4 a16 g128",
            "cuda w4a16 g128",
            (m, n, k),
            _ratio,
            0.95,
        )
        for n, k in LAYERS
        for m in MS
    ),
    ("signs 8192^3, TOPS", "cuda signs", None, (8192, 8192, 8192), lambda a, b: a["tops"], 4000),
]


def goals(rows):
    """What the goals came to: dicts, of those whose rows were measured."""
    found = {(r["name"], r["M"], r["N"], r["K"]): r for r in rows if "us" in r}
    for what, name, other, shape, figure, least in GOALS:
        a, b = found.get((name, *shape)), found.get((other, *shape))
        if a is not None and (other is None or b is not None):
            value = figure(a, b)
            yield {"goal": what, "value": value, "least": least, "met": value >= least}


def show(row):
    shape = f"M={row['M']} N={row['N']} K={row['K']}"
    if "skipped" in row:
        text = row["skipped"].splitlines()[0][:80]
    else:
        text = (
            f"{row['us']:9.1f} us  {row['percent_of_floor']:5.1f}% of floor {row['gbps']:7.0f} GB/s "
            f"{row['tops']:7.1f} TOPS  error {row['error']:.1e}"
        )
    print(f"{shape:28} {row['name']:36} {text}", flush=True)


def surroundings():
    """What a figure depends on besides the code, and the code's commit."""

    def said(*command):
        try:
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
        except FileNotFoundError:
            return None

    return {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "driver": said(
            "nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"
        ),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": os.environ.get("COMMIT") or said("git", "rev-parse", "HEAD"),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write(result, folder):
    folder.mkdir(parents=True, exist_ok=True)
    short = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    path = folder / f"gpu-{short}-{result['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--quick", action="store_true", help="one layer, few rounds")
    parser.add_argument("--m", type=lambda t: [int(v) for v in t.split(",")], default=MS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs a CUDA device")
    result = surroundings() | {"bandwidth": read_bandwidth(), "rows": []}
    rows = result["rows"]
    for n, k in LAYERS[:1] if args.quick else LAYERS:
        layer = Layer(n, k)
        squares = [] if args.quick else [m for m, *rest in SQUARE if rest == [n, k]]
        for m in [*args.m, *squares]:
            for row in measure(layer, m, 10 if args.quick else 50, result["bandwidth"]):
                rows.append(row)
                show(row)
            result["goals"] = list(goals(rows))
            path = write(result, args.out)  # after each shape: a run may be cut off
        del layer
        torch.cuda.empty_cache()
    for g in result["goals"]:
        print(f"{'met   ' if g['met'] else 'MISSED'} {g['goal']:50} {g['value']:8.2f} of {g['least']}")
    print(path)


if __name__ == "__main__":
    main()
