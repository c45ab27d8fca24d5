"""The ways to run a model that the demo compares: float torch, plain and at its best, and all recipes."""

import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

COMPILED, QK = "compiled", "qkernels"


@dataclass
class Variant:
    """One way to run the model. ``run`` maps a case to what is called with its arguments: both "one" and "batch" to the
    model itself, unless said otherwise.

    layers  {name: layer} of the layers with weights, of which times and sizes are reported: modules with ``weight`` and
            ``bias``, or steps of an IntegerNetwork.
    freeze  torch.compile may take the weights as constants.
    eager   of a compiled variant, {case: call} of those in ``run`` that are not compiled.
    outside {case: function of a call's arguments}: measures the share of its time outside of the layers, where a call
            in ``run`` does not go through their ``forward``.
    """

    family: str  # "float32", "bfloat16" or the name of a recipe
    how: str  # a key of the HOW of the model's demo
    model: nn.Module
    layers: dict
    freeze: bool = False
    run: dict = field(default_factory=dict)
    eager: dict = field(default_factory=dict)
    outside: dict = field(default_factory=dict)

    def __post_init__(self):
        self.run = self.run or {"one": self.model, "batch": self.model}

    @property
    def name(self):
        return f"{self.family} {self.how}"

    def weight_bytes(self):
        """Bytes that the layers store: weights, scales and biases."""
        return sum(nbytes(m.weight) + nbytes(m.bias) for m in self.layers.values())

    def bits_per_weight(self):
        """Bits stored per weight, scales included and biases not."""
        weights = [m.weight for m in self.layers.values()]
        return 8 * sum(map(nbytes, weights)) / sum(map(_count, weights))


def nbytes(weight):
    """Bytes of a tensor, of a compressed weight, or of None."""
    if isinstance(weight, torch.Tensor):
        return weight.numel() * weight.element_size()
    return 0 if weight is None else weight.nbytes


def _count(weight):
    count = 1
    for size in weight.shape:
        count *= size
    return count


@contextmanager
def compiler(freezing):
    """The settings of torch.compile that the demo uses; they count while a model is first called."""
    import torch._dynamo
    import torch._inductor.config

    with torch._inductor.config.patch(freezing=freezing), torch._dynamo.config.patch(recompile_limit=64):
        yield


def compiled(variant, cases, dynamic):
    """``variant`` through torch.compile: a graph for the very shape of "one", and for a batch one for any shape if
    ``dynamic``, else for its very shape.

    Float weights are frozen: they become constants that inductor hands to oneDNN prepacked, with activations fused
    into the multiply. Returns the new variant and the seconds that it took.
    """
    start = time.perf_counter()
    run = {
        "one": torch.compile(variant.model, fullgraph=True, dynamic=False),
        "batch": torch.compile(variant.model, fullgraph=True, dynamic=dynamic),
    }
    with compiler(freezing=variant.freeze):
        for case, call in run.items():
            for batch in cases[case]:
                call(*batch)
    new = Variant(variant.family, COMPILED, variant.model, variant.layers, variant.freeze, run)
    return new, time.perf_counter() - start


def compile_some(variants, cases, dynamic, limit, say, compile=compiled):
    """Those of ``variants`` that torch.compile takes, compiled, and notes on the others.

    limit    no compilation starts after this many seconds; 0 compiles nothing.
    say      called with a line of progress.
    compile  makes the compiled variant and says how long it took, as ``compiled`` does.
    """
    done, notes, spent = [], [], 0.0
    for variant in variants if limit else ():
        family = variant.family
        if spent > limit:
            notes.append(f"{family} compiled: left out, {limit:.0f} s for compiling are used up.")
            continue
        say(f"compiling {family} with torch.compile ...")
        start = time.perf_counter()
        try:
            new, seconds = compile(variant, cases, dynamic)
            done.append(new)
            say(f"compiled {family} in {seconds:.0f} s")
        except Exception as e:  # no compiler, no headers, an operator that inductor lacks: the rest counts
            reason = (str(e).strip().splitlines() or [""])[0][:200]
            notes.append(f"{family} compiled: failed with {type(e).__name__}: {reason}")
        spent += time.perf_counter() - start
    if not limit:
        notes.append("compiled: left out (--quick), so float32 at its best is one that is not.")
    return done, notes
