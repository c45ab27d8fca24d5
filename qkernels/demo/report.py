"""What the demo hands over: a table in the terminal, demo.json, demo.png and demo.html."""

import base64
import html
import json
import os
import platform
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from . import picture

NAMES = [("weights", ""), ("run as", "")]
SIZE = [("weights", "MB"), ("bits/", "weight")]
PAGE = Path(__file__).parent / "page.html"


def machine():
    """Facts of this machine and its software that a reader of the numbers needs."""
    from .. import __version__, capabilities
    from ..latency.roofline import cpu_name

    return {
        "cpu": cpu_name(),
        "logical_cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "qkernels": __version__,
        "capabilities": capabilities(),
    }


def speed_columns(demo):
    times = [head for kind in demo.CASES.values() for head in ((kind.column, kind.unit), ("speed", "x"))]
    return [*times, ("outside", ", ".join(kind.short for kind in demo.CASES.values()))]


def columns(demo, result):
    """Titles and units of the table; ``cells`` gives a row's texts in the same order."""
    return NAMES + speed_columns(demo) + SIZE + demo.quality_columns(result)


def cells(demo, row):
    """One row of the table as texts: two names, then times, sizes and the quality."""
    times = []
    for case, kind in demo.CASES.items():
        t = row[case]
        shown = f"{t['per_second']:.0f}" if kind.rate else f"{t['milliseconds']:.2f}"
        times += [f"{shown} ±{t['spread']:.0%}", f"{t['speedup']:.2f}"]
    shares = [row["outside_share"][case] for case in demo.CASES]
    return [
        row["family"],
        row["how"],
        *times,
        ", ".join("-" if share is None else f"{share:.0%}" for share in shares),
        f"{row['weight_bytes'] / 1e6:.2f}",
        f"{row['bits_per_weight']:.2f}",
        *demo.quality_cells(row),
    ]


def explanation(demo, result):
    """How the numbers came about, as paragraphs."""
    s = result["settings"]
    return [
        f"{demo.timed(result)} {s['threads']} threads, {s['rounds']} rounds, all rows in turns; median ± half the "
        f"distance of the quartiles. Speed: against the fastest {' or '.join(demo.FLOATS)} row of the column. Outside: "
        f"share of the time that is not spent in the {demo.LAYERS}.",
        "; ".join(f"{how}: {meaning}" for how, meaning in demo.HOW.items()) + ".",
        *demo.explanation(result),
    ]


def show(demo, result, out, console):
    """Print the tables, how they came about, the notes and where the files are."""
    head, rows, split = columns(demo, result), result["rows"], len(NAMES) + len(speed_columns(demo))
    s = result["settings"]
    title = f"{s['model']} on {result['machine']['cpu']}, {s['threads']} threads"
    for heading, shown in ((title, range(len(NAMES), split)), (None, range(split, len(head)))):
        table = Table(title=heading, header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for n in (0, 1, *shown):
            table.add_column("\n".join(head[n]), justify="left" if n < 2 else "right", no_wrap=True)
        for n, row in enumerate(rows):
            texts, after = cells(demo, row), rows[n + 1 : n + 2]
            ends = not row["qkernels"] and after and after[0]["family"] != row["family"]
            style = "cyan" if row["qkernels"] else None
            table.add_row(*texts[:2], *(texts[n] for n in shown), style=style, end_section=bool(ends))
        console.print(table)
    for line in explanation(demo, result):
        console.print(line, style="dim", highlight=False)
    for note in result["notes"]:
        console.print(f"Note: {note}", style="yellow", highlight=False, markup=False)
    console.print(f"{result['seconds']:.0f} s in all. Written:")
    for name in ("demo.html", "demo.png", "demo.json"):
        console.print(f"  {out / name}", highlight=False, soft_wrap=True, markup=False)


def write(demo, result, out):
    """Write demo.json, demo.png and demo.html into the folder ``out``."""
    (out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    picture.draw(demo, result, out / "demo.png")
    (out / "demo.html").write_text(page(demo, result, (out / "demo.png").read_bytes()), encoding="utf-8")


def page(demo, result, png):
    """The self-contained HTML page."""
    esc = html.escape
    head = "".join(f"<th>{esc(t)}<small>{esc(u)}</small></th>" for t, u in columns(demo, result))
    body = ""
    for row in result["rows"]:
        texts = "".join(f"<td>{esc(text)}</td>" for text in cells(demo, row))
        body += f"<tr class='{'qk' if row['qkernels'] else 'torch'}'>{texts}</tr>"
    facts = {k.replace("_", " "): v for k, v in result["machine"].items() if k != "capabilities"}
    facts["instruction set"] = result["machine"]["capabilities"]["isa"]
    return (
        PAGE.read_text(encoding="utf-8")
        .replace("{{headline}}", esc(demo.headline(result)))
        .replace("{{head}}", head)
        .replace("{{body}}", body)
        .replace("{{picture}}", base64.b64encode(png).decode())
        .replace("{{explanation}}", "".join(f"<p>{esc(t)}</p>" for t in explanation(demo, result)))
        .replace("{{notes}}", "".join(f"<p class='note'>{esc(t)}</p>" for t in result["notes"]))
        .replace("{{facts}}", "".join(f"<dt>{esc(k)}</dt><dd>{esc(str(v))}</dd>" for k, v in facts.items()))
    )
