"""The demo from start to end: load, compress, measure, report."""

import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import ArgumentError
from . import data, measure, report
from .model import Batch, SentenceEncoder, linear_layers
from .variants import PLAIN, build, chosen_recipes

BATCH = 32


def run(model="minilm", recipes=None, threads=None, out="demo-out", quick=False, console=None):
    """Measure every variant, write demo.json, demo.png and demo.html into ``out``, print the table.

    Args:
        model: a name in ``data.MODELS``.
        recipes: names out of ``qkernels.compress.RECIPES``; None is all of them.
        threads: torch's thread count; None leaves it as it is.
        quick: few rounds, no torch.compile, one labelled data set.

    Returns the content of demo.json as a dict.

    Raises:
        ArgumentError: an unknown model or recipe, or threads below 1.
        UnsupportedError: the model's package is not installed.
    """
    start, console, out = time.perf_counter(), console or Console(), Path(out)
    if threads is not None and threads < 1:
        raise ArgumentError(f"demo: threads is {threads}; accepted: 1 or more.")
    recipes, folder = chosen_recipes(recipes), data.model_folder(model)
    out.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.no_grad(), _progress(console) as progress:
            result = _measure(folder, recipes, quick, progress)
    finally:
        torch.set_num_threads(before)
    result["settings"]["model"] = model
    result["seconds"] = round(time.perf_counter() - start, 1)
    report.write(result, out)
    report.show(result, out, console)
    return result


def _progress(console):
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def _measure(folder, recipes, quick, progress):
    say = progress.console.print
    tokenize = data.Tokenizer(folder)
    tokens = tokenize(data.sentences("evaluated"))
    calibration = [tuple(b) for b in measure.batches(tokenize(data.sentences("calibration")), padded=None)[0]]
    sentence = sorted(tokens, key=len)[len(tokens) // 2]
    cases = {"one": [Batch.of([sentence])], "batch": measure.batches(tokens, BATCH)[0]}
    encoder = SentenceEncoder.load(folder)
    say(f"loaded {folder.parent.name}: {len(linear_layers(encoder))} linear layers")

    step = progress.add_task("preparing", total=None)
    variants, notes = build(encoder, recipes, calibration, cases, 0 if quick else 65, say)
    progress.update(step, total=1, completed=1)

    step = progress.add_task(f"timing {len(variants)} variants in turns", total=1.0)
    limits = (0, 3, 3) if quick else (30, 7, 40)
    times = measure.in_turns(variants, cases, *limits, lambda f: progress.update(step, completed=f))
    progress.update(step, completed=1.0)

    labelled = {name: (tokenize(texts), *pairs) for name, (texts, *pairs) in data.labelled().items()}
    if quick:
        labelled.pop("Lee", None)
    if not labelled:
        notes.append(f"rho: left out, the package gensim (its test data) is not installed. {data.INSTALL}")
    step = progress.add_task("comparing their embeddings", total=len(variants))
    exact = measure.embed(variants[0].run["batch"], tokens)
    rows = []
    for v in variants:
        cosine = measure.cosines(measure.embed(v.run["batch"], tokens), exact)
        rows.append(
            {
                "family": v.family,
                "how": v.how,
                "qkernels": v.family in recipes,
                "linear_bytes": v.weight_bytes(),
                "bits_per_weight": v.bits_per_weight(),
                "times": times[v.name],
                "outside_share": {c: measure.outside_share(v, c, parts) for c, parts in cases.items()},
                "cosine": {"mean": float(cosine.mean()), "min": float(cosine.min())},
                "scores": {k: measure.agreement(v.run["batch"], *pairs) for k, pairs in labelled.items()},
            }
        )
        progress.advance(step)
    summarize(rows, len(tokens))
    return {
        "machine": report.machine(),
        "settings": {
            "threads": torch.get_num_threads(),
            "linear_layers": len(linear_layers(encoder)),
            "sentences": len(tokens),
            "tokens": sum(map(len, tokens)),
            "tokens_of_one_sentence": len(sentence),
            "batch": BATCH,
            "calibration_sentences": len(data.sentences("calibration")),
            "rounds": len(rows[0]["times"]["one"]),
            "quick": quick,
        },
        "rows": rows,
        "notes": notes,
    }


def summarize(rows, sentences):
    """Add to each row what follows from its times: medians, spreads, throughput, speed-ups of medians."""
    for case in ("one", "batch"):
        best = min((r for r in rows if r["family"] == "float32"), key=lambda r: np.median(r["times"][case]))
        users = next(r for r in rows if r["family"] == "float32" and r["how"] == PLAIN)
        for row in rows:
            t = np.array(row["times"][case])
            row[case] = {
                "milliseconds": float(np.median(t) * 1e3),
                "spread": measure.spread(t),
                "speedup_over_best_float32": float(np.median(best["times"][case]) / np.median(t)),
                "speedup_over_linear_float32": float(np.median(users["times"][case]) / np.median(t)),
                "is_best_float32": row is best,
            }
            if case == "batch":
                row[case]["sentences_per_second"] = float(sentences / np.median(t))
