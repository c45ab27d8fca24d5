"""qk.nn.Conv2d: a module like torch's, by recipes, under torch.compile, through files."""

import copy
import pickle

import pytest
import torch
from torch import nn

import qkernels as qk
from qkernels import _torch_conv

RECIPES = ["int8-token", "int8-tensor", "int8-static", "int8-spiq"]
LAYERS = {
    "1x1": lambda: nn.Conv2d(6, 8, 1),
    "3x3": lambda: nn.Conv2d(6, 8, 3, 2, 1, bias=False),
    "dilation": lambda: nn.Conv2d(6, 8, 3, padding="same", dilation=2),
    "groups": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 12, 5, padding=2, groups=6),
}
each_layer = pytest.mark.parametrize("name", LAYERS)
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    torch.manual_seed(0)


def compressed(name, recipe):
    layer, x = LAYERS[name](), torch.randn(2, 6, 9, 10)
    return layer, qk.compress(layer, recipe, calibration=[x]), x


@each_layer
@each_recipe
def test_close_to_float(name, recipe):
    layer, module, x = compressed(name, recipe)
    assert type(module) is qk.nn.Conv2d
    with torch.no_grad():
        expected = layer(x)
    for image in (x, x.contiguous(memory_format=torch.channels_last)):
        y = module(image)
        assert (y - expected).norm() < 0.02 * expected.norm()
        assert y.shape == expected.shape


@each_layer
@each_recipe
def test_state_dict_pickle_and_copies(name, recipe, tmp_path):
    _, module, x = compressed(name, recipe)
    y = module(x)
    other = qk.compress(LAYERS[name](), recipe, calibration=[torch.rand(1, 6, 9, 9) * 9])
    other.load_state_dict(module.state_dict())
    for m in (other, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(m(x), y)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(other(x), y)
    assert "Conv2d" in repr(module) and "6, " in repr(module)


@each_layer
@each_recipe
def test_compiled_equals_eager(name, recipe):
    _, module, x = compressed(name, recipe)
    y = torch.compile(module, fullgraph=True)(x)
    assert torch.equal(y, module(x))
    last = x.contiguous(memory_format=torch.channels_last)
    z = torch.compile(module, fullgraph=True)(last)
    assert torch.equal(z, module(last)) and z.is_contiguous(memory_format=torch.channels_last)


def test_function_compiles():
    w, q = qk.IntWeight.quantize(torch.randn(5, 6, 3, 3)), qk.InputQuant(granularity="tensor")
    x = torch.randn(1, 6, 7, 7)

    def f(x):
        return qk.conv2d(x, w, padding=1, activation="relu", input_quant=q) + 1

    assert torch.equal(torch.compile(f, fullgraph=True)(x), f(x))


@each_layer
@pytest.mark.parametrize("recipe", ["int8-tensor", "int8-spiq"])
def test_opcheck(name, recipe):
    _, module, x = compressed(name, recipe)
    q, g = module.input_quant, module.geometry
    packed, scale = _torch_conv.layout(module.weight, g, q)
    for image, out_dtype in ((x, torch.float32), (x.bfloat16(), torch.float16), (x[:0], torch.float32)):
        arguments = (image, packed, scale, module.bias, (g.out_channels, *g.kernel), g.stride, g.padding)
        rest = (g.dilation, qk.cpu.input_mode(q), 8, q.signed, 1.0, 0, 1, out_dtype)
        torch.library.opcheck(torch.ops.qkernels.conv2d_int.default, (*arguments, *rest))


def test_operator_refuses_what_does_not_fit():
    _, module, x = compressed("3x3", "int8-tensor")
    packed, _ = _torch_conv.layout(module.weight, module.geometry, module.input_quant)

    def call(x=x, packed=packed, kernel=(8, 3, 3), padding=(1, 1, 1, 1), bias=None):
        return torch.ops.qkernels.conv2d_int(
            x, packed, None, bias, kernel, (1, 1), padding, (1, 1), 1, 8, True, 1.0, 0, 0, torch.float32
        )

    call()
    for wrong in (
        {"x": x[:, :5]},
        {"x": x.double()},
        {"packed": packed[:-64]},
        {"packed": torch.zeros_like(packed)},
        {"kernel": (7, 3, 3)},
        {"padding": (1, 1)},
        {"bias": torch.zeros(5)},
        {"x": x[:, :, :1, :1], "padding": (0, 0, 0, 0)},
    ):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            call(**wrong)


def test_a_model_with_both_kinds_of_layers():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)).eval()
    new = qk.compress(model, {"0": "int8-tensor", "*": "int8-token"})
    assert type(new[0]) is qk.nn.Conv2d and type(new[3]) is qk.nn.Linear
    assert new(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    only = qk.compress(model, {"0": None, "*": "int8"})
    assert type(only[0]) is nn.Conv2d and type(only[3]) is qk.nn.Linear


def test_refusals():
    with pytest.raises(qk.ArgumentError, match="reflect"):
        qk.compress(nn.Conv2d(3, 4, 3, padding_mode="reflect"), "int8-tensor")
    with pytest.raises(qk.DTypeError):
        qk.nn.Conv2d.from_float(nn.Linear(3, 4), "int8-tensor")
    with pytest.raises(qk.ArgumentError, match="stats"):
        qk.nn.Conv2d.from_float(nn.Conv2d(3, 4, 3), "int8-static")
    w = qk.IntWeight.quantize(torch.randn(4, 3, 3, 3))
    with pytest.raises(qk.ArgumentError, match="token"):
        qk.nn.Conv2d(w, input_quant=qk.InputQuant())
    with pytest.raises(qk.ArgumentError, match="kh, kw"):
        qk.nn.Conv2d(qk.IntWeight.quantize(torch.randn(4, 3)))
