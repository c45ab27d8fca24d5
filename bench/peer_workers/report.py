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
    """Ours against a peer, round by round: above 1 where qkernels is faster.

    ``verdict``: "ahead" and "SLOWER" where the middle 80 % of the rounds agree, else "tie" on the side of the median.
    """
    rounds = zip(ours["rounds"], best["rounds"], strict=False)
    low, ratio, high = (float(v) for v in np.percentile([b / a for a, b in rounds], (10, 50, 90)))
    verdict = "ahead" if low >= 1 else "SLOWER" if high < 1 else "tie" if ratio >= 1 else "tie, slower"
    return {"ratio": ratio, "low": low, "high": high, "verdict": verdict}


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


def tables(rows: list[dict], everything: bool = False) -> None:
    """One table a category, a line a cell: ours, the best peer, the ratio, the next peer; or every implementation."""
    width = Console().width
    out = Console(width=max(width, 190), highlight=False)
    verdicts = []
    for category, title in CATEGORIES.items():
        cells: dict[tuple, list[dict]] = {}
        for r in rows:
            if r["category"] == category:
                cells.setdefault(
                    (r["threads"], r["K"] * r["N"], r["K"], r["M"], r["mode"] == "cold"), []
                ).append(r)
        if not cells:
            continue
        where = ("threads", "K x N", "M", "")
        what = ("implementation", "us [p10..p90]", "rate", "error") if everything else (
            "qkernels us [p10..p90]", "rate", "ours / best peer", "best peer", "us [p10..p90]", "rate", "next peer", "us"
        )  # fmt: skip
        table = Table(title=f"{category}: {title}", title_justify="left")
        for column in where + what:
            left = column in ("", "implementation", "best peer", "next peer", "ours / best peer")
            table.add_column(column, justify="left" if left else "right", no_wrap=True)
        for key in sorted(cells):
            group = sorted(cells[key], key=lambda r: r["us"])
            r = group[0]
            cell = [str(r["threads"]), f"{r['K']}x{r['N']}", str(r["M"]), r["mode"]]
            verdicts += all_lines(table, cell, group) if everything else one_line(table, cell, group)
        out.print(table)
    if verdicts:
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in sorted(set(verdicts)))
        out.print(f"qkernels against the best peer, cell by cell: {counts}.")


def one_line(table: Table, cell: list[str], group: list[dict]) -> list[str]:
    ours = next((r for r in group if r["family"] == OURS), None)
    best = next((r for r in group if r["family"] != OURS), None)
    other = next((r for r in group if r["family"] not in (OURS, best and best["family"])), None)
    text, style, verdicts = "", None, []
    if ours and best:
        c = compare(ours, best)
        text = f"x{c['ratio']:.2f} [{c['low']:.2f}..{c['high']:.2f}] {c['verdict']}"
        style = {"ahead": "green", "SLOWER": "bold red"}.get(c["verdict"], "yellow")
        verdicts = [c["verdict"]]
    name = lambda r: r["name"] if r else ""
    table.add_row(
        *cell, microseconds(ours), rate(ours), text, name(best), microseconds(best), rate(best), name(other),
        f"{other['us']:.1f}" if other else "", style=style,
    )  # fmt: skip
    return verdicts


def all_lines(table: Table, cell: list[str], group: list[dict]) -> list[str]:
    for r in group:
        name = r["name"] + (" (one round)" if len(r["rounds"]) == 1 else "")
        style = "bold" if r["family"] == OURS else None
        table.add_row(
            *cell,
            name,
            microseconds(r),
            rate(r),
            f"{r['error']:.1e}",
            style=style,
            end_section=r is group[-1],
        )
        cell = [""] * 4
    return []


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
