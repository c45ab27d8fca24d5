"""A step of a network as one native call: recorded once on memory of its own, then run again and again."""

import sys

import numpy as np

from . import _native, cpu, cpu_float, ops, registry
from ._arrays import is_torch
from .cpu import FLOATS, address, float_vector
from .cpu_integer import empty
from .errors import ArgumentError, DTypeError, UnsupportedError
from .registry import ISAS, num_threads

FLOAT = FLOATS["float32"]


class Program:
    """Calls that are checked once, each with the memory that it reads and writes, and then run by one native call.

    What a CUDA graph is on a GPU: decoding one token of a small network is hundreds of calls of microseconds, and as
    many trips through Python. A method of a Program records a call and returns the array that each run will write its
    result to, to be given to the next method::

        p = qk.Program()
        h = p.rms_norm(x, norm.weight, 1e-5)              # x: the caller's array, filled before each run
        y = p.linear(h, layer.weight, layer.bias)
        p.run()                                           # y holds the result until the next run

    Arrays are float32 and contiguous, torch CPU tensors or NumPy arrays, and stay where they are: the program keeps
    what it was given, and reads what that holds when it runs. The instruction set is that of the recording. Not for
    torch.compile, and not for two threads at a time.
    """

    def __init__(self):
        self._native = _native.Program()
        self._keep, self._ops = [], []

    def __len__(self):
        return len(self._native)

    def __repr__(self):
        return f"Program({len(self)} calls)"

    def linear(self, x, w, bias=None, activation=None, input_quant=None, compute_dtype=None):
        """``qkernels.linear`` of x (M, K): the array (M, N) of its results.

        Raises:
            ArgumentError, DTypeError: what ``linear`` refuses; an x that is not contiguous float32.
            UnsupportedError: no CPU kernel takes the call, or it has binary activations.
        """
        op = "Program.linear"
        _check(op, "x", x)
        request = ops.linear_request(x, w, bias, activation, input_quant, compute_dtype)
        isa = _isa(op, request)
        if input_quant is None:
            plan = cpu_float.linear_plan(w, FLOAT, "float32", activation, isa, compute_dtype)
        elif input_quant.bits == 1:
            raise UnsupportedError(f"{op}: input_quant has bits=1; accepted: 2 to 8, or None.")
        else:
            plan = cpu.linear_plan(cpu.packed(w), input_quant, FLOAT, FLOAT, activation, isa)
        bias = None if bias is None else float_vector(bias)
        out = empty(x, (*x.shape[:-1], w.shape[0]), "float32")
        self._native.linear(plan, address(x), request.m, address(bias), address(out))
        return self._kept("linear", out, x, bias)

    def rms_norm(self, x, weight, eps, residual=None):
        """``qkernels.rms_norm``: an array like x. With a residual each run adds it to x first."""
        op = "Program.rms_norm"
        arrays = [("x", x), ("weight", weight)] + ([] if residual is None else [("residual", residual)])
        for name, a in arrays:
            _check(op, name, a)
        request = ops.rms_norm_request(x, weight, eps, residual)
        isa = ISAS[_isa(op, request)][0]
        out = empty(x, tuple(x.shape), "float32")
        if out.shape[-1]:
            sizes = request.m, request.n, request.options["eps"]
            self._native.rms_norm(isa, address(x), address(residual), address(weight), *sizes, address(out))
        return self._kept("rms_norm", out, x, weight, residual)

    def swiglu(self, gate_up):
        """``qkernels.swiglu``: an array (..., n) from one of (..., 2 n)."""
        op = "Program.swiglu"
        _check(op, "gate_up", gate_up)
        request = ops.swiglu_request(gate_up)
        isa, n = ISAS[_isa(op, request)][0], request.n // 2
        out = empty(gate_up, (*request.batch, n), "float32")
        if n:
            self._native.swiglu(isa, address(gate_up), request.m, n, address(out))
        return self._kept("swiglu", out, gate_up)

    def decode_attention(self, qkv, turns, store):
        """``qkernels.decode_attention`` at the position that a run is given: an array (1, heads * head).

        Args:
            turns: float32 (positions, heads + 2 * kv_heads, head / 2, 2): ``turn`` of each position.
        """
        op = "Program.decode_attention"
        for name, a in (("qkv", qkv), ("turns", turns)):
            _check(op, name, a)
        if turns.ndim != 4 or not turns.shape[0]:
            raise ArgumentError(
                f"{op}: turns has shape {tuple(turns.shape)}; accepted: (positions, heads + 2 * kv_heads, head / 2, 2)"
                ", at least one position."
            )
        request = ops.decode_attention_request(qkv, turns[0], store, 0)
        isa = ISAS[_isa(op, request)][0]
        heads, kv_heads, head = request.options["heads"]
        pitch = store.stride(0) if is_torch(store) else store.strides[0] // 4
        out = empty(qkv, (1, heads * head), "float32")
        self._native.attention(
            *(isa, address(qkv), address(turns), turns.shape[0], address(store), pitch, store.shape[1]),
            *(heads, kv_heads, head, address(out)),
        )
        return self._kept("decode_attention", out, qkv, turns, store)

    def run(self, position=0):
        """Run the calls in their order; ``position`` is that of every decode_attention.

        Raises:
            ArgumentError: a position that a store or ``turns`` does not have; an input that a quantized linear found
                not to be finite: what comes after it did not run.
        """
        self._done("run", *self._native.run(self._position("run", position), num_threads()))

    def clock(self, position=0):
        """``run``, and what it took: [(name of the call, seconds)] in their order.

        Raises:
            ArgumentError: as in ``run``.
        """
        step, row, seconds = self._native.clock(self._position("clock", position), num_threads())
        self._done("clock", step, row)
        return list(zip(self._ops, seconds))

    def _position(self, where, position):
        if not isinstance(position, int) or not 0 <= position < self._native.positions:
            raise ArgumentError(
                f"Program.{where}: position is {position!r}; accepted: an int, 0 to {self._native.positions - 1}."
            )
        return position

    def _done(self, where, step, row):
        if step >= 0:
            cpu.refuse_row(f"Program.{where}: call {step}, {self._ops[step]}", row)

    def _kept(self, op, out, *arrays):
        self._keep += (out, *arrays)
        if len(self._ops) < len(self):
            self._ops.append(op)
        return out


def _check(op, name, a):
    """Refuse what a run could not read where it lies."""
    torch = sys.modules.get("torch")
    if is_torch(a):
        fine = type(a) in (torch.Tensor, torch.nn.Parameter) and a.is_cpu and a.dtype is torch.float32
        fine = fine and a.is_contiguous() and not a.is_neg()
    elif isinstance(a, np.ndarray):
        fine = a.dtype == np.float32 and a.flags.c_contiguous and a.flags.aligned
    else:
        raise DTypeError(f"{op}: {name} is a {type(a).__name__}; accepted: a torch tensor or a NumPy array.")
    if not fine:
        raise ArgumentError(
            f"{op}: {name} of shape {tuple(a.shape)}, {a.dtype}, cannot be used in place; accepted: contiguous float32 "
            "on cpu."
        )


def _isa(op, request):
    kernel = registry.pick(request)
    if kernel.backend != "cpu":
        raise UnsupportedError(
            f"{op}: no CPU kernel takes the call; qkernels.explain says why. Use the call itself."
        )
    return kernel.isa
