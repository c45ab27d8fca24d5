"""Whether a neighbour shares the core: on rented machines, and under SMT, somebody else's thread often does.

It takes issue slots and cache from a kernel (30 % of the speed of a GEMM, measured) but hardly anything from
a loop of independent vector instructions, so peaks and clocks do not show it. A loop of the Python
interpreter does: it is bound by the front end, and takes half as long again. Its fastest run in this process
is what it takes on a quiet core. Two CPUs of a virtual machine may also be moved to one core: then their peak
together is that of one.
"""

import os
import threading
import time

from .. import _native

LOOPS, TRIPS = 3, 1000
PEAK_MS = 0.2
BUSY = 1.15
SHARED = 1.4  # of cores that halve each other; clocks alone differ by less

OTHERS = 0.15  # of a core: what other processes may take while several cores are timed

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


def _shared(threads):
    """How much faster a core is alone than beside the others; 1 for cores that share nothing."""
    kinds = _native.peak_names().values()
    if not kinds:
        return 1.0
    alone, together = (_native.measure_peak(min(kinds), t, PEAK_MS) for t in (1, threads))
    return threads * alone / together


def others():
    """Seconds of processor time that other processes and virtual machines have taken since the system started.

    A core that somebody holds looks quiet whenever its turn comes, but threads that wait for it stand still for
    whole time slices (8 ms). The kernel counts in steps of 10 ms.
    """
    try:
        with open("/proc/stat") as f:
            user, nice, system, _, _, irq, softirq, steal = map(int, f.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def slowdown(threads=1):
    """How much longer work takes now than on quiet cores: on this core or, for more threads, on the worst.

    Above BUSY, timings taken at this moment are those of a shared core.
    """
    if threads == 1:
        return _best() / _fastest
    worst = max(_best_on(core) for core in sorted(os.sched_getaffinity(0))) / _fastest
    shared = _shared(threads)
    return max(worst, shared) if shared > SHARED else worst
