"""The public operations: check the arguments, pick a kernel, call it."""

import operator
import sys

import numpy as np

from . import cpu, reference_backend, registry
from ._arrays import as_kind, is_torch
from .cpu import ACTIVATIONS, FLOATS, dtype_name
from .errors import ArgumentError, DTypeError
from .formats import IntWeight
from .quant import InputQuant, Requant
from .registry import Kernel

INT32_MAX = 2**31 - 1


class Request:
    """One checked call. ``x2`` is x as rows: (m, n) with unit stride inside a row and ``pitch`` between rows."""

    def __init__(self, op, x, w=None, bias=None, out_name=None, backend=None, **options):
        self.op, self.x, self.w, self.bias, self.out_name = op, x, w, bias, out_name
        self.backend, self.options = backend, options
        self.batch, self.n = tuple(x.shape[:-1]), x.shape[-1]
        self.m = int(np.prod(self.batch, dtype=np.int64))
        self.isa = registry.current_isa()
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
            return torch.empty((self.m, self.columns), dtype=getattr(torch, name))
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


def _check_array(op, name, x, dtypes):
    if not (is_torch(x) or isinstance(x, np.ndarray)):
        raise DTypeError(f"{op}: {name} is a {type(x).__name__}; accepted: a torch tensor or a NumPy array.")
    if dtype_name(x) not in dtypes:
        raise DTypeError(f"{op}: {name} has dtype {dtype_name(x)}; accepted: {', '.join(dtypes)}.")
    if is_torch(x) and (x.device.type != "cpu" or x.layout is not sys.modules["torch"].strided):
        raise ArgumentError(
            f"{op}: {name} is on device {x.device} ({x.layout}); accepted: a dense tensor on cpu. Call {name}.cpu()."
        )
    if x.ndim < 1:
        raise ArgumentError(f"{op}: {name} has no dimension; accepted: (..., K).")


def _check_weight(op, x, w):
    if not isinstance(w, IntWeight):
        raise DTypeError(
            f"{op}: w is a {type(w).__name__}; accepted: a weight format such as qkernels.IntWeight."
        )
    if x.shape[-1] != w.shape[1]:
        raise ArgumentError(
            f"{op}: x has shape {tuple(x.shape)}, w has shape {w.shape} (N, K); the last dimension of x must be "
            f"K = {w.shape[1]}."
        )


def _check_vector(op, name, v, n, dtypes):
    if v is None:
        return
    _check_array(op, name, v, dtypes)
    if tuple(v.shape) != (n,):
        raise ArgumentError(
            f"{op}: {name} has shape {tuple(v.shape)}; accepted: ({n},), one per output channel."
        )


def _check_activation(op, activation):
    if not isinstance(activation, str | None) or activation not in ACTIVATIONS:
        raise ArgumentError(
            f"{op}: activation is {activation!r}; accepted: {', '.join(map(repr, ACTIVATIONS))}."
        )


def _name_of_dtype(op, dtype, default, accepted):
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


def _check_accumulator(op, w, lo, hi, zero_point, bias=None):
    """Refuse what could leave int32: K * max|x - x_zero_point| * max|w - w_zero_point| + max|bias|."""
    largest = w.shape[1] * max(abs(lo - zero_point), abs(hi - zero_point)) * w.code_extreme
    if bias is not None and len(bias):
        largest += int(abs(np.asarray(bias, np.int64)).max())
    if largest > INT32_MAX:
        raise ArgumentError(
            f"{op}: K = {w.shape[1]} with x_zero_point = {zero_point} could reach an accumulator of {largest}; int32 "
            f"holds {INT32_MAX}. Split the layer along K, or use a smaller zero point."
        )


def _integer_input(op, xq, w, x_zero_point, bias=None):
    _check_array(op, "xq", xq, ("int8", "uint8"))
    _check_weight(op, xq, w)
    lo, hi = (-128, 127) if dtype_name(xq) == "int8" else (0, 255)
    try:
        zero_point = operator.index(None if isinstance(x_zero_point, bool) else x_zero_point)
    except TypeError:
        raise DTypeError(f"{op}: x_zero_point is {x_zero_point!r}; accepted: one integer.") from None
    if not lo <= zero_point <= hi:
        raise ArgumentError(
            f"{op}: x_zero_point is {zero_point}; accepted: {lo}..{hi} for {dtype_name(xq)} codes."
        )
    _check_accumulator(op, w, lo, hi, zero_point, bias)
    return zero_point


# ---- linear ----------------------------------------------------------------------------------------------


def linear(
    x,
    w,
    bias=None,
    activation=None,
    input_quant=None,
    compute_dtype=None,
    out_dtype=None,
    backend=None,
):
    """``y = activation(x @ w.T + bias)`` with a compressed weight.

    With an ``input_quant`` the product is done in integers (thesis eq. 1.9, 3.9, 3.11):

    ``y[m, n] = act(((float32(acc[m, n]) * w.scale[n]) * x_scale[m]) + bias[n])``,
    ``acc = sum_k (xq[m, k] - x_zp) * (wq[n, k] - w_zp[n])``

    The codes and acc are exact, and every float32 operation rounds once in this order, so results without
    activation, with "relu" and with "relu6" are bit-identical on every ISA; "gelu" (erf form) and "silu" agree within
    1e-6 + 2e-6 * |y|. Without an ``input_quant`` activations stay floats (weight-only; reference speed so far).

    For inference: no gradient flows through the result.

    Args:
        x: (..., K) float32, bfloat16 or float16; torch CPU tensor or NumPy array, any strides.
        w: IntWeight (N, K).
        bias: (N,) floats, used as float32; or None.
        activation: None, "relu", "relu6", "gelu" or "silu".
        input_quant: InputQuant, or None for float activations.
        compute_dtype: weight-only calls: None or "float32".
        out_dtype: float32, bfloat16 or float16; None is the dtype of x.
        backend: None (the fastest that takes the call), "cpu" or "reference"; a named one never falls back.

    Returns:
        (..., N), of the kind that x is.

    Raises:
        ArgumentError: shapes, devices or values outside of the above; x not finite where it is quantized.
        DTypeError: a dtype outside of the above.
        UnsupportedError: no kernel takes the call.
    """
    observed = False
    if is_torch(x):
        torch = sys.modules["torch"]
        if torch.compiler.is_compiling():
            from . import _torch_ops

            return _torch_ops.linear(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
        observed = _observed(torch, x)
        if not observed:
            y = _same_as_before(torch, x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
            if y is not None:
                return y
    request = linear_request(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
    kernel = registry.pick(request)
    if kernel.backend == "cpu" and is_torch(x):
        if observed:
            from . import _torch_ops

            block = _torch_ops.layout(w)
            return _torch_ops.linear_packed(
                x, block, bias, w.shape[0], input_quant, activation, getattr(torch, request.out_name)
            )
        if w.shape[1]:
            _keep_plan(request, activation, input_quant, out_dtype, backend)
    return kernel.run(request)


def _observed(torch, x):
    """True where torch must see an operator rather than addresses: tracing, dispatch modes, tensor subclasses."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or not _plain(torch, x)
    )


def _plain(torch, x):
    return type(x) is torch.Tensor or type(x) is torch.nn.Parameter


def _same_as_before(torch, x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend):
    """A small layer runs in a few microseconds: a call like one before skips everything but what x and bias decide.

    None where there was none, or where anything is unusual: the careful path then computes, or says what is wrong.
    """
    try:
        plan = w.__dict__["_plans"][x.dtype, activation, input_quant, out_dtype, backend, registry._forced]
        n, k, out_type, run = plan
        shape, b = x.shape, 0
        if shape[-1] != k or not x.is_cpu or not x.is_contiguous() or x.is_neg() or compute_dtype is not None:
            return None
        if bias is not None:
            if not _plain_bias(torch, bias, n):
                return None
            b = bias.data_ptr()
        batch = shape[:-1]  # given as a tuple, sizes cost 0.5 us more; a dtype costs 1.3
        out = x.new_empty(*batch, n) if out_type is None else x.new_empty((*batch, n), dtype=out_type)
        row = run(x.data_ptr(), x.numel() // k, k, b, out.data_ptr(), torch.get_num_threads())
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ArgumentError):
        return None
    if row >= 0:
        cpu.refuse_row("linear", row)
    return out


def _plain_bias(torch, bias, n):
    return (
        bias.dtype is torch.float32
        and bias.shape == (n,)
        and bias.is_cpu
        and bias.is_contiguous()
        and not bias.is_neg()
        and _plain(torch, bias)
    )


def _keep_plan(r, activation, input_quant, out_dtype, backend):
    torch = sys.modules["torch"]
    plans = r.w.__dict__.setdefault("_plans", {})
    key = (r.x.dtype, activation, input_quant, out_dtype, backend, registry._forced)
    if key not in plans:
        if len(plans) > 64:  # as many as there are combinations of options in one program; a leak otherwise
            plans.clear()
        native = cpu.linear_plan(
            cpu.packed(r.w), input_quant, FLOATS[dtype_name(r.x)], FLOATS[r.out_name], activation, r.isa
        )
        out_type = getattr(torch, r.out_name)
        plans[key] = (*r.w.shape, None if out_type is r.x.dtype else out_type, native.run)


def linear_request(
    x, w, bias=None, activation=None, input_quant=None, compute_dtype=None, out_dtype=None, backend=None
):
    op = "linear"
    _check_array(op, "x", x, tuple(FLOATS))
    _check_weight(op, x, w)
    _check_vector(op, "bias", bias, w.shape[0], (*FLOATS, "float64"))
    _check_activation(op, activation)
    if input_quant is not None:
        if not isinstance(input_quant, InputQuant):
            raise DTypeError(
                f"{op}: input_quant is a {type(input_quant).__name__}; accepted: qkernels.InputQuant or None."
            )
        if compute_dtype is not None:
            raise ArgumentError(
                f"{op}: compute_dtype is {compute_dtype!r} with an input_quant; accepted: None (the product is done "
                "in integers). Leave one of them out."
            )
        if input_quant.granularity == "channel":
            input_quant.weight_scale(op, w.numpy().input_scale)
        lo, hi = (-128, 127) if input_quant.signed else (0, 255)
        _check_accumulator(op, w, lo, hi, input_quant.zero_point or 0)
    elif not isinstance(compute_dtype, str | None) or compute_dtype not in (None, "float32"):
        raise ArgumentError(f"{op}: compute_dtype is {compute_dtype!r}; accepted: None, 'float32'.")
    name = _name_of_dtype(
        op, out_dtype, dtype_name(x), tuple(FLOATS) if is_torch(x) else ("float32", "float16")
    )
    return Request(
        op,
        x,
        w,
        bias,
        name,
        backend,
        activation=activation,
        input_quant=input_quant,
        compute_dtype=compute_dtype,
    )


# ---- integers in -----------------------------------------------------------------------------------------


def matmul_int(xq, w, x_zero_point=0, backend=None):
    """``acc[..., n] = sum_k (xq[..., k] - x_zero_point) * (wq[n, k] - w_zp[n])``, exact.

    Args:
        xq: (..., K) int8 or uint8 codes.
        w: IntWeight (N, K); its scale is not used.
        x_zero_point: the code of 0, within the dtype of xq.

    Returns:
        int32 (..., N).

    Raises:
        ArgumentError: a K mismatch, a zero point outside of the codes, or sums that could leave int32.
        DTypeError: other dtypes.
    """
    r = matmul_int_request(xq, w, x_zero_point, backend)
    return registry.pick(r).run(r)


def matmul_int_request(xq, w, x_zero_point=0, backend=None):
    zero_point = _integer_input("matmul_int", xq, w, x_zero_point)
    return Request("matmul_int", xq, w, None, "int32", backend, x_zero_point=zero_point)


def linear_requant(xq, w, requant, bias=None, x_zero_point=0, activation=None, out_dtype=None, backend=None):
    """Integers only: ``clip(requantize(acc + bias))`` with acc of ``matmul_int`` (thesis 1.4.2). Exact.

    Args:
        xq: (..., K) int8 or uint8 codes.
        w: IntWeight (N, K); its scale is part of ``requant``.
        requant: Requant, for the tensor or per output channel.
        bias: (N,) int32, in units of the accumulator; or None.
        activation: None, "relu" (clamps at the zero point) or "relu6" (needs requant.output_scale).
        out_dtype: int8 (None) or uint8.

    Returns:
        int8 or uint8 (..., N).

    Raises:
        ArgumentError, DTypeError: as matmul_int; a Requant whose length is not N; a zero point that out_dtype lacks.
    """
    r = linear_requant_request(xq, w, requant, bias, x_zero_point, activation, out_dtype, backend)
    return registry.pick(r).run(r)


def linear_requant_request(
    xq, w, requant, bias=None, x_zero_point=0, activation=None, out_dtype=None, backend=None
):
    op = "linear_requant"
    _check_array(op, "xq", xq, ("int8", "uint8"))
    _check_weight(op, xq, w)
    _check_vector(op, "bias", bias, w.shape[0], ("int32",))
    zero_point = _integer_input(op, xq, w, x_zero_point, bias)
    name = _name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = _check_requant(op, requant, w.shape[0]).limits(activation, np.dtype(name))
    return Request(op, xq, w, bias, name, backend, x_zero_point=zero_point, requant=requant, limits=limits)


def _check_requant(op, requant, n):
    if not isinstance(requant, Requant):
        raise DTypeError(f"{op}: requant is a {type(requant).__name__}; accepted: qkernels.Requant.")
    if requant.multiplier.shape[0] not in (1, n):
        raise ArgumentError(
            f"{op}: requant has {requant.multiplier.shape[0]} channels; there are {n}, so it takes 1 or {n}."
        )
    return requant


# ---- elementwise -----------------------------------------------------------------------------------------


def requantize(acc, requant, out_dtype=None, backend=None):
    """``clip(round(acc * multiplier * 2**-(31 + shift)) + zero_point)`` in the rounding of ``requant``. Exact.

    Args:
        acc: (..., N) int32.
        requant: Requant, for the tensor or per channel of the last dimension.
        out_dtype: int8 (None) or uint8.

    Returns:
        int8 or uint8, shaped like acc.
    """
    r = requantize_request(acc, requant, out_dtype, backend)
    return registry.pick(r).run(r)


def requantize_request(acc, requant, out_dtype=None, backend=None):
    op = "requantize"
    _check_array(op, "acc", acc, ("int32",))
    name = _name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = _check_requant(op, requant, acc.shape[-1]).limits(None, np.dtype(name))
    return Request(op, acc, None, None, name, backend, requant=requant, limits=limits)


def quantize_activations(x, input_quant, backend=None):
    """Codes and scales of activations (thesis eq. 3.9, 3.10), the same that ``linear`` computes inside.

    Args:
        x: (..., K) float32, bfloat16 or float16.
        input_quant: InputQuant; granularity "channel" needs its scale here.

    Returns:
        codes, int8 or uint8 (..., K); scale, float32: (..., 1) per token, 1s per tensor, (1, K) per channel.

    Raises:
        ArgumentError: x is not finite, or there is no scale for granularity "channel".
    """
    r = quantize_activations_request(x, input_quant, backend)
    return registry.pick(r).run(r)


def quantize_activations_request(x, input_quant, backend=None):
    op = "quantize_activations"
    _check_array(op, "x", x, tuple(FLOATS))
    if not isinstance(input_quant, InputQuant):
        raise DTypeError(
            f"{op}: input_quant is a {type(input_quant).__name__}; accepted: qkernels.InputQuant."
        )
    if input_quant.granularity == "channel":
        input_quant.channel_scale(op, None, x.shape[-1])
    return Request(op, x, None, None, None, backend, input_quant=input_quant)


# ---- the table -------------------------------------------------------------------------------------------


def _any(request):
    return None


def _integer_activations(request):
    if request.options["input_quant"] is None:
        return "input_quant is None (weight-only): no CPU kernel yet; pass input_quant=qkernels.InputQuant()"
    return None


_OPS = {  # op -> (format, core, predicate of the CPU rows, exactness)
    "linear": ("IntWeight8", "gemm", _integer_activations, "exact"),
    "matmul_int": ("IntWeight8", "gemm", _any, "exact"),
    "linear_requant": ("IntWeight8", "gemm", _any, "exact"),
    "requantize": (None, "elementwise", _any, "exact"),
    "quantize_activations": (None, "elementwise", _any, "exact"),
}
for _op, (_format, _core, _accepts, _exactness) in _OPS.items():
    for _isa in reversed(registry.ISAS):
        registry.register(Kernel(_op, _format, "cpu", _isa, _core, _accepts, getattr(cpu, _op), _exactness))
    registry.register(
        Kernel(_op, _format, "reference", None, _core, _any, getattr(reference_backend, _op), _exactness)
    )
