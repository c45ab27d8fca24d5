"""compress: recipes, patterns, calibration."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import assert_same
from torch import nn

import qkernels as qk
from qkernels.compress import RECIPES, Recipe
from qkernels.errors import ArgumentError, DTypeError

WIDTH = 32
LEAST = {  # cosine to float that a recipe of few bits must keep
    **{
        "w3a8-g64": 0.95,
        "w2a8-g16": 0.8,
        "w4a4": 0.9,
        "w4a4-g64": 0.9,
        "power4-a4": 0.95,
        "w3a16-g128": 0.95,
    },
    **dict.fromkeys(("w4a8", "w4a8-g128", "w4a8-g64", "w4a8-g32", "w4mixed-a8", "power4-a8"), 0.97),
    **dict.fromkeys(("power4", "power4-g32", "nf4", "e2m1", "w4a16-g128", "w4a16-g64", "w4a16-g32"), 0.98),
    **{"log4-g32": 0.96},
}
STATIC = [name for name, recipe in RECIPES.items() if recipe.static]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 2 * WIDTH)
        self.down = nn.Linear(2 * WIDTH, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x, scale=1.0):
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)) * scale


@pytest.fixture
def model(rng):
    torch.manual_seed(int(rng.integers(2**31)))
    return Model().eval()


def batches(rng, count=4):
    return [torch.from_numpy(rng.standard_normal((8, WIDTH), dtype=np.float32)) for _ in range(count)]


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | qk.nn.Linear)}


@pytest.mark.parametrize("recipe", [*RECIPES, "int8"])
def test_every_recipe_is_close(recipe, model, rng):
    calibration = batches(rng, 60)
    x = batches(rng, 1)[0]
    small = qk.compress(model, recipe, calibration=calibration)
    assert all(isinstance(m, qk.nn.Linear) for m in linears(small).values()) and len(linears(small)) == 5
    assert all(type(m) is nn.Linear for m in linears(model).values())  # the original stays
    y, expected = small(x), model(x)
    assert torch.nn.functional.cosine_similarity(y.flatten(), expected.flatten(), dim=0) > LEAST.get(
        recipe, 0.995
    )
    assert not small.training and not small.head.training


def test_recipes_are_what_their_names_say(model, rng):
    calibration = batches(rng)
    quants = {r: qk.compress(model, r, calibration=calibration).head.input_quant for r in RECIPES}
    assert (quants["int8-token"].granularity, quants["int8-token"].scale) == ("token", None)
    assert (quants["int8-tensor"].granularity, quants["int8-tensor"].scale) == ("tensor", None)
    assert quants["int8-static"].granularity == "tensor" and quants["int8-static"].scale > 0
    assert quants["int8-spiq"].granularity == "channel"
    assert quants["w4a8-g64"].bits == 8 and quants["w4a4-g64"].bits == 4
    for name, bits, group in (
        ("w4a8", 4, None),
        ("w4a8-g32", 4, 32),
        ("w3a8-g64", 3, 64),
        ("w2a8-g16", 2, 16),
    ):
        weight = qk.compress(model, name).head.weight
        assert (weight.bits, weight.group_size, weight.zero_point is None) == (bits, group, False)
    spiq = qk.compress(model, "int8-spiq", calibration=calibration)
    assert spiq.head.weight.input_scale.shape == (WIDTH,) and spiq.head.weight.scale.shape == (3, 1)


def test_static_scales_are_amax_over_127(model, rng):
    calibration = batches(rng, 3)
    seen = torch.cat(calibration)
    up = qk.compress(model, {"blocks.0.up": "int8-static"}, calibration=calibration).blocks[0].up
    assert_same(up.x_scale, seen.abs().max() / 127)
    up = qk.compress(model, {"blocks.0.up": "int8-spiq"}, calibration=calibration).blocks[0].up
    assert_same(up.input_scale, seen.abs().amax(0) / 127)
    W = model.blocks[0].up.weight.detach()
    assert_same(up.weight.codes(), qk.IntWeight.quantize(W, input_scale=seen.abs().amax(0) / 127).codes())


def test_spiq_guards_channels_that_calibration_never_used():
    linear = nn.Linear(4, 2)
    stats = torch.tensor([127.0, 0.0, 254.0, 2.0**-120])
    m = qk.nn.Linear.from_float(linear, "int8-spiq", stats)
    assert m.input_scale.tolist() == [1.0, 1.5, 2.0, 1.5]  # the median of the used ones
    assert qk.nn.Linear.from_float(linear, "int8-spiq", torch.zeros(4)).input_scale.tolist() == [1.0] * 4
    assert qk.nn.Linear.from_float(linear, "int8-static", torch.zeros(4)).x_scale.item() == 1.0


def test_patterns(model):
    small = qk.compress(
        model, {"head": None, "blocks.0.*": "int8-tensor", "*": Recipe(weight="tensor", symmetric=False)}
    )
    kinds = {n: type(m) for n, m in linears(small).items()}
    assert kinds["head"] is nn.Linear and kinds["blocks.0.up"] is qk.nn.Linear
    assert small.blocks[0].down.granularity == "tensor" and small.blocks[1].down.granularity == "token"
    assert small.blocks[1].up.scale.shape == (1, 1) and small.blocks[1].up.zero_point is not None
    again = qk.compress(small, {"head": "int8"})  # what is compressed already stays
    assert type(again.head) is qk.nn.Linear and again.blocks[0].down.granularity == "tensor"


def test_inplace(model, rng):
    x = batches(rng, 1)[0]
    expected = qk.compress(model, "int8")(x)
    assert qk.compress(model, "int8", inplace=True) is model
    assert_same(model(x), expected)
    assert list(model.blocks[0].parameters()) == []


def test_the_copy_shares_nothing(model):
    small = qk.compress(model, {"head": "int8"})
    ours, theirs = (
        {p.data_ptr() for p in m.parameters()} | {b.data_ptr() for b in m.buffers()} for m in (small, model)
    )
    assert not ours & theirs
    with torch.no_grad():
        model.head.bias.add_(1)
    assert_same(small.head.bias, model.head.bias.detach() - 1, tolerance=1e-6)


@pytest.mark.parametrize("kind", ["tensor", "tuple", "list", "dict"])
def test_calibration_inputs(kind, model, rng):
    x = batches(rng)
    form = {
        "tensor": lambda x: x,
        "tuple": lambda x: (x, 2.0),
        "list": lambda x: [x],
        "dict": lambda x: {"x": x},
    }
    small = qk.compress(model, "int8-static", calibration=(form[kind](b) for b in x))
    assert_same(small.blocks[0].up.x_scale, torch.cat(x).abs().max() / 127)


def test_calibration_leaves_the_model_as_it_was(model, rng):
    model.train()
    model.norm.eval()
    qk.compress(model, "int8-static", calibration=batches(rng))
    assert model.training and model.head.training and not model.norm.training
    assert not any(m._forward_pre_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError):
        qk.compress(model, "int8-static", calibration=(1 / 0 for _ in range(1)))
    assert model.training and not any(m._forward_pre_hooks for m in model.modules())


def test_calibration_ignores_dropout(rng):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 2)).train()
    x = batches(rng, 1)
    small = qk.compress(model, "int8-static", calibration=x)
    assert_same(small[1].x_scale, x[0].abs().max() / 127)
    assert small.training


def test_a_module_at_two_places_stays_one(rng):
    shared = nn.Linear(WIDTH, WIDTH)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    small = qk.compress(model, "int8-static", calibration=batches(rng))
    assert small[0] is small[2] and type(small[0]) is qk.nn.Linear
    with pytest.raises(ArgumentError, match="0 and 2 are one layer"):
        qk.compress(model, {"0": "int8", "2": None})
    qk.compress(model, "int8", inplace=True)
    assert model[0] is model[2] and type(model[0]) is qk.nn.Linear


def test_tied_weights_share_codes(rng):
    a, b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    b.weight = a.weight
    small = qk.compress(nn.Sequential(a, b), "int8")
    assert small[0].packed.data_ptr() == small[1].packed.data_ptr()
    assert (small[0].bias != small[1].bias).any()
    spiq = qk.compress(nn.Sequential(a, b), "int8-spiq", calibration=batches(rng))
    assert spiq[0].packed.data_ptr() != spiq[1].packed.data_ptr()  # each has its own input scales folded in


def test_embedding_tied_to_a_linear_layer_stays_float():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(50, WIDTH)
            self.out = nn.Linear(WIDTH, 50, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids):
            return self.out(self.words(ids))

    model, ids = Tied(), torch.arange(5)
    small = qk.compress(model, "int8")
    assert_same(small.words.weight.detach(), model.words.weight.detach())
    assert small(ids).shape == (5, 50)


def test_the_model_may_be_the_layer(rng):
    linear, x = nn.Linear(WIDTH, 4), batches(rng, 1)[0]
    small = qk.compress(linear, "int8-static", calibration=[x])
    assert_same(small(x), qk.nn.Linear.from_float(linear, "int8-static", x.abs().amax(0))(x))
    with pytest.raises(ArgumentError, match="inplace=True cannot replace"):
        qk.compress(linear, "int8", inplace=True)


@pytest.mark.parametrize("nested", [False, True])
def test_transformer_encoder(nested, rng):
    """torch's fused encoder reads linear1.weight as a tensor; compressed encoders take the plain path."""
    model = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True)
    model = (nn.TransformerEncoder(model, 2) if nested else model).eval()
    x = torch.from_numpy(rng.standard_normal((2, 5, WIDTH), dtype=np.float32))
    small = qk.compress(model, "int8")
    static = qk.compress(model, "int8-static", calibration=[x])  # watched layers are not fused either
    with torch.no_grad():
        for m in (small, static):
            assert torch.nn.functional.cosine_similarity(m(x), model(x), dim=-1).min() > 0.999
        mask = torch.zeros(2, 5, dtype=torch.bool)
        assert torch.isfinite(small(x, src_key_padding_mask=mask)).all()
    assert not any("out_proj" in n for n, m in small.named_modules() if isinstance(m, qk.nn.Linear))


def test_low_precision_models(rng):
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4)).bfloat16()
    x = batches(rng, 1)[0].bfloat16()
    for recipe in RECIPES:
        y = qk.compress(model, recipe, calibration=[x])(x)
        assert y.dtype == torch.bfloat16
        similar = torch.nn.functional.cosine_similarity(y.float(), model(x).float()).min()
        assert similar > min(0.98, LEAST.get(recipe, 1) - 0.1)


def test_compressed_models_load_each_others_state(model, rng):
    calibration, x = batches(rng), batches(rng, 1)[0]
    for recipe in RECIPES:
        small = qk.compress(model, recipe, calibration=calibration)
        other = qk.compress(Model().eval(), recipe, calibration=batches(rng))
        assert (other(x) != small(x)).any()
        other.load_state_dict(small.state_dict())
        assert_same(other(x), small(x))


def test_compiles(model, rng):
    torch._dynamo.reset()
    small, x = qk.compress(model, "int8"), batches(rng, 1)[0]
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(x), small(x), tolerance=1e-4)


NAMES = ["blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head"]
REFUSED = {
    "unknown name": (dict(recipe="int9"), ArgumentError, ["int9", *RECIPES, "int8"]),
    "unknown in pattern": (dict(recipe={"*": "w4"}), ArgumentError, ["w4", *RECIPES]),
    "type": (dict(recipe=8), DTypeError, ["recipe", "int", "Recipe", "pattern"]),
    "not a model": (dict(model=torch.zeros(2)), DTypeError, ["model", "Tensor", "torch.nn.Module"]),
    "no layer": (dict(recipe={"encoder.*": "int8"}), ArgumentError, ["encoder.*", *NAMES]),
    "no linear": (dict(model=nn.ReLU(), recipe="int8"), ArgumentError, ["matches no layer", "none"]),
    "one pattern of two": (dict(recipe={"head": "int8", "tail": "int8"}), ArgumentError, ["tail", *NAMES]),
    "shadowed": (dict(recipe={"*": "int8", "head": None}), ArgumentError, ["head", "special ones first"]),
    "all None": (dict(recipe={"*": None}), ArgumentError, ["matches no layer", *NAMES]),
    "no calibration": (dict(recipe="int8-static"), ArgumentError, ["calibration is None", "int8-token"]),
    "empty": (dict(recipe="int8-spiq", calibration=[]), ArgumentError, ["did not reach", *NAMES]),
    "nan": (
        dict(recipe="int8-static", calibration=[torch.full((1, WIDTH), float("nan"))]),
        ArgumentError,
        ["calibration", "blocks.0.up", "not finite"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(case, model):
    arguments, error, fragments = REFUSED[case]
    before = {n: id(m) for n, m in model.named_modules()}
    with pytest.raises(error) as e:
        qk.compress(**{"model": model, "recipe": "int8", "inplace": True, **arguments})
    assert [f for f in fragments if f not in str(e.value)] == []
    assert before == {n: id(m) for n, m in model.named_modules()}  # nothing half done


def test_refuses_layers_with_hooks(model):
    model.head.register_forward_hook(lambda *a: None)
    with pytest.raises(ArgumentError, match="'head' has forward hooks"):
        qk.compress(model, "int8")


def test_unreached_layers_are_named(model, rng):
    model.extra = nn.Linear(3, 3)
    with pytest.raises(ArgumentError, match=r"did not reach every layer .*; not extra"):
        qk.compress(model, "int8-static", calibration=batches(rng))
    qk.compress(model, {"extra": "int8", "*": "int8-static"}, calibration=batches(rng))


@pytest.mark.parametrize(
    "options",
    [dict(weight="row"), dict(input="row"), dict(input="token", static=True), dict(input=None, static=True)],
)
def test_recipe_refuses(options):
    with pytest.raises(ArgumentError, match="Recipe: "):
        Recipe(**options)


def test_compress_is_callable_however_it_is_imported():
    program = """
import qkernels as qk, torch
{}
small = qk.compress(torch.nn.Linear(4, 4), "int8")
assert type(small) is qk.nn.Linear and "int8-token" in qk.compress.RECIPES
"""
    for line in ("qk.compress", "from qkernels.compress import RECIPES"):
        subprocess.run([sys.executable, "-c", program.format(line)], check=True, timeout=120)


def test_smoothing_needs_calibration_and_helps(rng):
    """int8-token with calibration: the large input channels of x stop costing the others their codes."""
    linear = nn.Linear(64, 32)
    x = torch.randn(200, 64)
    x[:, :3] *= 80
    exact = linear(x)
    plain = qk.compress(linear, "int8-token")
    smooth = qk.compress(linear, "int8-token", calibration=[torch.randn(50, 64) * x.abs().amax(0) / 3])
    assert plain.weight.input_scale is None and smooth.weight.input_scale.shape == (64,)
    assert (smooth(x) - exact).norm() < 0.6 * (plain(x) - exact).norm()
    linear.weight.data[:, 5] = 0  # a channel without weights, and one without inputs
    stats = torch.ones(64)
    stats[7] = 0
    s = qk.nn.Linear.from_float(linear, "int8-token", stats).input_scale
    assert s[5] == 1 and s[7] == 1 and (s > 0).all()


@pytest.mark.parametrize("groups", [1, 4])
@torch.no_grad()
def test_corrected_biases_keep_the_mean(groups, rng):
    """What rounding to 3 bits moves the outputs by, on average over the calibration inputs, is taken back."""
    x = torch.from_numpy(rng.uniform(0, 1, (32, 8, 6, 6)).astype(np.float32))
    conv = nn.Sequential(nn.Conv2d(8, 12, 3, groups=groups))
    linear = nn.Sequential(nn.Linear(8, 12, bias=False))
    for model, inputs, axes in ((conv, x, (0, 2, 3)), (linear, x.movedim(1, -1), (0, 1, 2))):
        expected = model(inputs).mean(axes)
        off = [
            (
                qk.compress(model, Recipe(input="tensor", bits=3, correct=c), [inputs])(inputs).mean(axes)
                - expected
            )
            for c in (False, True)
        ]
        assert off[1].abs().max() < 0.02 < off[0].abs().max()


def test_mixed_widths(rng):
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    model[0].weight.data[3] *= 20
    small = qk.compress(model, "w4mixed-a8")
    assert type(small[0].weight) is qk.MixedIntWeight and int(small[0].weight.row_bits[3]) > 4
    again = qk.compress(nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)), "w4mixed-a8")
    again.load_state_dict(small.state_dict())
    x = torch.from_numpy(rng.standard_normal((5, 24), dtype=np.float32))
    assert_same(again(x), small(x))
    with pytest.raises(ArgumentError, match="mixed"):
        qk.compress(nn.Sequential(nn.Conv2d(3, 4, 1)), "w4mixed-a8")
    with pytest.raises(ArgumentError, match="group_size is 32 with format 'mixed'"):
        Recipe(mixed=True, group_size=32)
    assert Recipe(mixed=True, bits=4) == Recipe(format="mixed", bits=4)


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 9},
        {"bits": 1, "format": "power"},
        {"input_bits": 1},
        {"group_size": 32, "weight": "tensor"},
        {"format": "ternary"},
        {"exponent": 0.5},
        {"exponent": 0.5, "format": "log"},
        {"kind": "e2m1", "format": "int"},
        {"scale_kind": "e8m0", "format": "codebook"},
        {"codebook": "nf4", "format": "float"},
        {"codebook": [0.0, 1.0], "format": "codebook"},
        {"bits": 4, "format": "float"},
        {"symmetric": False, "format": "power"},
        {"mixed": True, "format": "power"},
        {"weight": "tensor", "format": "mixed"},
        {"input_power": 0.4},
        {"input_power": 0.5, "input": None},
        {"input_power": 0.5, "input": "tensor", "static": True},
    ],
    ids=str,
)
def test_recipes_out_of_range(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Recipe(**options)


FORMATS = {  # name -> class, options of the weight, input_quant
    "w8a16": (qk.IntWeight, {"bits": 8, "group_size": None}, None),
    "w4a16-g128": (qk.IntWeight, {"bits": 4, "group_size": 128}, None),
    "w4a16-g64": (qk.IntWeight, {"bits": 4, "group_size": 64}, None),
    "w4a16-g32": (qk.IntWeight, {"bits": 4, "group_size": 32}, None),
    "w3a16-g128": (qk.IntWeight, {"bits": 3, "group_size": 128}, None),
    "power4": (qk.PowerWeight, {"bits": 4, "group_size": None}, None),
    "power4-g32": (qk.PowerWeight, {"bits": 4, "group_size": 32}, None),
    "power4-a8": (qk.PowerWeight, {"bits": 4, "exponent": 0.5}, qk.InputQuant(8, power=0.5)),
    "power4-a4": (qk.PowerWeight, {"bits": 4, "exponent": 0.5}, qk.InputQuant(4, power=0.5)),
    "nf4": (qk.CodebookWeight, {"bits": 4, "group_size": 64}, None),
    "e2m1": (qk.FloatWeight, {"kind": "e2m1", "group_size": 32}, None),
    "log4-g32": (qk.LogWeight, {"bits": 4, "group_size": 32}, None),
    "e4m3": (qk.FloatWeight, {"kind": "e4m3", "group_size": None}, None),
}


@pytest.mark.parametrize("recipe", FORMATS)
def test_formats_of_recipes(recipe):
    kind, options, quant = FORMATS[recipe]
    linear = nn.Linear(160, 6)
    m = qk.compress(linear, recipe)
    assert type(m.weight) is kind and m.input_quant == quant
    assert {name: getattr(m.weight, name) for name in options} == options
    W = linear.weight.detach()
    assert_same(m.bias, linear.bias.detach())  # without calibration nothing is corrected
    expected = dict(RECIPES[recipe].rounding()[1])
    assert_same(m.weight.dense(), kind.quantize(W, **expected).dense())
    if recipe in ("w4a16-g32", "w3a16-g128"):
        assert m.weight.zero_point is not None
    if recipe == "nf4":
        assert_same(m.weight.codebook, qk.CodebookWeight.quantize(W, 4, "nf4").codebook)


def test_power4_searches_each_layer(rng):
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 64))
    with torch.no_grad():
        model[1].weight.copy_(torch.from_numpy(rng.standard_normal((64, 48)) ** 3))
    small = qk.compress(model, "power4")
    for layer, other in zip(model, small):
        assert other.weight.exponent == qk.search_exponent([layer.weight.detach()], bits=4)
    assert small[1].weight.exponent < small[0].weight.exponent - 0.05  # heavy tails take finer steps near 0


def test_weight_only_needs_no_calibration(model, rng):
    """Nothing is measured of the activations, so calibration changes nothing; a power of activations does use it."""
    for recipe in ("w4a16-g32", "power4", "nf4"):
        plain, other = (qk.compress(model, recipe, c) for c in (None, batches(rng)))
        assert all(
            torch.equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values())
        )
        assert other.blocks[0].down.bias is None
    small = qk.compress(model, "power4-a8", batches(rng))
    assert small.head.input_scale.shape == (WIDTH,) and small.blocks[0].down.bias is not None


def test_tied_weights_share_codes_of_every_format():
    a, b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    b.weight = a.weight
    for recipe in FORMATS:
        small = qk.compress(nn.Sequential(a, b), recipe)
        assert small[0].weight is small[1].weight
    other = qk.compress(nn.Sequential(a, b), {"0": "power4", "1": "w8a16"})
    assert type(other[0].weight) is qk.PowerWeight and type(other[1].weight) is qk.IntWeight


@pytest.mark.parametrize(
    "recipe", ["power4", "power4-a8", "nf4", "e4m3", Recipe(input="tensor", input_power=0.5)]
)
def test_convolutions_refuse_formats(recipe):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ArgumentError, match=r"layer '0': recipe has format .* convolution; accepted: 'int'"):
        qk.compress(model, recipe)
    small = qk.compress(model, {"0": None, "*": recipe})
    assert type(small[0]) is nn.Conv2d and small(torch.randn(2, 3, 2, 2)).shape == (2, 4)


def test_tables_without_integers_refuse_activations(model):
    for recipe in (
        Recipe(format="float"),
        Recipe(format="power", bits=4, exponent=0.4),
        Recipe(format="log", bits=5),
    ):
        with pytest.raises(qk.UnsupportedError, match="input_quant=None"):
            qk.compress(model, recipe)
    exact = Recipe(format="codebook", bits=1, codebook=(-1.0, 1.0))
    assert qk.compress(model, exact).head.weight.int_table() is not None
