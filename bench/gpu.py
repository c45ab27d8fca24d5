"""Linear layers on a GPU, cold: the kernels of the registry beside torch's own, timed inside CUDA graphs in turns.

    python bench/gpu.py [--out FOLDER] [--quick] [--m 1,16,...]

A graph holds one call for each of several copies of the weight, together more than twice the L2 cache, so that every
call finds its weight in memory; a sample is a replay divided by the calls. Contestants take turns, and what is reported
is the median over rounds with its 10th and 90th percentile. floor: max(bytes / bandwidth, operations / peak), with the
read bandwidth measured in this run and the peak of the data sheet (none: left out).
"""

import argparse
import datetime
import json
import math
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
    """A way to compute one layer: ``calls``, one for each copy of its weight, captured in one graph."""

    def __init__(self, name, kind, weight_bytes, calls, check):
        self.name, self.kind, self.weight_bytes, self.samples = name, kind, weight_bytes, []
        self.error = check(calls[0]())
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for call in calls:
                call()
        side.synchronize()
        self.graph, self.count = torch.cuda.CUDAGraph(), len(calls)
        with torch.cuda.graph(self.graph):
            self.kept = [call() for call in calls]

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
    """The weight as an object of its own, which is uploaded for itself."""
    arrays = {name: getattr(w, name) for name in w.array_names()}
    return type(w)(**arrays, **w.options(), shape=w.shape)


def contestants(m, n, k):
    """Yields functions that make a Contestant, or raise where the library has no such kernel."""
    gen = torch.Generator(device="cuda").manual_seed(m * 7 + n * 3 + k)
    x = torch.randn(m, k, device="cuda", generator=gen, dtype=torch.bfloat16)
    W = torch.randn(n, k, device="cuda", generator=gen) / k**0.5
    exact = x.float() @ W.T

    def check(y):
        error = ((y.float() - exact).norm() / exact.norm()).item()
        assert error < 0.15, f"relative error {error}"  # 4 bits and groups of 128 give 0.1
        return error

    def ours(name, w, backend, options, kind, check=check):
        def make():
            weights = [again(w) for _ in range(copies_of(w.nbytes))]
            calls = [lambda v=v: qk.linear(x, v, backend=backend, **options) for v in weights]
            return Contestant(name, kind, w.nbytes, calls, check)

        return make

    def check_signs(y):
        signs = [torch.where(t >= 0, 1.0, -1.0) for t in (x.float(), W)]
        assert torch.equal(signs[0] @ signs[1].T, y.float()), "the products of signs are wrong"
        return 0.0

    host = W.cpu().numpy()
    w8, w4 = qk.IntWeight.quantize(host), qk.IntWeight.quantize(host, bits=4, group_size=128)
    signs = qk.BinaryWeight.pack(np.where(host >= 0, 1, -1).astype(np.int8))
    q, bits = (
        {"input_quant": qk.InputQuant()},
        {"input_quant": qk.InputQuant(bits=1), "out_dtype": torch.float32},
    )
    cases = {
        "w8a8": (w8, q, "int8"),
        "w4a8 g128": (w4, q, "int8"),
        "w4a16 g128": (w4, {}, "bf16"),
        "power4 a16": (qk.PowerWeight.quantize(host, exponent=0.5), {}, "bf16"),
        "nf4 a16 g64": (qk.CodebookWeight.quantize(host, codebook="nf4", group_size=64), {}, "bf16"),
        "signs": (signs, bits, "signs", check_signs),
    }
    for backend in dict.fromkeys(r.backend for r in registry.kernels("linear", device="cuda")):
        for case, (w, options, *rest) in cases.items():
            yield f"{backend} {case}", ours(f"{backend} {case}", w, backend, options, *rest)

    def torch_bf16():
        weights = [W.bfloat16() for _ in range(copies_of(2 * n * k))]
        calls = [lambda v=v: torch.nn.functional.linear(x, v) for v in weights]
        return Contestant("torch bf16", "bf16", 2 * n * k, calls, check)

    yield "torch bf16", torch_bf16

    def int_mm():  # the product alone; quantization and scales are left out
        scale = 127 / x.float().abs().amax(1, keepdim=True)
        xq = (x.float() * scale).round().to(torch.int8)
        wq = torch.from_numpy(w8.codes()).cuda()
        s = torch.from_numpy(w8.scale).cuda()
        weights = [wq.clone() for _ in range(copies_of(n * k))]
        calls = [lambda v=v: torch._int_mm(xq, v.T) for v in weights]
        return Contestant(
            "torch _int_mm (product only)", "int8", n * k, calls, lambda y: check(y * s.T / scale)
        )

    yield "torch _int_mm", int_mm

    def scaled_mm():  # the product alone, of given fp8 activations
        xs, ws = x.float().abs().max() / 448, W.abs().max() / 448
        xq, wq = (x.float() / xs).to(torch.float8_e4m3fn), (W / ws).to(torch.float8_e4m3fn)
        weights = [wq.clone() for _ in range(copies_of(n * k))]
        calls = [
            lambda v=v: torch._scaled_mm(xq, v.T, scale_a=xs, scale_b=ws, out_dtype=torch.bfloat16)
            for v in weights
        ]
        return Contestant("torch fp8 _scaled_mm (product only)", "fp8", n * k, calls, check)

    yield "torch fp8", scaled_mm


def measure(m, n, k, rounds, bandwidth):
    ready, rows = [], []
    for name, make in contestants(m, n, k):
        try:
            ready.append(make())
        except Exception as e:  # another library's refusal is a result too
            rows.append({"name": name, "M": m, "N": n, "K": k, "skipped": f"{type(e).__name__}: {e}"[:300]})
            torch.cuda.synchronize()
    for i in range(rounds + 3):
        for c in ready:
            c.sample()
            if i < 3:
                c.samples.clear()
    name = torch.cuda.get_device_name()
    for c in ready:
        total = c.weight_bytes + 2 * m * (k + n)  # bf16 in and out
        peak = peak_of(name, c.kind)
        floor = max(total / bandwidth, 2 * m * n * k / peak if peak else 0) * 1e6
        low, median, high = (statistics.quantiles(c.samples, n=10)[i] for i in (0, 4, 8))
        rows.append(
            {
                "name": c.name,
                "M": m,
                "N": n,
                "K": k,
                "us": median,
                "us_p10": low,
                "us_p90": high,
                "bytes": total,
                "floor_us": floor,
                "percent_of_floor": 100 * floor / median,
                "tops": 2e-6 * m * n * k / median,
                "gbps": total / median / 1e3,
                "copies": c.count,
                "error": c.error,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    parser.add_argument("--quick", action="store_true", help="one layer, few rounds")
    parser.add_argument("--m", type=lambda t: [int(v) for v in t.split(",")], default=MS)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs a CUDA device")
    bandwidth = read_bandwidth()
    shapes = [(m, n, k) for n, k in (LAYERS[:1] if args.quick else LAYERS) for m in args.m]
    shapes += [] if args.quick else SQUARE
    rows = []
    for m, n, k in shapes:
        for row in measure(m, n, k, 10 if args.quick else 50, bandwidth):
            rows.append(row)
            shape = f"M={m} N={n} K={k}"
            if "skipped" in row:
                print(f"{shape:28} {row['name']:36} {row['skipped'].splitlines()[0][:80]}")
                continue
            print(
                f"{shape:28} {row['name']:36} {row['us']:9.1f} us  {row['percent_of_floor']:5.1f}% of floor "
                f"{row['gbps']:7.0f} GB/s {row['tops']:7.1f} TOPS  error {row['error']:.1e}",
                flush=True,
            )
        torch.cuda.empty_cache()
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    smi = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    try:
        driver = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        driver = None
    result = {
        "device": torch.cuda.get_device_name(),
        "capability": torch.cuda.get_device_capability(),
        "driver": driver,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": git.stdout.strip() or None,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "bandwidth": bandwidth,
        "rows": rows,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    short = re.sub(r"[^a-z0-9]+", "-", result["device"].lower()).strip("-")
    path = args.out / f"gpu-{short}-{result['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
