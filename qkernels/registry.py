"""The one table of kernels, and the questions asked of it: what is there, what would run, why not the others."""

import contextlib
import logging
import os
import sys
from dataclasses import dataclass

from . import _native
from .errors import ArgumentError, UnsupportedError
from .version import __version__

log = logging.getLogger("qkernels")

ISAS = _native.isas()  # name -> (number, whether this machine has it), weakest first
RANK = {name: i for i, name in enumerate(ISAS)}
OPS = ("linear", "matmul_int", "linear_requant", "requantize", "quantize_activations", "power_dequantize")
OPS += ("add_requant", "concat_requant", "lookup_int8", "gelu_int", "softmax_int", "layer_norm_int")
OPS += ("max_pool2d_int", "avg_pool2d_int")
OPS += ("matmul_binary", "linear_binary", "pack_signs")
OPS += ("conv2d", "conv2d_int", "conv2d_requant")
OPS += ("rms_norm", "swiglu", "decode_attention")


@dataclass(frozen=True)
class Kernel:
    """One way to compute an op for a format: a row of the table.

    ``accepts(request)`` returns None, or the reason why this kernel refuses. ``run(request)`` computes.
    Calling the row runs its op with this kernel and no other: ``kernel(x, w, ...)``. ``tag`` tells rows of one
    op, format and ISA apart. ``arch``: the least GPU architecture of a kernel that runs on a device.
    """

    op: str
    format: object
    backend: str
    isa: object
    core: str
    accepts: object
    run: object
    exactness: str = "exact"
    tag: object = None
    arch: object = None

    def __str__(self):
        where = (self.backend, self.isa, self.arch, self.tag)
        parts = (self.op, self.format, "-".join(p for p in where if p))
        return "/".join(p for p in parts if p)

    def __call__(self, *args, **options):
        from . import ops

        with force_isa(self.isa) if self.isa else contextlib.nullcontext():
            return getattr(ops, self.op)(*args, backend=self.backend, **options)


_table = []
_rows_of = {}  # op -> its rows in the table: every call asks for them
_device_ops = set()  # ops with a row of one of the DEVICE_BACKENDS
# Backends whose kernels take tensors on a device: name -> a function that gives None, or why they cannot run here.
DEVICE_BACKENDS = {}
_forced = None  # ISA that force_isa chose
_said = set()  # fallbacks already logged
_forked = False  # a forked child computes on one thread: csrc/cpu/parallel.cpp


def _after_fork():
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def register(*rows):
    """Append rows; within an op they are tried in this order."""
    _table.extend(rows)
    for row in rows:
        _rows_of.setdefault(row.op, []).append(row)
        if row.backend in DEVICE_BACKENDS:
            _device_ops.add(row.op)


def kernels(op=None, device="cpu"):
    """The rows of the table, of one op or all, that this machine can run: on CPU arrays, or "cuda" tensors."""
    rows = _table if op is None else _rows_of.get(op, ())
    if device == "cpu":
        return [k for k in rows if k.backend not in DEVICE_BACKENDS and (k.isa is None or ISAS[k.isa][1])]
    ready = {name for name, unavailable in DEVICE_BACKENDS.items() if unavailable() is None}
    return [k for k in rows if k.backend in ready]


def takes_devices(op):
    """Whether a row of the op takes tensors that are not on the CPU."""
    return op in _device_ops


def device_of(x):
    """The device of a tensor as torch names its kind: "cpu", "cuda" ...; "cpu" for arrays."""
    return getattr(getattr(x, "device", None), "type", "cpu")


def current_isa():
    """The instruction set in use: force_isa, else QKERNELS_ISA, else the best of this machine."""
    if _forced is not None:
        return _forced
    name = os.environ.get("QKERNELS_ISA", "")
    if name:
        return _checked(name, "QKERNELS_ISA")
    return list(ISAS)[_native.best_isa()]


def _checked(name, where):
    if not isinstance(name, str) or name not in ISAS:
        raise ArgumentError(f"{where}: ISA {name!r} is not known; accepted: {', '.join(ISAS)}.")
    if not ISAS[name][1]:
        here = ", ".join(i for i, (_, ok) in ISAS.items() if ok)
        raise UnsupportedError(f"{where}: this machine does not have {name!r}; it has: {here}.")
    return name


class force_isa:
    """Use one instruction set, e.g. ``qk.force_isa("avx2")``, until changed; ``None`` undoes it.

    As a context manager, ``with qk.force_isa("scalar"):``, the former choice comes back at the end. The setting is
    the process's, not the thread's.

    Raises:
        ArgumentError: a name that is not an ISA.
        UnsupportedError: an ISA that this machine lacks.
    """

    def __init__(self, name):
        global _forced
        self._before = _forced
        _forced = None if name is None else _checked(name, "force_isa")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        global _forced
        _forced = self._before


def _why_not(kernel, request):
    if kernel.isa is not None and not ISAS[kernel.isa][1]:
        return "this machine lacks the ISA"
    if kernel.isa is not None and RANK[kernel.isa] > RANK[current_isa()]:
        return f"ISA {current_isa()!r} is in use"
    if kernel.format is not None and kernel.format != type(request.w).__name__:
        return f"the weight is {type(request.w).__name__}"
    if request.backend is not None and kernel.backend != request.backend:
        return f"backend={request.backend!r} was asked for"
    if kernel.backend not in DEVICE_BACKENDS and device_of(request.x) != "cpu":
        return f"x is on {request.x.device}, and would have to leave it"
    if kernel.backend in DEVICE_BACKENDS and request.backend is None and device_of(request.x) == "cpu":
        return "x is on the CPU"
    return kernel.accepts(request)


def _check_backend(request, rows):
    if request.backend is None:
        return
    backends = list(dict.fromkeys(k.backend for k in rows))
    if isinstance(request.backend, str) and request.backend in backends:
        return
    raise ArgumentError(
        f"{request.op}: backend is {request.backend!r}; accepted: None, {', '.join(map(repr, backends))}."
    )


def pick(request):
    """The first row that takes the request. Rows of one ISA family come strongest first, so the strongest that is
    allowed is taken.

    Raises:
        ArgumentError: a backend that does not exist.
        UnsupportedError: no row takes it; the message gives the reason of each row for the weight's format.
    """
    rows = _rows_of.get(request.op, ())
    _check_backend(request, rows)
    name = type(request.w).__name__
    for kernel in rows:
        if kernel.format in (None, name) and _why_not(kernel, request) is None:
            if kernel.backend == "reference" and request.backend is None:
                _say_fallback(kernel, _reasons(request, rows[: rows.index(kernel)]))
            request.isa = kernel.isa
            return kernel
    raise UnsupportedError(
        f"{request.op}: no kernel takes this call.\n  " + "\n  ".join(_reasons(request, rows))
    )


def _reasons(request, rows):
    """Why each row for the weight's format refuses: asked for a second time, since a call that finds a row has no use
    for texts."""
    mine = [kernel for kernel in rows if kernel.format in (None, type(request.w).__name__)]
    return [f"{kernel}: {_why_not(kernel, request)}" for kernel in mine]


def _say_fallback(kernel, reasons):
    quiet = ("is in use", "the weight is", "x is on the CPU")
    text = "; ".join(r for r in reasons if not any(q in r for q in quiet))
    if (kernel, text) not in _said:
        _said.add((kernel, text))
        log.warning("%s runs, which is slow (said once): %s", kernel, text)


@dataclass(frozen=True)
class Explanation:
    """What explain returns: ``chosen`` (a Kernel or None) and ``reasons`` {Kernel: reason} for the others."""

    op: str
    chosen: object
    reasons: dict

    def __str__(self):
        lines = [f"{self.op}: {self.chosen or 'no kernel takes this call'}"]
        return "\n".join(lines + [f"  not {kernel}: {reason}" for kernel, reason in self.reasons.items()])


def explain(op, *args, **options):
    """Which kernel ``qk.<op>(*args, **options)`` would run, and why not the others.

    ``print(qk.explain("linear", w, x, input_quant=qk.InputQuant()))`` shows both.

    The arguments are those of the op, in its order or the weight first.

    Raises:
        ArgumentError: an op that does not exist, or arguments that the op itself refuses.
    """
    from . import ops

    if not isinstance(op, str) or op not in OPS:
        raise ArgumentError(f"explain: op is {op!r}; accepted: {', '.join(OPS)}.")
    if len(args) >= 2 and hasattr(args[0], "bits_per_weight"):
        args = (args[1], args[0], *args[2:])
    request = getattr(ops, f"{op}_request")(*args, **options)
    rows = _rows_of.get(op, ())
    _check_backend(request, rows)
    chosen, reasons = None, {}
    for kernel in rows:
        reason = _why_not(kernel, request)
        if reason is None and chosen is None:
            chosen = kernel
        else:
            reasons[kernel] = reason or "a kernel before it takes the call"
    return Explanation(op, chosen, reasons)


def num_threads():
    """Threads a call may use: torch's setting if torch is loaded, else OMP_NUM_THREADS, else the usable cores.

    1 in a forked child, where OpenMP's threads do not exist; start processes that shall use several threads with
    "spawn" or "forkserver".
    """
    if _forked:
        return 1
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return torch.get_num_threads()
    value = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(value) if value.isdigit() and int(value) > 0 else len(os.sched_getaffinity(0))


def capabilities():
    """What this installation can do on this machine: versions, ISAs, threads, and the names of all kernels."""
    from . import cuda

    torch = sys.modules.get("torch")
    return {
        "version": __version__,
        "torch": getattr(torch, "__version__", None),
        "isas": {name: ok for name, (_, ok) in ISAS.items()},
        "isa": current_isa(),
        "threads": num_threads(),
        "kernels": [str(k) for k in (*kernels(), *kernels(device="cuda"))],
        "cuda": cuda.capabilities(),
    }
