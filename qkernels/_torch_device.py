"""What the operators of ``linear`` are on a device: they take a prepacked tensor, and a text, ``layout``, that says for
which kernel it was made (the one that an eager call takes) and what that kernel must know of its bytes.

A text, since Dynamo would guard numbers one by one, and make symbols of them where a second weight brings others.
Nothing of the tensor is read here: that would wait for the device.
"""

import contextlib
import functools
import json
import math

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from . import cuda, cuda_linear, registry
from . import triton_backend as triton
from .cpu import address, dtype_name
from .errors import ArgumentError, DTypeError, UnsupportedError
from .formats import WeightFormat
from .quant import InputQuant

VERSION = 1  # of the layouts
RUNS = {run.name: run for run in (*cuda_linear.RUNS, *triton.RUNS)}


def layout_of(run, shape, facts):
    return json.dumps([run.name, VERSION, shape, facts])


@functools.lru_cache(maxsize=4096)
def _described(op, layout):
    """(run, shape of the weight, facts) of a text."""
    try:
        name, version, shape, facts = json.loads(layout)
        run = RUNS[name]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"qkernels::{op}: layout is {layout!r}, of no kernel for a device.") from None
    if version != VERSION or run.operator != op:
        raise ValueError(
            f"qkernels::{op}: layout is of {run.operator}, version {version}; accepted: {op}, version {VERSION}."
        )
    return run, _tuples(shape), _tuples(facts)


def _tuples(v):
    return tuple(map(_tuples, v)) if isinstance(v, list) else v


def run_on_device(op, x, packed, bias, n, given, activation, out_dtype, layout):
    """An operator on CUDA tensors; ``given``: what it says of the activations, ``activation`` a number.

    What was made of these is kept with the packed tensor, and made again where that has other memory.
    """
    key = op, layout, x.dtype, given, activation, out_dtype, address(packed), packed.numel()
    kept = packed.__dict__.setdefault("_qkernels_calls", {})
    if key not in kept:
        if len(kept) > 64:
            kept.clear()
        run, shape, facts = _described(op, layout)
        kept[key] = shape, run.on_tensor(packed, shape, facts, dtype_name(x), given, activation, out_dtype)
    shape, call = kept[key]
    if shape != (n, x.shape[-1]):
        raise ValueError(
            f"qkernels::{op}: x is {tuple(x.shape)} and out_features {n}; the weight is {shape}."
        )
    return call(x, bias)


# ---- weights ----------------------------------------------------------------------------------------------------


def prepacked(kernel, request):
    """The tensor of a weight that a device kernel's operator takes, and its layout; made once."""
    with _disable_current_modes():  # real memory, also where fake tensors are being traced
        tensor, facts = kernel.run.prepacked(request)
    return tensor, layout_of(kernel.run, request.w.shape, facts)


def _as_text(self):
    """The fields of an InputQuant that a kernel is chosen by; of a static scale only that there is one.

    What it returns is guarded all the same: the operators get the fields one by one.
    """
    scale = None if self.scale is None else 1.0
    return json.dumps([self.bits, self.granularity, scale, self.signed, self.zero_point, self.power])


def _differs_by_tokens(self, *asked):
    """Whether another kernel is chosen for few tokens than for many: compiled code is then made for either."""
    with _disable_current_modes(), contextlib.suppress(ArgumentError, DTypeError, UnsupportedError):
        few, many = (_chosen(self, rows, *asked)[0] for rows in (1, cuda.FEW + 1))
        return few is not many
    return False


def _ready_on_device(self, rows, index, dtype, backend, compute_dtype, activation, quant):
    """Finds the kernel that an eager call would take and makes its tensor, an attribute whose name is given back; the
    layout has that name and ``_layout``. ``quant``: ``_as_text`` of an InputQuant, or None.

    "" where there is none: ``_refused_on_device`` then says why.
    """
    with _disable_current_modes():
        try:
            kernel, request = _chosen(self, rows, index, dtype, backend, compute_dtype, activation, quant)
        except (ArgumentError, DTypeError, UnsupportedError) as e:
            self.__dict__["_refused_on_device"] = str(e).replace(
                "linear: ", "linear: under torch.compile: ", 1
            )
            return ""
        name = f"_on_cuda_{index}_{kernel.run.name}_{dtype_name(request.x)}_{compute_dtype}"
        self.__dict__[name], self.__dict__[name + "_layout"] = prepacked(kernel, request)
    return name


def _chosen(w, rows, index, dtype, backend, compute_dtype, activation, quant):
    from .ops.linear import linear_request

    with FakeTensorMode():
        x = torch.empty((rows, w.shape[1]), dtype=dtype, device=torch.device("cuda", index))
    q = None if quant is None else InputQuant(*json.loads(quant))
    request = linear_request(x, w, None, activation, q, compute_dtype, None, backend)
    return registry.pick(request), request


# Run by Dynamo while it traces, not looked into: see _torch_ops. Numbers that it holds for variable cannot be given to
# them, hence the text.
for _f in (_as_text, _differs_by_tokens, _ready_on_device):
    _f._dynamo_marked_constant = True
InputQuant._as_text = _as_text
WeightFormat._differs_by_tokens = _differs_by_tokens
WeightFormat._ready_on_device = _ready_on_device


def block_on_device(x, w, input_quant, compute_dtype, activation, backend):
    """The tensor and layout of a weight for ``linear`` under torch.compile with x on a device."""
    quant = None if input_quant is None else input_quant._as_text()
    asked = x.device.index, x.dtype, backend, compute_dtype, activation, quant
    many = w._differs_by_tokens(*asked) and math.prod(x.shape[:-1]) > cuda.FEW
    name = w._ready_on_device(cuda.FEW + 1 if many else 1, *asked)
    if not name:
        raise UnsupportedError(w._refused_on_device)
    return getattr(w, name), getattr(w, name + "_layout")
