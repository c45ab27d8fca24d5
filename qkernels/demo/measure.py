"""Time of the variants. Everything is measured in one run, on the same threads, in turns."""

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from .variants import COMPILED

MULTIPLY_EVENTS = {  # operators that multiply by a weight in a compiled graph
    "aten::addmm",
    "aten::mm",
    "mkl::_mkl_linear",
    "mkldnn::_linear_pointwise",
    "mkldnn::_convolution_pointwise",
    "mkldnn::_convolution_pointwise_",
    "qkernels::linear_int",
    "qkernels::linear_float",
    "qkernels::linear_signs",
    "qkernels::conv2d_int",
}


@dataclass(frozen=True)
class Case:
    """One thing that every variant is timed at, and how it is shown.

    column   heading in the table; ``panel`` in the picture; ``short`` where the shares of the time are listed.
    unit     of the table: "ms" a call, or what is done "/s".
    repeats  calls a round, of which the median counts; with more than one, an untimed one comes before.
    """

    column: str
    panel: str
    short: str
    unit: str = "ms"
    repeats: int = 1

    @property
    def rate(self):
        return self.unit != "ms"


def in_turns(variants, cases, kinds, seconds, least, most, tick):
    """Time all variants in turns, A B C A B C, until ``seconds`` are over.

    A round takes each case of each variant in turn, as its Case says. Returns {variant name: {case: seconds, one
    per round}}.

    Args:
        cases: {case: what its calls take, one tuple of arguments a call}.
        kinds: {case: Case}.
    """
    times = {v.name: {case: [] for case in cases} for v in variants}
    start = time.perf_counter()
    for r in range(most):
        if r >= least and time.perf_counter() - start > seconds:
            break
        for case, parts in cases.items():
            for v in variants:
                call, repeats = v.run[case], kinds[case].repeats
                if repeats > 1:
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
    """Share of the time that is not spent in the layers with weights: median of ``repeats`` measured calls.

    None where a compiled graph multiplies in code of its own, which no operator's name tells from the rest.

    Eager models get a clock around each layer. A compiled graph has no layers left to put one around, so its
    multiplies are read from the profiler (an activation counts with the multiply that it is fused into).
    """
    graph = variant.how == COMPILED and variant.run[case] is not variant.eager.get(case)
    measure = _outside_profiled if graph else _outside_clocked
    if case in variant.outside:
        return median(variant.outside[case](*batch) for batch in parts for _ in range(repeats))
    shares = [measure(variant, case, parts) for _ in range(repeats)]
    return None if None in shares else median(shares)


def _outside_clocked(variant, case, parts):
    if hasattr(variant.model, "clock"):
        times = [variant.model.clock(*batch) for batch in parts]
        inside = sum(t[name] for t in times for name in variant.layers)
        return 1 - inside / sum(sum(t.values()) for t in times)
    with clocks(variant.layers) as inside:
        total = _clock(variant.run[case], parts)
    return 1 - sum(inside.values()) / total


class clocks:
    """While entered, adds up the seconds that each of {name: module} takes: {name: seconds}."""

    def __init__(self, layers):
        self.layers, self.seconds = layers, dict.fromkeys(layers, 0.0)

    def __enter__(self):
        for name, layer in self.layers.items():
            layer.forward = self._clocked(name, layer.forward)
        return self.seconds

    def __exit__(self, *_):
        for layer in self.layers.values():
            del layer.forward

    def _clocked(self, name, forward):
        def call(*args):
            start = time.perf_counter()
            y = forward(*args)
            self.seconds[name] += time.perf_counter() - start
            return y

        return call


def _outside_profiled(variant, case, parts):
    from torch.autograd.profiler import profile

    with profile(use_kineto=False) as events:
        total = _clock(variant.run[case], parts)
    inside = sum(e.cpu_time_total for e in events.key_averages() if e.key in MULTIPLY_EVENTS)
    return 1 - inside * 1e-6 / total if inside else None


def row(variant, times, cases, ours, repeats=3):
    """What every row of the result says of a variant; the demo of a model adds its quality.

    Args:
        times: what in_turns returned.
        ours: recipes of qkernels.
        repeats: calls of each case whose time is looked into.
    """
    return {
        "family": variant.family,
        "how": variant.how,
        "qkernels": variant.family in ours,
        "weight_bytes": variant.weight_bytes(),
        "bits_per_weight": variant.bits_per_weight(),
        "times": times[variant.name],
        "outside_share": {
            case: outside_share(variant, case, parts, repeats) for case, parts in cases.items()
        },
    }


def summarize(rows, plain, items, floats=("float32",)):
    """Add to each row what follows from its times: medians, spreads, throughput, speed-ups of medians.

    Args:
        plain: ``how`` of the float32 row that users have.
        items: {case: sentences, images or tokens of one call}.
        floats: families of which the fastest row of a case has speed-up 1.
    """
    for case, count in items.items():
        best = min((r for r in rows if r["family"] in floats), key=lambda r: np.median(r["times"][case]))
        users = next(r for r in rows if r["family"] == "float32" and r["how"] == plain)
        for r in rows:
            t = np.array(r["times"][case])
            r[case] = {
                "milliseconds": float(np.median(t) * 1e3),
                "spread": spread(t),
                "per_second": float(count / np.median(t)),
                "speedup": float(np.median(best["times"][case]) / np.median(t)),
                "speedup_over_plain": float(np.median(users["times"][case]) / np.median(t)),
                "is_best": r is best,
            }
