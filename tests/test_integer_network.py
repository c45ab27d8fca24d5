"""Networks in integers only: equal to the reference at each step, close to the float network, clear refusals."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from helpers import assert_same
from torch import nn

import qkernels as qk
from qkernels import registry
from qkernels.demo.efficientnet.model import EfficientNetLite, conv
from qkernels.errors import ArgumentError, DTypeError, UnsupportedError
from qkernels.integer_network import Codes, IntegerNetwork

STAGES = [
    (1, 3, 1, 1, 8, 8),
    (2, 3, 2, 2, 8, 12),
    (2, 5, 2, 3, 12, 20),
]  # those of EfficientNet-Lite0, smaller
ISAS = [name for name, (_, here) in registry.ISAS.items() if here]


def randomized(model, rng):
    """``model`` in eval mode with random weights and statistics of a plausible size."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            for tensor, low, high in ((m.weight, 0.5, 1.5), (m.bias, -0.5, 1), (m.running_var, 0.5, 1.5)):
                tensor.data.uniform_(low, high, generator=generator)
            m.running_mean.uniform_(-0.5, 0.5, generator=generator)
        elif isinstance(m, nn.Conv2d | nn.Linear):
            size = m.weight[0].numel() ** -0.5
            m.weight.data.normal_(0, size, generator=generator)
    return model.eval()


def images(rng, count, size=32):
    """(float32 images, their pixels), channels last."""
    pixels = torch.from_numpy(rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)).permute(
        0, 3, 1, 2
    )
    return (pixels.float() - 127) / 128, pixels


def small(rng, bits=8):
    """A float network, its integer form, and inputs."""
    model = randomized(EfficientNetLite(STAGES, 24, 10), rng)
    calibration = [images(rng, 8)[0] for _ in range(3)]
    return model, IntegerNetwork.from_float(model, calibration, Codes(1 / 128, 127), bits)


@torch.no_grad()
def by_reference(network, pixels):
    """The logits with each step computed by the reference."""
    network = copy.deepcopy(network)
    for step in network.steps:
        if step.op != "flatten":
            step.options["backend"] = "reference"
    return network.logits(network.step_by_step(pixels)[-1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [8, 4, 3])
@torch.no_grad()
def test_equals_the_reference(isa, bits, rng):
    _, network = small(rng, bits)
    x, pixels = images(rng, 2)
    expected = by_reference(network, pixels)
    with qk.force_isa(isa):
        assert_same(network(pixels), expected)
        assert_same(network(x), expected)
        assert_same(network.logits(network.step_by_step(x)[-1]), expected)


@torch.no_grad()
def test_any_memory_order_gives_the_same(rng):
    _, network = small(rng)
    x, pixels = images(rng, 3)
    expected = network(pixels)
    for same in (x, x.contiguous(), pixels.contiguous(), x.transpose(2, 3).contiguous().transpose(2, 3)):
        assert_same(network(same), expected)
        assert_same(network(same), expected)  # once more, from what was kept of the first call
    padded = torch.zeros(3, 3, 32, 40)
    padded[..., :32] = x
    assert_same(network(padded[..., :32]), expected)
    assert_same(torch.cat([network(part) for part in x.split(1)]), expected)


@torch.no_grad()
def test_is_close_to_the_float_network(rng):
    model, network = small(rng)
    x, _ = images(rng, 16)
    similar = torch.nn.functional.cosine_similarity(network(x), model(x))
    assert similar.min() > 0.99, similar


@torch.no_grad()
def test_odd_sizes_and_other_shapes(rng):
    """Kernels, strides, dilations and groups that EfficientNet does not have; ReLU after an addition; a layer between
    pooling and the last."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 12, (3, 2), stride=(1, 2), padding=(2, 1))
            self.second = nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=3)
            self.pool, self.flatten, self.middle = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 9)
            self.dropout, self.last = nn.Dropout(), nn.Linear(9, 5, bias=False)

        def forward(self, x):
            x = torch.relu(self.first(x))
            x = nn.functional.relu(x + self.second(x))
            return self.last(torch.relu(self.middle(self.dropout(self.flatten(self.pool(x))))))

    model = randomized(Odd(), rng)
    x = torch.from_numpy(rng.standard_normal((6, 3, 17, 13), dtype=np.float32))
    network = IntegerNetwork.from_float(model, [x])
    assert_same(network(x), by_reference(network, network.quantize(x)))
    assert torch.nn.functional.cosine_similarity(network(x), model(x)).min() > 0.98


@torch.no_grad()
def test_flattened_images(rng):
    """Flatten takes the order of torch, whatever the memory order is."""
    model = randomized(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Flatten(), nn.Linear(4 * 6 * 5, 7)), rng
    )
    x = torch.from_numpy(rng.standard_normal((5, 3, 8, 7), dtype=np.float32))
    network = IntegerNetwork.from_float(model, [x])
    for same in (x, x.contiguous(memory_format=torch.channels_last)):
        assert torch.nn.functional.cosine_similarity(network(same), model(x)).min() > 0.98
        assert_same(network(same), by_reference(network, network.quantize(x)))


@torch.no_grad()
def test_dead_channels(rng):
    """Channels whose weights are zero, or next to nothing, after folding keep their biases."""
    model = randomized(nn.Sequential(conv(3, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), rng)
    norm = model[0].norm
    norm.weight.data[:3] = torch.tensor([0.0, 1e-30, -1e-12])
    norm.bias.data[:3] = torch.tensor([2.0, 1.0, 3.0])
    x, _ = images(rng, 4, 8)
    network = IntegerNetwork.from_float(model, [x])
    torch.testing.assert_close(network(x), model(x), rtol=0.02, atol=0.05)


@torch.no_grad()
def test_biases_make_up_for_rounded_weights(rng):
    """The mean of each logit over the calibration inputs stays, however coarse the weights are."""
    model = randomized(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), rng
    )
    x = torch.from_numpy(rng.uniform(0, 1, (64, 3, 9, 9)).astype(np.float32))
    network = IntegerNetwork.from_float(model, [x], None, 3)
    torch.testing.assert_close(network(x).mean(0), model(x).mean(0), rtol=0, atol=0.01)


def test_weight_bits_by_pattern(rng):
    model = randomized(EfficientNetLite(STAGES, 24, 10), rng)
    bits = {"*.depthwise.*": 8, "blocks.*": 4, "head.*": 3}
    network = IntegerNetwork.from_float(model, [images(rng, 2)[0]], None, bits)
    found = {step.name: step.weight.bits for step in network.steps if step.weight is not None}
    assert found["stem.conv"] == found["classifier"] == found["blocks.1.depthwise.conv"] == 8
    assert found["blocks.1.expand.conv"] == found["blocks.4.project.conv"] == 4 and found["head.conv"] == 3
    assert network.nbytes < IntegerNetwork.from_float(model, [images(rng, 2)[0]]).nbytes


@torch.no_grad()
def test_clock_names_the_steps(rng):
    _, network = small(rng)
    seconds = network.clock(images(rng, 1)[0])
    steps = [step.name for step in network.steps if step.op != "flatten"]
    assert list(seconds) == ["quantize", *steps] and min(seconds.values()) > 0


@torch.no_grad()
def test_copies_and_pickles(rng):
    _, network = small(rng)
    x, _ = images(rng, 2)
    expected = network(x)
    assert_same(copy.deepcopy(network)(x), expected)
    assert_same(pickle.loads(pickle.dumps(network))(x), expected)


@torch.no_grad()
def test_threads_do_not_share_memory(rng):
    _, network = small(rng)
    inputs = [images(rng, 1)[0] for _ in range(4)]
    expected = [network(x) for x in inputs]
    wrong = []

    def work(n):
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(network(inputs[n]), expected[n]):
                    wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@torch.no_grad()
def test_results_stay(rng):
    """What a call returned is not memory that the next one writes."""
    _, network = small(rng)
    first, second = (images(rng, 1)[0] for _ in range(2))
    y = network(first)
    kept = y.clone()
    network(second)
    assert_same(y, kept)


@torch.no_grad()
def test_an_input_that_is_not_finite(rng):
    _, network = small(rng)
    x, _ = images(rng, 1)
    network(x)
    x[0, 1, 2, 3] = float("nan")
    with pytest.raises(ArgumentError, match="finite"):
        network(x)


def last(*layers):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))


class TwoInputs(nn.Module):
    def forward(self, x, y):
        return x + y


class PlusNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.rest = last()

    def forward(self, x):
        return self.rest(x + 1)


REFUSED = {
    "sigmoid": (last(nn.Sigmoid()), UnsupportedError, ["0 is Sigmoid", "accepted: Conv2d"]),
    "lone relu": (last(nn.ReLU()), UnsupportedError, ["0 is ReLU"]),
    "padding before pooling": (last(nn.ZeroPad2d(1)), UnsupportedError, ["0 is ZeroPad2d"]),
    "reflected": (
        last(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")),
        UnsupportedError,
        ["0 is Conv2d"],
    ),
    "no linear at the end": (
        nn.Sequential(nn.Conv2d(3, 3, 1)),
        UnsupportedError,
        ["last layer must be a Linear"],
    ),
    "two inputs": (TwoInputs(), UnsupportedError, ["two inputs"]),
    "a number": (PlusNumber(), UnsupportedError, ["add is"]),
    "no module": ("network", DTypeError, ["model is a str", "torch.nn.Module"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    model, error, parts = REFUSED[case]
    with pytest.raises(error) as e:
        IntegerNetwork.from_float(model, [torch.zeros(1, 3, 4, 4)])
    assert all(part in str(e.value) for part in parts), e.value


def test_calibration_must_be_there_and_finite():
    with pytest.raises(ArgumentError, match="calibration has no inputs"):
        IntegerNetwork.from_float(last(), [])
    with pytest.raises(ArgumentError, match="not finite"):
        IntegerNetwork.from_float(last(), [torch.full((1, 3, 4, 4), float("inf"))])
