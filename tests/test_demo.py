"""The demo: its model is the original model, its numbers are there, and its errors are clear."""

import json
import re

import numpy as np
import pytest
import torch
import transformers
from rich.console import Console
from typer.testing import CliRunner

from qkernels import IntWeight, PowerWeight, cli
from qkernels.compress import RECIPES, compress
from qkernels.demo import run
from qkernels.demo.minilm import data, demo
from qkernels.demo.minilm.model import Batch, SentenceEncoder, linear_layers
from qkernels.errors import ArgumentError

# Mean cosine to float32 on the evaluated sentences that each recipe must keep.
COSINES = {
    "int8-token": 0.999,
    "int8-tensor": 0.98,
    "int8-static": 0.98,
    "int8-spiq": 0.99,
    "w4a8": 0.945,
    "w4a8-g128": 0.965,
    "w4a8-g64": 0.972,
    "w4a8-g32": 0.979,
    "w4mixed-a8": 0.90,
    "w3a8-g64": 0.89,
    "w2a8-g16": 0.65,
    "w4a4": 0.80,
    "w4a4-g64": 0.83,
    "power4-a8": 0.945,
    "power4-a4": 0.89,
    "w8a16": 0.999,
    "w4a16-g128": 0.945,
    "w4a16-g64": 0.957,
    "w4a16-g32": 0.967,
    "w3a16-g128": 0.80,
    "power4": 0.935,
    "power4-g32": 0.966,
    "nf4": 0.964,
    "e2m1": 0.964,
    "log4-g32": 0.90,
    "e4m3": 0.997,
}

# Those that the demo times here; of the others the cosine is measured, on some of the sentences.
MEASURED = ["int8-token", "int8-tensor", "int8-spiq", "w4a4", "power4-a4", "w4a16-g32", "power4"]


@pytest.fixture(scope="module")
def folder():
    return data.model_folder()


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceEncoder.load(folder)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    with open(out / "console.txt", "w") as f:
        return run.run(recipes=MEASURED, out=out, quick=True, console=Console(file=f, width=80)), out


@pytest.fixture(scope="module")
def cosine(folder, encoder):
    """Mean cosine to float32 by recipe, on a fourth of the evaluated sentences."""
    tokenize = data.Tokenizer(folder)
    tokens = tokenize(data.sentences("evaluated"))[::4]
    calibration = [tuple(b) for b in demo.batches(tokenize(data.sentences("calibration")), padded=None)[0]]
    with torch.no_grad():
        exact = demo.embed(encoder, tokens)

    @torch.no_grad()
    def measure(recipe):
        small = compress(encoder, recipe, None if RECIPES[recipe].input is None else calibration)
        return demo.cosines(demo.embed(small, tokens), exact).mean()

    return measure


def test_encoder_equals_transformers(folder, encoder):
    """Sentence vectors and pooler outputs of a padded batch are those of the original, one by one."""
    original = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = data.Tokenizer(folder)(data.sentences("evaluated")[:12])
    theirs, pooled = [], []
    with torch.no_grad():
        for ids in tokens:
            out = original(torch.tensor([ids]))
            theirs.append(torch.nn.functional.normalize(out.last_hidden_state.mean(1), dim=-1))
            pooled.append(out.pooler_output)
        ours = encoder(*Batch.of(tokens))
        alone = encoder(*Batch.of(tokens[:1]))
    torch.testing.assert_close(ours[0], torch.cat(theirs), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[1], torch.cat(pooled), rtol=0, atol=1e-5)
    torch.testing.assert_close(alone[0], theirs[0], rtol=0, atol=1e-5)


def test_tokenizer_equals_transformers(folder):
    sentences = [*data.sentences("evaluated"), "Füße, naïve café; 東京!", "word " * 400]
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs(sentences, truncation=True, max_length=data.MAX_TOKENS)["input_ids"]
    assert data.Tokenizer(folder)(sentences) == expected


def test_embed_keeps_the_order(folder, encoder):
    tokens = data.Tokenizer(folder)(data.sentences("calibration")[:5])
    with torch.no_grad():
        together = demo.embed(encoder, tokens)
        alone = np.concatenate([demo.embed(encoder, [t]) for t in tokens])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_there_are_37_linear_layers(encoder):
    layers = linear_layers(encoder)
    assert len(layers) == 37
    assert set(layers.values()) == {m for m in encoder.modules() if isinstance(m, torch.nn.Linear)}


def test_sentences():
    evaluated, calibration = data.sentences("evaluated"), data.sentences("calibration")
    assert len(set(evaluated)) == len(evaluated) == 64
    assert len(set(calibration)) == len(calibration) >= 40
    assert not {s.lower() for s in evaluated} & {s.lower() for s in calibration}


def test_labelled_data():
    labelled = data.labelled()
    words, i, j, scores = labelled["WordSim"]
    assert len(i) == len(j) == len(scores) == 353
    pairs = {(words[a], words[b]): s for a, b, s in zip(i, j, scores)}
    assert pairs["tiger", "cat"] == 7.35
    assert [len(part) for part in labelled["Lee"]] == [50, 1225, 1225, 1225]


def test_files(result):
    result, out = result
    saved = json.loads((out / "demo.json").read_text())
    assert saved == json.loads(json.dumps(result))
    assert {"machine", "settings", "rows", "notes", "seconds"} <= set(saved)
    assert saved["settings"]["linear_layers"] == 37
    assert (out / "demo.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "demo.html").read_text()
    assert "data:image/png;base64," in page and "{{" not in page
    assert all(link.startswith("data:") for link in re.findall(r"(?:src|href)=['\"](.*?)['\"]", page))
    text = (out / "console.txt").read_text()
    assert "…" not in text  # nothing is cut off on a terminal of 80 columns
    assert "demo.json" in text


def test_rows(result):
    rows = result[0]["rows"]
    assert {r["family"] for r in rows} == {"float32", "bfloat16", *MEASURED}
    for row in rows:
        for case in ("one", "batch"):
            assert row[case]["milliseconds"] > 0 and row[case]["spread"] >= 0
            assert len(row["times"][case]) == result[0]["settings"]["rounds"]
            assert 0 < row["outside_share"][case] < 1
        assert -1 <= row["scores"]["WordSim"] <= 1
    for case in ("one", "batch"):
        best = max(r[case]["speedup"] for r in rows if r["family"] == "float32")
        assert best == 1


def test_sizes(result):
    sizes = {r["family"]: (r["weight_bytes"], r["bits_per_weight"]) for r in result[0]["rows"]}
    weights, outputs = 25 * 384 * 384 + 12 * 384 * 1536, 31 * 384 + 6 * 1536
    assert sizes["float32"] == (4 * (weights + outputs), 32)
    assert sizes["bfloat16"] == (2 * (weights + outputs), 16)
    inputs = 31 * 384 + 6 * 1536
    assert sizes["int8-tensor"] == (weights + 8 * outputs, 8 * (weights + 4 * outputs) / weights)
    folded = 4 * inputs  # bytes of the input scales that smoothing folds in
    assert sizes["int8-token"] == (
        weights + 8 * outputs + folded,
        8 * (weights + 4 * outputs + folded) / weights,
    )


@pytest.mark.parametrize("recipe", MEASURED)
def test_cosine(result, recipe):
    row = next(r for r in result[0]["rows"] if r["family"] == recipe)
    assert row["cosine"]["mean"] >= COSINES[recipe]


@pytest.mark.parametrize("recipe", [r for r in COSINES if r not in MEASURED])
def test_cosine_of_the_others(cosine, recipe):
    assert cosine(recipe) >= COSINES[recipe]


def test_every_recipe_has_a_cosine():
    assert set(COSINES) == set(RECIPES)


@pytest.mark.parametrize("group_size", [None, 32])
def test_power_codes_lose_less_than_uniform_ones(encoder, group_size):
    """PowerQuant's claim on real weights: at 4 bits and equal scales, the L2 error of every layer is smaller."""
    layers = linear_layers(encoder)
    for name in list(layers)[::6]:
        W = layers[name].weight.detach()
        uniform = IntWeight.quantize(W, 4, group_size)
        power = PowerWeight.quantize(W, 4, group_size=group_size)
        errors = [float((w.dense() - W).norm() / W.norm()) for w in (power, uniform)]
        assert errors[0] < 0.97 * errors[1] and power.nbytes == uniform.nbytes, (name, errors)


def test_power_recipes_are_closer_than_uniform_ones(result):
    """The same in sentence vectors, where it shows most: activations of 4 bits."""
    cosine = {r["family"]: r["cosine"]["mean"] for r in result[0]["rows"]}
    assert cosine["power4-a4"] > cosine["w4a4"] + 0.02


def test_bad_arguments(tmp_path):
    with pytest.raises(
        ArgumentError, match=r"model is 'bert'; accepted: minilm, efficientnet-lite0, smollm2"
    ):
        run.run(model="bert", out=tmp_path)
    with pytest.raises(ArgumentError, match=r"int9; accepted: int8-token"):
        run.run(recipes=["int9"], out=tmp_path)
    with pytest.raises(ArgumentError, match=r"threads is 0"):
        run.run(threads=0, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_cli_info():
    shown = CliRunner().invoke(cli.commands, ["info"])
    assert shown.exit_code == 0
    assert "cpu-scalar" in shown.output


def test_cli_latency():
    shown = CliRunner().invoke(cli.commands, ["latency", "3x40x24"])
    assert shown.exit_code == 0
    assert "3x40x24" in shown.output


def test_cli_errors_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["qkernels", "demo", "--model", "bert"])
    with pytest.raises(SystemExit) as stop:
        cli.app()
    assert stop.value.code == 2
    assert (
        capsys.readouterr().err
        == "qkernels demo: model is 'bert'; accepted: minilm, efficientnet-lite0, smollm2.\n"
    )
