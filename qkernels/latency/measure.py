"""The one timer: warm-up, batches of calls, rounds that alternate with samples of the machine's speed."""

import gc
import itertools
import time
from dataclasses import dataclass

import numpy as np

from .. import _native
from . import quiet

WARM_UPS = 10
ROUNDS = 6  # a round of each subject, then the next: what drifts hits all of them
BATCH_SECONDS = 1e-4  # calls are timed in batches, so that reading the clock (0.1 us) does not count
STABLE = 0.005  # relative standard error of the median that ends a measurement
PATIENCE = 3  # ... or this many times the seconds asked for
ENOUGH = 3  # rounds on quiet cores that count for the whole


@dataclass(frozen=True)
class Timing:
    """How long one call takes, in microseconds.

    ``us`` median, ``p10`` and ``p90`` over batches of calls; ``spread`` half the distance of the quartiles
    relative to the median; ``samples`` (n,) all of them; ``rounds`` the median of each round; ``beside`` what
    ``beside()`` gave right before each round; ``ghz`` the median clock; ``calls`` how many calls were timed.

    ``quiet``: True where everything above is from rounds in which nobody else used the cores (``quiet.py``),
    False where there were too few of those and all rounds count. ``turns``: the median of every round, quiet
    or not; subjects timed in turns have equally many, side by side.
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
    quiet: bool
    turns: list

    def __str__(self):
        return f"{self.us:.4g} us ±{self.spread:.1%}"


@dataclass
class _Round:
    times: list
    beside: object
    ghz: float
    quiet: bool

    @property
    def us(self):
        return float(np.median(self.times))


class _Run:
    def __init__(self, calls, threads):
        self.turn = itertools.cycle([calls] if callable(calls) else list(calls))
        self.threads, self.rounds = threads, []

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
        before = quiet.slowdown(self.threads)
        if before > quiet.BUSY:
            seconds /= 4  # look for a better moment sooner
        ghz, sample = _native.core_ghz(), beside() if beside else None
        clock, times, batch = time.perf_counter, [], self.batch
        end = clock() + seconds
        while not times or clock() < end:
            calls = tuple(itertools.islice(self.turn, batch))
            start = clock()
            for call in calls:
                call()
            times.append((clock() - start) / batch * 1e6)
        worst = max(before, quiet.slowdown(self.threads))
        self.rounds.append(_Round(times, sample, ghz, worst <= quiet.BUSY))

    def counted(self):
        """The rounds that count, and whether they are quiet ones."""
        calm = [r for r in self.rounds if r.quiet]
        return (calm, True) if len(calm) >= ENOUGH else (self.rounds, False)

    def settled(self):
        rounds, calm = self.counted()
        medians = [r.us for r in rounds]
        error = 1.25 * np.std(medians) / len(medians) ** 0.5
        return calm and len(rounds) >= ROUNDS and error <= STABLE * np.median(medians)

    def timing(self, alone):
        rounds, calm = self.counted() if alone else (self.rounds, False)
        samples = np.concatenate([r.times for r in rounds])
        p10, low, mid, high, p90 = (float(v) for v in np.percentile(samples, [10, 25, 50, 75, 90]))
        return Timing(
            us=mid,
            p10=p10,
            p90=p90,
            spread=(high - low) / 2 / mid,
            samples=samples,
            rounds=[r.us for r in rounds],
            beside=[r.beside for r in rounds],
            ghz=float(np.median([r.ghz for r in rounds])),
            calls=self.batch * len(samples),
            quiet=calm,
            turns=[r.us for r in self.rounds],
        )


def in_turns(subjects, seconds=0.3, beside=None, threads=1, patience=PATIENCE):
    """Time several subjects in turns, round by round.

    Args:
        subjects: {name: call or sequence of calls}. A sequence is gone through again and again: where each
            call has a weight of its own and all exceed the last-level cache, every call finds it cold.
        seconds: for each subject; longer (up to ``patience`` times) while its median has not settled or a
            neighbour shares the core.
        beside: a function without arguments that samples the machine (a peak, say) before every round.
        threads: how many the calls use: that many cores must be quiet.

    Returns:
        {name: Timing}
    """
    runs = {name: _Run(calls, threads) for name, calls in subjects.items()}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for run in runs.values():
            run.warm_up(WARM_UPS, seconds)
        start, before, limit = time.perf_counter(), quiet.others(), seconds * len(runs)
        for done in itertools.count(1):
            for run in runs.values():
                run.round(seconds / ROUNDS, beside)
            elapsed = time.perf_counter() - start
            if elapsed >= limit and all(run.settled() for run in runs.values()):
                break
            if done >= ENOUGH and elapsed >= patience * limit:
                break
        alone = threads == 1 or quiet.others() - before <= quiet.OTHERS * (time.perf_counter() - start)
    finally:
        if collecting:
            gc.enable()
    return {name: run.timing(alone) for name, run in runs.items()}


def timed(calls, seconds=0.3, beside=None, threads=1, patience=PATIENCE):
    """The Timing of one call, or of calls gone through in turns (see ``in_turns``)."""
    return in_turns({"": calls}, seconds, beside, threads, patience)[""]
