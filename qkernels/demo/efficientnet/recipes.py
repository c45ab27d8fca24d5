"""The recipes of the demo: each makes a compressed network out of the float one.

A recipe is a function of the network, its copy with folded batch norms, and calibration inputs.
"""

import copy

import torch
from torch import nn

from ...calibration import calibrate
from ...compress import Recipe, compress
from ...integer_network import Codes, IntegerNetwork
from ...nn import Conv2d, Linear
from . import data
from .model import conv_layers

PIXELS = Codes(1 / data.STD, data.MEAN)  # a pixel is a code: quantizing the image loses nothing
EIGHT = ("stem.*", "*.depthwise.*", "classifier")  # layers that keep 8 bits in the recipes of 4
SIGMAS = 6  # of the range that a batch norm promises, as in SPIQ (thesis 3.1.1)


def integer(bits):
    """Integers from the image to the logits, requantized between layers."""

    def build(model, folded, calibration):
        return IntegerNetwork.from_float(folded, calibration, PIXELS, {**dict.fromkeys(EIGHT, 8), "*": bits})

    return build


def grouped(group_size):
    """4-bit weights in groups, float between layers; the layers EIGHT keep 8 bits per channel."""
    eight = Recipe(input="tensor", static=True, correct=True)
    four = Recipe("channel", "tensor", True, False, 0.0, 4, group_size, correct=True)

    def build(model, folded, calibration):
        return fused(compress(folded, {**dict.fromkeys(EIGHT, eight), "*": four}, calibration))

    return build


def spiq(model, folded, calibration):
    """A static scale for each input channel, folded into the weights (thesis eq. 3.10-3.11); float between layers.

    The ranges are those that the batch norms promise, as in the thesis, or what calibration saw where that is wider.
    """
    layers = conv_layers(folded)
    seen, promised = calibrate(folded, layers, calibration, layers), input_ranges(model)
    folded = copy.deepcopy(folded)
    for name, layer in layers.items():
        amax = torch.maximum(seen[name], promised[name]) if name in promised else seen[name]
        kind = Linear if isinstance(layer, nn.Linear) else Conv2d
        parent, _, child = name.rpartition(".")
        setattr(folded.get_submodule(parent), child, kind.from_float(layer, "int8-spiq", amax))
    return fused(folded)


RECIPES = {
    "int8-integer": integer(8),
    "int8-spiq": spiq,
    "w4a8": integer(4),
    "w4a8-g64": grouped(64),
    "w4a8-g32": grouped(32),
}


def input_ranges(model):
    """{name: max|x| float32 (C,)} of the layers' inputs by the batch norms before them: |mean| + 6 sigma, and no more
    than 6 after ReLU6. What a residual adds up has the sum of means and of variances. Not of the first layer."""
    ranges = {}

    def norm(part):
        return part.norm.bias.detach(), part.norm.weight.detach().abs()

    def relu6(part):
        mean, sigma = norm(part)
        return (mean + SIGMAS * sigma).clamp(0, 6)

    x, added = relu6(model.stem), norm(model.stem)
    for i, block in enumerate(model.blocks):
        for kind in ("expand", "depthwise"):
            part = getattr(block, kind)
            if not isinstance(part, nn.Identity):
                ranges[f"blocks.{i}.{kind}.conv"], x = x, relu6(part)
        ranges[f"blocks.{i}.project.conv"] = x
        mean, sigma = norm(block.project)
        if block.residual:
            mean, sigma = mean + added[0], (sigma.square() + added[1].square()).sqrt()
        added, x = (mean, sigma), mean.abs() + SIGMAS * sigma
    ranges["head.conv"], ranges["classifier"] = x, relu6(model.head)
    return ranges


def fused(model):
    """A compressed network whose convolutions pad and do ReLU6 themselves."""
    for part in model.modules():
        conv = getattr(part, "conv", None)
        if isinstance(part, nn.Sequential) and isinstance(conv, Conv2d):
            g, activation = conv.geometry, "relu6" if isinstance(part[-1], nn.ReLU6) else None
            left, right, top, bottom = part.pad.padding if hasattr(part, "pad") else (0, 0, 0, 0)
            padding = tuple(a + b for a, b in zip(g.padding, (top, bottom, left, right)))
            options = g.stride, padding, g.dilation, g.groups, conv.input_quant, activation
            part.conv = Conv2d(conv.weight, conv.bias, *options)
            for name in ("pad", "act"):
                if hasattr(part, name):
                    setattr(part, name, nn.Identity())
    return model
