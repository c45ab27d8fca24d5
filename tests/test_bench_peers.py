"""What the check of a weight-only peer lets through: bfloat16 roundings, and nothing that quantizes activations."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "bench"))
from peer_workers import CATEGORIES, FAMILIES
from peer_workers.problem import TOLERANCE, Built
from peer_workers.problems import PROBLEMS

SHAPES = [(1, 384, 384), (16, 384, 1536), (48, 4096, 192)]


def bfloat16(a):
    bits = np.asarray(a, np.float32).view(np.uint32)
    bits = bits + 0x7FFF + (bits >> 16 & 1)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


def int8(x, group):
    """x through symmetric 8-bit codes, a scale for each group of each row."""
    g = x.reshape(len(x), -1, group)
    s = np.abs(g).max(-1, keepdims=True) / 127
    return (np.rint(g / s) * s).reshape(x.shape).astype(np.float32)


def error(p, y):
    return p.error(Built([], lambda: y, p.reference()))


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("M, K, N", SHAPES)
def test_only_float_activations_pass(M, K, N, group):
    p = PROBLEMS["w4a16"](M=M, K=K, N=N, group=group)
    assert np.array_equal(p.x, bfloat16(p.x)) and np.array_equal(p.w_scale, bfloat16(p.w_scale))
    dense, allowed = p.float_weight(), TOLERANCE["weight_only"]
    assert error(p, p.x @ dense.T) <= TOLERANCE["float32"]
    assert error(p, bfloat16(p.x @ bfloat16(dense).T)) <= allowed
    for activations in (32, K):
        assert error(p, int8(p.x, activations) @ dense.T) > allowed


def test_another_format_has_its_own_reference():
    p = PROBLEMS["w4a16"](M=16, K=384, N=384, group=64)
    dense = p.float_weight() * np.float32(1.5)
    y = p.x @ dense.T
    assert p.error(Built([], lambda: y, p.reference(w=dense))) <= TOLERANCE["float32"]
    assert error(p, y) > 0.3


def test_what_is_there_for_scale_exists():
    for name, about in CATEGORIES.items():
        assert set(about.scale) <= set(CATEGORIES), name
        assert not about.cold or about.reference, name
    for name, family in FAMILIES.items():
        assert set(family.problems) <= set(PROBLEMS), name
