"""Fixtures. Oracles are imported at the top of the tests that use them: one that is missing fails the run."""

import os
import zlib

import numpy as np
import pytest


@pytest.fixture
def rng(request):
    """A generator seeded by the test's name plus QKERNELS_TEST_SEED; a failure prints the seed."""
    offset = int(os.environ.get("QKERNELS_TEST_SEED", "0"))
    seed = zlib.crc32(request.node.nodeid.encode()) + offset
    print(f"seed {seed} (QKERNELS_TEST_SEED={offset})")
    return np.random.default_rng(seed)
