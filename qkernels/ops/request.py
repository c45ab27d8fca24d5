"""One checked call, and the checks that the operations share."""

import math
import operator
import sys

import numpy as np

from .._arrays import as_kind, as_numpy, is_torch
from ..cpu import ACTIVATIONS, dtype_name
from ..errors import ArgumentError, DTypeError, UnsupportedError
from ..formats import WeightFormat
from ..formats.base import check_integer
from ..formats.operand import code_extreme
from ..quant import Requant
from ..registry import takes_devices

INT32_MAX = 2**31 - 1


class Request:
    """One checked call. ``x2`` is x as rows: (m, n) with unit stride inside a row and ``pitch`` between rows."""

    def __init__(self, op, x, w=None, bias=None, out_name=None, backend=None, **options):
        self.op, self.x, self.w, self.bias, self.out_name = op, x, w, bias, out_name
        self.backend, self.options = backend, options
        self.batch, self.n = tuple(x.shape[:-1]), x.shape[-1]
        self.m = math.prod(self.batch)
        self.isa = None  # of the kernel that was picked
        self._rows = None

    @property
    def x2(self):
        if self._rows is None:
            self._rows = _as_rows(self.x, self.m, self.n)
        return self._rows[0]

    @property
    def pitch(self):
        return self.x2 is not None and self._rows[1]

    @property
    def columns(self):
        return self.n if self.w is None else self.w.shape[0]

    def empty(self, name):
        """An uninitialized (m, columns) result of the kind that x is."""
        if is_torch(self.x):
            torch = sys.modules["torch"]
            shape, dtype = (self.m, self.columns), getattr(torch, name)
            return torch.empty(shape, dtype=dtype, device=self.x.device)
        return np.empty((self.m, self.columns), name)

    def shaped(self, out):
        return out.reshape(*self.batch, self.columns)

    def like(self, a):
        return as_kind(np.ascontiguousarray(a), self.x)


def _as_rows(x, m, n):
    if is_torch(x):
        x = x.detach().resolve_neg().reshape(m, n)
        if (n and x.stride(1) != 1) or (m > 1 and x.stride(0) < n):
            x = x.contiguous()
        return x, x.stride(0) if m > 1 else n
    x = x.reshape(m, n)
    step, inner = x.strides[0] // x.itemsize, x.strides[1] // x.itemsize
    if (n and inner != 1) or (m > 1 and step < n) or x.strides[0] % x.itemsize or not x.flags.aligned:
        x, step = np.ascontiguousarray(x), n
    return x, step if m > 1 else n


def check_array(op, name, x, dtypes):
    if not (is_torch(x) or isinstance(x, np.ndarray)):
        raise DTypeError(f"{op}: {name} is a {type(x).__name__}; accepted: a torch tensor or a NumPy array.")
    if dtype_name(x) not in dtypes:
        raise DTypeError(f"{op}: {name} has dtype {dtype_name(x)}; accepted: {', '.join(dtypes)}.")
    devices = ("cpu", "cuda") if takes_devices(op) else ("cpu",)
    if is_torch(x) and (x.device.type not in devices or x.layout is not sys.modules["torch"].strided):
        raise ArgumentError(
            f"{op}: {name} is on device {x.device} ({x.layout}); accepted: a dense tensor on {' or '.join(devices)}. "
            f"Call {name}.cpu()."
        )
    if x.ndim < 1:
        raise ArgumentError(f"{op}: {name} has no dimension; accepted: (..., K).")


def check_format(op, w):
    if not isinstance(w, WeightFormat):
        raise DTypeError(
            f"{op}: w is a {type(w).__name__}; accepted: a weight format such as qkernels.IntWeight."
        )


def check_weight(op, x, w):
    check_format(op, w)
    if len(w.shape) != 2:
        raise ArgumentError(f"{op}: w has shape {w.shape}, a convolution's; accepted: (N, K). Use conv2d.")
    if x.shape[-1] != w.shape[1]:
        raise ArgumentError(
            f"{op}: x has shape {tuple(x.shape)}, w has shape {w.shape} (N, K); the last dimension of x must be "
            f"K = {w.shape[1]}."
        )


def check_vector(op, name, v, n, dtypes, x=None):
    """``x``: what the vector must share the device with."""
    if v is None:
        return
    check_array(op, name, v, dtypes)
    check_device(op, name, v, x)
    if tuple(v.shape) != (n,):
        raise ArgumentError(
            f"{op}: {name} has shape {tuple(v.shape)}; accepted: ({n},), one per output channel."
        )


def check_device(op, name, v, x):
    here = str(v.device) if is_torch(v) else "cpu"
    there = str(x.device) if is_torch(x) else "cpu"
    if x is not None and here != there:
        raise ArgumentError(
            f"{op}: {name} is on {here}, x is on {there}; accepted: one device. Call {name}.to(x.device)."
        )


def check_activation(op, activation):
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise ArgumentError(
            f"{op}: activation is {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}."
        )


def name_of_dtype(op, dtype, default, accepted):
    if dtype is None:
        return default
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(dtype, torch.dtype):
        name = str(dtype).removeprefix("torch.")
    elif isinstance(dtype, str | type | np.dtype):
        try:
            name = dtype if dtype == "bfloat16" else np.dtype(dtype).name
        except (TypeError, ValueError, SyntaxError):
            name = repr(dtype)
    else:
        name = f"a {type(dtype).__name__}"
    if name not in accepted:
        raise DTypeError(f"{op}: out_dtype is {name}; accepted: {', '.join(accepted)}.")
    return name


def check_accumulator(op, w, lo, hi, zero_point, bias=None, along="K"):
    """Refuse what could leave int32: K * max|x - x_zero_point| * max|w - w_zero_point| + max|bias|, and offsets."""
    check_integer(op, w)
    terms, extreme = w.group_size if w.is_grouped else w.matrix_shape[1], code_extreme(w)
    if extreme is None:  # the registry says why there is no integer product
        return
    largest = terms * max(abs(lo - zero_point), abs(hi - zero_point)) * extreme
    if bias is not None and len(bias):
        largest += _extreme(op, bias)
    if largest > INT32_MAX:
        raise ArgumentError(
            f"{op}: K = {terms} with x_zero_point = {zero_point} could reach an accumulator of {largest}; int32 "
            f"holds {INT32_MAX}. Split the layer along {along}, or use a smaller zero point."
        )


def _extreme(op, bias):
    """max|bias|. Of a CUDA tensor it is kept with it, so that only the first call waits for the device."""
    if not is_torch(bias) or bias.device.type == "cpu":
        return int(abs(as_numpy(bias, op, "bias").astype(np.int64)).max())
    kept = getattr(bias, "_qkernels_extreme", None)
    if kept is None or kept[0] != bias._version:
        kept = bias._version, int(bias.detach().long().abs().max())
        bias._qkernels_extreme = kept
    return kept[1]


def integer_input(op, xq, w, x_zero_point, bias=None):
    check_array(op, "xq", xq, ("int8", "uint8"))
    check_weight(op, xq, w)
    lo, hi, zero_point = code_limits(op, xq, w, x_zero_point, "linear")
    check_accumulator(op, w, lo, hi, zero_point, bias)
    return zero_point


def code_limits(op, xq, w, x_zero_point, float_op):
    """The least and the largest code of xq, and the code of 0 as an int; ``float_op`` takes groups of scales."""
    if w.is_grouped:
        raise UnsupportedError(
            f"{op}: w has group_size={w.group_size}, whose scales belong between the sums; accepted: one scale per "
            f"channel or tensor. Use {float_op}."
        )
    lo, hi = (-128, 127) if dtype_name(xq) == "int8" else (0, 255)
    try:
        zero_point = operator.index(None if isinstance(x_zero_point, bool) else x_zero_point)
    except TypeError:
        raise DTypeError(f"{op}: x_zero_point is {x_zero_point!r}; accepted: one integer.") from None
    if not lo <= zero_point <= hi:
        raise ArgumentError(
            f"{op}: x_zero_point is {zero_point}; accepted: {lo}..{hi} for {dtype_name(xq)} codes."
        )
    return lo, hi, zero_point


def check_requant(op, requant, n):
    if not isinstance(requant, Requant):
        raise DTypeError(f"{op}: requant is a {type(requant).__name__}; accepted: qkernels.Requant.")
    if requant.multiplier.shape[0] not in (1, n):
        raise ArgumentError(
            f"{op}: requant has {requant.multiplier.shape[0]} channels; there are {n}, so it takes 1 or {n}."
        )
    return requant
