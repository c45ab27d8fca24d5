"""Measure block shapes on the GPU at hand and write its table: ``python -m qkernels.triton_kernels.tune``.

For each kernel and class of M, every candidate that compiles without spills is timed on the shapes below, cold (weights
take turns in more memory than the L2 cache holds), and the one with the least geometric mean of times is written to
``configs/<name of the GPU>.json``, where later calls read it. Then the integer core's few tokens, quantized in it and
by a kernel of their own, say how much memory its programs may read for that ("fuse"). Calls are replayed from CUDA
graphs: Python takes longer to launch these kernels than they run. About ten minutes. ``--quick`` tries fewer
candidates on one shape; ``--out FILE`` writes elsewhere.
"""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import torch
import triton.testing

import qkernels as qk

from . import fuse, run, tuned

SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]  # N, K
CLASSES = [(1, 16), (32, 32), (64, 64), (256, 256), (4096, None)]  # M that is timed, most_m of the row
WEIGHTS = {
    "linear_int": {"bits": 8},
    "linear_int_groups": {"bits": 4, "group_size": 128},
    "linear_float": {"bits": 8},
    "linear_float_groups": {"bits": 4, "group_size": 128},
    "linear_float32": {"bits": 4, "group_size": 128},
}
COLD = 256 << 20  # bytes of weights that take turns


def candidates(m, quick):
    """Rows to try for M tokens."""
    bms = [16] if m <= 16 else [b for b in (16, 32, 64, 128, 256) if min(m / 4, 64) <= b <= max(m, 64)]
    stages = (3, 5) if quick else (2, 3, 4, 5, 6)
    splits = (1, 4, 16) if m <= 64 else (1, 2)
    for bn, bm, warps, stage, most in itertools.product((32, 64, 128, 256), bms, (4, 8), stages, splits):
        if bn * bm <= 128 * 256 and bn >= 16 * warps // 2:
            row = {
                "BN": bn,
                "BM": bm,
                "tiles": 8,
                "warps": warps,
                "stages": stage,
                "waves": 2,
                "most_splits": most,
            }
            yield row


class Problem:
    """A call of a kernel for M tokens of a shape, whose weights take turns."""

    def __init__(self, name, m, n, k):
        options = WEIGHTS[name]
        count = max(1, min(16, COLD // (n * k * options["bits"] // 8)))
        codes = np.random.default_rng(0).integers(-7, 8, (n, k)).astype(np.int8)
        groups = k // options["group_size"] if "group_size" in options else 1
        scale = np.full((n, groups), 0.01, np.float32)
        self.dtype = torch.float32 if name.endswith("32") else torch.bfloat16
        self.is_int, self.n, self.turn = "int" in name.split("_"), n, itertools.count()
        self.x = torch.randn((m, k), device="cuda", dtype=self.dtype)
        self.out = torch.empty((m, n), dtype=torch.bfloat16, device="cuda")
        self.weights = [qk.IntWeight.pack(codes, scale, **options) for _ in range(count)]
        for w in self.weights:  # uploaded now: a graph cannot
            arrays = self._arrays(w)
        self.steps = arrays.units.steps

    def _arrays(self, w):
        x = self.x
        return run.int_arrays(w, x.device) if self.is_int else run.float_arrays(w, x.device, self.dtype)

    def splits(self, row):
        count = run.properties(self.x.device)[2]
        return tuned.splits_of(row, self.x.shape[0], self.n, self.steps, count)

    def call(self, row, fused=False):
        w, rest = self.weights[next(self.turn) % len(self.weights)], (self.out, row, self.splits(row))
        if self.is_int:
            return run.linear_int(self.x, w, qk.InputQuant(), None, None, *rest, fused=fused)
        return run.linear_float(self.x, w, None, None, str(self.dtype).removeprefix("torch."), *rest)

    def time(self, row, fused=False):
        """Milliseconds."""
        return triton.testing.do_bench_cudagraph(lambda: self.call(row, fused), rep=10, return_mode="median")


def problems(name, m, quick):
    return [Problem(name, m, n, k) for n, k in SHAPES[: 1 if quick else None]]


def best_row(name, m, quick):
    """The fastest candidate and its times in milliseconds, one a shape."""
    best = None
    there = problems(name, m, quick)
    for row in candidates(m, quick):
        try:
            times = [problem.time(row) for problem in there]
        except (triton.OutOfResources, triton.CompilationError, RuntimeError) as e:
            print(f"    {row}: {type(e).__name__}")
            continue
        mean = math.exp(sum(math.log(t) for t in times) / len(times))
        if best is None or mean < best[0]:
            best = mean, row, times
            print(f"  {name} M={m}: {mean * 1e3:.1f} us  {row}", flush=True)
    return best[1], best[2]


def fuse_of(name, row, most_m, quick):
    """ "fuse" of a row for up to most_m tokens: from what a pass reads to where it was slower than a launch, in MiB."""
    seen = []
    for m in (m for m in (1, 2, 4, 8, 16) if m <= most_m):
        for p in problems(name, m, quick):
            mib = fuse.pass_bytes(p.x, row, p.n, p.splits(row)) / fuse.MIB
            seen.append((mib, p.time(row, True) < p.time(row)))
    return budget(seen)


def budget(seen):
    """The largest of [(MiB, was fusing faster)] below the least at which it was not; 0 where there is none."""
    lost = min((mib for mib, faster in seen if not faster), default=math.inf)
    return round(max((mib for mib, faster in seen if faster and mib < lost), default=0), 3)


def text_of(device, source, rows):
    """The JSON of a table, a row a line."""
    parts = []
    for name in tuned.KERNELS:
        lines = ",\n".join(f"    {json.dumps(row)}" for row in rows[name])
        parts.append(f'  "{name}": [\n{lines}\n  ]')
    head = f'  "device": {json.dumps(device)},\n  "source": {json.dumps(source)},\n'
    return "{\n" + head + ",\n".join(parts) + "\n}\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer candidates, one shape")
    parser.add_argument("--out", type=Path, help="the file to write; the GPU's own table if not given")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(2, "tune: torch sees no CUDA GPU; nothing was measured and nothing written.\n")
    name = torch.cuda.get_device_name()
    rows = {}
    for kernel in tuned.KERNELS:
        rows[kernel] = []
        classes = [(1, 16), (64, None)] if kernel == "linear_float32" else CLASSES
        for m, most_m in classes:
            row, _times = best_row(kernel, m, options.quick)
            if "int" in kernel.split("_"):
                few = most_m is not None and most_m <= 16  # with more, registers spill
                row["fuse"] = fuse_of(kernel, row, most_m, options.quick) if few else 0
            rows[kernel].append({"most_m": most_m, **row})
    source = f"Measured by qkernels {qk.__version__}, triton {triton.__version__}, torch {torch.__version__}"
    path = options.out or tuned.file_of(name)
    path.write_text(text_of(name, source + (", --quick." if options.quick else "."), rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
