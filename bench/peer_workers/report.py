"""Prints the rows of ``bench/peers.py`` as tables, and says what machine they are from."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from . import CATEGORIES, OURS
from .problems import PROBLEMS


def compare(ours: dict, best: dict) -> dict:
    """Ours against a peer, above 1 where qkernels is faster.

    ``ratio`` [``low`` .. ``high``]: median and middle 80 % of the ratios within a round.  ``quiet``: that of
    the fastest tenths, which other work on the machine disturbs least.  ``verdict``: "ahead" and "SLOWER"
    where the middle 80 % of the rounds agree, else "tie", on the side of the median.
    """
    rounds = zip(ours["rounds"], best["rounds"], strict=False)
    low, ratio, high = (float(v) for v in np.percentile([b / a for a, b in rounds], (10, 50, 90)))
    verdict = "ahead" if low >= 1 else "SLOWER" if high < 1 else "tie" if ratio >= 1 else "tie, slower"
    return {"ratio": ratio, "low": low, "high": high, "quiet": best["p10"] / ours["p10"], "verdict": verdict}


def microseconds(r: dict | None) -> str:
    if r is None:
        return ""
    digits = 2 if r["us"] < 10 else 1 if r["us"] < 1000 else 0
    return f"{r['us']:.{digits}f} [{r['p10']:.{digits}f}..{r['p90']:.{digits}f}]"


def rate(r: dict | None) -> str:
    """GB/s of weights where the memory bounds the call, else GMAC/s."""
    if r is None:
        return ""
    return f"{r['weight_gbs']:.1f} GB/s" if r["mode"] == "cold" else f"{r['gmacs']:.0f} GMAC/s"


def cell_key(r: dict, problem: str) -> tuple:
    return r["threads"], *PROBLEMS[problem].order(r), r["mode"] == "cold"


def by_cell(rows: list[dict], problem: str) -> dict[str, dict[tuple, list[dict]]]:
    """Category -> cell -> rows, the fastest first."""
    groups: dict[str, dict[tuple, list[dict]]] = {category: {} for category in CATEGORIES}
    for r in sorted(rows, key=lambda r: r["us"]):
        groups[r["category"]].setdefault(cell_key(r, problem), []).append(r)
    return groups


def scales(groups: dict, category: str, key: tuple) -> list[dict | None]:
    """The best row of each category that is there for scale, in a cell."""
    return [groups[name].get(key, [None])[0] for name in CATEGORIES[category].scale]


def best_of(group: list[dict], ours: bool) -> dict | None:
    return next((r for r in group if (r["family"] == OURS) == ours), None)


LEFT = ("", "layer", "qkernels", "implementation", "best peer", "ours / best peer")


def tables(rows: list[dict], problem: str, everything: bool = False) -> None:
    """Prints a table a category: a line a cell, ours and the best peer, or a line an implementation."""
    out = Console(width=max(Console().width, 220), highlight=False)
    verdicts: list[str] = []
    groups, named = by_cell(rows, problem), PROBLEMS[problem].columns_of
    for category, cells in groups.items():
        if not cells:
            continue
        about = CATEGORIES[category]
        table = Table(title=f"{category}: {about.what}", title_justify="left")
        first = ("t", *named(next(iter(cells.values()))[0]), "")
        if everything:
            columns = (*first, "implementation", "us [p10..p90]", "rate", "error")
        else:
            columns = (*first, "qkernels", "us [p10..p90]", "rate", "us of best peer", "best peer")
            columns += ("ours / best peer", "quiet", *(f"ours / {name}" for name in about.scale))
        for column in columns:
            table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
        for key in sorted(cells):
            group, r = cells[key], cells[key][0]
            where = [str(r["threads"]), *named(r).values(), r["mode"]]
            if everything:
                all_lines(table, where, group)
            else:
                verdicts += our_lines(table, where, group, scales(groups, category, key))
        out.print(table)
    if verdicts:
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
        out.print(f"qkernels against the best peer, line by line: {counts}.")


def our_lines(table: Table, where: list[str], group: list[dict], scale: list[dict | None]) -> list[str]:
    """A line for each of our implementations (one without, if there is none); returns the verdicts."""
    best = best_of(group, ours=False)
    verdicts = []
    for ours in [r for r in group if r["family"] == OURS] or [None]:
        versus, style, quiet = "", None, ""
        if ours and best:
            c = compare(ours, best)
            versus = f"x{c['ratio']:.2f} [{c['low']:.2f}..{c['high']:.2f}] {c['verdict']}"
            quiet = f"x{c['quiet']:.2f}"
            style = {"ahead": "green", "SLOWER": "bold red"}.get(c["verdict"], "yellow")
            verdicts.append(c["verdict"])
        over = [f"x{s['us'] / ours['us']:.2f}" if s and ours else "" for s in scale]
        name = ours["name"].removeprefix(OURS).strip() if ours else ""
        peer = (microseconds(best), best["name"]) if best else ("", "")
        table.add_row(
            *where, name, microseconds(ours), rate(ours or best), *peer, versus, quiet, *over, style=style
        )
        where = [""] * len(where)
    return verdicts


def all_lines(table: Table, where: list[str], group: list[dict]) -> None:
    for r in group:
        name = r["name"] + (f" ({len(r['rounds'])} rounds)" if len(r["rounds"]) < 3 else "")
        cells = (*where, name, microseconds(r), rate(r), f"{r['error']:.1e}")
        table.add_row(*cells, style="bold" if r["family"] == OURS else None, end_section=r is group[-1])
        where = [""] * len(where)


def markdown(rows: list[dict], problem: str, everything: bool = False) -> None:
    """Prints Markdown tables, a line a cell: our best row and the best peer on each number of threads.

    Microseconds are of the fastest tenth, and the best is who has the least; the ratio is best peer / ours of
    those, in parentheses the median of the ratios within a round; bold where qkernels is slower by more than
    1.5 %.  ``everything``: all peers.
    """
    groups, named = by_cell(rows, problem), PROBLEMS[problem].columns_of
    threads = sorted({r["threads"] for r in rows})
    for category, cells in groups.items():
        if not cells or CATEGORIES[category].reference:
            continue
        about = CATEGORIES[category]
        head = [*named(rows[0]), "mode"]
        for t in threads:
            head += [f"{t}t: us", "best peer", "ratio", *(f"/ {name}" for name in about.scale)]
        print(f"\n{category}: {about.what}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
        for key in sorted({key[1:] for key in cells}):
            line, where = [], None
            for t in threads:
                group = cells.get((t, *key), [])
                if group:
                    where = [*named(group[0]).values(), group[0]["mode"]]
                line += markdown_cells(group, scales(groups, category, (t, *key)), everything)
            print(f"| {' | '.join([*where, *line])} |")


def markdown_cells(group: list[dict], scale: list[dict | None], everything: bool) -> list[str]:
    group = sorted(group, key=lambda r: r["p10"])
    ours, best = best_of(group, ours=True), best_of(group, ours=False)
    peers = [r for r in group if r["family"] != OURS]
    peer = ", ".join(f"{short(r['p10'])} {r['name']}" for r in (peers if everything else peers[:1]))
    ratio = ""
    if ours and best:
        c = compare(ours, best)
        text = f"{c['quiet']:.2f}"
        ratio = f"{f'**{text}**' if c['quiet'] < 0.985 else text} ({c['ratio']:.2f})"
    over = [f"{s['p10'] / ours['p10']:.1f}" if s and ours else "" for s in scale]
    return [short(ours["p10"]) if ours else "", peer, ratio, *over]


def short(us: float) -> str:
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 1000 else f"{us:.0f}"


def cpu_model() -> dict:
    """What the numbers depend on: CPU model, instruction sets, cores, last-level cache, memory."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""

    def field(name: str) -> str:
        found = re.search(rf"^{name}\s*:\s*(.*)$", info, re.MULTILINE)
        return found[1] if found else ""

    flags = set(field("flags").split())
    keep = (
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_int8",
        "amx_bf16",
    )
    return {
        "model": field("model name") or platform.processor(),
        "family_model_stepping": "-".join(field(n) for n in ("cpu family", "model", "stepping")),
        "cpus": os.cpu_count(),
        "isa": [f for f in keep if f in flags],
        "llc_bytes": last_level_cache(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def last_level_cache() -> int:
    sizes = [0]
    for f in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        n, unit = re.match(r"(\d+)([KMG]?)", f.read_text()).groups()
        sizes.append(int(n) << {"": 0, "K": 10, "M": 20, "G": 30}[unit])
    return max(sizes)
