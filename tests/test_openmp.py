"""torch and qkernels share one OpenMP pool, whichever is imported first (bench/openmp.py)."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "openmp.py"


def in_turns(first):
    command = [sys.executable, SCRIPT, "--first", first, "--seconds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("first", ["torch", "qkernels"])
def test_one_pool(first):
    """One runtime, no threads of our own, and a pair of calls takes as long as the two alone.

    Two pools that spin against each other take several times as long; 1.5 leaves room for a busy machine.
    """
    ratios = []
    for _ in range(3):
        found = in_turns(first)
        assert len(found["runtimes"]) == 1, found["runtimes"]
        assert found["threads_started_by_qkernels"] == 0
        ratios.append(found["ratio"])
        if ratios[-1] < 1.5:
            return
    raise AssertionError(f"a torch call and a qkernels call in turns take {ratios} times the two alone")
