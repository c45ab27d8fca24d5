"""Recipes: how ``qkernels.compress`` compresses a layer."""

from dataclasses import dataclass, fields

from .errors import ArgumentError, DTypeError
from .formats import CodebookWeight, FloatWeight, IntWeight, LogWeight, MixedIntWeight, PowerWeight

# Recipe.format -> the weight format, and what its quantize takes of a recipe.
FORMATS = {
    "int": (IntWeight, ("bits", "group_size", "symmetric")),
    "mixed": (MixedIntWeight, ("bits",)),
    "power": (PowerWeight, ("bits", "group_size", "exponent")),
    "log": (LogWeight, ("bits", "group_size")),
    "float": (FloatWeight, ("kind", "group_size", "scale_kind")),
    "codebook": (CodebookWeight, ("bits", "group_size", "codebook")),
}


@dataclass(frozen=True)
class Recipe:
    """How one linear layer is compressed.

    format     of the weight: "int", or "mixed", "power", "log", "float", "codebook" for linear layers (FORMATS).
    weight     granularity of the weight's scale: "channel" or "tensor".
    bits       of the weight's codes, 2 to 8 ("codebook": 1 to 8); of "mixed" the average: each output channel has its
               own (MixedIntWeight). Of "float" the kind says it.
    group_size codes along K that share a scale; None for a whole row. Only with "channel".
    symmetric  the weight has no zero points ("int").
    exponent   of "power": 0.5, whose table is integers, another number in 1/16..4, or None: each layer gets the one
               whose L2 error on its weight is smallest (thesis eq. 3.14; needs scipy).
    kind       of "float": "e4m3", "e5m2", "e2m1"; ``scale_kind``: "float32", "e8m0", "e4m3" (FloatWeight).
    codebook   of "codebook": "nf4", a tuple of 2**bits numbers, or None, which is k-means.
    input      granularity of the activations': "token", "tensor", "channel", or None: weight-only, activations stay
               floats (and convolutions run the reference). An output of a convolution sums over many pixels, so for
               convolutions "token" means "tensor".
    input_bits of the activations' codes, 2 to 8.
    input_power 0.5: the activations' codes are on a square root (PowerQuant), else None. "token" or dynamic "tensor".
    correct    the bias takes what rounding the weights moves each output by on average, from the mean of each input
               channel (Nagel et al. 2019, section 4.2). Needs calibration, and is left out where none is given.
    static     the scale of the activations comes from calibration, max|x| / (2**(input_bits - 1) - 1). Always so for
               "channel".
    smooth     exponent a of the input scales s[k] = max|x[:, k]|**a / max|W[:, k]|**(1 - a) that are divided out
               of the activations and folded into the weight, so that a few large input channels do not take
               the codes of all others (Xiao et al. 2022, eq. 4); 0 for none. Needs calibration: a dynamic recipe
               does without where none is given. Not with "channel", whose own scales do this.
    mixed      True is format "mixed".

    Raises:
        ArgumentError: values outside of the above, or a field that the format does not take.
    """

    weight: str = "channel"
    input: object = "token"
    static: bool = False
    symmetric: bool = True
    smooth: float = 0.0
    bits: int = 8
    group_size: object = None
    input_bits: int = 8
    correct: bool = False
    mixed: bool = False
    format: str = "int"
    exponent: object = None
    kind: str = "e4m3"
    scale_kind: str = "float32"
    codebook: object = None
    input_power: object = None

    def __post_init__(self):
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        if self.mixed and self.format not in ("int", "mixed"):
            raise ArgumentError(
                f"Recipe: mixed is True with format {self.format!r}; accepted: False, or format 'mixed'."
            )
        if self.mixed:
            put("format", "mixed")
        for name, accepted in (
            ("weight", ("channel", "tensor")),
            ("input", ("token", "tensor", "channel", None)),
            ("format", tuple(FORMATS)),
            ("input_power", (None, 0.5)),
        ):
            if getattr(self, name) not in accepted:
                raise ArgumentError(f"Recipe: {name} is {getattr(self, name)!r}; accepted: {accepted}.")
        put("mixed", self.format == "mixed")
        for name in ("bits", "input_bits"):
            least = 1 if (name, self.format) == ("bits", "codebook") else 2
            if getattr(self, name) not in range(least, 9):
                raise ArgumentError(f"Recipe: {name} is {getattr(self, name)!r}; accepted: {least} to 8.")
        if not isinstance(self.codebook, str | tuple | None):
            came = type(self.codebook).__name__
            raise ArgumentError(f"Recipe: codebook is a {came}; accepted: 'nf4', a tuple of numbers, None.")
        if self.group_size is not None and self.weight != "channel":
            raise ArgumentError(
                f"Recipe: group_size is {self.group_size!r} with weight {self.weight!r}; accepted: 'channel'."
            )
        self._check_format()
        if self.static and (self.input not in ("tensor", "channel") or self.input_power is not None):
            raise ArgumentError(
                f"Recipe: static is True with input {self.input!r}, input_power {self.input_power}; accepted: "
                "'tensor', 'channel', without a power."
            )
        if self.input_power is not None and self.input not in ("token", "tensor"):
            raise ArgumentError(
                f"Recipe: input_power is {self.input_power} with input {self.input!r}; accepted: 'token', 'tensor'."
            )
        if not 0 <= self.smooth < 1:
            raise ArgumentError(f"Recipe: smooth is {self.smooth!r}; accepted: 0 (off) to below 1.")
        if self.input == "channel":
            put("static", True)
        if self.input in ("channel", None):
            put("smooth", 0.0)

    def _check_format(self):
        taken = FORMATS[self.format][1]
        defaults = {f.name: f.default for f in fields(self)}
        if self.mixed and self.weight != "channel":
            raise ArgumentError(
                f"Recipe: weight is {self.weight!r} with format 'mixed'; accepted: 'channel'."
            )
        for name in dict.fromkeys(option for _, options in FORMATS.values() for option in options):
            value = getattr(self, name)
            if name not in taken and value != defaults[name]:
                theirs = ", ".join(repr(f) for f, (_, options) in FORMATS.items() if name in options)
                raise ArgumentError(
                    f"Recipe: {name} is {value!r} with format {self.format!r}, which does not take it; accepted: "
                    f"{defaults[name]!r}, or format {theirs}."
                )

    def rounding(self):
        """The weight format, and the arguments of its quantize as a hashable tuple of (name, value)."""
        kind, taken = FORMATS[self.format]
        options = {name: getattr(self, name) for name in taken}
        if self.format == "codebook":  # which takes an absent granularity for one codebook and no scale
            options["granularity"] = self.weight if self.group_size is None else "group"
        elif not self.mixed:
            options["granularity"] = self.weight
        return kind, tuple(options.items())


def narrow(bits, group_size=None, input_bits=8):
    """Few bits, per token: zero points, which use all of the few codes, smoothing, corrected biases."""
    return Recipe("channel", "token", False, False, 0.5, bits, group_size, input_bits, correct=True)


def weight_only(bits=8, group_size=None, **options):
    """Weights rounded to nearest; float activations."""
    return Recipe(input=None, bits=bits, group_size=group_size, **options)


def squares(input_bits):
    """Weights of 4 bits and activations on a square root, per token: exact integer arithmetic (PowerQuant)."""
    options = {"smooth": 0.5, "correct": True, "exponent": 0.5, "input_power": 0.5}
    return Recipe(format="power", bits=4, input_bits=input_bits, **options)


RECIPES = {
    "int8-token": Recipe(smooth=0.5),
    "int8-tensor": Recipe(input="tensor"),
    "int8-static": Recipe(input="tensor", static=True),
    "int8-spiq": Recipe(input="channel", static=True),
    "w4a8": narrow(4),
    "w4a8-g128": narrow(4, 128),
    "w4a8-g64": narrow(4, 64),
    "w4a8-g32": narrow(4, 32),
    "w4mixed-a8": Recipe(smooth=0.5, bits=4, correct=True, mixed=True),
    "w3a8-g64": narrow(3, 64),
    "w2a8-g16": narrow(2, 16),
    "w4a4": narrow(4, input_bits=4),
    "w4a4-g64": narrow(4, 64, input_bits=4),
    "power4-a8": squares(8),
    "power4-a4": squares(4),
    "w8a16": weight_only(),
    "w4a16-g128": weight_only(4, 128, symmetric=False),
    "w4a16-g64": weight_only(4, 64, symmetric=False),
    "w4a16-g32": weight_only(4, 32, symmetric=False),
    "w3a16-g128": weight_only(3, 128, symmetric=False),
    "power4": weight_only(4, format="power"),
    "power4-g32": weight_only(4, 32, format="power"),
    "nf4": weight_only(4, 64, format="codebook", codebook="nf4"),
    "e2m1": weight_only(group_size=32, format="float", kind="e2m1"),
    "log4-g32": weight_only(4, 32, format="log"),
    "e4m3": weight_only(format="float", kind="e4m3"),
}
ALIASES = {"int8": "int8-token"}


def as_recipe(recipe):
    """A Recipe from itself or its name."""
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise DTypeError(
            f"compress: recipe is a {type(recipe).__name__}; accepted: a name, a Recipe, {{pattern: either}}."
        )
    if ALIASES.get(recipe, recipe) not in RECIPES:
        raise ArgumentError(f"compress: recipe is {recipe!r}; accepted: {', '.join([*RECIPES, *ALIASES])}.")
    return RECIPES[ALIASES.get(recipe, recipe)]
