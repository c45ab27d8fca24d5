"""The demo of EfficientNet-Lite0: its network is the original, its images are there, its recipes stay close."""

import json

import efficientnet_lite_pytorch
import numpy as np
import pytest
import torch
from rich.console import Console

from qkernels.demo import run
from qkernels.demo.efficientnet import data, recipes
from qkernels.demo.efficientnet.demo import agreement, noise
from qkernels.demo.efficientnet.model import SIZE, EfficientNetLite, conv_layers
from qkernels.errors import ArgumentError

# Power of the logits over that of their error, in dB, that each recipe must keep.
LEAST_DB = {"int8-integer": 20, "int8-spiq": 10, "w4a8": 6, "w4a8-g64": 7, "w4a8-g32": 7}


@pytest.fixture(scope="module")
def model():
    return EfficientNetLite.load(data.checkpoint())


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with open(out / "console.txt", "w") as f:
        return run.run("efficientnet-lite0", out=out, quick=True, console=Console(file=f, width=80)), out


@torch.no_grad()
def test_network_equals_the_original(model):
    original = efficientnet_lite_pytorch.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(data.checkpoint())
    ).eval()
    x = data.normalized(data.evaluated(1)[0][:4])
    torch.testing.assert_close(model(x), original(x), rtol=0, atol=1e-4)


def test_there_are_49_convolutions_and_norms(model):
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(torch.nn.Conv2d) == kinds.count(torch.nn.BatchNorm2d) == 49
    assert len(conv_layers(model)) == 50


def test_images():
    centres, labels, views = data.evaluated(2)
    assert centres.shape == (20, 3, SIZE, SIZE) and views.shape == (40, 3, SIZE, SIZE)
    assert labels[:4].tolist() == [243, 559, 438, 990]
    assert centres.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views, data.evaluated(2)[2])  # the same squares each time
    photographs = data.calibration(1)
    assert photographs.shape == (len(data.PHOTOGRAPHS), 3, SIZE, SIZE)
    assert data.normalized(centres).min() >= -127 / 128 and data.normalized(centres).max() <= 1


@torch.no_grad()
def test_most_images_are_recognized(model):
    centres, labels, _ = data.evaluated(1)
    assert int((model(data.normalized(centres)).argmax(1) == labels).sum()) == 18


def test_ranges_that_batch_norms_promise(model):
    ranges = recipes.input_ranges(model)
    layers = conv_layers(model)
    assert set(ranges) == set(layers) - {"stem.conv"}
    for name, amax in ranges.items():
        inputs = getattr(layers[name], "in_channels", None) or layers[name].in_features
        assert amax.shape == (inputs,) and bool((amax >= 0).all())


def test_rows(result):
    rows = result[0]["rows"]
    assert {r["family"] for r in rows} == {"float32", "bfloat16", *recipes.RECIPES}
    for row in rows:
        for case in ("one", "batch"):
            assert row[case]["milliseconds"] > 0 and 0 < row["outside_share"][case] < 1
        assert row["correct"] >= 16 or row["family"] not in ("float32", "int8-integer")
    sizes = {r["family"]: r["bits_per_weight"] for r in rows}
    assert sizes["float32"] == 32 and 8 < sizes["int8-integer"] < 8.3 and 5 < sizes["w4a8"] < 6


@pytest.mark.parametrize("recipe", LEAST_DB)
def test_quality(result, recipe):
    row = next(r for r in result[0]["rows"] if r["family"] == recipe)
    assert row["noise_db"] >= LEAST_DB[recipe]
    assert row["agreement"]["views"] >= 0.85


def test_files(result):
    result, out = result
    assert json.loads((out / "demo.json").read_text()) == json.loads(json.dumps(result))
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "demo.html").read_text()
    assert "data:image/png;base64," in page and "{{" not in page
    text = (out / "console.txt").read_text()
    assert "…" not in text and "demo.json" in text


def test_quality_measures():
    a = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    b = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
    assert agreement(a, b) == 0.5
    assert noise(a, a) is None
    error = np.square((a - b).numpy()).mean()
    assert noise(b, a) == pytest.approx(10 * np.log10(a.numpy().var() / error))


def test_unknown_recipes(tmp_path):
    with pytest.raises(ArgumentError, match=r"int8-token; accepted: int8-integer"):
        run.run("efficientnet-lite0", ["int8-token"], out=tmp_path)
    assert not list(tmp_path.iterdir())
