"""The remembered fast calls of the integer-only operations on torch tensors.

These operations run in microseconds, so a call like one before skips the checks: the key of a plan holds everything
that they look at but the tensors' memory, which ``readable`` and ``layout`` check each time.
"""

import math
import sys

import numpy as np

from .. import _native, cpu_integer, registry
from ..registry import ISAS, num_threads

_plans = {}
_PLAIN = {int, float, str, bool, type(None), type, np.float32, np.float64, np.int64}  # and two of torch's


def readable(*tensors):
    """True where torch tensors' memory may be read at once: plain CPU tensors, and nothing that observes operators."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    for t in tensors:
        if type(t) is not torch.Tensor or not t.is_cpu or t.layout is not torch.strided:
            return False
    return torch._C._len_torch_dispatch_stack() == 0 and torch._C._get_tracing_state() is None


def layout(x):
    """0: contiguous, 1: channels_last, None: neither."""
    if x.is_contiguous():
        return 0
    return 1 if x.ndim == 4 and x.is_contiguous(memory_format=sys.modules["torch"].channels_last) else None


def key_of(op, *parameters):
    """The key of a call with torch tensors, None where a parameter may change under it (tensors, arrays, lists)."""
    types = tuple(map(type, parameters))
    if not _PLAIN.issuperset(types):
        _PLAIN.update(getattr(sys.modules.get("torch"), name) for name in ("dtype", "Size"))
        if not _PLAIN.issuperset(types):
            return None
    return op, parameters, types, registry._forced


def find(key):
    return _plans.get(key)


def keep(key, plan):
    if len(_plans) >= 1024:  # as many as there are layers in one program; a leak otherwise
        _plans.clear()
    _plans[key] = plan


def dtype_of(name):
    return getattr(sys.modules["torch"], name)


def add(isa, native, name):
    torch, number, run, out_type = sys.modules["torch"], ISAS[isa][0], _native.add_codes, dtype_of(name)

    def call(a, b):
        out = torch.empty_like(a, dtype=out_type)
        if n := a.numel():
            run(number, a.data_ptr(), b.data_ptr(), n, native, out.data_ptr(), num_threads())
        return out

    return call


def lookup(isa, table, name):
    torch, number, run, out_type = sys.modules["torch"], ISAS[isa][0], _native.lookup_rows, dtype_of(name)

    def call(q, table=table):
        out = torch.empty_like(q, dtype=out_type)
        if n := q.numel():
            run(number, q.data_ptr(), 1, n, n, table, out.data_ptr(), n, num_threads())
        return out

    return call


def softmax(r):
    torch, number, out_type = sys.modules["torch"], ISAS[r.isa][0], dtype_of(r.out_name)
    exponentials, is_signed = cpu_integer._exponentials(r.options["to_exponent"]), r.out_name == "int8"
    code = cpu_integer.CODE_TYPES[cpu_integer.dtype_name(r.x)]

    def call(q):
        out, n = torch.empty_like(q, dtype=out_type), q.shape[-1]
        if count := q.numel():
            _native.softmax_codes(
                *(number, q.data_ptr(), code, count // n, n, n),
                *(exponentials, out.data_ptr(), is_signed, num_threads()),
            )
        return out

    return call


def layer_norm(r):
    torch, number, out_type = sys.modules["torch"], ISAS[r.isa][0], dtype_of(r.out_name)
    arguments = cpu_integer.norm_arguments(r.options["norm"], r.out_name == "int8", *r.options["limits"])
    code, n = cpu_integer.CODE_TYPES[cpu_integer.dtype_name(r.x)], r.n

    def call(q):
        out = torch.empty_like(q, dtype=out_type)
        if count := q.numel():
            _native.layer_norm_codes(
                *(number, q.data_ptr(), code, count // n, n, n, *arguments, out.data_ptr(), num_threads())
            )
        return out

    return call


def concat(r):
    """For contiguous inputs of the shapes of a request (channels_last ones go the careful way)."""
    torch, number, out_type = sys.modules["torch"], ISAS[r.isa][0], dtype_of(r.out_name)
    axis, xs = r.options["axis"], r.options["xs"]
    outer = math.prod(xs[0].shape[:axis])
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    pitch = math.prod(shape[axis:])
    parts, place = [], 0
    for x, table in zip(xs, cpu_integer.concat_tables(r)):
        n = math.prod(x.shape[axis:])
        parts.append((n, table, place))
        place += n

    def call(tensors):
        out = torch.empty(shape, dtype=out_type)
        base, threads = out.data_ptr(), num_threads()
        for x, (n, table, at) in zip(tensors, parts):
            if n and outer:
                if table is None:
                    _native.copy_rows(x.data_ptr(), outer, n, n, base + at, pitch)
                else:
                    _native.lookup_rows(number, x.data_ptr(), outer, n, n, table, base + at, pitch, threads)
        return out

    return call


def pool(r, run, before, after):
    """``before`` and ``after`` the output: the arguments of a native pooling but addresses and threads."""
    torch, out_type = sys.modules["torch"], dtype_of(r.out_name)
    n, c = r.x.shape[:2]
    shape, some = (n, c, *r.options["window"].shape), n * c > 0

    def call(q):
        out = torch.empty(shape, dtype=out_type, memory_format=torch.channels_last)
        if some:
            run(before[0], q.data_ptr(), *before[1:], *after, out.data_ptr(), num_threads())
        return out

    return call
