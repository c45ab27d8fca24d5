"""The models that the demo compares: float32 and bfloat16 torch, plain and at their best, and all recipes."""

import copy
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..errors import ArgumentError
from .model import linear_layers

PLAIN, PREPACKED, COMPILED, QK = "nn.Linear", "prepacked", "compiled", "qkernels"
HOW = {
    PLAIN: "torch as it comes",
    PREPACKED: "weights reordered once for oneDNN",
    COMPILED: "torch.compile, with float weights frozen, which prepacks them for oneDNN",
    QK: "qkernels.compress",
}


@dataclass
class Variant:
    """One way to run the model. ``run`` maps a case, "one" or "batch", to what is called with a batch."""

    family: str  # "float32", "bfloat16" or the name of a recipe
    how: str  # a key of HOW
    model: nn.Module
    run: dict = field(default_factory=dict)

    def __post_init__(self):
        self.run = self.run or {"one": self.model, "batch": self.model}

    @property
    def name(self):
        return f"{self.family} {self.how}"

    def weight_bytes(self):
        """Bytes that the 37 linear layers store: weights, scales and biases."""
        return sum(_weight_bytes(m) + _bytes(m.bias) for m in linear_layers(self.model).values())

    def bits_per_weight(self):
        """Bits stored per weight, scales included and biases not."""
        layers = linear_layers(self.model).values()
        return 8 * sum(map(_weight_bytes, layers)) / sum(m.in_features * m.out_features for m in layers)


def _bytes(t):
    return 0 if t is None else t.numel() * t.element_size()


def _weight_bytes(layer):
    weight = layer.weight
    return _bytes(weight) if isinstance(weight, torch.Tensor) else weight.nbytes


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


@contextmanager
def compiler(freezing):
    """The settings of torch.compile that the demo uses; they count while a model is first called."""
    import torch._dynamo
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=freezing), torch._dynamo.config.patch(recompile_limit=64):
        yield


def compiled(variant, cases):
    """``variant`` through torch.compile: a graph for the very shape of a sentence, one for any batch.

    Float weights are frozen: they become constants that inductor hands to oneDNN prepacked, with GELU fused
    into the multiply. Returns the new variant and the seconds that it took.
    """
    start = time.perf_counter()
    run = {
        "one": torch.compile(variant.model, fullgraph=True, dynamic=False),
        "batch": torch.compile(variant.model, fullgraph=True, dynamic=True),
    }
    with compiler(freezing=variant.how == PLAIN):
        for case, call in run.items():
            for batch in cases[case]:
                call(*batch)
    return Variant(variant.family, COMPILED, variant.model, run), time.perf_counter() - start


def chosen_recipes(names):
    """The names asked for, checked, or all that there are.

    Raises:
        ArgumentError: a name that is not a recipe.
    """
    from ..compress import RECIPES

    unknown = [n for n in names or () if n not in RECIPES]
    if unknown:
        raise ArgumentError(f"demo: recipes has {', '.join(unknown)}; accepted: {', '.join(RECIPES)}.")
    return list(names or RECIPES)


def build(model, recipes, calibration, cases, compile_seconds, say):
    """All variants of ``model``, and notes on those that could not be had.

    compile_seconds  no compilation starts after this much time; 0 compiles nothing.
    say              called with a line of progress.
    """
    from ..compress import compress

    notes, variants = [], [Variant("float32", PLAIN, model)]
    variants.append(Variant("bfloat16", PLAIN, copy.deepcopy(model).bfloat16()))
    if torch.backends.mkldnn.is_available():
        variants += [Variant(v.family, PREPACKED, prepacked(v.model)) for v in variants]
    else:
        notes.append("prepacked: this torch has no oneDNN, so float32 at its best is plain or compiled.")
    for name in recipes:
        variants.append(Variant(name, QK, compress(model, name, calibration=calibration)))
        say(f"compressed by {name}")

    plain = {v.family: v for v in variants if v.how in (PLAIN, QK)}
    spent = 0.0
    for family in ("float32", *recipes[:1], "bfloat16") if compile_seconds else ():
        if spent > compile_seconds:
            notes.append(f"{family} compiled: left out, {compile_seconds:.0f} s for compiling are used up.")
            continue
        say(f"compiling {family} with torch.compile ...")
        start = time.perf_counter()
        try:
            variant, seconds = compiled(plain[family], cases)
            variants.append(variant)
            say(f"compiled {family} in {seconds:.0f} s")
        except Exception as e:  # no compiler, no headers, an operator that inductor lacks: the rest counts
            reason = (str(e).strip().splitlines() or [""])[0][:200]
            notes.append(f"{family} compiled: failed with {type(e).__name__}: {reason}")
        spent += time.perf_counter() - start
    if not compile_seconds:
        notes.append("compiled: left out (--quick), so float32 at its best is plain or prepacked.")
    families = ["float32", "bfloat16", *recipes]
    return sorted(variants, key=lambda v: families.index(v.family)), notes
