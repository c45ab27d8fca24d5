"""The worker process: ``python -m peer_workers FAMILY THREADS CPUS``, driven by ``bench/peers.py``.
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

SLOW = 2e9  # MAC a second at M = 16: a peer below that has no kernel for this machine


class Worker:
    def __init__(self, family: str, threads: int):
        from . import problem

        self.problem = problem
        self.module = importlib.import_module(f"{__package__}.{FAMILIES[family].module}")
        self.version, variants, self.notes = self.module.load(threads)
        self.variants = {v.name: v for v in variants}
        self.cases: dict = {}
        self.sweep = None
        self.current = None

    def probe(self) -> None:
        """Runs every variant once on small cases: what fails or is wrong there is not timed at all."""
        for name, variant in list(self.variants.items()):
            for M in (1, 16):
                try:
                    error, seconds = self._build(name, self.problem.Problem(M, 384, 384), 2)
                    self._refuse(error, variant, (M, 384, 384))
                    call = self.cases[name].calls[0]
                    for _ in range(20):  # one slow call may be another process's fault
                        if M == 1 or M * 384 * 384 / seconds > SLOW:
                            break
                        seconds = min(seconds, timed(call) / self.cases[name].inner)
                    rate = M * 384 * 384 / seconds
                    if M > 1 and rate < SLOW:
                        raise TimeoutError(f"{rate / 1e9:.2f} GMAC/s at M = {M}: a reference kernel")
                except Exception as e:
                    self.notes.append(f"{name}: not timed: {describe(e)}")
                    traceback.print_exc()
                    del self.variants[name]
                    break
            self.drop()

    def _refuse(self, error: float, variant, shape: tuple) -> None:
        allowed = self.problem.TOLERANCE[variant.tolerance]
        if not error <= allowed:
            raise ArithmeticError(
                f"wrong result at M, K, N = {shape}: relative error {error:.3g} > {allowed:g}"
            )

    def _build(self, name: str, problem, copies: int) -> tuple[float, float]:
        built = self.variants[name].build(problem, copies)
        self.cases[name] = built
        for call in built.calls:  # once each: some pack a weight when they first meet it
            call()
        seconds = timed(built.calls[0]) / built.inner
        return problem.error(built), seconds

    def build(self, name: str, M: int, K: int, N: int, copies: int, sweep_bytes: int) -> dict:
        """Builds and checks one case; ``sweep_bytes`` > 0 for cold cases: what a sample reads first."""
        import numpy as np

        variant, shape = self.variants[name], (M, K, N)
        if self.current is None or shape != (self.current.M, self.current.K, self.current.N):
            self.current = self.problem.Problem(*shape)
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
        return {"us": self.problem.sample(self.cases[name], seconds, self.sweep if cold else None)}

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


def describe(e: BaseException) -> str:
    return f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:300]}"


def main() -> None:
    family, threads, cpus = sys.argv[1], int(sys.argv[2]), {int(c) for c in sys.argv[3].split(",")}
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(**fields) -> None:
        answers.write(json.dumps(fields) + "\n")

    try:
        worker = Worker(family, threads)
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
