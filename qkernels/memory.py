"""Memory of prepacked blocks: aligned to cache lines, on huge pages where the system has them; copies on devices.

A pass over a weight touches each page once: with pages of 4 KB a network of 100 MB costs 25 000 translations a pass,
each of which may wait for memory as the weights themselves do. So blocks are cut from large mappings that ask for huge
pages (madvise), unless they are so small that a page would hold little else.
"""

import contextlib
import mmap
import os
import threading

import numpy as np

HUGE = 2 << 20
CHUNK = 16 << 20
LEAST = 64 << 10
_LINE = 64

_lock = threading.Lock()
_chunk = np.empty(0, np.uint8)  # what is left of the mapping that blocks are being cut from


def _after_fork():  # another thread may have held it
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def aligned(size):
    """Uninitialized uint8 (size,) that starts at a cache line, as every block does.

    A mapping is given back when the last block that was cut from it is.
    """
    global _chunk
    if size < LEAST:
        raw = np.empty(size + _LINE, np.uint8)
        return raw[-raw.ctypes.data % _LINE :][:size]
    room = -(-size // _LINE) * _LINE
    if room > CHUNK // 4:
        return _mapping(room)[:size]
    with _lock:
        if room > len(_chunk):
            _chunk = _mapping(CHUNK)
        block, _chunk = _chunk[:room], _chunk[room:]
    return block[:size]


def kept_on(owner, name, device, make, *more):
    """What ``make()`` gives for a device (a torch.device) and ``more``: made once, and kept with ``owner``."""
    kept = owner.__dict__.setdefault(name, {})
    key = (*more, device.type, device.index or 0)
    if key not in kept:
        kept[key] = make()
    return kept[key]


def _mapping(size):
    """Fresh zeros, uint8 (at least ``size``,), from the start of a huge page on."""
    size = -(-size // HUGE) * HUGE
    memory = mmap.mmap(
        -1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # before HUGE: never touched
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them: ordinary pages do
            memory.madvise(mmap.MADV_HUGEPAGE)
    raw = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % HUGE
    return raw[start : start + size]
