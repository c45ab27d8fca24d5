"""Whether a neighbour shares the core: on rented machines, and under SMT, somebody else's thread often does.

It takes issue slots and cache from a kernel (30 % of the speed of a GEMM, measured) but hardly anything from a loop of
independent vector instructions, so peaks and clocks do not show it. A loop of the Python interpreter does: it is
bound by the front end, and takes half as long again. Its fastest run in this process is what a quiet core takes.
"""

import os
import threading
import time

LOOPS, TRIPS = 3, 1000
BUSY = 1.15

_fastest = float("inf")


def _loop():
    start, total = time.perf_counter(), 0
    for i in range(TRIPS):
        total += i & 3
    return time.perf_counter() - start


def _best():
    global _fastest
    best = min(_loop() for _ in range(LOOPS))
    _fastest = min(_fastest, best)
    return best


def _best_on(core):
    """The same on another core, by a thread of its own: the calling thread stays where its caches are."""
    found = []

    def run():
        os.sched_setaffinity(0, {core})  # of this thread alone
        found.append(_best())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def slowdown(threads=1):
    """How much longer than on a quiet core the loop takes now: on this core or, for more threads, on the worst core.

    Above BUSY (1.15), timings taken at this moment are those of a shared core.
    """
    if threads == 1:
        worst = _best()
    else:
        worst = max(_best_on(core) for core in sorted(os.sched_getaffinity(0)))
    return worst / _fastest
