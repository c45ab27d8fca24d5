"""Memory of blocks: alignment, no overlap, what is given back, forks and threads."""

import os
import threading

import numpy as np
import pytest

from qkernels import memory

SIZES = [0, 1, 63, 64, memory.LEAST - 1, memory.LEAST, memory.LEAST + 1, 1 << 20, memory.CHUNK // 4]
SIZES += [memory.CHUNK // 4 + 1, memory.HUGE, 2 * memory.CHUNK + 5]


def mapped(start):
    """Whether /proc lists the page of an address."""
    with open("/proc/self/maps") as f:
        spans = (line.split()[0].split("-") for line in f)
        return any(int(a, 16) <= start < int(b, 16) for a, b in spans)


def test_blocks_are_apart_and_aligned(rng):
    """Each is written whole, with its own number, and read when all are there."""
    sizes = [int(s) for s in rng.permutation(SIZES + list(rng.integers(1, 6 << 20, 12)))]
    blocks = [memory.aligned(size) for size in sizes]
    for i, (block, size) in enumerate(zip(blocks, sizes)):
        assert block.shape == (size,) and block.dtype == np.uint8 and block.flags.writeable
        assert block.ctypes.data % 64 == 0
        block[:] = i + 1
    assert all((block == i + 1).all() for i, block in enumerate(blocks))


def test_large_blocks_start_huge_pages():
    assert memory.aligned(5 << 20).ctypes.data % memory.HUGE == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_mappings_are_given_back():
    block = memory.aligned(3 * memory.CHUNK)
    block[:] = 1
    middle = block.ctypes.data + memory.CHUNK
    assert mapped(middle)
    view = block[memory.CHUNK : memory.CHUNK + 10]
    del block
    assert mapped(middle) and (view == 1).all()
    del view
    assert not mapped(middle)


def test_threads_get_their_own(rng):
    found = []

    def work(seed):
        sizes = np.random.default_rng(seed).integers(memory.LEAST, 1 << 20, 40)
        mine = [memory.aligned(int(size)) for size in sizes]
        for block in mine:
            block[:] = seed
        found.append((seed, mine))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(1, 9)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 8 and all((block == seed).all() for seed, mine in found for block in mine)


def test_a_forked_child_allocates_while_another_thread_held_the_lock():
    with memory._lock:
        child = os.fork()
        if child == 0:
            block = memory.aligned(memory.LEAST)
            block[:] = 1
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
