#!/usr/bin/env python
"""Whether torch and qkernels share one thread pool: their calls in turns at two threads, against each alone.

    python bench/openmp.py [--threads 2] [--first torch|qkernels] [--seconds 3] [--json]

With one pool, a pair of calls takes as long as the two calls take in loops of their own; two pools would spin
against each other. Also counts: mapped OpenMP runtimes (libgomp, libomp, libiomp) and threads that qkernels
starts after torch has started its own, and measures an empty parallel region (fork and join). The data of
both fit the L2, so that the calls do not evict each other's.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path

ROWS, SHAPE = 96, (384, 384)


def runtimes():
    """The files of OpenMP runtimes that this process has mapped."""
    maps = Path("/proc/self/maps").read_text()
    return sorted(set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)[^/\s]*\.so\S*", maps)))


def thread_count():
    return len(os.listdir("/proc/self/task"))


def measure(threads=2, seconds=3.0, first="torch"):
    """A dict: microseconds alone, in turns, their ratio (above 1: slower together), and the counts above."""
    if "torch" in sys.modules or "qkernels" in sys.modules:
        raise RuntimeError(
            "openmp.measure: torch or qkernels is imported already; call it in a fresh process."
        )
    for name in (first, *({"torch", "qkernels"} - {first})):
        __import__(name)
    import numpy as np
    import torch

    import qkernels as qk
    from qkernels import _native
    from qkernels.latency.measure import in_turns

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, dense = torch.randn(ROWS, SHAPE[0]), torch.randn(*SHAPE[::-1])
    w, quant = qk.IntWeight.quantize(dense), qk.InputQuant()

    def theirs():
        torch.nn.functional.linear(x, dense)

    def ours():
        qk.linear(x, w, input_quant=quant)

    def both():
        theirs()
        ours()

    with torch.inference_mode():
        theirs()
        before = thread_count()
        for _ in range(10):
            ours()
        started = thread_count() - before
        timings = in_turns({"torch": theirs, "qkernels": ours, "both": both}, seconds / 3, threads=threads)
    rounds = {name: np.array(t.turns) for name, t in timings.items()}
    return {
        "threads": threads,
        "first": first,
        "torch_us": timings["torch"].us,
        "qkernels_us": timings["qkernels"].us,
        "both_us": timings["both"].us,
        "ratio": float(np.median(rounds["both"] / (rounds["torch"] + rounds["qkernels"]))),
        "threads_started_by_qkernels": started,
        "runtimes": runtimes(),
        "fork_join_us": _native.measure_fork_join(threads, 2000),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--first", choices=("torch", "qkernels"), default="torch", help="what is imported first"
    )
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    found = measure(args.threads, args.seconds, args.first)
    if args.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<28} {value:.3f}" if isinstance(value, float) else f"{name:<28} {value}")


if __name__ == "__main__":
    main()
