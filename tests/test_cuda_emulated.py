"""The CUDA kernels, run on the host by csrc/cuda/emulator, against the reference, bit for bit."""

import cuda_builds
import numpy as np
import pytest
from helpers import assert_same

import qkernels as qk


@pytest.fixture(scope="session")
def cuda():
    return cuda_builds.emulated()


@pytest.mark.parametrize("schedule", [0, 1, 7])
@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (2, 64), (4, 131), (5, 1000)], ids=str)
def test_quantize(cuda, shape, schedule, rng):
    cuda.set_schedule(schedule)
    m, k = shape
    x = rng.standard_normal((m, k)).astype(np.float32)
    x[m // 2] *= 1e-35
    k_pad = -(-k // 64) * 64
    codes = np.full((m, k_pad), 99, np.int8)
    scales, sums = np.full(m, np.nan, np.float32), np.full(m, -1, np.int32)
    cuda.quantize(
        *(0, 0, x.ctypes.data, 0, m, k, k, 0, -127, 127, 127, 0, 1.0, 0),
        *(codes.ctypes.data, k_pad, k_pad, scales.ctypes.data, sums.ctypes.data, 0),
    )
    expected, scale = qk.reference.quantize_activations(x, qk.InputQuant())
    assert_same(codes[:, :k], expected)
    assert_same(scales, scale.reshape(-1))
    assert_same(sums, expected.sum(1, dtype=np.int32))
    assert not codes[:, k:].any()
