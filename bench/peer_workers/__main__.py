"""The worker process: ``python -m peer_workers FAMILY THREADS CPUS PROBLEM``, driven by ``bench/peers.py``.
 Reads one JSON request a line on standard input, answers one JSON line on what was standard output;
whatever the libraries print goes to standard error.  Requests: ``build``, ``sample``, ``drop``, ``quit``.
A worker that is not asked anything blocks on the pipe and takes no CPU time.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback

from . import FAMILIES

SLOW = 2e9  # MAC a second with more than one row: a peer below that has no kernel for this machine


class Worker:
    def __init__(self, family: str, threads: int, problem: str):
        from . import problem as timing
        from .problems import PROBLEMS

        self.timing, self.kind = timing, PROBLEMS[problem]
        self.module = importlib.import_module(f"{__package__}.{FAMILIES[family].module}")
        self.version, variants, self.notes = self.module.load(threads, problem)
        self.variants = {v.name: v for v in variants}
        self.cases: dict = {}
        self.sweep = None
        self.current, self.shape = None, None

    def probe(self) -> None:
        """Runs every variant once on small cases.  One that fails on all of them, or that has no kernel for this
        machine, is not timed at all; what fails on some is left to its cells."""
        for name, variant in list(self.variants.items()):
            shapes = list(self.kind.probes)
            while shapes:
                try:
                    self._try(name, variant, shapes.pop(0))
                    break
                except Exception as e:
                    traceback.print_exc()
                    if shapes and not isinstance(e, TimeoutError):
                        continue
                    self.notes.append(f"{name}: not timed: {describe(e)}")
                    del self.variants[name]
                    break
            self.drop()

    def _try(self, name: str, variant, shape: dict) -> None:
        problem = self.kind(**shape)
        error, seconds = self._build(name, problem, 2)
        self._refuse(error, variant, shape)
        if problem.macs < 1_000_000:
            return
        rate = 0.0
        for _ in range(20):  # one slow call may be another process's fault
            rate = problem.macs / seconds
            if rate > SLOW:
                return
            seconds = min(seconds, timed(self.cases[name].calls[0]) / self.cases[name].inner)
        raise TimeoutError(f"{rate / 1e9:.2f} GMAC/s on {described(shape)}: a reference kernel")

    def _refuse(self, error: float, variant, shape: dict) -> None:
        allowed = self.timing.TOLERANCE[variant.tolerance]
        if not error <= allowed:
            raise ArithmeticError(
                f"wrong result at {described(shape)}: relative error {error:.3g} > {allowed:g}"
            )

    def _build(self, name: str, problem, copies: int) -> tuple[float, float]:
        built = self.variants[name].build(problem, copies)
        self.cases[name] = built
        for call in built.calls:  # once each: some pack a weight when they first meet it
            call()
        seconds = timed(built.calls[0]) / built.inner
        return problem.error(built), seconds

    def build(self, name: str, shape: dict, copies: int, sweep_bytes: int) -> dict:
        """Builds and checks one case; ``sweep_bytes`` > 0 for cold cases: what a sample reads first."""
        import numpy as np

        variant = self.variants[name]
        if shape != self.shape:
            self.current, self.shape = self.kind(**shape), shape
        if sweep_bytes and (self.sweep is None or self.sweep.nbytes < sweep_bytes):
            self.sweep = np.ones(sweep_bytes // 8, np.int64)
        try:
            error, seconds = self._build(name, self.current, copies)
            self._refuse(error, variant, shape)
        except Exception:
            self.cases.pop(name, None)
            raise
        return {"error": error, "copies": copies, "seconds": seconds}

    def sample(self, name: str, seconds: float, cold: bool) -> dict:
        return {"us": self.timing.sample(self.cases[name], seconds, self.sweep if cold else None)}

    def drop(self, name: str | None = None) -> dict:
        """Frees one case, or all of them and whatever the library cached for them."""
        if name is not None:
            self.cases.pop(name, None)
            return {}
        self.cases.clear()
        if hasattr(self.module, "drop"):
            self.module.drop()
        return {}


def timed(call) -> float:
    t0 = time.perf_counter()
    call()
    return time.perf_counter() - t0


def described(shape: dict) -> str:
    return " ".join(f"{k}={v}" for k, v in shape.items())


def describe(e: BaseException) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:300]}"


def main() -> None:
    family, threads, problem = sys.argv[1], int(sys.argv[2]), sys.argv[4]
    cpus = {int(c) for c in sys.argv[3].split(",")}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        worker = Worker(family, threads, problem)
    except ImportError as e:
        return answer(ok=False, missing=True, why=describe(e))
    except Exception as e:
        traceback.print_exc()
        return answer(ok=False, missing=False, why=describe(e))
    worker.probe()
    variants = [
        {"name": v.name, "category": v.category, "weight_bytes": v.weight_bytes}
        for v in worker.variants.values()
    ]
    answer(ok=True, version=worker.version, variants=variants, notes=worker.notes)
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        if do == "quit":
            break
        try:
            answer(ok=True, **getattr(worker, do)(**request))
        except Exception as e:
            traceback.print_exc()
            answer(ok=False, why=describe(e))


if __name__ == "__main__":
    main()
