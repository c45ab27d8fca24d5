"""What every peer computes, how it is checked and how it is timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

# relative Frobenius error allowed against the float64 product, by what a peer rounds on the way
TOLERANCE = {"exact": 1e-6, "float32": 1e-5, "bfloat16": 1.2e-2, "codes_out": 2e-2, "dynamic": 2.5e-2}
SLACK = 1 << 20  # weight copies are windows of one random pool, 64 bytes apart
BATCH_SECONDS = 200e-6  # calls are timed in batches at least this long


@dataclass(frozen=True)
class Built:
    """A case ready to be timed.

    ``calls`` are zero-argument functions, each doing ``inner`` products with weights of its own;
    ``result()`` gives the (M, N) result of the last call of ``calls[0]`` as a float array in real units;
    ``reference`` is what it must be at ``problem.rows`` x ``problem.columns``.
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
    weight_bytes: int = 1  # bytes of one weight element, to count the copies of a cold case


class Problem:
    """Inputs of one (M, K, N), equal in every worker: ``y = x @ (w_scale[:, None] * w).T``.

    ``x`` float32 (M, K), ``x_s8`` and ``x_u8`` its 8-bit stand-ins (scale ``x_scale``, zero point 0),
    ``weight(i)`` the int8 (N, K) codes of copy i, ``w_scale`` float32 (N,) with values that float16 holds
    exactly.
    """

    x_scale = 0.02
    _pool: np.ndarray | None = None

    def __init__(self, M: int, K: int, N: int):
        rng = np.random.default_rng((M, K, N))
        self.M, self.K, self.N = M, K, N
        self.x = rng.standard_normal((M, K), dtype=np.float32)
        self.x_s8 = rng.integers(-127, 128, (M, K), dtype=np.int8)
        self.x_u8 = rng.integers(0, 256, (M, K), dtype=np.uint8)
        self.w_scale = (0.01 * rng.uniform(0.5, 1.5, N)).astype(np.float16).astype(np.float32)
        self.rows = np.unique(np.linspace(0, M - 1, min(M, 48)).astype(int))
        self.columns = np.unique(np.linspace(0, N - 1, min(N, 192)).astype(int))
        if Problem._pool is None or Problem._pool.size < N * K + SLACK:
            Problem._pool = np.random.default_rng(7).integers(-127, 128, N * K + SLACK, dtype=np.int8)

    def weight(self, i: int = 0) -> np.ndarray:
        """Codes of weight copy i: int8 (N, K), the caller's own memory."""
        start = i * 64 % SLACK
        return Problem._pool[start : start + self.N * self.K].reshape(self.N, self.K).copy()

    def float_weight(self, i: int = 0) -> np.ndarray:
        return self.weight(i).astype(np.float32) * self.w_scale[:, None]

    def reference(self, x: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """The float64 product ``scale * x @ (w_scale * w(0)).T`` at the checked rows and columns."""
        w = self.weight(0)[self.columns].astype(np.float64) * self.w_scale[self.columns, None]
        return x[self.rows].astype(np.float64) @ w.T * scale

    def output_scale(self, reference: np.ndarray) -> float:
        """A scale of 8-bit results that clips nothing of what is checked."""
        return float(np.abs(reference).max() / 120)

    def error(self, built: Built) -> float:
        """Relative Frobenius error of a built case after one call."""
        y = np.asarray(built.result(), dtype=np.float64).reshape(self.M, self.N)[
            np.ix_(self.rows, self.columns)
        ]
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
