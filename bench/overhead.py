#!/usr/bin/env python
"""What Python adds to a small layer: ``qk.linear`` beside the bare kernel that it runs, called in turns.

    python bench/overhead.py [--shape 384x384] [--m 1] [--seconds 2]

The bare kernel is the call of ``bench/bench_linear.py``: addresses in, nothing checked, the result allocated
before. The overhead is the difference of the medians.
"""

import argparse
import json

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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="384x384", help="KxN")
    parser.add_argument("--m", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    k, n = map(int, args.shape.split("x"))
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
