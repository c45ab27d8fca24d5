"""The one timer: warm-up, batches, rounds that alternate with a sample of the machine's speed."""

import gc
import itertools
import time
from dataclasses import dataclass

import numpy as np

from .. import _native

WARM_UPS = 10
ROUNDS = 8  # a round of each subject, then the next: what drifts hits all of them
BATCH_SECONDS = 1e-4  # calls are timed in batches, so that reading the clock (0.1 us) does not count
STABLE = 0.005  # relative standard error of the median that ends a measurement
PATIENCE = 3  # ... or this many times the seconds asked for


@dataclass(frozen=True)
class Timing:
    """How long one call takes, in microseconds.

    ``us`` median, ``p10`` and ``p90`` over batches of calls; ``spread`` half the distance of the quartiles
    relative to the median; ``samples`` (n,) all of them; ``rounds`` the median of each round; ``beside`` what
    ``beside()`` gave right before each round; ``ghz`` the median clock; ``calls`` how many calls were timed.
    """

    us: float
    p10: float
    p90: float
    spread: float
    samples: np.ndarray
    rounds: list
    beside: list
    ghz: float
    calls: int

    def __str__(self):
        return f"{self.us:.4g} us ±{self.spread:.1%}"


class _Run:
    def __init__(self, calls):
        self.calls = [calls] if callable(calls) else list(calls)
        self.turn = itertools.cycle(self.calls)
        self.samples, self.rounds, self.beside, self.ghz, self.count = [], [], [], [], 0

    def warm_up(self, least, seconds):
        """``least`` calls, or fewer (two at least) if they take ``seconds``; sets the size of a batch."""
        clock, start, n = time.perf_counter, time.perf_counter(), 0
        while n < 2 or (n < least and clock() - start < seconds):
            next(self.turn)()
            n += 1
        begin, m = clock(), 0
        while m < 1 or clock() - begin < BATCH_SECONDS:
            next(self.turn)()
            m += 1
        self.batch = max(1, int(BATCH_SECONDS / ((clock() - begin) / m)))

    def round(self, seconds, beside):
        clock, times, batch = time.perf_counter, [], self.batch
        self.ghz.append(_native.core_ghz())
        self.beside.append(beside() if beside else None)
        end = clock() + seconds
        while not times or clock() < end:
            calls = tuple(itertools.islice(self.turn, batch))
            start = clock()
            for call in calls:
                call()
            times.append((clock() - start) / batch * 1e6)
        self.count += batch * len(times)
        self.samples += times
        self.rounds.append(float(np.median(times)))

    def stable(self):
        error = 1.25 * np.std(self.rounds) / len(self.rounds) ** 0.5
        return error <= STABLE * np.median(self.rounds)

    def timing(self):
        samples = np.array(self.samples)
        p10, low, mid, high, p90 = (float(v) for v in np.percentile(samples, [10, 25, 50, 75, 90]))
        spread = (high - low) / 2 / mid
        ghz = float(np.median(self.ghz))
        return Timing(mid, p10, p90, spread, samples, self.rounds, self.beside, ghz, self.count)


def in_turns(subjects, seconds=0.3, beside=None):
    """Time several subjects in turns, round by round.

    Args:
        subjects: {name: call or sequence of calls}. A sequence is gone through again and again: where each
            call has a weight of its own and all exceed the last-level cache, every call finds it cold.
        seconds: for each subject; longer (up to PATIENCE times) while its median has not settled.
        beside: a function without arguments that samples the machine (a peak, say) before every round.

    Returns:
        {name: Timing}
    """
    runs = {name: _Run(calls) for name, calls in subjects.items()}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for run in runs.values():
            run.warm_up(WARM_UPS, seconds)
        start, limit = time.perf_counter(), seconds * len(runs)
        for done in itertools.count(1):
            for run in runs.values():
                run.round(seconds / ROUNDS, beside)
            elapsed = time.perf_counter() - start
            settled = done >= ROUNDS and elapsed >= limit and all(r.stable() for r in runs.values())
            if settled or (done >= 3 and elapsed >= PATIENCE * limit):
                break
    finally:
        if collecting:
            gc.enable()
    return {name: run.timing() for name, run in runs.items()}


def timed(calls, seconds=0.3, beside=None):
    """The Timing of one call, or of calls gone through in turns (see ``in_turns``)."""
    return in_turns({"": calls}, seconds, beside)[""]
