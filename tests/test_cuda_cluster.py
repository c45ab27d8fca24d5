"""Blocks of a cluster, which int8 on wgmma runs in pairs: the emulator's instructions for them, the faults that it
finds, which shapes take pairs, and the whole kernel with pairs and without. Mutants of it: test_cuda_wgmma.py.
"""

import ctypes
import re

import numpy as np
import pytest
from helpers import assert_same
from test_cuda_emulated import check_matmul_int
from test_cuda_emulator import address, aligned
from test_cuda_wgmma import SCHEDULES, SHAPES, library, native  # noqa: F401 (fixtures)

# ---- the emulator's instructions ------------------------------------------------------------------------------


def run_exchange(library, fault, schedule, rng, blocks=2):  # noqa: F811
    """What each block has and what it should have: the rows of its pair; or the emulator's error."""
    library.set_schedule(ctypes.c_uint64(schedule))
    x = aligned(rng.integers(0, 256, (64 * blocks, 128)).astype(np.uint8))
    out = np.zeros((blocks, 128, 128), np.uint8)
    error = library.run_exchange(fault.encode(), address(x), address(out), blocks).decode()
    return error or (out, np.repeat(x.reshape(-1, 128, 128), 2, axis=0))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("blocks", [2, 6])
def test_each_half_reaches_both(library, schedule, blocks, rng):  # noqa: F811
    assert_same(*run_exchange(library, "", schedule, rng, blocks))


@pytest.mark.parametrize(
    "fault, says",
    [
        ("no_init", "a barrier that is not initialised"),
        ("no_cluster_barrier", "a barrier that is not initialised"),
        ("one_at_the_barrier", "waits forever at the cluster's barrier|a barrier that is not initialised"),
        ("to_none", "goes to no block"),
        ("to_three", "copy_box: the cluster has no such block"),
        ("to_itself", "waits forever at an mbarrier"),
        ("to_the_other", "waits forever at an mbarrier"),
        ("too_few_bytes", "phase ends before all copies|ends before a bulk copy"),
        ("does_not_wait", "ends before a bulk copy"),
        ("no_such_block", "mbarrier_arrive_at: the cluster has no such block"),
        ("ends_early", "mbarrier_arrive_at: reaches a block that has ended"),
        ("late_copy", "copy_box: reaches a block that has ended"),
        ("arrives_late", "mbarrier_arrive_at: reaches a block that has ended"),
    ],
)
def test_faults_are_errors(library, fault, says, rng):  # noqa: F811
    """In one of the orders of threads at least."""
    got = [run_exchange(library, fault, schedule, rng) for schedule in SCHEDULES]
    assert any(isinstance(error, str) and re.search(says, error) for error in got), got


def test_a_grid_is_a_multiple_of_its_clusters(library, rng):  # noqa: F811
    assert "clusters that no device takes" in run_exchange(library, "", 0, rng, blocks=3)


# ---- the kernel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [0], indirect=True)
def test_plans(native):  # noqa: F811
    """Pairs where they load fewer bytes in all, on the 132 multiprocessors of an H100."""
    native.force_gemm("any")

    def plan(m, n, multiprocessors=132):
        return native.plan_gemm(m, n, 4096, multiprocessors, True)

    assert plan(4096, 4096) == ("wgmma", 128, 256, 1, 512, 2)
    assert plan(512, 4096) == ("wgmma", 128, 128, 1, 128, 2)
    assert plan(1024, 11008) == ("wgmma", 128, 256, 1, 344, 2)
    assert (
        plan(128 * 128, 384)[5] == 2
    )  # the half of a pair that has no channels costs less than 48 KB a stage
    assert plan(132 * 128, 128)[5] == 1  # one tile of channels has no neighbour
    assert plan(44 * 256, 384) == ("wgmma", 128, 256, 1, 132, 1)  # one wave of blocks, but two of pairs
    assert plan(4096, 4096, 1)[5] == 1
    for forced, cluster in ("wgmma_single", 1), ("wgmma_pair", 2):
        native.force_gemm(forced)
        for multiprocessors in (1, 4, 132):
            assert {plan(m, n, multiprocessors)[5] for m, _, n in SHAPES} == {cluster}
        assert {plan(m, n, 4)[2] for m, _, n in SHAPES} == {128, 256}


@pytest.mark.parametrize("clusters", ["wgmma_single", "wgmma_pair"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("x_dtype", ["int8", "uint8"])
def test_matmul_int(native, clusters, shape, x_dtype, rng):  # noqa: F811
    """Every shape with blocks alone and in pairs, those of one tile of channels and of an odd number too."""
    native.force_gemm(clusters)
    check_matmul_int(rng, shape, x_dtype)
