"""The emulator of the CUDA kernels (csrc/cuda/emulator): that it multiplies, and that it finds what is wrong."""

import ctypes
import shutil
import subprocess

import cuda_builds
import numpy as np
import pytest

SOURCES = ("tests/emulator_kernels.cpp", "csrc/cuda/emulator/emulator.cpp")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("g++")
    if compiler is None or not (cuda_builds.ROOT / SOURCES[1]).exists():
        pytest.skip("no g++, or no sources")
    path = tmp_path_factory.mktemp("emulator") / "kernels.so"
    command = [compiler, "-std=c++17", "-O1", "-DQK_EMULATE", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
    subprocess.run([*command, *SOURCES, "-o", path], cwd=cuda_builds.ROOT, check=True)
    lib = ctypes.CDLL(path)
    for name in ("run_product", "run_transpose", "run_reduce", "run_fault"):
        getattr(lib, name).restype = ctypes.c_char_p
    return lib


def aligned(array):
    """A copy of an array at an address that is a multiple of 64."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    out = raw[-raw.ctypes.data % 64 :][: array.nbytes].view(array.dtype).reshape(array.shape)
    out[...] = array
    return out


def address(a):
    return ctypes.c_void_p(a.ctypes.data)


@pytest.mark.parametrize("schedule", [0, 1, 5])
def test_products(library, schedule, rng):
    """Operands that ldmatrix spreads over a warp, multiplied: layouts of the two instructions agree."""
    library.set_schedule(ctypes.c_uint64(schedule))
    bits = [aligned(rng.integers(0, 256, (rows, 32)).astype(np.uint8)) for rows in (16, 8)]
    floats = [aligned(rng.integers(-8, 9, (rows, 16)).astype(np.float16)) for rows in (16, 8)]
    brain = [aligned((f.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)) for f in floats]
    ones = [np.unpackbits(b, axis=1).astype(np.int64) for b in bits]
    signed = [b.view(np.int8).astype(np.int64) for b in bits]
    cases = [
        (bits, signed[0] @ signed[1].T, np.int32),
        (bits, signed[0] @ bits[1].astype(np.int64).T, np.int32),
        (bits, ones[0] @ ones[1].T, np.int32),
        (floats, floats[0].astype(np.float64) @ floats[1].astype(np.float64).T, np.float32),
        (brain, floats[0].astype(np.float64) @ floats[1].astype(np.float64).T, np.float32),
    ]
    for kind, ((a, b), expected, dtype) in enumerate(cases):
        d = np.full((16, 8), 77, dtype)
        assert library.run_product(kind, address(a), address(b), address(d)) == b""
        np.testing.assert_array_equal(d, expected)


def test_transposed(library, rng):
    x = aligned(rng.integers(0, 2**16, (8, 32)).astype(np.uint16))
    out = np.zeros((4, 8, 8), np.uint16)
    assert library.run_transpose(address(x), address(out)) == b""
    np.testing.assert_array_equal(out, x.reshape(8, 4, 8).transpose(1, 2, 0))


@pytest.mark.parametrize("schedule", [0, 1, 5])
def test_reductions(library, schedule, rng):
    library.set_schedule(ctypes.c_uint64(schedule))
    x = rng.integers(-(2**20), 2**20, (5, 96)).astype(np.int32)
    out = np.zeros_like(x)
    assert library.run_reduce(address(x), address(out), 5) == b""
    np.testing.assert_array_equal(out, np.repeat(x.sum(1) - x.max(1), 96).reshape(5, 96))


@pytest.mark.parametrize(
    "fault, says",
    [
        ("misaligned", "not aligned to 16"),
        ("not_committed", "never committed"),
        ("outside", "16 bytes at 512 of 512"),
        ("writes_outside", "a write outside"),
        ("diverges", "waits forever at ldmatrix_x4"),
        ("mixes", "meets threads that are at"),
        ("half_barrier", "waits forever at a barrier"),
        ("wrong_lane", "a lane that is not in the mask"),
    ],
)
def test_faults_are_errors(library, fault, says):
    library.set_schedule(ctypes.c_uint64(0))
    x, out = aligned(np.arange(512, dtype=np.uint8)), np.zeros(512, np.uint8)
    assert says in library.run_fault(fault.encode(), address(x), address(out)).decode()


def test_what_is_undefined_shows(library):
    """Memory before it is written or its copy is waited for, and a missing barrier in some order of the threads."""
    x = aligned(np.arange(512, dtype=np.uint8))

    def run(fault, schedule):
        library.set_schedule(ctypes.c_uint64(schedule))
        out = np.zeros(512, np.uint8)
        assert library.run_fault(fault.encode(), address(x), address(out)) == b""
        return out

    for fault in ("unwritten", "no_wait"):
        assert (run(fault, 0) == 0xFF).all()
    for schedule in (0, 1, 5):
        assert not np.array_equal(run("no_barrier", schedule), np.roll(x, -16))
