#!/usr/bin/env python
"""Times decoding of SmolLM2-135M, and reading a prompt, beside llama.cpp on the same gguf file, in one interleaved run.

    python bench/decode.py                                   # the file's own blocks and some recipes, 1 thread, then 2
    python bench/decode.py --recipes q4_1 w4a8-g32 --threads 2 --rounds 30
    python bench/decode.py --python /other/venv/bin/python   # llama.cpp's binding lives in another environment

Each engine runs in a process of its own, on the same CPUs, and sleeps on a pipe while another is timed.  A round takes
of each in turn one prompt and the tokens decoded greedily after it, by batches of one; ratios are taken within a round.
llama.cpp multiplies Q4_1 by activations that it rounds to 8 bits in blocks of 32 (its Q8_1), and keeps keys and values
in float16; qkernels keeps them in float32.  "q4_1" leaves activations floats.
llama.cpp is called through the C functions that its binding exposes, so its Python costs a few microseconds a token:
    pip install llama-cpp-python==0.3.36     # builds llama.cpp for this machine's instructions, ten minutes
Built for AMX, this version crashes where it reads more than one token at once: --peer-batch 1 compares decoding alone.
Results go to bench/results/decode-<date>.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

PEER = "llama.cpp"
HERE = Path(__file__).resolve().parent


class LlamaCpp:
    """llama.cpp on a gguf file, with a prompt of its own cache."""

    def __init__(self, path, threads, room, batch):
        import llama_cpp
        import numpy as np

        self.c, self.np = llama_cpp, np
        options = {"n_ctx": room, "n_batch": batch, "n_ubatch": batch, "verbose": False, "logits_all": False}
        self.model = llama_cpp.Llama(path, n_threads=threads, n_threads_batch=threads, **options)
        self.context, self.batch = self.model._ctx.ctx, batch
        features = llama_cpp.llama_print_system_info().decode()
        names = [f.split(" = ")[0].strip() for f in features.split("|") if " = 1" in f]
        self.version = f"llama-cpp-python {llama_cpp.__version__} ({', '.join(names)})"

    def prompt(self, ids):
        self.read = len(ids)
        self._forget(0)
        for i in range(0, len(ids), self.batch):
            self.first = self._next(ids[i : i + self.batch])
        return self.first

    def decode(self, count):
        self._forget(self.read)
        token, out = self.first, []
        for _ in range(count):
            token = self._next([token])
            out.append(token)
        return out

    def _forget(self, start):
        self.c.llama_memory_seq_rm(self.c.llama_get_memory(self.context), 0, start, -1)

    def _next(self, ids):
        tokens = (self.c.llama_token * len(ids))(*ids)
        if self.c.llama_decode(self.context, self.c.llama_batch_get_one(tokens, len(ids))):
            raise RuntimeError("llama_decode failed")
        logits = self.c.llama_get_logits_ith(self.context, -1)
        return int(self.np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())


class Qkernels:
    """The demo's model by a recipe."""

    def __init__(self, recipe, threads, prompt, tokens):
        import torch

        import qkernels
        from qkernels.demo.smollm2 import data, demo, recipes
        from qkernels.demo.smollm2.gguf_file import File
        from qkernels.demo.smollm2.model import LanguageModel

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        file, self.torch, self.version = File(data.model_file()), torch, f"qkernels {qkernels.__version__}"
        model = LanguageModel.load(file)
        if recipe in demo.FLOATS:
            model = model.to(getattr(torch, recipe))
        else:
            text = torch.tensor(data.Tokenizer(file.metadata)("\n".join(data.documents()[-30:])))
            model = recipes.build(recipe, model, file, [(part,) for part in text[:1024].split(256)])
        self.session = demo.Session(model, torch.tensor(prompt), tokens)

    def prompt(self, ids):
        self.session.first = self.session.prompt(self.torch.tensor(ids))
        return int(self.session.first)

    def decode(self, count):
        return self.session.decode(count).tolist()


def worker(engine, request):
    """Answers each line on standard input, "prompt" or "decode", by a line of JSON: seconds and tokens."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    r = json.loads(request)
    os.sched_setaffinity(0, r["cpus"])
    room = len(r["prompt"]) + r["tokens"]
    try:
        if engine == PEER:
            run = LlamaCpp(r["path"], len(r["cpus"]), room, r["peer_batch"] or len(r["prompt"]))
        else:
            run = Qkernels(engine, len(r["cpus"]), r["prompt"], r["tokens"])
        run.prompt(r["prompt"])
        run.decode(r["tokens"])
    except Exception as e:  # named to the user, and the others run
        print(json.dumps({"why": f"{type(e).__name__}: {str(e)[:300]}"}), file=answers, flush=True)
        return
    print(json.dumps({"version": run.version}), file=answers, flush=True)
    for line in sys.stdin:
        call, argument = (run.prompt, r["prompt"]) if line.strip() == "prompt" else (run.decode, r["tokens"])
        start = time.perf_counter()
        result = call(argument)
        print(json.dumps([time.perf_counter() - start, result]), file=answers, flush=True)


class Engine:
    """A worker process."""

    def __init__(self, name, python, request):
        self.name = name
        path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "OMP_NUM_THREADS": str(len(request["cpus"])), "PYTHONPATH": path}
        command = [python, str(HERE / "decode.py"), "--worker", name, json.dumps(request)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self.hello = self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"why": f"the process ended with {self.process.wait()}"}

    def ask(self, what):
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if isinstance(answer, dict):
            raise SystemExit(f"decode: {self.name}: {answer['why']}")
        time.sleep(0.03)  # its threads stop spinning before another is timed
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait(20)


def start(names, python, request, console):
    """Engines that run; the others are named with the reason."""
    engines = []
    for name in names:
        console.print(f"starting {name} on {len(request['cpus'])} thread(s) ...", style="dim")
        engine = Engine(name, python if name == PEER else sys.executable, request)
        if "why" in engine.hello:
            how = " Install it: pip install llama-cpp-python==0.3.36, or name its environment with --python."
            why = engine.hello["why"] + (how if "llama_cpp" in engine.hello["why"] else "")
            console.print(f"{name}: left out: {why}", style="bold yellow", highlight=False)
            engine.close()
        else:
            engines.append(engine)
    if not engines:
        raise SystemExit("decode: no engine runs; the lines above say why.")
    return engines


def measure(engines, rounds, items, peer_batch=None):
    """One row an engine: medians of tokens a second, and of the ratios to llama.cpp within a round."""
    times = {e.name: {"decode": [], "prompt": []} for e in engines}
    tokens = {}
    for _ in range(rounds):
        for case in ("prompt", "decode"):
            for e in engines:
                seconds, tokens[e.name, case] = e.ask(case)
                times[e.name][case].append(seconds)
    rows = []
    for e in engines:
        row = {"engine": e.name, "version": e.hello["version"], "seconds": times[e.name]}
        for case, count in items.items():
            row[case] = {"per_second": count / median(times[e.name][case])}
            if PEER in times and not (case == "prompt" and peer_batch):
                ratios = [theirs / ours for theirs, ours in zip(times[PEER][case], times[e.name][case])]
                row[case]["over_llama_cpp"] = median(ratios)
        if PEER in times:
            pairs = zip(tokens[e.name, "decode"], tokens[PEER, "decode"])
            row["same_tokens_as_llama_cpp"] = next(
                (n for n, (a, b) in enumerate(pairs) if a != b), items["decode"]
            )
        rows.append(row)
    return rows


def table(rows, threads, tokens):
    from rich.table import Table

    shown = Table(title=f"SmolLM2-135M, {threads} thread(s)")
    for head in (
        "engine",
        "decode tok/s",
        f"/ {PEER}",
        "prompt tok/s",
        f"/ {PEER}",
        f"same first of {tokens}",
    ):
        shown.add_column(head, justify="left" if head == "engine" else "right")
    for r in rows:
        cells = []
        for case in ("decode", "prompt"):
            ratio = r[case].get("over_llama_cpp")
            cells += [f"{r[case]['per_second']:.1f}", "-" if ratio is None else f"{ratio:.2f}"]
        shown.add_row(r["engine"], *cells, str(r.get("same_tokens_as_llama_cpp", "-")))
    return shown


def main():
    if sys.argv[1:2] == ["--worker"]:
        return worker(*sys.argv[2:4])
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--recipes", nargs="+", default=["q4_1", "w4a8-g32", "int8-token"])
    parse.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parse.add_argument("--rounds", type=int, default=15)
    parse.add_argument("--prompt", type=int, default=256, help="tokens of the prompt")
    parse.add_argument("--tokens", type=int, default=64, help="tokens decoded after it")
    parse.add_argument("--python", default=sys.executable, help="the Python that has llama_cpp")
    parse.add_argument(
        "--peer-batch", type=int, help="prompt tokens that llama.cpp reads at once; default: all"
    )
    parse.add_argument("--out", type=Path, help="the JSON file")
    args = parse.parse_args()

    from rich.console import Console

    from qkernels.demo.report import machine
    from qkernels.demo.smollm2 import data
    from qkernels.demo.smollm2.gguf_file import File

    console = Console()
    cpus = sorted(os.sched_getaffinity(0))
    file = File(data.model_file())
    ids = data.Tokenizer(file.metadata)("\n".join(data.documents()))[: args.prompt]
    items, results = {"decode": args.tokens, "prompt": args.prompt}, {}
    for threads in args.threads:
        request = {
            "cpus": cpus[:threads],
            "prompt": ids,
            "tokens": args.tokens,
            "path": str(data.model_file()),
            "peer_batch": args.peer_batch,
        }
        engines = start([PEER, *args.recipes], args.python, request, console)
        try:
            results[threads] = measure(engines, args.rounds, items, args.peer_batch)
        finally:
            for e in engines:
                e.close()
        console.print(table(results[threads], threads, args.tokens))
    today = datetime.date.today().isoformat()
    out = args.out or HERE / "results" / f"decode-{today}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = {"prompt": args.prompt, "tokens": args.tokens, "rounds": args.rounds}
    settings["peer_batch"] = args.peer_batch
    about = {"date": today, "machine": machine(), "settings": settings}
    out.write_text(json.dumps({**about, "threads": results}, indent=1) + "\n")
    console.print(f"Written: {out}")


if __name__ == "__main__":
    main()
