#!/usr/bin/env python
"""Times qkernels against other libraries, in one interleaved run.

    python bench/peers.py                          # int8 linear, the whole grid, one thread and then two
    python bench/peers.py --threads 1 --shapes 384x1536 --m 1 128 --only litert qkernels
    python bench/peers.py --problem w4a8 --groups 0 64 --m 1 --mode cold     # 4-bit weights; 0: per channel
    python bench/peers.py --problem w4a16 --threads 1 --m 1 128      # 4-bit weights, float activations
    python bench/peers.py --problem binary         # products of packed signs
    python bench/peers.py --problem conv --nets mobilenetv2 --batch 1 8
    python bench/peers.py --quick                  # a small part of the problem's grid, few rounds
 Each library runs in a process of its own, so that thread pools do not meet; ``--python
litert=/other/venv/bin/python`` lets one live in another environment, and a library that is not installed is
named and left out.  In every cell (shape, warm or cold, threads) all libraries build their case and check
it against NumPy, and then take turns, one short sample each, round after round; who is not sampled sleeps
on a pipe.  Ratios are taken within a round, so a clock that moves between rounds moves both sides.
 warm: one weight, called again and again.  cold: before each sample more than the last-level cache is read,
and the sample uses every copy of the weight once.
 Shapes are K x N: a layer of K inputs and N outputs on M rows; convolutions go by network.
bench/peers-requirements.txt installs the peers.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from peer_workers import CATEGORIES, FAMILIES, OURS
from peer_workers.problems import LAYERS, PROBLEMS
from peer_workers.report import cpu_model, markdown, tables
from rich.console import Console
from rich.progress import Progress

HERE = Path(__file__).resolve().parent

COPY_BYTES, MAX_COPIES = 64 << 20, 192  # weight copies of a cold case
REFERENCE_ROUNDS = 2  # of a category that is there for scale; warm only
console = Console(stderr=True)


class Turn:
    """A lock file that benchmarks of one machine take in turns: held for some cells, then offered."""

    HOLD_SECONDS = 40

    def __init__(self, path: str | None):
        self.file = open(path, "a") if path else None  # noqa: SIM115
        self.since: float | None = None

    def take(self) -> None:
        if self.file and self.since is None:
            fcntl.flock(self.file, fcntl.LOCK_EX)
            self.since = time.monotonic()

    def offer(self, at_once: bool = False) -> None:
        if self.since is not None and (at_once or time.monotonic() - self.since > self.HOLD_SECONDS):
            fcntl.flock(self.file, fcntl.LOCK_UN)
            self.since = None
            time.sleep(0.2)


class Peer:
    """A worker process and the variants it offers."""

    def __init__(self, family: str, args, threads: int, cpus: list[int], log_dir: str):
        env = {**os.environ, **FAMILIES[family].env, "PYTHONPATH": python_path()}
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            env[name] = str(threads)
        # glibc: keep large result buffers instead of mapping them anew in every call, for all alike
        env |= {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
        env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "GLOG_minloglevel": "3"}
        self.family, self.log = family, Path(log_dir) / f"{family}-{threads}.log"
        python = args.python.get(family, sys.executable)
        command = [python, "-m", "peer_workers", family, str(threads), ",".join(map(str, cpus)), args.problem]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # an interrupt ends the run in order, with what there is
            )
        self.hello = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            tail = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            return {"ok": False, "died": True, "why": f"the process ended with {code}: {''.join(tail)[:200]}"}
        return json.loads(line)

    def ask(self, do: str, **fields) -> dict:
        try:
            self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        return self._answer()

    def settle(self) -> None:
        """Waits until none of the worker's threads runs: spinning pools must not disturb who is timed
        next."""
        deadline = time.monotonic() + 0.5
        tasks = Path(f"/proc/{self.process.pid}/task")
        while time.monotonic() < deadline and tasks.exists():
            with contextlib.suppress(OSError):
                stats = [(t / "stat").read_text().rpartition(")")[2].split()[0] for t in tasks.iterdir()]
                if "R" not in stats:
                    return
            time.sleep(0.001)

    def close(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write('{"do": "quit"}\n')
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def python_path() -> str:
    return os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])


def start(args, threads: int, cpus: list[int], log_dir: str, notes: list[str], turn: Turn) -> list[Peer]:
    peers = []
    for family, about in FAMILIES.items():
        if (args.only and family not in args.only) or args.problem not in about.problems:
            continue
        turn.take()
        console.print(f"starting {family} on {threads} thread(s) ...", style="dim")
        peer = Peer(family, args, threads, cpus, log_dir)
        turn.offer()
        if peer.hello["ok"]:
            notes += [n for n in peer.hello["notes"] if n not in notes]
            peers.append(peer)
            continue
        why = peer.hello["why"]
        if peer.hello.get("missing"):
            how = "build qkernels first" if family == OURS else "pip install -r bench/peers-requirements.txt"
            why = f"not installed ({why}): {how}"
        notes.append(f"{family}: left out: {why}")
        console.print(notes[-1], style="bold yellow")
        peer.close()
    return peers


def measure_cell(
    peers: list[Peer], cell: dict, args, sweep_bytes: int, clock, notes: list[str], turn: Turn
) -> list[dict]:
    """Builds a cell in every worker, times it round by round, and returns one row a variant."""
    shape, cold = cell["shape"], cell["mode"] == "cold"
    problem = PROBLEMS[args.problem](**shape)
    what = f"{cell['mode']} {shape} {cell['threads']}t"
    runs = []
    for peer in peers:
        for v in peer.hello["variants"]:
            about = CATEGORIES[v["category"]]
            if v["category"] not in (args.categories or CATEGORIES) or (
                cold and about.reference and not about.cold
            ):
                continue
            turn.take()
            weight = problem.weights * v["weight_bytes"]
            copies = max(3, min(MAX_COPIES, int(-(-COPY_BYTES // weight)))) if cold else 1
            got = peer.ask(
                "build", name=v["name"], shape=shape, copies=copies, sweep_bytes=sweep_bytes if cold else 0
            )
            turn.offer()
            if got["ok"]:
                runs.append({"peer": peer, "v": v, "built": got, "rounds": [], "ghz": [], "about": about})
            else:
                notes.append(f"{v['name']} {what}: not timed: {got['why']}")
    for number in range(args.rounds):
        turn.take()
        for run in runs:
            enough = run["about"].reference and number >= REFERENCE_ROUNDS
            if enough or run.get("dropped") or run["peer"].process.poll() is not None:
                continue
            run["ghz"].append(clock())
            name = run["v"]["name"]
            got = run["peer"].ask("sample", name=name, seconds=args.sample_ms / 1e3, cold=cold)
            if got["ok"]:
                run["rounds"].append(got["us"])
            else:
                notes.append(f"{name} {what}: failed while timed: {got['why']}")
                run["dropped"] = True
            run["peer"].settle()
        turn.offer()
        if number == 1:
            drop_slow(runs, args.prune)
    for peer in peers:
        if peer.process.poll() is None:
            peer.ask("drop")
    return [row_of(cell, run, problem) for run in runs if run["rounds"]]


def drop_slow(runs: list[dict], factor: float) -> None:
    """After two rounds, who is ``factor`` times slower than the best of the category is not timed again."""

    def us(r: dict) -> float:  # the better round: another process may have held a core in the other
        return min(statistics.median(times) for times in r["rounds"])

    for category in CATEGORIES:
        group = [r for r in runs if r["v"]["category"] == category and r["rounds"]]
        best = min(map(us, group), default=0)
        for r in group:
            if us(r) > factor * best and r["peer"].family != OURS:
                r["dropped"] = True
                r["peer"].ask("drop", name=r["v"]["name"])


def row_of(cell: dict, run: dict, problem) -> dict:
    times = np.concatenate([np.asarray(r) for r in run["rounds"]])
    us = float(np.median(times))
    clocks = [c for c in run["ghz"] if c]
    return {
        **cell["shape"],
        "mode": cell["mode"],
        "threads": cell["threads"],
        "category": run["v"]["category"],
        "family": run["peer"].family,
        "name": run["v"]["name"],
        "us": us,
        "p10": float(np.percentile(times, 10)),
        "p90": float(np.percentile(times, 90)),
        "gmacs": problem.macs / us / 1e3,
        "weight_gbs": problem.weights * run["v"]["weight_bytes"] / us / 1e3,
        "rounds": [float(np.median(r)) for r in run["rounds"]],
        "samples": int(times.size),
        "error": run["built"]["error"],
        "copies": run["built"]["copies"],
        "core_ghz": round(statistics.median(clocks), 3) if clocks else None,
    }


def git_commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changes = "+changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changes


def core_clock():
    """Reads the core clock in GHz (a chain of dependent adds) where qkernels is built; else gives None."""
    try:
        from qkernels import _native

        _native.core_ghz()
        return _native.core_ghz
    except (ImportError, AttributeError):
        return lambda: None


def shape(text: str) -> tuple[int, int]:
    k, n = (int(v) for v in text.lower().split("x"))
    return k, n


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--problem", choices=PROBLEMS, default="linear")
    p.add_argument(
        "--threads", type=int, nargs="+", default=[1, 2], help="thread counts, each a run of its own"
    )
    p.add_argument("--shapes", type=shape, nargs="+", metavar="KxN", help="of a matrix product")
    p.add_argument("--m", type=int, nargs="+", metavar="M", help="rows of a matrix product; cold up to 16")
    p.add_argument(
        "--groups", type=int, nargs="+", help="group sizes of w4a8 and w4a16; 0: a scale a channel"
    )
    p.add_argument("--nets", nargs="+", choices=LAYERS, help="whose layers conv takes")
    p.add_argument("--batch", type=int, nargs="+", default=[1], help="images of conv")
    p.add_argument("--mode", choices=["warm", "cold", "both"], default="both")
    p.add_argument("--only", nargs="+", choices=FAMILIES, metavar="FAMILY", help=", ".join(FAMILIES))
    p.add_argument(
        "--categories", nargs="+", choices=CATEGORIES, metavar="CATEGORY", help=", ".join(CATEGORIES)
    )
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--sample-ms", type=float, default=30, help="length of one warm sample")
    p.add_argument(
        "--prune", type=float, default=2.5, help="leave a peer after two rounds if it is this much slower"
    )
    p.add_argument(
        "--quick", action="store_true", help="two shapes, M = 1 and 128, one group size, three rounds"
    )
    p.add_argument(
        "--python", action="append", default=[], metavar="FAMILY=PYTHON", help="interpreter of one family"
    )
    p.add_argument(
        "--lock", metavar="FILE", help="take turns with others that hold this lock file (shared machines)"
    )
    p.add_argument(
        "--all", action="store_true", help="print every implementation, not only the best two peers"
    )
    p.add_argument("--show", metavar="JSON", nargs="+", help="print the tables of earlier runs and stop")
    p.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    p.add_argument("--json", metavar="OUT", help="default: bench/results/peers-<problem>-<cpu>-<date>.json")
    args = p.parse_args(argv)
    if args.quick:
        shapes = [(1024, 1024), (4096, 1024)] if args.problem == "binary" else [(384, 1536), (768, 3072)]
        args.shapes, args.m, args.groups, args.rounds = args.shapes or shapes, args.m or [1, 128], [64], 3
    for item in args.python:
        if item.partition("=")[0] not in FAMILIES or "=" not in item:
            p.error(f"--python {item}: expected FAMILY=PYTHON with FAMILY one of {', '.join(FAMILIES)}")
    args.python = dict(item.split("=", 1) for item in args.python)
    available = len(os.sched_getaffinity(0))
    if max(args.threads) > available:
        p.error(f"--threads {max(args.threads)}: this process may use {available} CPUs")
    return args


def run(
    args, threads: int, cells: list[dict], sweep_bytes: int, notes: list[str], versions: dict
) -> list[dict]:
    """All cells on one thread count; returns the rows and adds to ``notes`` and ``versions``."""
    clock, rows, began = core_clock(), [], time.time()
    cpus = sorted(os.sched_getaffinity(0))
    use = cpus[-threads:]  # the first CPU tends to take the interrupts
    with tempfile.TemporaryDirectory() as log_dir, Progress(console=console) as bar:
        turn = Turn(args.lock)
        peers = start(args, threads, use, log_dir, notes, turn)
        versions |= {p.family: p.hello["version"] for p in peers}
        task = bar.add_task("", total=len(cells))
        for cell in cells:
            named = " ".join(f"{k} {v}" for k, v in PROBLEMS[args.problem].columns_of(cell["shape"]).items())
            what = f"{threads} thread(s) {named} {cell['mode']}"
            bar.update(task, description=what)
            os.sched_setaffinity(0, use)
            try:
                rows += measure_cell(
                    peers, {**cell, "threads": threads}, args, sweep_bytes, clock, notes, turn
                )
            except KeyboardInterrupt:
                notes.append(f"interrupted in {what}")
                break
            os.sched_setaffinity(0, cpus)
            turn.offer()
            bar.advance(task)
            if not console.is_terminal:
                console.print(f"{what}: done after {time.time() - began:.0f} s")
        os.sched_setaffinity(0, cpus)
        for peer in peers:
            peer.close()
        turn.offer(at_once=True)
    return rows


def show(args) -> None:
    """The tables of earlier runs, one after the other problem."""
    files = [json.loads(Path(f).read_text()) for f in args.show]
    for problem in PROBLEMS:
        rows = [r for f in files if f["settings"].get("problem", "linear") == problem for r in f["rows"]]
        if rows:
            (markdown if args.markdown else tables)(rows, problem, args.all)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.show:
        return show(args)
    device, rows, notes, versions, began = cpu_model(), [], [], {}, time.time()
    sweep_bytes = max(256 << 20, 5 * device["llc_bytes"] // 2)
    sweep_bytes = min(sweep_bytes, device["memory_bytes"] // 16)
    if sweep_bytes < 2 * device["llc_bytes"]:
        notes.append(f"cold rows: only {sweep_bytes >> 20} MiB are read to empty the cache; memory is short")
    cells = [
        {"shape": shape, "mode": mode}
        for shape in PROBLEMS[args.problem].grid(args)
        for mode in ("warm", "cold")
        if args.mode in (mode, "both") and (mode == "warm" or PROBLEMS[args.problem].cold(shape))
    ]
    for threads in args.threads:
        rows += run(args, threads, cells, sweep_bytes, notes, versions)
        if any(n.startswith("interrupted") for n in notes):
            break
    tables(rows, args.problem, args.all)
    for note in dict.fromkeys(notes):
        console.print("note: " + note, style="yellow", markup=False)
    hidden = ("json", "lock", "python", "all", "show", "markdown")
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "git": git_commit(),
        "versions": {"python": platform.python_version(), **versions},
        "settings": {k: v for k, v in vars(args).items() if k not in hidden},
        "cold": {"sweep_bytes": sweep_bytes, "copy_bytes": COPY_BYTES, "max_copies": MAX_COPIES},
        "seconds": round(time.time() - began),
        "notes": list(dict.fromkeys(notes)),
        "rows": rows,
    }
    slug = re.sub(r"[^a-z0-9]+", "-", f"{device['model']} {device['family_model_stepping']}".lower())
    stamp = time.strftime("%Y%m%d-%H%M", time.gmtime())
    out = Path(args.json or HERE / "results" / f"peers-{args.problem}-{slug.strip('-')}-{stamp}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    console.print(f"wrote {out}")


if __name__ == "__main__":
    main()
