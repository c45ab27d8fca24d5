"""Block shapes of the kernels, read from the tables in ``configs/``: nothing is measured while a program runs.

A table is a JSON file named after a GPU ("NVIDIA_H100_80GB_HBM3.json") or a compute capability ("sm_90.json"):

    {"source": "...", "linear_int": [{"most_m": 16, "BN": 64, "BM": 16, "tiles": 8, "warps": 4, "stages": 5,
                                      "waves": 2, "most_splits": 16, "fuse": 8}, ...], "linear_int_groups": [...], ...}

Kernels: linear_int, linear_float (products of bfloat16 or float16), both also with _groups of scales, which keep two
accumulators, and linear_float32. The first row whose ``most_m`` is not below M is taken; the last has ``most_m`` null.
Without a table of the GPU's name that of its capability is read, else of the next lower one. "source" says how the
numbers came about. ``waves``: K is split until there are that many programs a multiprocessor, into ``most_splits``
parts at most. ``fuse``, of the integer core: how many MiB all programs together may read to find dynamic scales before
a kernel of its own quantizes (fuse.py); 0: that always does.

The tables for sm_80, sm_89 and sm_90 are **untuned estimates**: no kernel had been timed on a GPU when they were
written. ``python -m qkernels.triton_kernels.tune`` measures on the GPU at hand and writes its table.
"""

import functools
import json
import math
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "configs"
KERNELS = ("linear_int", "linear_int_groups", "linear_float", "linear_float_groups", "linear_float32")
KEYS = ("BN", "BM", "tiles", "warps", "stages", "waves", "most_splits")
INTERPRETED = {
    "BN": 32,
    "BM": 16,
    "tiles": 2,
    "warps": 4,
    "stages": 1,
    "waves": 1,
    "most_splits": 2,
    "fuse": 8,
}


def file_of(name):
    """The path of a GPU's table."""
    return FOLDER / f"{name.replace(' ', '_').replace('/', '_')}.json"


def name_of(core, units, dtype=None):
    """The name of a kernel in the tables; core "int" or "float"."""
    if dtype == "float32":
        return "linear_float32"
    return f"linear_{core}_groups" if units.is_grouped else f"linear_{core}"


@functools.cache
def table(name, capability):
    """The table of a GPU: its name, (major, minor)."""
    if file_of(name).exists():
        return json.loads(file_of(name).read_text())
    own = 10 * capability[0] + capability[1]
    there = sorted(int(f.stem[3:]) for f in FOLDER.glob("sm_*.json"))
    best = max((c for c in there if c <= own), default=there[0])
    return json.loads((FOLDER / f"sm_{best}.json").read_text())


def row_of(rows, m):
    """The first row that takes M tokens."""
    return next(r for r in rows if r["most_m"] is None or m <= r["most_m"])


def splits_of(row, m, n, steps, multiprocessors):
    """Into how many parts K is split: 1 where the tiles alone keep the GPU busy."""
    tiles = math.ceil(n / row["BN"]) * math.ceil(m / row["BM"])
    wanted = row["waves"] * multiprocessors // max(tiles, 1)
    return max(1, min(wanted, row["most_splits"], steps))
