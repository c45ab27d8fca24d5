"""The recipes of the demo: those of qkernels.compress that a language model is run by, and the file's own blocks."""

import copy

from ...compress import compress
from ...interop import from_gguf
from ...nn import Linear
from . import data
from .model import Rows, linear_layers

IMPORTED = "q4_1"
RECIPES = (
    IMPORTED,
    *("w8a16", "w4a16-g32", "w4a16-g128", "w3a16-g128", "nf4", "e2m1", "log4-g32", "power4"),  # weights only
    *("int8-token", "w4a8-g32", "power4-a8", "power4-a4"),  # activations too
)


def build(name, model, file, calibration):
    """The model by a recipe: all its linear layers compressed, its embedding as the file stores it.

    Args:
        model: the LanguageModel in float32.
        file: the gguf_file.File that it came from.
        calibration: arguments of the model, as qkernels.compress takes them.
    """
    matrices = data.matrices(file)
    new = imported(model, matrices) if name == IMPORTED else compress(model, name, calibration)
    new.embed = Rows(matrices["head"])
    return new


def imported(model, matrices):
    """The model with the blocks of the file as its weights: nothing is rounded again."""
    layers = linear_layers(model)
    new = {id(layers[name]): Linear(from_gguf(b.rows, b.kind)).eval() for name, b in matrices.items()}
    return copy.deepcopy(model, memo=new)
