"""What this machine can do at best, measured: the numbers that every benchmark row is held against."""

import functools
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import _native
from ..registry import ISAS

FLOAT_PEAKS = {  # ISA -> the peak of a weight-only product: bfloat16 operands where it multiplies those
    "avx2": "fp32 avx2",
    "avx512vnni": "fp32 avx512",
    "avx512vpopcntdq": "fp32 avx512",
    "avx512bf16": "bf16 avx512",
    "amxbf16": "bf16 amx",
}
UNITS = {"": 0, "K": 10, "M": 20, "G": 30}
MIB = 1 << 20


@dataclass(frozen=True)
class Roofline:
    """Limits of one machine. Pairs are (one core, all cores).

    peaks      {instruction: GMAC/s}, from loops of independent instructions on registers; "binary" counts one
               xnor and one bit of a popcount as a multiply-accumulate.
    bandwidth  {level: GB/s} of reading, each core its own part: "L2" (half of it), "L3" (four times the L2),
               "memory" (``memory_bytes``, more than the last-level cache).
    fork_join_us  what an empty parallel region on all cores takes.
    ghz        the clock while one core does dependent scalar additions; vector loops may run at another one.
    """

    cpu: str
    isas: tuple
    cores: int
    ghz: float
    caches: dict
    memory_bytes: int
    peaks: dict
    bandwidth: dict
    fork_join_us: float

    def as_dict(self):
        """Plain lists, dicts and numbers, for JSON."""
        d = asdict(self)
        d["isas"] = list(self.isas)
        for name in ("peaks", "bandwidth"):
            d[name] = {k: list(v) for k, v in d[name].items()}
        return d


def cpu_name():
    """The CPU's model name, and its family, model and stepping: virtual machines often have nothing else."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown CPU"
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.*)$", info.split("\n\n")[0], re.M))
    numbers = "-".join(fields.get(f, "?") for f in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', 'unknown CPU')} ({numbers})"


@functools.cache
def caches():
    """{"L1": bytes, "L2": ..., "L3": ...}: the first core's caches for data, as far as the system tells."""
    found = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and match:
            found[f"L{level}"] = int(match[1]) << UNITS[match[2]]
    return dict(sorted(found.items()))


def l2_bytes():
    return caches().get("L2", MIB)


def beyond_cache_bytes():
    """A size that no cache holds: 256 MiB, or twice the last-level cache if that is more; 1 GiB at most,
    and a quarter of the free memory."""
    size = min(max(256 * MIB, 2 * max(caches().values(), default=0)), 1024 * MIB)
    try:
        free = re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())
    except OSError:
        free = None
    return min(size, int(free[1]) * 1024 // 4) if free else size


def usable_cores():
    return len(os.sched_getaffinity(0))


def peak(name, threads=1, milliseconds=20.0, repeats=1):
    """GMAC/s of an instruction of ``_native.peak_names()`` on ``threads`` cores: the best of ``repeats``."""
    kind = _native.peak_names()[name]
    return max(_native.measure_peak(kind, threads, milliseconds) for _ in range(repeats))


def float_peak(isa, exact=False):
    """The peak of ``_native.peak_names()`` that bounds weight-only products, float operands, on an ISA.

    Args:
        isa: a name of ``qk.capabilities()["isas"]``.
        exact: products in float32 (``compute_dtype="float32"``) on every ISA.

    Returns:
        Its name; None for "scalar" and where this machine lacks the instruction.
    """
    name = FLOAT_PEAKS.get("avx512vnni" if exact and isa in ("avx512bf16", "amxbf16") else isa)
    return name if name in _native.peak_names() else None


def read_bandwidth(nbytes, threads=1, seconds=0.02):
    """GB/s at which ``threads`` cores read ``nbytes`` again and again, each its own part of them: the
    bandwidth of the cache level that holds them, or of memory.

    A part that fits the private L2 is measured on one core and multiplied, since waking the others would take
    as long as reading does.
    """
    part = max(nbytes // threads, 1)
    private = l2_bytes()
    if part <= private * 3 // 4:
        return threads * _native.measure_read_bandwidth(private // 2, 1, 200)
    estimate = part / 10e9  # seconds of one pass; right within a factor of a few
    return _native.measure_read_bandwidth(nbytes, threads, max(3, min(100, int(seconds / estimate))))


def measure(threads=None, quick=False):
    """Measure this machine: about three seconds, or one if ``quick``. Nothing else should run meanwhile.

    Args:
        threads: what "all cores" means; every core that this process may use by default.
    """
    cores, l2, memory = threads or usable_cores(), l2_bytes(), beyond_cache_bytes()
    time, repeats = (5.0, 2) if quick else (20.0, 8)

    def pair(function, *args):
        one = function(1, *args)
        return one, function(cores, *args) if cores > 1 else one

    def peak_of(cores, name):
        return peak(name, cores, time, repeats)

    def bandwidth_of(cores, shared, private):
        return read_bandwidth(shared + private * cores, cores, time * 4e-3)

    levels = {"L2": (0, l2 // 2), "L3": (0, 4 * l2), "memory": (memory, 0)}
    if max(caches().values(), default=0) < 8 * l2 * cores:
        del levels["L3"]  # there is none, or it is too small to be told from the L2
    return Roofline(
        cpu=cpu_name(),
        isas=tuple(name for name, (_, ok) in ISAS.items() if ok),
        cores=cores,
        ghz=max(_native.core_ghz() for _ in range(repeats)),
        caches=caches(),
        memory_bytes=memory,
        peaks={name: pair(peak_of, name) for name in _native.peak_names()},
        bandwidth={name: pair(bandwidth_of, *sizes) for name, sizes in levels.items()},
        fork_join_us=_native.measure_fork_join(cores, 2000),
    )


@functools.cache
def quick(threads=None):
    """``measure(quick=True)``, once in a process: for scale; a benchmark samples the peak beside each row."""
    return measure(threads, quick=True)


def table(r):
    """A rich table of a Roofline."""
    from rich.table import Table

    sizes = ", ".join(f"{name} {size / MIB:.4g} MiB" for name, size in r.caches.items())
    title = f"{r.cpu}, {r.cores} cores at {r.ghz:.2f} GHz, {', '.join(r.isas)}\n{sizes}"
    t = Table("limit", "one core", "all cores", "unit", title=title, title_justify="left")
    for column in t.columns[1:3]:
        column.justify = "right"
    for name, pair in r.peaks.items():
        t.add_row(name, *(f"{v:.0f}" for v in pair), "GMAC/s")
    for name, pair in r.bandwidth.items():
        where = f" ({r.memory_bytes / MIB:.0f} MiB)" if name == "memory" else ""
        t.add_row(f"read {name}{where}", *(f"{v:.1f}" for v in pair), "GB/s")
    t.add_row("fork and join", "", f"{r.fork_join_us:.2f}", "us")
    return t
