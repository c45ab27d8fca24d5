"""MiniLM: what is measured of a sentence model and how it is shown."""

import copy

import numpy as np
import torch
from torch import nn

from ...compress import RECIPES, compress  # noqa: F401
from .. import measure as shared
from .. import picture
from ..variants import COMPILED, QK, Variant, compile_some
from . import data
from .model import Batch, SentenceEncoder, linear_layers

BATCH, ITEM, LAYERS = 32, "a sentence", "linear layers"
CASES = {
    "one": shared.Case("one", "One sentence", "1", repeats=5),
    "batch": shared.Case("batches", f"Batch of {BATCH}", f"{BATCH}", "/s"),
}
FLOATS = ("float32",)  # what speed is told against
PLAIN, PREPACKED = "nn.Linear", "prepacked"
HOW = {
    PLAIN: "torch as it comes",
    PREPACKED: "weights reordered once for oneDNN",
    COMPILED: "torch.compile, with float weights frozen, which prepacks them for oneDNN",
    QK: "qkernels.compress",
}


def check_installed():
    data.model_folder()


class PrepackedLinear(nn.Module):
    """nn.Linear with its weight reordered once into oneDNN's own layout; ``weight`` stays for its size."""

    def __init__(self, linear):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight)

    def forward(self, x):
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def prepacked(model):
    """A copy of an encoder with all linear layers prepacked for oneDNN."""
    model = copy.deepcopy(model)
    for name, layer in linear_layers(model).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, PrepackedLinear(layer))
    return model


def _variant(family, how, model):
    return Variant(family, how, model, linear_layers(model), freeze=how == PLAIN)


def build(model, recipes, calibration, cases, compile_seconds, say):
    """All variants of ``model``, and notes on those that could not be had."""
    notes, variants = [], [_variant("float32", PLAIN, model)]
    variants.append(_variant("bfloat16", PLAIN, copy.deepcopy(model).bfloat16()))
    if torch.backends.mkldnn.is_available():
        for v in list(variants):
            try:
                variants.append(_variant(v.family, PREPACKED, prepacked(v.model)))
            except RuntimeError as e:  # oneDNN takes bfloat16 on some CPUs only
                notes.append(f"{v.family} prepacked: left out, {str(e).splitlines()[0]}.")
    else:
        notes.append("prepacked: this torch has no oneDNN, so float32 at its best is plain or compiled.")
    for name in recipes:
        variants.append(_variant(name, QK, compress(model, name, calibration=calibration)))
        say(f"compressed by {name}")
    plain = {v.family: v for v in variants if v.how in (PLAIN, QK)}
    wanted = [plain[family] for family in ("float32", *recipes[:1], "bfloat16")]
    compiled, more = compile_some(wanted, cases, True, compile_seconds, say)
    families = ["float32", "bfloat16", *recipes]
    return sorted(variants + compiled, key=lambda v: families.index(v.family)), notes + more


def measure(recipes, quick, progress):
    """The result of the demo: settings, rows, notes."""
    say = progress.console.print
    folder = data.model_folder()
    tokenize = data.Tokenizer(folder)
    tokens = tokenize(data.sentences("evaluated"))
    calibration = [tuple(b) for b in batches(tokenize(data.sentences("calibration")), padded=None)[0]]
    sentence = sorted(tokens, key=len)[len(tokens) // 2]
    cases = {"one": [Batch.of([sentence])], "batch": batches(tokens, BATCH)[0]}
    encoder = SentenceEncoder.load(folder)
    say(f"loaded {folder.parent.name}: {len(linear_layers(encoder))} linear layers")

    step = progress.add_task("preparing", total=None)
    variants, notes = build(encoder, recipes, calibration, cases, 0 if quick else 65, say)
    progress.update(step, total=1, completed=1)

    step = progress.add_task(f"timing {len(variants)} variants in turns", total=1.0)
    limits = (0, 3, 3) if quick else (30, 7, 40)
    times = shared.in_turns(variants, cases, CASES, *limits, lambda f: progress.update(step, completed=f))
    progress.update(step, completed=1.0)

    labelled = {name: (tokenize(texts), *pairs) for name, (texts, *pairs) in data.labelled().items()}
    if quick:
        labelled.pop("Lee", None)
    if not labelled:
        notes.append(f"rho: left out, the package gensim (its test data) is not installed. {data.INSTALL}")
    step = progress.add_task("comparing their embeddings", total=len(variants))
    exact = embed(variants[0].run["batch"], tokens)
    rows = []
    for v in variants:
        cosine = cosines(embed(v.run["batch"], tokens), exact)
        quality = {
            "cosine": {"mean": float(cosine.mean()), "min": float(cosine.min())},
            "scores": {k: agreement(v.run["batch"], *pairs) for k, pairs in labelled.items()},
        }
        rows.append(shared.row(v, times, cases, recipes) | quality)
        progress.advance(step)
    items = {"one": 1, "batch": len(tokens)}
    shared.summarize(rows, PLAIN, items)
    settings = {
        "threads": torch.get_num_threads(),
        "linear_layers": len(linear_layers(encoder)),
        "items": items,
        "tokens": sum(map(len, tokens)),
        "tokens_of_one_sentence": len(sentence),
        "batch": BATCH,
        "calibration_sentences": len(data.sentences("calibration")),
        "rounds": len(rows[0]["times"]["one"]),
        "quick": quick,
    }
    return {"settings": settings, "rows": rows, "notes": notes}


def batches(token_lists, size=32, padded=True):
    """Sentences as batches, sorted by length to need little padding, and where each sentence went."""
    order = sorted(range(len(token_lists)), key=lambda i: len(token_lists[i]))
    parts = [order[i : i + size] for i in range(0, len(order), size)]
    return [Batch.of([token_lists[i] for i in part], padded=padded) for part in parts], order


def embed(call, token_lists):
    """Unit vectors (len(token_lists), hidden) in float32, in the order given."""
    parts, order = batches(token_lists)
    out = torch.cat([call(*b)[0].float() for b in parts])
    return out[torch.tensor(order).argsort()].numpy()


def cosines(a, b):
    """Cosine of each row of ``a`` with the same row of ``b``."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def agreement(call, tokens, i, j, scores):
    """Spearman's rank correlation of the cosines of the pairs (i, j) with what people said."""
    from scipy.stats import spearmanr

    e = embed(call, tokens)
    return float(spearmanr(cosines(e[i], e[j]), scores).statistic)


def quality_columns(result):
    scores = [(name, "rho") for name in result["rows"][0]["scores"]]
    return [("cosine", "mean"), ("cosine", "worst"), *scores]


def quality_cells(row):
    return [
        f"{row['cosine']['mean']:.5f}",
        f"{row['cosine']['min']:.5f}",
        *(f"{s:.4f}" for s in row["scores"].values()),
    ]


def title(result):
    s = result["settings"]
    return f"{s['model']}: a sentence model with {s['linear_layers']} compressed linear layers"


def timed(result):
    """What the two cases are."""
    s = result["settings"]
    return (
        f"One: one sentence of {s['tokens_of_one_sentence']} tokens. Batches: all {s['items']['batch']} evaluated "
        f"sentences, {s['tokens']} tokens, in batches of {s['batch']} sorted by length; sentences a second."
    )


def explanation(result):
    s = result["settings"]
    return [
        "Cosine: between the embeddings of the evaluated sentences and those of float32. rho: Spearman's, "
        "between the cosines of pairs and what people said of them (WordSim: the 353 pairs of words of "
        "WordSim-353; Lee: 1225 pairs of news summaries). Recipes of quantized activations were calibrated on "
        f"{s['calibration_sentences']} other sentences.",
        f"The {s['linear_layers']} linear layers are six in each of six transformer layers and the pooler, "
        "which the original model also computes. Everything else is the same code in all rows.",
    ]


def headline(result):
    """The result in one sentence: the recipe closest to float32, as it runs fastest."""
    ours = [r for r in result["rows"] if r["qkernels"]]
    family = max(ours, key=lambda r: r["cosine"]["mean"])["family"]
    same = [r for r in ours if r["family"] == family]
    best = max(same, key=lambda r: r["batch"]["speedup"])
    one, batch = (best[case]["speedup"] for case in ("one", "batch"))
    return (
        f"{family} runs one sentence {one:.1f} times and batches {batch:.1f} times as fast as the best "
        f"float32, in {best['bits_per_weight']:.1f} bits per weight, at a mean cosine of "
        f"{best['cosine']['mean']:.4f}."
    )


def draw_cosines(axis, rows, colors):
    floor = 1e-6  # draws everything closer as this close
    for y, (row, color) in enumerate(zip(rows, colors)):
        mean, worst = (max(1 - row["cosine"][k], floor) for k in ("mean", "min"))
        axis.plot([mean, worst], [y, y], color=color, linewidth=2.5)
        axis.plot(mean, y, "o", color=color, markersize=7)
        axis.plot(worst, y, "|", color=color, markersize=10, markeredgewidth=2)
    axis.set_xscale("log")
    ticks = {1e-1: "0.9", 1e-2: "0.99", 1e-3: "0.999", 1e-4: "0.9999", 1e-5: "", floor: "1"}
    axis.set_xticks(list(ticks), list(ticks.values()), fontsize=8)
    axis.minorticks_off()
    axis.set_xlim(max(0.02, 1.5 * max(1 - r["cosine"]["min"] for r in rows)), floor / 2)
    picture.frame(axis, "Embeddings", "cosine to float32: dot mean, tick worst")


def draw_scores(axis, rows, colors):
    axis.axvline(0, color=picture.INK, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    reference = rows[-1]["scores"]
    for marker, name in zip("osD^", reference):
        for y, (row, color) in enumerate(zip(rows, colors)):
            axis.plot(row["scores"][name] - reference[name], y, marker, color=color, markersize=7, alpha=0.85)
        axis.plot(
            [], [], marker, color=picture.FAINT, markersize=6, label=f"{name}, float32 {reference[name]:.3f}"
        )
    axis.margins(x=0.15)
    picture.frame(axis, "Agreement with people", "Spearman, change from float32")
    if reference:
        axis.figure.legend(loc="lower right", ncols=2, frameon=False, fontsize=9, labelcolor=picture.FAINT)
    else:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=picture.FAINT)


PANELS = [(draw_cosines, 0.75), (draw_scores, 0.75)]
