"""InputQuant and Requant: what they keep, and what they refuse."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from helpers import assert_same, garbage

from qkernels.errors import ArgumentError, DTypeError, UnsupportedError
from qkernels.quant import InputQuant, Requant


def test_input_quant_equality_and_hash():
    assert InputQuant() == InputQuant(bits=8, granularity="token") and hash(InputQuant()) == hash(
        InputQuant()
    )
    assert InputQuant() != InputQuant(granularity="tensor") and InputQuant() != InputQuant(signed=False)
    assert InputQuant() != "token"
    static = InputQuant(granularity="tensor", scale=0.5)
    for other in (0.5, np.float32(0.5), np.array([0.5]), torch.tensor(0.5)):
        assert static == InputQuant(granularity="tensor", scale=other)
    assert static != InputQuant(granularity="tensor", scale=0.25)
    assert static != InputQuant(granularity="tensor", scale=0.5, zero_point=3)
    assert len({static, InputQuant(granularity="tensor", scale=0.5), InputQuant()}) == 2


def test_input_quant_scale_is_float32():
    assert InputQuant(granularity="tensor", scale=0.1).scale == float(np.float32(0.1))
    s = np.array([0.5, 2.0], np.float32)
    q = InputQuant(granularity="channel", scale=s)
    assert q.scale is s and q != InputQuant(granularity="channel", scale=s.copy())
    assert q == InputQuant(granularity="channel", scale=s)
    assert InputQuant(granularity="channel", scale=torch.ones(3)).scale.dtype == np.float32


@pytest.mark.parametrize(
    "q",
    [
        InputQuant(),
        InputQuant(granularity="tensor", scale=0.1, signed=False, zero_point=200),
        InputQuant(granularity="channel", scale=np.ones(4, np.float32)),
    ],
    ids=str,
)
def test_input_quant_copies_and_pickles(q):
    for other in (pickle.loads(pickle.dumps(q)), copy.deepcopy(q)):
        assert (other.bits, other.granularity, other.signed, other.zero_point) == (
            8,
            q.granularity,
            q.signed,
            q.zero_point,
        )
        assert np.array_equal(other.scale, q.scale)


BAD_INPUT_QUANT = {
    "bits": (dict(bits=9), UnsupportedError, ["bits", "9", "1 to 8"]),
    "power": (dict(power=0.3), UnsupportedError, ["power", "0.3", "0.5"]),
    "granularity": (
        dict(granularity="row"),
        ArgumentError,
        ["granularity", "'row'", "tensor, token, channel"],
    ),
    "token scale": (dict(scale=1.0), ArgumentError, ["scale", "'token'", "dynamic"]),
    "tensor scale shape": (
        dict(granularity="tensor", scale=[1, 2]),
        ArgumentError,
        ["scale", "(2,)", "one number"],
    ),
    "channel scale shape": (
        dict(granularity="channel", scale=[[1]]),
        ArgumentError,
        ["scale", "(1, 1)", "(K,)"],
    ),
    "negative": (dict(granularity="tensor", scale=-1.0), ArgumentError, ["scale", "-1.0", "2**-126"]),
    "zero": (dict(granularity="tensor", scale=0), ArgumentError, ["scale", "0.0", "2**-126"]),
    "nan": (dict(granularity="channel", scale=[1, np.nan]), ArgumentError, ["scale", "nan", "(1,)"]),
    "huge": (dict(granularity="tensor", scale=1e39), ArgumentError, ["scale", "inf", "2**126"]),
    "subnormal": (dict(granularity="tensor", scale=1e-40), ArgumentError, ["scale", "2**-126"]),
    "bool": (dict(granularity="tensor", scale=True), DTypeError, ["scale", "bool"]),
    "dynamic zero point": (
        dict(granularity="tensor", zero_point=1),
        ArgumentError,
        ["zero_point", "1", "scale is given"],
    ),
    "token zero point": (dict(zero_point=0), ArgumentError, ["zero_point", "0", "'tensor'"]),
    "int8 zero point": (
        dict(granularity="tensor", scale=1, zero_point=128),
        ArgumentError,
        ["128", "-128..127"],
    ),
    "uint8 zero point": (
        dict(granularity="tensor", scale=1, zero_point=-1, signed=False),
        ArgumentError,
        ["-1", "0..255"],
    ),
    "float zero point": (
        dict(granularity="tensor", scale=1, zero_point=1.5),
        DTypeError,
        ["zero_point", "1.5", "integer"],
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT_QUANT)
def test_input_quant_refuses(case):
    arguments, error, fragments = BAD_INPUT_QUANT[case]
    with pytest.raises(error) as e:
        InputQuant(**arguments)
    assert [f for f in ["InputQuant", *fragments] if f not in str(e.value)] == []


def test_channel_scale():
    s = np.array([0.5, 2.0], np.float32)
    dynamic, static = InputQuant(granularity="channel"), InputQuant(granularity="channel", scale=s)
    for q, given in (
        (dynamic, s),
        (static, s),
        (static, s.copy()),
        (static, torch.from_numpy(s)),
        (static, None),
    ):
        assert_same(q.channel_scale("f", given, 2), s)
    with pytest.raises(ArgumentError, match=r"f: .*no scale"):
        dynamic.channel_scale("f", None, 2)
    with pytest.raises(ArgumentError, match=r"f: .*is not the weight's input_scale"):
        static.channel_scale("f", s * 2, 2)
    with pytest.raises(ArgumentError, match=r"f: scale has shape \(2,\); x has K = 3"):
        static.channel_scale("f", None, 3)
    with pytest.raises(ArgumentError, match=r"f: .*the weight has no input_scale"):
        static.weight_scale("f", None)


def test_from_scale_worked_values():
    """scale = f * 2**e with f in [1/2, 1): multiplier f * 2**31, shift -e."""
    for scale, multiplier, shift in [
        (1.0, 2**30, -1),
        (0.5, 2**30, 0),
        (0.75, 3 * 2**29, 0),
        (2.0**-32, 2**30, 31),
        (2.0**-33, 0, 0),  # underflow
        (0.0, 0, 0),
        (2.0**31 - 1, 2**31 - 1, -31),
        (1 - 2.0**-32, 2**30, -1),  # a tie, rounds up and carries
        (1 - 2.0**-31, 2**31 - 1, 0),
        (2.0**-32 * (1 - 2.0**-33), 2**30, 31),  # carries out of the underflow
    ]:
        r = Requant.from_scale(scale)
        assert (r.multiplier.tolist(), r.shift.tolist()) == ([multiplier], [shift]), scale
        assert r.multiplier.dtype == r.shift.dtype == np.int32


def test_from_scale_is_nearest(rng):
    scale = 2.0 ** rng.uniform(-31.9, 30.9, 500)
    r = Requant.from_scale(scale)
    for s, m, t in zip(scale, r.multiplier.tolist(), r.shift.tolist(), strict=True):
        assert 2**30 <= m < 2**31 and abs(Fraction(s) * 2**31 * Fraction(2) ** t - m) <= Fraction(1, 2)
    exact = scale.astype(np.float32)
    assert_same(Requant.from_scale(exact).scale, exact)
    assert_same(
        Requant.from_scale(torch.from_numpy(exact)[:, None]).multiplier, Requant.from_scale(exact).multiplier
    )


def test_requant_keeps():
    r = Requant(2**30, 3, zero_point=np.int64(-4), rounding="double", output_scale=np.float32(0.5))
    assert r.multiplier.tolist() == [2**30] and r.shift.tolist() == [3]
    assert (r.zero_point, r.rounding, r.output_scale) == (-4, "double", 0.5)
    assert r.scale.tolist() == [2.0**-4]
    assert Requant(torch.tensor([2**30, 0]), [1, -1]).scale.tolist() == [0.25, 0.0]
    r.__dict__["_native"] = object()  # what a backend may attach
    for other in (pickle.loads(pickle.dumps(r)), copy.deepcopy(r)):
        assert "_native" not in other.__dict__
        assert other.scale.tolist() == [2.0**-4] and other.zero_point == -4


@pytest.mark.parametrize(
    ("activation", "dtype", "zero_point", "output_scale", "expected"),
    [
        (None, np.int8, 5, None, (-128, 127)),
        (None, np.uint8, 5, None, (0, 255)),
        ("relu", np.int8, -5, None, (-5, 127)),
        ("relu", np.uint8, 200, None, (200, 255)),
        ("relu6", np.int8, -128, 6 / 255, (-128, 127)),
        ("relu6", np.int8, -10, 0.25, (-10, 14)),
        ("relu6", np.int8, 0, 4.0, (0, 2)),  # 6 / 4 = 1.5, a tie, rounds up
        ("relu6", np.uint8, 0, 1e-300, (0, 255)),
    ],
)
def test_limits(activation, dtype, zero_point, output_scale, expected):
    r = Requant(2**30, 0, zero_point, output_scale=output_scale)
    assert r.limits(activation, dtype) == expected


def test_limits_refuses():
    r = Requant(2**30, 0, 200)
    with pytest.raises(ArgumentError, match=r"zero_point is 200; accepted: -128..127 for int8"):
        r.limits(None, np.int8)
    with pytest.raises(ArgumentError, match=r"zero_point is -1; accepted: 0..255 for uint8"):
        Requant(2**30, 0, -1).limits(None, np.uint8)
    with pytest.raises(DTypeError, match="out_dtype is int16; accepted: int8, uint8"):
        r.limits(None, np.int16)
    with pytest.raises(ArgumentError, match="activation is 'gelu'; accepted: None, 'relu', 'relu6'"):
        r.limits("gelu", np.uint8)
    with pytest.raises(ArgumentError, match=r"'relu6' needs .*output_scale"):
        r.limits("relu6", np.uint8)


BAD_REQUANT = {
    "rounding": (dict(rounding="up"), ArgumentError, ["rounding", "'up'", "single, double, float"]),
    "small multiplier": (dict(multiplier=2**30 - 1), ArgumentError, ["multiplier[0]", "1073741823", "2**30"]),
    "large multiplier": (dict(multiplier=2**31), ArgumentError, ["multiplier[0]", "2147483648"]),
    "negative multiplier": (
        dict(multiplier=[2**30, -5], shift=[0, 0]),
        ArgumentError,
        ["multiplier[1]", "-5"],
    ),
    "float multiplier": (dict(multiplier=0.5), DTypeError, ["multiplier", "float64", "integers"]),
    "shift range": (dict(shift=32), ArgumentError, ["shift[0]", "32", "-31..31"]),
    "shift shape": (dict(shift=[1, 2]), ArgumentError, ["multiplier", "shift", "(1,)", "(2,)"]),
    "matrix": (dict(shift=[[1]]), ArgumentError, ["shift", "(1, 1)", "(N,)"]),
    "zero_point": (dict(zero_point=256), ArgumentError, ["zero_point", "256", "-128..127", "0..255"]),
    "zero_point float": (dict(zero_point=1.0), DTypeError, ["zero_point", "1.0", "integer"]),
    "output_scale": (dict(output_scale=-1), ArgumentError, ["output_scale", "-1", "> 0"]),
    "output_scale nan": (dict(output_scale=float("nan")), ArgumentError, ["output_scale", "nan"]),
}


@pytest.mark.parametrize("case", BAD_REQUANT)
def test_requant_refuses(case):
    arguments, error, fragments = BAD_REQUANT[case]
    with pytest.raises(error) as e:
        Requant(**{"multiplier": 2**30, "shift": 0, **arguments})
    assert [f for f in ["Requant", *fragments] if f not in str(e.value)] == []


@pytest.mark.parametrize(
    ("scale", "fragments"),
    [
        (-0.5, ["scale[0]", "-0.5", "not negative"]),
        ([1, np.nan], ["scale[1]", "nan"]),
        (np.inf, ["scale[0]", "inf"]),
        (2.0**31, ["scale[0]", "below 2**31"]),
        (np.ones((2, 2)), ["scale", "(2, 2)"]),
        ([1j], ["scale", "complex"]),
    ],
)
def test_from_scale_refuses(scale, fragments):
    with pytest.raises(ArgumentError) as e:
        Requant.from_scale(scale)
    assert [f for f in ["Requant.from_scale", *fragments] if f not in str(e.value)] == []


def test_constructors_survive_any_argument(rng):
    """Whatever comes in: an object, or an error of this package."""
    makers = {
        InputQuant: (
            {"granularity": "tensor"},
            ["bits", "granularity", "scale", "signed", "zero_point", "power"],
        ),
        Requant: (
            {"multiplier": 2**30, "shift": 0},
            ["multiplier", "shift", "zero_point", "rounding", "output_scale"],
        ),
        Requant.from_scale: ({"scale": 0.5}, ["scale", "zero_point", "rounding", "output_scale"]),
    }
    built = 0
    for i in range(3000):
        make = list(makers)[i % 3]
        good, names = makers[make]
        arguments = dict(good)
        for name in rng.choice(names, rng.integers(1, 3), replace=False):
            arguments[name] = garbage(rng)
        try:
            built += hash(make(**arguments)) is not None
        except (ArgumentError, DTypeError, UnsupportedError) as e:
            assert str(e).startswith(make.__qualname__.split(".")[0])
    assert built > 30
