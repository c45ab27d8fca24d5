"""Batch norm folding: the folded model equals the model, and what cannot be folded is refused with a reason."""

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels.compress import fold_batch_norm


def norm(cls, channels, seed=0, affine=True, **options):
    g = torch.Generator().manual_seed(seed)
    m = cls(channels, affine=affine, **options).eval()
    if m.running_mean is not None:
        m.running_mean.copy_(torch.randn(channels, generator=g))
        m.running_var.copy_(torch.rand(channels, generator=g) + 0.1)
    if affine:
        m.weight.data.copy_(torch.randn(channels, generator=g))
        m.bias.data.copy_(torch.randn(channels, generator=g))
    return m


def folded_count(model):
    return sum(type(m) is nn.Identity for m in model.modules())


class Residual(nn.Module):
    """conv1's output is read by its norm only, conv2's by its norm and the sum, conv3's first by a ReLU."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 3, padding=1), norm(nn.BatchNorm2d, 8, 1)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), norm(nn.BatchNorm2d, 8, 2)
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 1), norm(nn.BatchNorm2d, 8, 3)

    def forward(self, x):
        a = self.bn1(self.conv1(x))
        b = self.conv2(a)
        return self.bn3(torch.relu(self.conv3(a))) + self.bn2(b) + b


class Branching(Residual):
    """What a symbolic trace cannot follow."""

    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_convolution(bias, affine, groups):
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=groups, bias=bias), norm(nn.BatchNorm2d, 8, affine=affine)
    ).eval()
    x = torch.randn(2, 4, 9, 9)
    with torch.no_grad():
        expected = model(x)
        folded = fold_batch_norm(model)
        assert torch.allclose(folded(x), expected, atol=1e-5)
        assert torch.equal(model(x), expected) and type(model[1]) is nn.BatchNorm2d  # a copy was folded
    assert type(folded[1]) is nn.Identity and folded[0].bias is not None


def test_other_layers_and_in_place():
    pairs = [
        (nn.Linear(5, 6), norm(nn.BatchNorm1d, 6), (3, 5)),
        (nn.Conv1d(5, 6, 3), norm(nn.BatchNorm1d, 6), (2, 5, 9)),
        (nn.Conv3d(2, 6, 2), norm(nn.BatchNorm3d, 6), (1, 2, 4, 4, 4)),
    ]
    for layer, bn, shape in pairs:
        model, x = nn.Sequential(layer, bn, nn.ReLU()).eval(), torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
            assert fold_batch_norm(model, inplace=True) is model
            assert torch.allclose(model(x), expected, atol=1e-5)


def test_only_what_a_trace_shows_to_be_valid():
    model, x = Residual().eval(), torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        folded = fold_batch_norm(model)
        assert torch.allclose(folded(x), model(x), atol=1e-5)
    assert type(folded.bn1) is nn.Identity
    assert type(folded.bn2) is type(folded.bn3) is nn.BatchNorm2d


def test_pairs_by_name_where_no_trace_is_possible():
    model, x = Branching().eval(), torch.randn(1, 4, 5, 5)
    with pytest.raises(qk.ArgumentError, match="no batch norm"):
        fold_batch_norm(model)
    with torch.no_grad():
        folded = fold_batch_norm(model, pairs=[("conv1", "bn1")])
        assert folded_count(folded) == 1
        assert torch.allclose(folded(x), model(x), atol=1e-5)


def shared():
    conv, model = nn.Conv2d(4, 4, 1), nn.Module()
    model.a, model.b, model.bn = conv, conv, norm(nn.BatchNorm2d, 4)
    return model.eval()


def simple(layer, bn):
    model = nn.Module()
    model.a, model.bn = layer, bn
    return model


def hooked():
    conv = nn.Conv2d(4, 4, 1)
    conv.register_forward_hook(lambda *a: None)
    return simple(conv, norm(nn.BatchNorm2d, 4))


REFUSED = {
    "training mode": lambda: simple(nn.Conv2d(4, 4, 1), norm(nn.BatchNorm2d, 4).train()),
    "running statistics": lambda: simple(
        nn.Conv2d(4, 4, 1), norm(nn.BatchNorm2d, 4, track_running_stats=False)
    ),
    "output channels": lambda: simple(nn.Conv2d(4, 8, 1), norm(nn.BatchNorm2d, 4)),
    "several places": shared,
    "hooks": hooked,
    "ConvTranspose2d": lambda: simple(nn.ConvTranspose2d(4, 4, 1), norm(nn.BatchNorm2d, 4)),
    "BatchNorm2d": lambda: simple(nn.Conv2d(4, 4, 1), norm(nn.BatchNorm1d, 4)),
    "parametrization": lambda: simple(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), norm(nn.BatchNorm2d, 4)
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused(reason):
    with pytest.raises(qk.ArgumentError, match=reason):
        fold_batch_norm(REFUSED[reason](), pairs=[("a", "bn")])


def test_wrong_arguments():
    model = simple(nn.Conv2d(4, 4, 1), norm(nn.BatchNorm2d, 4))
    with pytest.raises(qk.ArgumentError, match="no module"):
        fold_batch_norm(model, pairs=[("a", "missing")])
    with pytest.raises(qk.ArgumentError, match="twice"):
        fold_batch_norm(model, pairs=[("a", "bn"), ("a", "bn")])
    with pytest.raises(qk.DTypeError):
        fold_batch_norm("model")
    with pytest.raises(qk.ArgumentError, match="eval"):
        fold_batch_norm(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("recipe", ["int8-tensor", "int8-static", "int8-spiq"])
def test_dead_channels_become_their_bias(recipe):
    """gamma = 0: all weights of a channel are zero, its codes too, and what is left is beta."""
    conv, bn = nn.Conv2d(4, 8, 3, padding=1, bias=False), norm(nn.BatchNorm2d, 8)
    bn.weight.data[3] = 0
    model = fold_batch_norm(nn.Sequential(conv, bn).eval())
    assert not model[0].weight[3].any()
    x = torch.randn(1, 4, 6, 6)
    y = qk.compress(model, recipe, calibration=[x])(x)
    assert torch.equal(y[:, 3], torch.full((1, 6, 6), bn.bias[3].item()))
    assert torch.isfinite(y).all()
