"""A kernel without a test or without a bench row fails here."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qkernels import registry

ROOT = Path(__file__).resolve().parent.parent


def collected(folder):
    """The ids of what pytest would run in a folder."""
    command = [sys.executable, "-m", "pytest", folder, "--collect-only", "-q", "-o", "addopts="]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def absent(kernels, ids):
    return [str(k) for k in kernels if not re.search(rf"[\[-]{re.escape(str(k))}[\]-]", ids)]


@pytest.mark.parametrize("folder", ["tests", "bench"])
def test_every_kernel_is_in(folder, request):
    kernels = registry.kernels()
    assert kernels
    missing = absent(kernels, "\n".join(item.nodeid for item in request.session.items))
    if folder == "bench" or missing:  # a run of a part of the tests has not collected the others
        missing = absent(kernels, collected(folder))
    assert not missing, f"{folder}/ has no row for {missing}; CONTRIBUTING.md says where kernels are listed."
