"""Holds a timing against the machine: floor = max(bytes / bandwidth, multiply-accumulates / peak)."""

import functools
import time
from functools import partial

import numpy as np

from qkernels import _native
from qkernels.latency import roofline

PEAKS = {
    "avx512vnni": "int8 avx512vnni",
    "avx2": "int8 avx2",
}  # other kernels: the best that this machine has
PEAK_SHARE, BINARY_PEAK_SHARE, GIGA = (
    0.97,
    0.8,
    1e9,
)  # asked of a warm product of a billion multiply-accumulates and more
BANDWIDTH_SHARE, SLACK_US = 0.95, 3.0  # asked of one cold row of x


def peak_sampler(row):
    """A function that measures the peak of the row's instruction in 1 ms; None for elementwise rows."""
    have = _native.peak_names()
    name = PEAKS.get(row.kernel.isa)
    if row.weight_only:
        name = roofline.float_peak(row.kernel.isa, row.exact)
        name = name or next((n for n in have if n.startswith("fp32")), None)
    elif row.kernel.core == "binary":
        name = "binary avx512" if "binary avx512" in have else None
    elif name not in have:
        name = next((n for n in have if n.startswith("int8")), None)
    return partial(roofline.peak, name, row.threads, 1.0) if name and row.macs else None


@functools.lru_cache(maxsize=256)
def _bandwidth(nbytes, threads, period):
    return roofline.read_bandwidth(nbytes, threads)


def bandwidth(row, nbytes):
    """GB/s of what holds the bytes: memory if the row is cold, else their cache level.

    Measured anew for each row that it bounds, for others every 20 s.
    """
    size = roofline.beyond_cache_bytes() if row.mode == "cold" else nbytes
    return _bandwidth(size, row.threads, time.monotonic() // (1 if row.M <= 16 else 20))


def compare(row, timing, nbytes):
    """What a bench row says beside its time; us and GB/s or GMAC/s.

    ``percent`` is the median over the rounds of floor / time, each with the peak sampled right before it.
    ``target`` is None where none is set for a row, else whether it is met.
    """
    speed = bandwidth(row, nbytes)
    moving = nbytes / speed * 1e-3
    peaks = [p for p in timing.beside if p]
    floors = [max(moving, row.macs / p * 1e-3) for p in peaks] or [moving] * len(timing.rounds)
    floor = float(np.median(floors))
    percent = float(np.median([f / us for f, us in zip(floors, timing.rounds)])) * 100
    target = None
    if row.mode == "cold" and row.M == 1:
        target = bool(timing.us <= moving / BANDWIDTH_SHARE + SLACK_US)
    elif row.mode == "warm" and row.macs >= GIGA and row.kernel.op == "matmul_int":
        target = percent >= 100 * PEAK_SHARE
    elif row.mode == "warm" and row.kernel.op == "matmul_binary" and row.M >= 128 and row.K >= 1024:
        target = percent >= 100 * BINARY_PEAK_SHARE
    return {
        "us": timing.us,
        "p10": timing.p10,
        "p90": timing.p90,
        "spread": timing.spread,
        "calls": timing.calls,
        "ghz": timing.ghz,
        "quiet": timing.quiet,
        "peak_gmacs": float(np.median(peaks)) if peaks else None,
        "bandwidth_gbs": speed,
        "bytes": nbytes,
        "macs": row.macs,
        "gbs": nbytes / timing.us * 1e-3,
        "gmacs": row.macs / timing.us * 1e-3,
        "bound": "memory" if moving >= floor else "compute",
        "floor_us": floor,
        "percent": percent,
        "target": target,
    }


def line(row, info):
    """A row as one line of text; ~ marks one whose cores others used, too."""
    return f"{row!s:<72} {rates(info)}"


def microseconds(us):
    return f"{us:.{2 if us < 100 else 1 if us < 1000 else 0}f}"


def rates(info):
    speed = f"{info['gbs']:.1f} GB/s" if info["bound"] == "memory" else f"{info['gmacs']:.0f} GMAC/s"
    return (
        f"{microseconds(info['us']):>8} us ±{info['spread']:.1%}  {speed:>12}  "
        f"floor {microseconds(info['floor_us'])} us  {info['percent']:.0f}%{'' if info['quiet'] else '~'}  "
        f"rel.err {info['error']:.1e}"
    )
