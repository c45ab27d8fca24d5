"""Binary ``linear`` beside int8 ``linear`` and torch's float32, in turns on one weight shape.

    python bench/against_int8.py [--threads 1] [--shapes 128x1024x1024 ...]

Everything is float32 in and out, activations are binarized or quantized on the way. Times are medians over rounds;
ratios are medians of the ratios within a round.
"""

import argparse
import time

import numpy as np
import torch

import qkernels as qk

SHAPES = ["1x4096x4096", "128x1024x1024", "128x4096x4096", "512x1024x1024", "512x4096x4096"]  # M x K x N
SIGNS, TOKENS = qk.InputQuant(bits=1), qk.InputQuant()


def once(call):
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e6


def measure(calls, rounds, repeats):
    """Microseconds (rounds, calls): the median of some repeats, the calls taking turns."""
    for call in calls:
        call()
    return np.array(
        [[np.median([once(call) for _ in range(repeats)]) for call in calls] for _ in range(rounds)]
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for shape in given.shapes:
        m, k, n = map(int, shape.split("x"))
        x, W = torch.randn(m, k), torch.randn(n, k)
        binary, ternary, integer = (
            qk.BinaryWeight.quantize(W),
            qk.TernaryWeight.quantize(W),
            qk.IntWeight.quantize(W),
        )
        bits = qk.pack_signs(x)
        calls = {
            "binary": lambda x=x, w=binary: qk.linear(x, w, input_quant=SIGNS),
            "ternary": lambda x=x, w=ternary: qk.linear(x, w, input_quant=SIGNS),
            "bits in, bits out": lambda x=bits, w=binary: qk.linear_binary(x, w, sign=True),
            "int8": lambda x=x, w=integer: qk.linear(x, w, input_quant=TOKENS),
            "float32 torch": lambda x=x, w=W: torch.nn.functional.linear(x, w),
        }
        times = measure(list(calls.values()), given.rounds, max(3, int(2e10 / (m * k * n + 1e8))))
        for name, column in zip(calls, times.T, strict=True):
            ratios = np.median(times[:, -2:] / column[:, None], axis=0)
            us = np.median(column)
            print(
                f"M={m} K={k} N={n}  {name:18s} {us:9.1f} us  {m * k * n / us * 1e-3:6.0f} GMAC/s"
                f"  int8 / this {ratios[0]:5.2f}  float32 / this {ratios[1]:6.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
