"""The measured limits: which peaks there are, what they say of each other, and which one bounds a product."""

import re
from pathlib import Path

import pytest

from qkernels import _native, registry
from qkernels.latency import roofline

NAMES = {
    "int8 avx512vnni",
    "int8 avx2",
    "bf16 avx512",
    "bf16 amx",
    "fp32 avx512",
    "fp32 avx2",
    "binary avx512",
}
# multiply-accumulates of one instruction of each peak, of which two or fewer start in a cycle on every x86 core; of a
# product of tiles a sixteenth, since it takes sixteen cycles
PER_INSTRUCTION = {
    "int8 avx512vnni": 64,
    "int8 avx2": 16,
    "bf16 avx512": 32,
    "fp32 avx512": 16,
    "fp32 avx2": 8,
    "binary avx512": 512,
    "bf16 amx": 512,
}
PEAKS = list(_native.peak_names())


def flags():
    return set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("fp32 avx2", "fma"),
        ("fp32 avx512", "avx512_vnni"),
        ("bf16 avx512", "avx512_bf16"),
        ("bf16 amx", "amx_bf16"),
    ],
)
def test_a_peak_is_there_where_the_system_says_so(name, flag):
    assert (name in PEAKS) == (flag in flags())
    assert set(PEAKS) <= NAMES


def test_an_instruction_that_is_not_there_is_not_run():
    missing = NAMES - set(PEAKS)
    kinds = set(range(len(NAMES))) - set(_native.peak_names().values())
    assert len(kinds) == len(missing)
    assert all(_native.measure_peak(kind, 1, 0.1) == 0 for kind in kinds)
    with pytest.raises(ValueError, match="unknown kind"):
        _native.measure_peak(len(NAMES), 1, 0.1)


@pytest.mark.parametrize("name", PEAKS)
def test_a_peak_is_that_of_full_pipes(name):
    """Between 1/8 of an instruction a cycle (a shared core) and two and a half (the clock moves while it is read)."""
    rates = []
    for _ in range(20):
        peak, ghz = roofline.peak(name, milliseconds=2.0), max(_native.core_ghz() for _ in range(3))
        rates.append(peak / PER_INSTRUCTION[name] / ghz)
    assert max(rates) >= 0.125 and min(rates) <= 2.5, rates


def test_float_peak_is_that_of_the_isa():
    for isa in registry.ISAS:
        for exact in (False, True):
            name = roofline.float_peak(isa, exact)
            if isa == "scalar":
                assert name is None
            elif isa == "avx2":
                assert name == ("fp32 avx2" if "fp32 avx2" in PEAKS else None)
            else:
                bf16 = {"avx512bf16": "bf16 avx512", "amxbf16": "bf16 amx"}
                expected = "fp32 avx512" if exact else bf16.get(isa, "fp32 avx512")
                assert name == (expected if expected in PEAKS else None)


def test_the_table_has_every_peak():
    pytest.importorskip("rich")
    from rich.console import Console

    r = roofline.measure(threads=1, quick=True)
    assert set(r.peaks) == set(PEAKS) and all(one > 0 for one, _ in r.peaks.values())
    console = Console(width=150)
    with console.capture() as text:
        console.print(roofline.table(r))
    lines = text.get().splitlines()
    for name, (one, _) in r.peaks.items():
        line = next(line for line in lines if f" {name} " in line)
        assert f"{one:.0f}" in line and "GMAC/s" in line
