"""The steps of an IntegerNetwork for one shape of input: native calls with their addresses, in memory laid out once.

A small layer runs in microseconds, so what surrounds it counts: checks, the choice of a kernel, new memory. All of
it depends on the shape alone, and is done here once.
"""

import math
import time
from functools import partial

import torch

from . import _native, cpu, cpu_conv, cpu_integer, registry
from .cpu import FLOATS, address, dtype_name
from .ops.conv import strides_of

ALIGN = 64  # bytes


class Program:
    """``program(x)`` is ``network.step_by_step(x)``, for inputs of the shape, strides and dtype of ``x``, made on the
    present number of threads and instruction set. Not for two threads at once: its memory is its own.

    Args:
        network: the IntegerNetwork.
        x: an input, dense in memory in any order of its dimensions.
        slots: what ``step_by_step`` wrote into each slot for x.
    """

    def __init__(self, network, x, slots):
        self.network, self.threads = network, registry.num_threads()
        slots = [torch.empty_like(x, dtype=torch.uint8), *slots[1:]]
        views, self.memory = _lay_out(network.steps, slots)
        self.codes, self.calls = views[0], {}
        for step in network.steps:
            xs, out = [views[s] for s in step.sources], views[step.target]
            if step.op != "flatten" or xs[0].data_ptr() != out.data_ptr():
                self.calls[step.name] = _bound(step, xs, out, self.threads)
        self.acc = views[network.steps[-1].target]
        self.quantize = self.codes.copy_ if x.dtype == torch.uint8 else self._bound_quantize(x)

    def __call__(self, x):
        self.quantize(x)
        for call in self.calls.values():
            call()
        return self.network.logits(self.acc)

    def clock(self, x):
        """Seconds that each step of one call takes, {name: seconds}, and of "quantize"."""
        start = time.perf_counter()
        self.quantize(x)
        seconds, last = {"quantize": time.perf_counter() - start}, time.perf_counter()
        for name, call in self.calls.items():
            call()
            now = time.perf_counter()
            seconds[name], last = now - last, now
        return seconds

    def _bound_quantize(self, x):
        """The native call that quantizes a float x into slot 0, whatever the order of its dimensions."""
        codes = self.network.input_codes
        row = x.numel() // math.prod(x.shape[:2])
        isa = registry.ISAS[registry.current_isa()][0]
        scales = torch.empty(1)
        rest = (
            FLOATS[dtype_name(x)],
            x.numel() // row,
            row,
            row,
            2,
            8,
            False,
            codes.scale,
            codes.zero_point,
            0,
        )
        rest += (address(self.codes), address(scales), self.threads)

        def quantize(x, scales=scales):
            if _native.quantize_activations(isa, address(x), *rest) >= 0:
                self.network.quantize(x)  # says where it is not finite

        return quantize


def _lay_out(steps, slots):
    """(a view for each slot, the memory under them): a slot's bytes serve others when no later step reads them."""
    free, offsets, end = [], [None] * len(slots), 0  # free: (bytes, offset)
    sizes = [-(-max(s.numel() * s.element_size(), 1) // ALIGN) * ALIGN for s in slots]

    def take(slot):
        nonlocal end
        fitting = [f for f in free if f[0] >= sizes[slot]]
        if fitting:
            size, at = min(fitting)
            free.remove((size, at))
            if size > sizes[slot]:
                free.append((size - sizes[slot], at + sizes[slot]))
        else:
            at, end = end, end + sizes[slot]
        offsets[slot] = at

    take(0)
    for step in steps:
        if step.op == "flatten" and _flat_already(slots[step.sources[0]]):
            offsets[step.target] = offsets[step.sources[0]]  # the source's bytes now belong to the target
            continue
        take(step.target)
        for s in step.done:
            free.append((sizes[s], offsets[s]))
    memory = torch.empty(end + ALIGN, dtype=torch.uint8)
    start = -memory.data_ptr() % ALIGN
    views = []
    for slot, at, size in zip(slots, offsets, sizes):
        part = memory[start + at : start + at + size].view(slot.dtype)
        views.append(part.as_strided(slot.shape, torch.empty_like(slot).stride()))
    return views, memory


def _flat_already(x):
    """Flattening x (B, C, H, W) leaves every element where it is."""
    return x.is_contiguous() or math.prod(x.shape[2:]) == 1


def _bound(step, xs, out, threads):
    """A call without arguments that runs a step from and to memory that stays where it is."""
    if step.op == "flatten":
        return lambda: out.copy_(torch.flatten(xs[0], 1))
    r = step.request(*xs)
    kernel = registry.pick(r)
    bind = BINDERS.get(r.op) if kernel.backend == "cpu" else None
    if bind is None or not out.numel():
        return lambda: out.copy_(step.run(*xs))
    return bind(r, xs, out, threads)


def _conv2d_requant(r, xs, out, threads):
    requant = cpu.requant_arrays(r.options["requant"], r.w.shape[0], *r.options["limits"])
    zero_point = r.options["x_zero_point"]
    plan = cpu_conv._plan(r, xs[0], 2, 8, dtype_name(xs[0]) == "int8", 1.0, zero_point, None, requant)
    bias = None if r.bias is None else cpu.int_vector(r.bias)
    return _keeping(partial(plan.run, address(xs[0]), 0, address(bias), address(out), threads), bias)


def _linear_requant(r, xs, out, threads):
    requant = cpu.requant_arrays(r.options["requant"], r.w.shape[0], *r.options["limits"])
    bias = None if r.bias is None else cpu.int_vector(r.bias)
    return _keeping(
        partial(
            cpu.packed(r.w).matmul_requant,
            *(registry.ISAS[r.isa][0], address(r.x2), dtype_name(r.x) == "int8", r.m, r.pitch),
            *(r.options["x_zero_point"], requant, address(bias), address(out), threads),
        ),
        bias,
    )


def _matmul_int(r, xs, out, threads):
    return partial(
        cpu.packed(r.w).matmul,
        *(registry.ISAS[r.isa][0], address(r.x2), dtype_name(r.x) == "int8", r.m, r.pitch),
        *(r.options["x_zero_point"], address(out), threads),
    )


def _add_requant(r, xs, out, threads):
    a, b = xs
    if strides_of(a) != strides_of(b) or strides_of(a) != strides_of(out):
        return lambda: out.copy_(registry.pick(r).run(r))
    native = cpu_integer.add_codes(
        *(r.options["requant"], dtype_name(a) == "int8", dtype_name(b) == "int8", r.out_name == "int8"),
        *r.options["limits"],
    )
    isa = registry.ISAS[r.isa][0]
    return partial(_native.add_codes, isa, address(a), address(b), out.numel(), native, address(out), threads)


def _avg_pool2d_int(r, xs, out, threads):
    o, window, x = r.options, r.options["window"], xs[0].permute(0, 2, 3, 1)
    if not x.is_contiguous():
        return lambda: out.copy_(registry.pick(r).run(r))
    averages = cpu_integer._averages(
        *(window, o["zero_point"], o["ratio"], o["output_zero_point"]),
        *(dtype_name(x) == "int8", r.out_name == "int8", *o["limits"]),
    )
    (rows, _), (columns, _) = cpu_integer._sides(window)
    n, h, w, c = x.shape
    call = partial(
        _native.avg_pool_codes,
        *(registry.ISAS[r.isa][0], address(x), n, c, h, w, address(rows), rows.shape[1]),
        *(address(columns), columns.shape[1], averages, address(out), threads),
    )
    return _keeping(call, rows, columns)


def _keeping(call, *owners):
    """``call``, which holds on to the arrays that it has the addresses of."""
    call.owners = owners
    return call


BINDERS = {
    "conv2d_requant": _conv2d_requant,
    "linear_requant": _linear_requant,
    "matmul_int": _matmul_int,
    "add_requant": _add_requant,
    "avg_pool2d_int": _avg_pool2d_int,
}
