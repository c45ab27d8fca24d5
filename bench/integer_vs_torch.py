#!/usr/bin/env python
"""Integer-only operations beside the float32 operations of torch that they stand for, called from Python, in turns.

    python bench/integer_vs_torch.py [--threads 1]

Nanoseconds an element (of the input; the median, in parentheses the fastest tenth) and microseconds a call. Floor:
bytes of codes read and written / the bandwidth measured where they lie.
"""

import argparse
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

import qkernels as qk
from qkernels.latency import roofline
from qkernels.latency.measure import in_turns

SCALE = 0.05
MAPS = [(112, 32), (56, 96), (14, 256), (7, 1280)]


def codes(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def cases():
    """(name, elements, bytes, ours, torch's)"""
    p = qk.AddRequant.from_scales(SCALE, 3, 0.03, -5, 0.07, 1)
    for n in (1 << 14, 1 << 18, 1 << 22):
        a, b = codes(n), codes(n).flip(0)
        x, y = a.float(), b.float()
        yield f"add {n}", n, 3 * n, partial(qk.add_requant, a, b, p), partial(torch.add, x, y)
        yield f"gelu {n}", n, 2 * n, partial(qk.gelu_int, a, SCALE), partial(F.gelu, x)
        parts = [v[: n // 2].view(-1, 64) for v in (a, b)]
        ours = partial(qk.concat_requant, parts, [SCALE, 0.03], [0, 0], SCALE)
        yield f"concat {n}", n, 2 * n, ours, partial(torch.cat, [v.float() for v in parts], 1)
    for m, n in ((128, 128), (128, 384), (1536, 197), (512, 1024)):
        q = codes(m, n)
        ours, theirs = partial(qk.softmax_int, q, SCALE), partial(torch.softmax, q.float() * SCALE, -1)
        yield f"softmax {m}x{n}", m * n, 2 * m * n, ours, theirs
    for m, n in ((128, 384), (128, 768), (512, 1024)):
        q = codes(m, n)
        norm = qk.LayerNormInt.from_float(np.ones(n), None, SCALE, 0.03)
        theirs = partial(F.layer_norm, q.float() * SCALE, (n,), torch.ones(n), torch.zeros(n))
        yield f"layer norm {m}x{n}", m * n, 2 * m * n, partial(qk.layer_norm_int, q, norm), theirs
    for side, c in MAPS:
        q = codes(1, c, side, side).to(memory_format=torch.channels_last)
        x, n, out = q.float().to(memory_format=torch.channels_last), q.numel(), c * ((side + 1) // 2) ** 2
        name, w = f"{side}x{side}x{c}", (3, 2, 1)
        yield f"max pool {name}", n, n + out, partial(qk.max_pool2d_int, q, *w), partial(F.max_pool2d, x, *w)
        yield f"avg pool {name}", n, n + out, partial(qk.avg_pool2d_int, q, *w), partial(F.avg_pool2d, x, *w)
        theirs = partial(F.adaptive_avg_pool2d, x, 1)
        yield f"global pool {name}", n, n + c, partial(qk.global_avg_pool2d_int, q), theirs


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.1, help="for each side of a row, at least")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'':28}{'qkernels':>26}{'torch float32':>26}{'ratio':>7}{'floor':>8}")
    for name, n, nbytes, ours, theirs in cases():
        t = in_turns({"ours": ours, "torch": theirs}, args.seconds, threads=args.threads)
        floor = nbytes / roofline.read_bandwidth(nbytes, args.threads) / n
        cells = [f"{v.us:9.1f} us {v.us * 1e3 / n:6.3f} ({v.p10 * 1e3 / n:.3f})" for v in t.values()]
        print(
            f"{name:28}{cells[0]:>26}{cells[1]:>26}{t['torch'].us / t['ours'].us:7.1f}{floor:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
