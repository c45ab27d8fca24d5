#!/usr/bin/env python
"""What Python adds to a small layer: ``qk.linear`` beside the bare kernel that it runs, called in turns.

    python bench/overhead.py [--shape 384x384] [--m 1] [--seconds 2]
    python bench/overhead.py --emulator

--emulator: Python's part of a call on a CUDA device, by core, up to the launch: the emulated module of the tests, which
is given no rows, in place of the device's. What torch's allocator and stream cost on a device comes on top.

The bare kernel is the call of ``bench/bench_linear.py``: addresses in, nothing checked, the result allocated
before. The overhead is the difference of the medians.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import qkernels as qk
from qkernels import cpu, registry
from qkernels.latency.measure import in_turns

TARGET_US = 5.0


def subjects(m, k, n, threads):
    """{name: call}: the bare kernel first, then the ways to it from Python, all on the same weight."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, bias, quant = torch.randn(m, k), torch.randn(n), qk.InputQuant()
    dense = torch.randn(n, k)
    w = qk.IntWeight.quantize(dense)
    layer = qk.nn.Linear(w, bias, quant)
    plan = cpu.linear_plan(cpu.packed(w), quant, 0, 0, None, registry.current_isa())
    out = torch.empty(m, n)
    args = x.data_ptr(), m, k, bias.data_ptr(), out.data_ptr(), threads
    arrays, array_weight, array_bias = x.numpy(), w.numpy(), bias.numpy()

    def bare(keep=(x, bias, out)):
        plan.run(*args)

    return {
        "bare kernel": bare,
        "qk.linear, torch": lambda: qk.linear(x, w, bias, input_quant=quant),
        "qk.nn.Linear": lambda: layer(x),
        "qk.linear, NumPy": lambda: qk.linear(arrays, array_weight, array_bias, input_quant=quant),
        "torch F.linear, float32": lambda: torch.nn.functional.linear(x, dense, bias),
    }


def measure(m=1, k=384, n=384, threads=1, seconds=1.0):
    """{name: (us, overhead over the bare kernel in us)}."""
    with torch.inference_mode():
        calls = subjects(m, k, n, threads)
        timings = in_turns(calls, seconds / len(calls), threads=threads)
    bare = timings["bare kernel"].us
    return {name: (t.us, t.us - bare) for name, t in timings.items()}


def on_the_emulator(k=384, n=384, seconds=3.0):
    """{core and way of calling: us} of ``linear`` with no rows on the cores of the CUDA backend."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    import cuda_builds

    from qkernels import cuda, cuda_linear
    from qkernels.ops import linear_request

    cuda.native = cuda_builds.emulated()
    x, bias, dense = torch.empty(0, k), torch.randn(n), torch.randn(n, k)
    quant, signs = {"input_quant": qk.InputQuant()}, {"input_quant": qk.InputQuant(bits=1)}
    w4 = qk.IntWeight.quantize(dense, bits=4, group_size=128)
    cores = {
        "int8": (qk.IntWeight.quantize(dense), quant),
        "int4": (w4, quant),
        "float": (w4, {}),
        "signs": (qk.BinaryWeight.pack(torch.where(dense >= 0, 1, -1).to(torch.int8)), signs),
    }
    calls = {}
    for name, (w, options) in cores.items():
        request = linear_request(x, w, backend="cuda", **options)
        cuda_linear.keep_plan(registry.pick(request).run, request, "kept")
        calls[f"{name}, remembered"] = lambda w=w: cuda_linear.same_as_before(x, w, None, "kept")
        calls[f"{name}, remembered, bias"] = lambda w=w: cuda_linear.same_as_before(x, w, bias, "kept")
        calls[f"{name}, checked"] = lambda w=w, o=options: qk.linear(x, w, backend="cuda", **o)
    assert all(call() is not None for call in calls.values())
    with torch.inference_mode():
        return {name: t.us for name, t in in_turns(calls, seconds / len(calls)).items()}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="384x384", help="KxN")
    parser.add_argument("--m", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--emulator", action="store_true", help="calls on a CUDA device up to the launch")
    args = parser.parse_args()
    k, n = map(int, args.shape.split("x"))
    if args.emulator:
        for name, us in on_the_emulator(k, n, args.seconds).items():
            print(f"{name:28} {us:7.2f} us")
        return
    found = measure(args.m, k, n, args.threads, args.seconds)
    if args.json:
        print(json.dumps(found))
        return
    table = Table("call", "us", "over the bare kernel", title=f"M={args.m} K={k} N={n}, {args.threads}t")
    for name, (us, more) in found.items():
        table.add_row(name, f"{us:.2f}", f"{more:+.2f}")
    console = Console(highlight=False)
    console.print(table)
    over = found["qk.linear, torch"][1]
    console.print(
        f"Target: qk.linear within {TARGET_US} us of the kernel: {'met' if over <= TARGET_US else 'missed'}."
    )


if __name__ == "__main__":
    main()
