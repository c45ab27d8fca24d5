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


def cell_key(r: dict) -> tuple:
    return r["threads"], r["K"] * r["N"], r["K"], r["M"], r["mode"] == "cold"


FLOAT_OF = {"linear_f32": "float32", "linear_bf16": "bfloat16"}  # what a user would run without qkernels


COLUMNS = ("t", "K x N", "M", "", "qkernels", "us [p10..p90]", "rate", "us of best peer", "best peer")
COLUMNS += ("ours / best peer", "quiet", "ours / float")
ALL_COLUMNS = ("t", "K x N", "M", "", "implementation", "us [p10..p90]", "rate", "error")
LEFT = ("", "qkernels", "implementation", "best peer", "ours / best peer")


def tables(rows: list[dict], everything: bool = False) -> None:
    """Prints a table a category: a line a cell, ours and the best peer, or a line an implementation."""
    out = Console(width=max(Console().width, 220), highlight=False)
    verdicts: list[str] = []
    groups: dict[str, dict[tuple, list[dict]]] = {category: {} for category in CATEGORIES}
    for r in sorted(rows, key=lambda r: r["us"]):
        groups[r["category"]].setdefault(cell_key(r), []).append(r)
    for category, cells in groups.items():
        if not cells:
            continue
        table = Table(title=f"{category}: {CATEGORIES[category]}", title_justify="left")
        for column in ALL_COLUMNS if everything else COLUMNS:
            table.add_column(column, justify="left" if column in LEFT else "right", no_wrap=True)
        for key in sorted(cells):
            group, r = cells[key], cells[key][0]
            where = [str(r["threads"]), f"{r['K']}x{r['N']}", str(r["M"]), r["mode"]]
            if everything:
                all_lines(table, where, group)
            else:
                floats = groups.get(FLOAT_OF.get(category, ""), {}).get(key)
                verdicts += our_lines(table, where, group, floats[0] if floats else None)
        out.print(table)
    if verdicts:
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
        out.print(f"qkernels against the best peer, line by line: {counts}.")


def our_lines(table: Table, where: list[str], group: list[dict], floats: dict | None) -> list[str]:
    """A line for each of our implementations (one without, if there is none); returns the verdicts."""
    best = next((r for r in group if r["family"] != OURS), None)
    verdicts = []
    for ours in [r for r in group if r["family"] == OURS] or [None]:
        versus, style, quiet, over = "", None, "", ""
        if ours and best:
            c = compare(ours, best)
            versus = f"x{c['ratio']:.2f} [{c['low']:.2f}..{c['high']:.2f}] {c['verdict']}"
            quiet = f"x{c['quiet']:.2f}"
            style = {"ahead": "green", "SLOWER": "bold red"}.get(c["verdict"], "yellow")
            verdicts.append(c["verdict"])
        if ours and floats:
            over = f"x{floats['us'] / ours['us']:.2f}"
        name = ours["name"].removeprefix(OURS).strip() if ours else ""
        peer = (microseconds(best), best["name"]) if best else ("", "")
        table.add_row(
            *where, name, microseconds(ours), rate(ours or best), *peer, versus, quiet, over, style=style
        )
        where = [""] * 4
    return verdicts


def all_lines(table: Table, where: list[str], group: list[dict]) -> None:
    for r in group:
        name = r["name"] + (" (one round)" if len(r["rounds"]) == 1 else "")
        cells = (*where, name, microseconds(r), rate(r), f"{r['error']:.1e}")
        table.add_row(*cells, style="bold" if r["family"] == OURS else None, end_section=r is group[-1])
        where = [""] * 4


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
