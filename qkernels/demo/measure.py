"""Time and quality of the variants. Everything is measured in one run, on the same threads, in turns."""

import time
from statistics import median

import numpy as np
import torch

from .model import Batch, linear_layers
from .variants import COMPILED

LINEAR_EVENTS = {  # operators that multiply by a weight in a compiled graph
    "aten::addmm",
    "aten::mm",
    "mkl::_mkl_linear",
    "mkldnn::_linear_pointwise",
    "qkernels::linear_int",
}


def batches(token_lists, size=32, padded=True):
    """Sentences as batches, sorted by length to need little padding, and where each sentence went."""
    order = sorted(range(len(token_lists)), key=lambda i: len(token_lists[i]))
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [Batch.of([token_lists[i] for i in part], padded=padded) for part in parts], order


def embed(call, token_lists):
    """Unit vectors (len(token_lists), hidden) in float32, in the order given."""
    parts, order = batches(token_lists)
    out = torch.cat([call(*b)[0].float() for b in parts])
    return out[torch.tensor(order).argsort()].numpy()


def in_turns(variants, cases, seconds, least, most, tick):
    """Time all variants in turns, A B C A B C, until ``seconds`` are over.

    A round takes, of each variant in turn, 5 calls of "one" after an untimed one, then of each in turn one
    call of "batch". Returns {variant name: {case: seconds, one per round}}; of "one" it is the median.
    """
    times = {v.name: {case: [] for case in cases} for v in variants}
    start = time.perf_counter()
    for r in range(most):
        if r >= least and time.perf_counter() - start > seconds:
            break
        for case, parts in cases.items():
            for v in variants:
                call, repeats = v.run[case], 5 if case == "one" else 1
                if case == "one":
                    call(*parts[0])
                times[v.name][case].append(median(_clock(call, parts) for _ in range(repeats)))
        tick(min(1.0, max((time.perf_counter() - start) / seconds, 0.0)) if r >= least else 0.0)
    return times


def _clock(call, parts):
    start = time.perf_counter()
    for batch in parts:
        call(*batch)
    return time.perf_counter() - start


def spread(samples):
    """Half the distance between the quartiles, relative to the median."""
    low, mid, high = np.percentile(samples, [25, 50, 75])
    return float((high - low) / 2 / mid)


def outside_share(variant, case, parts, repeats=3):
    """Share of the time that is not spent in the linear layers: median of ``repeats`` measured calls.

    Eager models get a clock around each linear layer. A compiled graph has no layers left to put one around,
    so its multiplies are read from the profiler (GELU counts as linear where it is fused into the multiply).
    """
    measure = _outside_profiled if variant.how == COMPILED else _outside_clocked
    return median(measure(variant, case, parts) for _ in range(repeats))


def _outside_clocked(variant, case, parts):
    inside, layers = 0.0, linear_layers(variant.model).values()

    def clocked(forward):
        def call(x):
            nonlocal inside
            start = time.perf_counter()
            y = forward(x)
            inside += time.perf_counter() - start
            return y

        return call

    for layer in layers:
        layer.forward = clocked(layer.forward)
    try:
        total = _clock(variant.run[case], parts)
    finally:
        for layer in layers:
            del layer.forward
    return 1 - inside / total


def _outside_profiled(variant, case, parts):
    from torch.autograd.profiler import profile

    with profile(use_kineto=False) as events:
        total = _clock(variant.run[case], parts)
    inside = sum(e.cpu_time_total for e in events.key_averages() if e.key in LINEAR_EVENTS)
    return 1 - inside * 1e-6 / total


def cosines(a, b):
    """Cosine of each row of ``a`` with the same row of ``b``."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def agreement(call, tokens, i, j, scores):
    """Spearman's rank correlation of the cosines of the pairs (i, j) with what people said."""
    from scipy.stats import spearmanr

    e = embed(call, tokens)
    return float(spearmanr(cosines(e[i], e[j]), scores).statistic)
