"""Convolutions of signs against the reference and against torch's float64 convolution."""

import numpy as np
import pytest
import torch
from helpers import assert_same

import qkernels as qk
from qkernels import registry

FORMATS = {"BinaryWeight": qk.BinaryWeight, "TernaryWeight": qk.TernaryWeight}
KERNELS = [k for k in registry.kernels("conv2d") if k.format in FORMATS and k.core == "binary"]
STATIC = qk.InputQuant(bits=1, granularity="tensor", scale=1.0)
# B, C, H, W, O, kernel, stride, padding, dilation, groups
CASES = [
    (1, 1, 1, 1, 1, (1, 1), 1, 0, 1, 1),
    (2, 3, 7, 5, 4, (3, 3), 1, 1, 1, 1),
    (1, 64, 6, 6, 70, (3, 3), 2, 1, 1, 1),
    (2, 70, 9, 8, 33, (3, 2), (2, 1), (1, 2), (2, 3), 1),
    (1, 130, 5, 4, 65, (1, 1), 1, 0, 1, 1),
    (1, 5, 4, 6, 8, (5, 3), 1, (4, 3, 2, 5), 1, 1),
    (2, 12, 6, 6, 9, (3, 3), 1, "same", 1, 3),
    (1, 6, 5, 5, 12, (3, 3), 1, 1, 1, 6),
    (0, 3, 4, 4, 2, (3, 3), 1, 1, 1, 1),
    (1, 16, 40, 40, 20, (3, 3), 1, 1, 1, 1),
]


def weight(rng, kind, o, i, kernel):
    values = (-1, 1) if kind == "BinaryWeight" else (-1, 0, 1)
    return FORMATS[kind].pack(rng.choice(values, (o, i, *kernel)).astype(np.int8), rng.uniform(0.01, 2, o))


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "alternating"])
@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
def test_matches_reference(kernel, case, mode, last, rng):
    b, c, h, w, o, size, stride, padding, dilation, groups = case
    x, wt = (
        torch.from_numpy(rng.standard_normal((b, c, h, w), np.float32)),
        weight(rng, kernel.format, o, c // groups, size),
    )
    x = x.to(memory_format=torch.channels_last) if last else x
    bias = torch.from_numpy(rng.standard_normal(o).astype(np.float32))
    prelu = qk.DPReLU(*rng.standard_normal((4, o)).astype(np.float32))
    where = {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "padding_mode": mode,
    }
    for quant in (STATIC, qk.InputQuant(bits=1, granularity="tensor")):
        for activation in (None, "relu", prelu):
            options = {**where, "bias": bias, "activation": activation, "input_quant": quant}
            y = kernel(x, wt, **options)
            assert_same(y, qk.conv2d(x, wt, **options, backend="reference"))
            assert_same(kernel(x.numpy(), wt, **{**options, "bias": bias.numpy()}), y.numpy())
    half = kernel(x, wt, **where, input_quant=STATIC, out_dtype=torch.float16)
    assert_same(half, kernel(x, wt, **where, input_quant=STATIC).half())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["zeros", "alternating"])
def test_against_torch(kind, mode, rng):
    """The image written out with its padding, convolved in float64."""
    x, w = torch.from_numpy(rng.standard_normal((2, 20, 7, 6), np.float32)), weight(rng, kind, 9, 20, (3, 3))
    signs = torch.nn.functional.pad(torch.where(x >= 0, 1.0, -1.0), (2, 1, 1, 2), value=0.0)
    if mode == "alternating":
        rows, columns = torch.meshgrid(torch.arange(10), torch.arange(9), indexing="ij")
        border = torch.nn.functional.pad(torch.ones(7, 6), (2, 1, 1, 2)) == 0
        signs = torch.where(border, torch.where((rows + columns) % 2 == 0, 1.0, -1.0), signs)
    expected = torch.nn.functional.conv2d(
        signs.double(), torch.from_numpy(w.codes().reshape(w.shape)).double()
    )
    y = qk.conv2d(x, w, padding=(1, 2, 2, 1), input_quant=STATIC, padding_mode=mode)
    acc = y.double() / torch.from_numpy(w.alpha).double().reshape(1, -1, 1, 1)
    torch.testing.assert_close(acc, expected, rtol=1e-6, atol=1e-6)
    if mode == "alternating" and kind == "BinaryWeight":
        assert ((acc.round() - 20 * 9) % 2 == 0).all()  # eq. 3.40: sums of K signs have K's parity


def test_refusals(rng):
    x, w = torch.randn(1, 4, 5, 5), weight(rng, "BinaryWeight", 3, 4, (3, 3))
    for error, text, call in [
        (qk.ArgumentError, "granularity", lambda: qk.conv2d(x, w, input_quant=qk.InputQuant(bits=1))),
        (
            qk.ArgumentError,
            "padding_mode",
            lambda: qk.conv2d(x, w, input_quant=STATIC, padding_mode="reflect"),
        ),
        (
            qk.DTypeError,
            "BinaryWeight",
            lambda: qk.conv2d(x, qk.IntWeight.quantize(torch.randn(3, 4, 3, 3)), input_quant=STATIC),
        ),
        (qk.ArgumentError, "row", lambda: qk.conv2d(x / 0, w, input_quant=STATIC)),
    ]:
        with pytest.raises(error, match=text):
            call()
