"""Threads and processes: shared weights, the GIL, forks, thread counts, and the floating-point state of the caller."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import qkernels as qk

Q = qk.InputQuant()


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def problem(rng, m, k, n):
    return torch.from_numpy(rng.standard_normal((m, k), np.float32)), qk.IntWeight.quantize(
        rng.standard_normal((n, k))
    )


def python(code, timeout=60, **environment):
    env = {**os.environ, "PYTHONPATH": str(Path(qk.__file__).parent.parent), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---- threads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_agree_with_the_reference(threads, rng):
    """Every thread its own weight and all of them one more, prepacked by whoever comes first."""
    cases = [problem(rng, m, 70 + m, 130) for m in (1, 3, 8, 20, 40, 1, 2, 64)]
    expected = [qk.linear(x, w, input_quant=Q, backend="reference") for x, w in cases]
    shared_x, shared = problem(rng, 17, 300, 200)
    shared_expected = qk.linear(shared_x, shared, input_quant=Q, backend="reference")
    start = threading.Barrier(8)

    def work(i):
        torch.set_num_threads(threads)  # OpenMP's own setting is per thread
        x, w = cases[i]
        start.wait()
        for _ in range(30):
            assert torch.equal(qk.linear(shared_x, shared, input_quant=Q), shared_expected)
            assert torch.equal(qk.linear(x, w, input_quant=Q), expected[i])
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_the_gil_is_released(rng):
    """Python code goes on in another thread while one kernel runs."""
    torch.set_num_threads(1)
    x, w = problem(rng, 4096, 1024, 1024)
    qk.linear(x, w, input_quant=Q)
    ticks, done = [], threading.Event()

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)

    other = threading.Thread(target=tick)
    other.start()
    while not ticks:
        time.sleep(0.001)
    inside = 0
    for _ in range(5):
        before = time.perf_counter()
        qk.linear(x, w, input_quant=Q)
        after = time.perf_counter()
        margin = (after - before) / 10
        inside = max(inside, sum(before + margin < t < after - margin for t in list(ticks)))
    done.set()
    other.join()
    assert inside >= 3, f"{inside} ticks during a call of {after - before:.4f} s"


def test_results_do_not_depend_on_the_number_of_threads(rng):
    for m, k, n in ((1, 384, 1536), (33, 500, 700), (300, 1024, 130)):
        x, w = problem(rng, m, k, n)
        for q in (Q, qk.InputQuant(granularity="tensor")):
            results = []
            for threads in (1, 2, 3, 7, 64):
                torch.set_num_threads(threads)
                results.append(qk.linear(x, w, torch.ones(n), "gelu", q))
            assert all(torch.equal(results[0], r) for r in results)


COUNT = """
import os, sys
import numpy as np
if "torch" in sys.argv[1:] or os.environ.get("WITH_TORCH"):
    import torch
import qkernels as qk
w = qk.IntWeight.quantize(np.random.default_rng(0).standard_normal((2048, 1024), np.float32))
x = np.ones((256, 1024), np.float32)
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
y = qk.linear(x, w, input_quant=qk.InputQuant())
print(qk.capabilities()["threads"], count() - before)
"""


@pytest.mark.parametrize("asked", [1, 2])
@pytest.mark.parametrize("with_torch", ["", "1"], ids=["numpy", "torch"])
def test_thread_count_is_respected(asked, with_torch):
    said, started = map(int, python(COUNT, OMP_NUM_THREADS=str(asked), WITH_TORCH=with_torch))
    assert (said, started) == (asked, asked - 1)


# ---- processes -------------------------------------------------------------------------------------------


def same(a, b):
    """torch.equal may use torch's threads, which hang in a forked child."""
    return np.array_equal(a.numpy(), b.numpy())


def in_child(work, seconds=20):
    """Exit status of ``work`` in a forked child: 0 if it returned True; a child that hangs is killed."""
    child = os.fork()
    if child == 0:
        status = 3
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    for _ in range(seconds * 50):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning"
)  # fork in a process with threads: the point of the test
def test_a_forked_child_computes(rng):
    """libgomp waits for its parent's threads after a fork; the child must not. It runs on one thread, and says so."""
    x, w = problem(rng, 64, 1024, 1024)
    torch.set_num_threads(2)
    expected = qk.linear(x, w, input_quant=Q)  # the pool exists now
    codes, _ = qk.quantize_activations(x, Q)
    acc, r = qk.matmul_int(codes, w), qk.Requant.from_scale(1e-3)

    def work():
        fresh = qk.IntWeight.pack(w.codes(), w.scale)
        right = [same(qk.linear(x, v, input_quant=Q), expected) for v in (w, fresh)]
        right.append(same(qk.matmul_int(codes, w), acc))
        right.append(same(qk.linear_requant(codes, w, r), qk.requantize(acc, r)))
        return all(right) and qk.capabilities()["threads"] == 1

    assert in_child(work) == 0
    assert in_child(lambda: in_child(work) == 0) == 0  # and a child's child
    assert torch.equal(qk.linear(x, w, input_quant=Q), expected)  # the parent goes on as before
    assert qk.capabilities()["threads"] == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_computes(rng):
    x, w = problem(rng, 256, 512, 512)
    torch.set_num_threads(2)
    expected, stop = qk.linear(x, w, input_quant=Q), threading.Event()

    def busy():
        while not stop.is_set():
            qk.linear(x, w, input_quant=Q)

    other = threading.Thread(target=busy)
    other.start()
    try:
        for _ in range(5):
            assert in_child(lambda: same(qk.linear(x, w, input_quant=Q), expected)) == 0
    finally:
        stop.set()
        other.join()


# ---- floating-point state --------------------------------------------------------------------------------


def test_floating_point_state_is_left_alone(rng):
    """Neither flush-to-zero nor the rounding mode changes across a call, whichever was set."""
    libm = ctypes.CDLL("libm.so.6")
    x, w = problem(rng, 40, 200, 300)
    tiny = np.array([2.0**-140], np.float32)

    def flushes():
        return float((torch.from_numpy(tiny) * 0.5)[0]) == 0.0

    for threads in (1, 2):
        torch.set_num_threads(threads)
        for flush in (False, True, False):
            torch.set_flush_denormal(flush)
            try:
                for isa in (None, "scalar"):
                    with qk.force_isa(isa):
                        qk.linear(x, w, input_quant=Q)
                        qk.quantize_activations(x, Q)
                assert flushes() == flush
            finally:
                torch.set_flush_denormal(False)
    for mode in (0x400, 0x800, 0xC00, 0):  # down, up, toward zero, nearest
        libm.fesetround(mode)
        try:
            qk.linear(x, w, input_quant=Q)
            assert libm.fegetround() == mode
        finally:
            libm.fesetround(0)
