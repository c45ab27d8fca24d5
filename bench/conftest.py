"""Options and fixtures of the benchmarks: ``pytest bench``, ``make bench`` or ``qkernels bench``."""

import contextlib
import fcntl
import sys

import floor
import pytest

from qkernels.latency import roofline
from qkernels.latency.measure import timed

SECONDS, QUICK_SECONDS = 0.15, 0.1  # a row, at least


def pytest_addoption(parser):
    group = parser.getgroup("qkernels")
    group.addoption("--quick", action="store_true", help="two shapes, M = 1 and 128, short measurements")
    group.addoption(
        "--patience",
        type=float,
        default=2.0,
        metavar="TIMES",
        help="wait so many times a row's 0.15 s for cores that no neighbour shares (virtual machines)",
    )
    group.addoption(
        "--lock", metavar="FILE", help="hold this lock file while a row is timed (shared machines)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.option.benchmark_quiet = True  # our own lines and bench/report.py say more than the plugin's table


def pytest_generate_tests(metafunc):
    if "row" in metafunc.fixturenames:
        rows = metafunc.module.rows(metafunc.config.getoption("quick"))
        metafunc.parametrize("row", rows, ids=[row.id for row in rows])


def pytest_report_teststatus(report):
    if report.passed and report.when == "call":
        return "passed", "", "PASSED"  # the row is printed already
    return None


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["roofline"] = roofline.quick().as_dict()
    names = ("qkernels", "numpy", "torch")
    machine_info["versions"] = {n: getattr(sys.modules.get(n), "__version__", None) for n in names}


class Replay:
    """A clock that pytest-benchmark reads while our timings are played back to it.

    The plugin keeps statistics and writes the JSON; ``qkernels.latency.measure`` takes the time.
    """

    now = 0.0

    def read(self):
        return self.now

    def play(self, samples):
        samples = iter(samples)

        def step():
            self.now += next(samples)

        return step


CLOCK = Replay()


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK.read))


@contextlib.contextmanager
def turn(path):
    if not path:
        yield
        return
    with open(path, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


@pytest.fixture
def measured(benchmark, pytestconfig):
    """measured(row, case): time it, hand the samples to pytest-benchmark, print the row."""

    def run(row, case):
        case.calls[0]()
        error = case.error()
        seconds = QUICK_SECONDS if pytestconfig.getoption("quick") else SECONDS
        patience = pytestconfig.getoption("patience")
        with turn(pytestconfig.getoption("lock")):
            timing = timed(case.calls, seconds, floor.peak_sampler(row), row.threads, patience)
            info = {**floor.compare(row, timing, case.nbytes), "error": error}
        names = ("M", "K", "N", "mode", "threads", "variant")
        benchmark.extra_info.update(
            kernel=str(row.kernel), core=row.kernel.core, **{n: getattr(row, n) for n in names}, **info
        )
        benchmark.group = row.kernel.op
        benchmark.pedantic(CLOCK.play(timing.samples * 1e-6), rounds=len(timing.samples))
        with pytestconfig.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            print(floor.line(row, info), flush=True)

    return run
