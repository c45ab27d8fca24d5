"""What every peer computes, how it is checked and how it is timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# relative Frobenius error allowed against the float64 product, by what a peer rounds on the way
TOLERANCE = {"exact": 1e-6, "float32": 1e-5, "bfloat16": 1.2e-2, "codes_out": 2e-2, "dynamic": 2.5e-2}
# bfloat16 weights, products and results of activations that bfloat16 holds: 8-bit activations would show
TOLERANCE["weight_only"] = 4e-3
BATCH_SECONDS = 200e-6  # calls are timed in batches at least this long


@dataclass(frozen=True)
class Built:
    """A case ready to be timed.

    ``calls`` are zero-argument functions, each doing ``inner`` products with weights of its own;
    ``result()`` gives the result of the last call of ``calls[0]`` as a float array in real units;
    ``reference`` is what ``problem.checked(result)`` must be.
    """

    calls: list[Callable[[], object]]
    result: Callable[[], np.ndarray]
    reference: np.ndarray
    inner: int = 1


@dataclass(frozen=True)
class Variant:
    """One way of calling one peer: the row it fills, and ``build(problem, copies) -> Built``."""

    name: str
    category: str
    build: Callable[[Problem, int], Built]
    tolerance: str
    weight_bytes: float = 1  # bytes of one weight element, to count the copies of a cold case


class Problem:
    """Inputs of one case, equal in every worker because they come from its shape.

    ``macs``: multiply-accumulates of a product; ``weights``: weight elements.  Each kind of problem is in
    problems.py.
    """

    macs: int
    weights: int

    def checked(self, y: np.ndarray) -> np.ndarray:
        """The part of a result in real units that is compared with ``Built.reference``."""
        raise NotImplementedError

    def error(self, built: Built) -> float:
        """Relative Frobenius error of a built case after one call."""
        y = self.checked(np.asarray(built.result(), dtype=np.float64))
        return float(np.linalg.norm(y - built.reference) / np.linalg.norm(built.reference))


def sample_warm(built: Built, seconds: float) -> list[float]:
    """Microseconds a product of consecutive batches that together take ``seconds``; the first eighth is not
    counted."""
    calls, clock, n = built.calls, time.perf_counter, 0
    start = clock()
    while n < 2 or clock() - start < seconds / 8:
        calls[0]()
        n += 1
        if clock() - start > seconds:
            break
    each = (clock() - start) / n
    batch = range(max(1, int(BATCH_SECONDS / each)))
    call, times, start = calls[0], [], clock()
    while True:
        t0 = clock()
        for _ in batch:
            call()
        t1 = clock()
        times.append((t1 - t0) / (len(batch) * built.inner) * 1e6)
        if t1 - start > seconds:
            return times


def sample_cold(built: Built, sweep: np.ndarray) -> list[float]:
    """Microseconds a product, each product on weights that are in no cache.

    Reads ``sweep`` (more than the last-level cache) to evict everything, then goes through the weight
    copies once: no weight is used twice in a sample.
    """
    np.add.reduce(sweep)
    clock, times = time.perf_counter, []
    step = max(1, len(built.calls) // 16)
    for i in range(0, len(built.calls), step):
        part = built.calls[i : i + step]
        t0 = clock()
        for call in part:
            call()
        times.append((clock() - t0) / (len(part) * built.inner) * 1e6)
    return times


def sample(built: Built, seconds: float, sweep: np.ndarray | None) -> list[float]:
    gc.disable()
    try:
        return sample_warm(built, seconds) if sweep is None else sample_cold(built, sweep)
    finally:
        gc.enable()
