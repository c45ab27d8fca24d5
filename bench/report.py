#!/usr/bin/env python
"""Prints the table of a benchmark run and keeps its rows.

    pytest bench --benchmark-json=bench/results/latest.json
    python bench/report.py bench/results/latest.json

Keeps them as bench/results/<cpu>-<date>.json: device, versions, commit, one object a row. Times are
microseconds a call; floor = max(bytes / bandwidth, multiply-accumulates / peak), both measured in the same
run; "%" is floor / time.
"""

import argparse
import json
import re
from itertools import groupby
from pathlib import Path

from floor import microseconds
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("kernel", "M", "K x N", "", "t", "us", "spread", "rate", "floor us", "%", "target", "rel. err")
LEFT = ("kernel", "", "target")


def result(run):
    """What is kept of a pytest-benchmark JSON."""
    machine, commit = run["machine_info"], run["commit_info"]
    versions = {"python": machine["python_version"], **machine["versions"]}
    return {
        "date": run["datetime"],
        "commit": (commit.get("id") or "unknown") + ("+changes" if commit.get("dirty") else ""),
        "device": machine["roofline"],
        "versions": {k: v for k, v in versions.items() if v},
        "rows": [b["extra_info"] for b in run["benchmarks"]],
    }


def cells(row):
    rate = f"{row['gbs']:.1f} GB/s" if row["bound"] == "memory" else f"{row['gmacs']:.0f} GMAC/s"
    target = {None: "", True: "met", False: "[red]missed[/red]"}[row["target"]]
    name = f"{row['kernel'].partition('/')[2]} {row['variant']}"
    shape = f"{row['K']} x {row['N']}" if row["macs"] else str(row["K"])
    tilde = "" if row["quiet"] else "~"
    color = "green" if row["percent"] >= 90 else "yellow" if row["percent"] >= 60 else "red"
    return (
        *(name, str(row["M"]), shape, row["mode"], str(row["threads"])),
        *(microseconds(row["us"]), f"±{row['spread']:.1%}", rate, microseconds(row["floor_us"])),
        *(f"[{color}]{row['percent']:.0f}{tilde}[/{color}]", target, f"{row['error']:.1e}"),
    )


def tables(rows):
    """A rich table for each op."""
    for op, group in groupby(rows, lambda r: r["kernel"].partition("/")[0]):
        table = Table(title=op, title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="left" if name in LEFT else "right", no_wrap=True)
        before = None
        for row in group:
            shape = row["kernel"], row["variant"], row["K"], row["N"]
            if before not in (None, shape):
                table.add_section()
            table.add_row(*cells(row))
            before = shape
        yield table


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "json", type=Path, nargs="+", help="what pytest --benchmark-json wrote, or a kept result"
    )
    parser.add_argument("--out", type=Path, help="where to keep the rows; a kept result is only printed")
    args = parser.parse_args()
    run, *more = (json.loads(path.read_text()) for path in args.json)
    kept = run if "rows" in run else result(run)
    for part in more:  # runs of parts of bench/
        kept["rows"] += part["rows"] if "rows" in part else result(part)["rows"]
    console = Console(width=max(Console().width, 150), highlight=False)
    for table in tables(kept["rows"]):
        console.print(table)
    console.print("Targets: cold M = 1 within bytes / (0.95 bandwidth) + 3 us; warm, 1 GMAC or more: 97 %.")
    console.print("~ others (processes, virtual machines) used the cores while this row was timed.")
    if kept is not run:
        device = re.sub(r"\W+", "-", kept["device"]["cpu"].lower()).strip("-")
        date = re.sub(r"\D", "", kept["date"])[:12]
        out = args.out or RESULTS / f"{device}-{date}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(kept, indent=1) + "\n")
        console.print(f"wrote {out}")


if __name__ == "__main__":
    main()
