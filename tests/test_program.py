"""Programs: a run computes what the calls compute, on the memory of the recording, and nothing else is taken."""

import gc
import weakref

import numpy as np
import pytest
import torch

import qkernels as qk
from qkernels import registry
from qkernels.demo.smollm2.model import Config, rotations
from qkernels.errors import ArgumentError, DTypeError, UnsupportedError

KINDS = pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
HEADS, KV_HEADS, HEAD, LENGTH = 6, 2, 16, 40


def numbers(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def layer(rng, make):
    """Arrays and weights of a small transformer layer: hidden 96, inner 56."""
    hidden, inner, width = HEADS * HEAD, 56, (HEADS + 2 * KV_HEADS) * HEAD
    return {
        "x": make(numbers(rng, 1, hidden)),
        "norms": [make(numbers(rng, hidden)) for _ in range(2)],
        "qkv": (qk.IntWeight.quantize(numbers(rng, width, hidden), bits=4, group_size=32), None),
        "out": (qk.CodebookWeight.quantize(numbers(rng, hidden, hidden), codebook="nf4"), None),
        "gate_up": (qk.IntWeight.quantize(numbers(rng, 2 * inner, hidden)), make(numbers(rng, 2 * inner))),
        "down": (qk.PowerWeight.quantize(numbers(rng, hidden, inner), exponent=0.5), None),
        "turns": make(rotations(Config(0, HEADS * HEAD, 0, 0, HEADS, KV_HEADS, 1e4, 0), LENGTH).numpy()),
        "store": make(np.full((2 * KV_HEADS, LENGTH, HEAD), np.nan, np.float32)),
    }


QUANT = {"gate_up": qk.InputQuant(), "down": qk.InputQuant(bits=4, power=0.5)}


def record(program, a, added):
    def linear(x, name, activation=None):
        return program.linear(x, *a[name], activation, QUANT.get(name))

    h = program.rms_norm(a["x"], a["norms"][0], 1e-5, added)
    y = linear(program.decode_attention(linear(h, "qkv"), a["turns"], a["store"]), "out", "gelu")
    h = program.rms_norm(a["x"], a["norms"][1], 1e-5, y)
    return linear(program.swiglu(linear(h, "gate_up")), "down")


def calls(a, added, position):
    def linear(x, name, activation=None):
        return qk.linear(x, *a[name], activation, QUANT.get(name))

    h = qk.rms_norm(a["x"], a["norms"][0], 1e-5, added)
    y = qk.decode_attention(linear(h, "qkv"), a["turns"][position], a["store"], position)
    h = qk.rms_norm(a["x"], a["norms"][1], 1e-5, linear(y, "out", "gelu"))
    return linear(qk.swiglu(linear(h, "gate_up")), "down")


def copied(a, make):
    new = dict(a)
    for name in ("x", "store"):
        new[name] = make(np.asarray(a[name]).copy())
    return new


@KINDS
def test_runs_are_the_calls(make, rng):
    """Position after position, with other activations each time, bit for bit."""
    a = layer(rng, make)
    b, added = copied(a, make), make(numbers(rng, 1, HEADS * HEAD))
    program = qk.Program()
    y = record(program, a, added)
    assert len(program) == 8 and type(y) is type(a["x"]) and tuple(y.shape) == (1, HEADS * HEAD)
    for position in range(LENGTH):
        x, more = numbers(rng, 1, HEADS * HEAD), numbers(rng, 1, HEADS * HEAD)
        for one in (a["x"], b["x"]):
            one[:] = make(x)
        added[:] = make(more)
        y[:] = np.nan
        program.run(position)
        np.testing.assert_array_equal(np.asarray(y), np.asarray(calls(b, added, position)))
        np.testing.assert_array_equal(np.asarray(a["x"]), np.asarray(b["x"]))
    np.testing.assert_array_equal(np.asarray(a["store"]), np.asarray(b["store"]))
    assert np.isfinite(np.asarray(a["store"])).all()


@pytest.mark.parametrize("isa", [i for i, (_, here) in registry.ISAS.items() if here])
def test_the_isa_of_the_recording_stays(isa, rng):
    a = layer(rng, torch.from_numpy)
    with qk.force_isa(isa):
        program = qk.Program()
        y = record(program, a, None)
        expected = calls(copied(a, torch.from_numpy), None, 0)
    program.run()
    assert torch.equal(y, expected)


def test_what_it_was_given_stays_alive(rng):
    x, w = torch.from_numpy(numbers(rng, 3, 70)), qk.IntWeight.quantize(numbers(rng, 33, 70), bits=3)
    bias = torch.from_numpy(numbers(rng, 33)).double()  # converted: the program keeps the copy
    expected, kept = qk.linear(x, w, bias), weakref.ref(w)
    program = qk.Program()
    y = program.linear(x, w, bias)
    del x, w, bias
    gc.collect()
    program.run()
    assert torch.equal(y, expected)
    del program
    gc.collect()
    assert kept() is None


def test_a_refused_row_is_named_and_nothing_runs_after_it(rng):
    x, w = torch.from_numpy(numbers(rng, 4, 64)), qk.IntWeight.quantize(numbers(rng, 32, 64))
    program = qk.Program()
    h = program.rms_norm(x, torch.ones(64), 1e-5)
    y = program.linear(h, w, input_quant=qk.InputQuant())
    z = program.swiglu(y)
    x[2, 5], z[:] = np.inf, 7
    with pytest.raises(ArgumentError, match="call 1, linear: x has a value that is not finite in row 2"):
        program.run()
    assert (z == 7).all()
    x[2, 5] = 1
    program.run()
    assert torch.equal(z, qk.swiglu(qk.linear(h, w, input_quant=qk.InputQuant())))


def test_clock_runs_and_tells_the_calls_apart(rng):
    a = layer(rng, torch.from_numpy)
    b = copied(a, torch.from_numpy)
    program = qk.Program()
    y = record(program, a, None)
    y[:] = np.nan
    seconds = program.clock(0)
    assert torch.equal(y, calls(b, None, 0))
    names = "rms_norm linear decode_attention linear rms_norm linear swiglu linear"
    assert " ".join(name for name, _ in seconds) == names and all(0 < s < 1 for _, s in seconds)
    a["x"][0, 3] = np.nan
    with pytest.raises(ArgumentError, match=r"Program\.clock: call 5, linear"):
        program.clock(0)


def test_empty_calls(rng):
    program = qk.Program()
    program.run()
    none = torch.empty(0, 8)
    y = program.linear(none, qk.IntWeight.quantize(numbers(rng, 5, 8)))
    program.swiglu(program.rms_norm(none, torch.ones(8), 1e-5))
    program.run()
    assert y.shape == (0, 5)


def test_positions(rng):
    a = layer(rng, torch.from_numpy)
    program = qk.Program()
    qkv = torch.from_numpy(numbers(rng, 1, (HEADS + 2 * KV_HEADS) * HEAD))
    program.decode_attention(qkv, a["turns"][:11], a["store"])
    program.decode_attention(qkv, a["turns"], a["store"])
    program.run(10)
    for bad in (11, -1, 2**70, 1.0, "0"):
        with pytest.raises(ArgumentError, match="accepted: an int, 0 to 10"):
            program.run(bad)


@KINDS
def test_errors(make, rng):
    program, a = qk.Program(), layer(rng, make)
    w, x = a["qkv"][0], a["x"]
    for bad in (make(numbers(rng, 96, 2)).T, make(numbers(rng, 1, 96).astype(np.float64))):
        with pytest.raises(ArgumentError, match=r"Program.linear: x of shape .* cannot be used in place"):
            program.linear(bad, w)
    with pytest.raises(DTypeError, match="x is a list"):
        program.linear([1.0], w)
    with pytest.raises(ArgumentError, match="must be K = 96"):
        program.linear(make(numbers(rng, 1, 95)), w)
    with pytest.raises(UnsupportedError, match="bits=1"):
        program.linear(x, qk.BinaryWeight.quantize(numbers(rng, 8, 96)), input_quant=qk.InputQuant(bits=1))
    with pytest.raises(ArgumentError, match="weight has shape"):
        program.rms_norm(x, make(numbers(rng, 95)), 1e-5)
    with pytest.raises(ArgumentError, match="must be even"):
        program.swiglu(make(numbers(rng, 1, 7)))
    qkv = make(numbers(rng, 1, (HEADS + 2 * KV_HEADS) * HEAD))
    for turns in (a["turns"][0], a["turns"][:0]):
        with pytest.raises(ArgumentError, match="at least one position"):
            program.decode_attention(qkv, turns, a["store"])
    with pytest.raises(ArgumentError, match="turn has shape"):
        program.decode_attention(qkv, make(numbers(rng, 3, 4, 4, 2)), a["store"])
    assert len(program) == 0
