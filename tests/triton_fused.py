"""The integer core with activations that it quantizes itself, and beside it the kernel that does; interpreted, as in
tests/triton_interpreted.py, with which tests/test_triton.py runs this file."""

import numpy as np
import pytest
import torch
from helpers import assert_same
from qkernels.triton_kernels import fuse, quantize, run, tuned
from test_narrow import poison
from triton_interpreted import CONFIGS, expected, int_weight

import qkernels as qk

FUSED = {  # what the core quantizes itself: name -> (InputQuant, has the weight input scales, zero points)
    "token": (qk.InputQuant(), False, True),
    "token input scale": (qk.InputQuant(), True, False),
    "unsigned": (qk.InputQuant(signed=False), False, True),
    "tensor 4 bits": (qk.InputQuant(bits=4, granularity="tensor"), True, True),
    "static": (qk.InputQuant(granularity="tensor", scale=0.021), False, True),
    "static zero": (qk.InputQuant(granularity="tensor", scale=0.03, zero_point=-100), True, True),
    "static unsigned": (
        qk.InputQuant(granularity="tensor", scale=0.05, signed=False, zero_point=113),
        False,
        True,
    ),
    "channel": (qk.InputQuant(granularity="channel"), True, False),
}


def activations_of_all_sizes(rng, m, k, dtype):
    """Rows of ordinary, huge and tiny numbers, subnormal ones, zeros; strided rows between NaNs."""
    size = np.resize([1.0, 2.0**-101, 0.0, 1e30, 2.0**-149, 2.0**-126, 0.05], m)[:, None]
    x = rng.standard_normal((m, k)) * np.clip(size, 0, 1e4 if dtype is torch.float16 else np.inf)
    x = np.concatenate([x, np.full((m, 3), np.nan)], 1)
    return torch.from_numpy(x).to(dtype)[:, :k]


def fused_weight(rng, turn, n, k, scaled, zero):
    """Bytes, nibbles, groups of a unit, of several, of half of one, squares of powers."""
    bits, group_size = [(8, None), (4, None), (4, 128), (8, 64), (4, 32), (3, 64), (4, 256)][turn % 7]
    if turn % 8 == 7:
        shape, codes = (n, -(-k // 64)), rng.integers(-8, 8, (n, k))
        return qk.PowerWeight.pack(codes, rng.uniform(1e-3, 0.1, shape).astype(np.float32), 4, 0.5, 64)
    return int_weight(rng, n, k, bits, group_size, zero and not (bits == 8 and group_size), scaled)


@pytest.mark.parametrize("name", FUSED)
def test_fused_quantization(name, rng, monkeypatch):
    """One launch, two where K is split, and no quantizing kernel: bit for bit the reference."""
    monkeypatch.setattr(quantize, "quantize_kernel", None)
    monkeypatch.setattr(quantize, "amax_kernel", None)
    quant, scaled, zero = FUSED[name]
    turn = list(FUSED).index(name)
    shapes = [
        (1, 330, 41),
        (3, 129, 17),
        (8, 31, 33),
        (16, 384, 33),
        (5, 257, 70),
        (15, 640, 31),
        (18, 300, 18),
    ]
    for i, (m, k, n) in list(enumerate(shapes))[turn % 2 :: 2]:
        w = fused_weight(rng, i + turn, n, k, scaled, zero)
        if scaled and w.input_scale is None:
            continue
        for j, splits in enumerate((1, 3)):
            x = activations_of_all_sizes(
                rng, m, k, (torch.float32, torch.bfloat16, torch.float16)[(i + j) % 3]
            )
            bias = torch.from_numpy(rng.standard_normal(n).astype(np.float32)) if (i + j) % 2 else None
            activation, config = (None, "relu", "relu6")[i % 3], CONFIGS[m > 16]
            out = torch.full(
                (m, n), float("nan"), dtype=(torch.float32, torch.bfloat16, torch.float16)[i % 3]
            )
            poison(rng)
            y = run.linear_int(x, w, quant, bias, activation, out, config, splits, fused=True)
            options = {"input_quant": quant, "activation": activation, "out_dtype": out.dtype}
            assert_same(y, expected("linear", x, w, bias, **options))


def test_what_is_fused(rng):
    """By the row's budget; never power codes, padded groups, or tensor scales of several tiles of rows."""
    row, x = tuned.INTERPRETED | {"fuse": 1}, torch.zeros(4, 4096, dtype=torch.bfloat16)

    def fused(w, quant=None, x=x, row=row, splits=1):
        quant = quant or qk.InputQuant()
        return fuse.fuses(x, run.int_arrays(w, x.device), quant, row, splits)

    w, static = int_weight(rng, 1024, 4096), qk.InputQuant(granularity="tensor", scale=0.1)
    assert fuse.pass_bytes(x, row, 1024, 1) == 32 * 4 * 4096 * 2 == fuse.MIB
    assert fused(w) and not fused(w, splits=2) and not fused(w, x=x.float()) and not fused(w, row=CONFIGS[0])
    assert fused(w, static, splits=9) and not fused(w, static, row=CONFIGS[0])
    for quant, most in ((qk.InputQuant(), 17), (qk.InputQuant(granularity="tensor"), 16)):
        small = int_weight(rng, 3, 64)
        assert [fused(small, quant, torch.zeros(m, 64)) for m in (1, 16, 17)] == [True, True, most == 17]
    assert not fused(w, qk.InputQuant(bits=4, power=0.5))
    assert fused(int_weight(rng, 3, 4096, 4, 32)) and not fused(int_weight(rng, 3, 4096, 4, 33))


fused_or_not = pytest.mark.parametrize("fused", [False, True])


@fused_or_not
@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_gelu_and_silu(activation, fused, rng):
    w, quant = int_weight(rng, 65, 40), qk.InputQuant()
    x = torch.from_numpy(rng.standard_normal((9, 40)).astype(np.float32))
    y = run.linear_int(x, w, quant, None, activation, torch.empty(9, 65), fused=fused)
    e = expected("linear", x, w, activation=activation, input_quant=quant)
    assert_same(y, e, 1e-6 + 2e-6 * np.abs(e.numpy()))


@fused_or_not
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_rows_that_are_not_finite_are_nan(bad, fused, rng):
    """Wherever in the row the number is, split or not."""
    tensor, static = (qk.InputQuant(granularity="tensor", scale=s) for s in (None, 0.1))
    for i, (k, w) in enumerate([(300, int_weight(rng, 17, 300)), (300, int_weight(rng, 17, 300, 4, 64))] * 2):
        x = torch.from_numpy(rng.standard_normal((6, k)).astype(np.float32))
        for quant in (qk.InputQuant(), tensor, static):
            good = expected("linear", x, w, input_quant=quant, activation="relu")
            spoilt, out = x.clone(), torch.empty(6, 17)
            spoilt[2, (0, k - 1, k // 2, 130)[i]] = bad
            y = run.linear_int(spoilt, w, quant, None, "relu", out, splits=1 + 2 * (i // 2), fused=fused)
            keep = [] if quant is tensor else [0, 1, 3, 4, 5]
            assert y[2].isnan().all() and y.isnan().all() == (quant is tensor)
            assert_same(y[keep], good[keep])


@fused_or_not
def test_tiny_and_huge_activations(fused, rng, monkeypatch):
    monkeypatch.setitem(tuned.INTERPRETED, "fuse", 8 * fused)
    w = int_weight(rng, 5, 20)
    for size in (2.0**-149, 2.0**-127, 2.0**-101, 2.0**-100, 1e-20, 1e30, 3.4e38):
        x = torch.from_numpy((rng.uniform(-1, 1, (3, 20)) * size).astype(np.float32))
        for quant in (qk.InputQuant(), qk.InputQuant(bits=2), qk.InputQuant(bits=4, power=0.5)):
            y = qk.linear(x, w, input_quant=quant, backend="triton")
            assert_same(y, expected("linear", x, w, input_quant=quant))
