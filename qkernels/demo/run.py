"""The demo from start to end: load, compress, measure, report."""

import importlib
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ..errors import ArgumentError
from . import report

# name -> module here
MODELS = {"minilm": ".minilm.demo", "efficientnet-lite0": ".efficientnet.demo", "smollm2": ".smollm2.demo"}


def run(model="minilm", recipes=None, threads=None, out="demo-out", quick=False, console=None):
    """Measure every variant, write demo.json, demo.png and demo.html into ``out``, print the table.

    Args:
        model: a name in MODELS.
        recipes: names out of the RECIPES of the model's demo; None is all of them.
        threads: torch's thread count; None leaves it as it is.
        quick: few rounds, no torch.compile, less data.

    Returns the content of demo.json as a dict.

    Raises:
        ArgumentError: an unknown model or recipe, or threads below 1.
        UnsupportedError: a package of the model or its data is not installed.
    """
    start, console, out = time.perf_counter(), console or Console(), Path(out)
    if threads is not None and threads < 1:
        raise ArgumentError(f"demo: threads is {threads}; accepted: 1 or more.")
    if model not in MODELS:
        raise ArgumentError(f"demo: model is {model!r}; accepted: {', '.join(MODELS)}.")
    demo = importlib.import_module(MODELS[model], __package__)
    recipes = chosen_recipes(recipes, demo.RECIPES)
    demo.check_installed()
    out.mkdir(parents=True, exist_ok=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with torch.no_grad(), _progress(console) as progress:
            result = demo.measure(recipes, quick, progress)
    finally:
        torch.set_num_threads(before)
    result["machine"] = report.machine()
    result["settings"]["model"] = model
    result["seconds"] = round(time.perf_counter() - start, 1)
    report.write(demo, result, out)
    report.show(demo, result, out, console)
    return result


def chosen_recipes(names, accepted):
    """The names asked for, checked, or all that there are.

    Raises:
        ArgumentError: a name that is not a recipe.
    """
    unknown = [n for n in names or () if n not in accepted]
    if unknown:
        raise ArgumentError(f"demo: recipes has {', '.join(unknown)}; accepted: {', '.join(accepted)}.")
    return list(names or accepted)


def _progress(console):
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)
