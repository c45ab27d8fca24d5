"""Integer-only operations on 8-bit codes, so that a network can stay in int8 between its layers.

A real value is scale * (code - zero_point). No op computes in floats: real scales become integer constants when a call
is first made (or an AddRequant, LayerNormInt is built), and the arithmetic is that of ``qkernels.reference.integer``,
bit for bit. docs/numerics.md holds each result's distance from its float definition.
"""

import sys

import numpy as np

from .. import _native, cpu_integer, registry
from .._arrays import as_numpy, is_torch
from ..cpu import dtype_name
from ..errors import ArgumentError, DTypeError
from ..integer_quant import (
    MOST_AVERAGED,
    MOST_EXPONENTS,
    AddRequant,
    LayerNormInt,
    average_requant,
    code_limits,
    exponent_requant,
    gelu_requants,
    integer,
    pool_window,
    positive,
    scale_requant,
)
from . import integer_plans as plans
from .request import Request, check_array, name_of_dtype

BYTES = ("int8", "uint8")


def byte_zero_point(op, name, value, q):
    """A zero point within the codes of q's dtype."""
    info = np.iinfo(dtype_name(q))
    return integer(op, name, value, int(info.min), int(info.max))


def check_alike(op, names, xs):
    """Refuse a mix of tensors and arrays."""
    if len({is_torch(x) for x in xs}) > 1:
        kinds = ", ".join(type(x).__name__ for x in xs)
        raise DTypeError(f"{op}: {names} are {kinds}; accepted: all torch tensors, or all NumPy arrays.")


def add_requant(a, b, requant, activation=None, out_dtype=None, backend=None):
    """``clip(round(A * (a - za) + B * (b - zb)) + zo)``, A and B the ratios of input scales to the output's. Exact.

    The integers are defined in ``AddRequant``, as is the distance from real ratios: at most
    ``requant.error_bound`` = 1/2 + 255 * 2**-shift code steps (shift 15 for ratios in [1/2, 1)).

    Args:
        a, b: int8 or uint8 of one shape, any strides; two of one memory order are not copied.
        requant: AddRequant, usually from ``AddRequant.from_scales``.
        activation: None, "relu" (clamps at the zero point) or "relu6".
        out_dtype: int8 or uint8; None is the dtype of a.

    Returns:
        codes shaped like a, in its memory order.

    Raises:
        ArgumentError: shapes that differ, or zero points outside of the codes.
        DTypeError: other dtypes or kinds.
    """
    fast = isinstance(requant, AddRequant) and plans.readable(a, b)
    if fast:
        kept = requant._native
        key = plans.key_of("", a.dtype, b.dtype, activation, out_dtype, backend)
        fast = key is not None and a.shape == b.shape and a.ndim > 0
        plan = kept.get(key) if fast else None
        if plan is not None:
            order = plans.layout(a)
            if order is not None and order == plans.layout(b):
                return plan(a, b)
    r = add_requant_request(a, b, requant, activation, out_dtype, backend)
    kernel = registry.pick(r)
    if fast and kernel.backend == "cpu":
        kept[key] = plans.add(r.isa, cpu_integer.add_native(r), r.out_name)
    return kernel.run(r)


def add_requant_request(a, b, requant, activation=None, out_dtype=None, backend=None):
    op = "add_requant"
    check_array(op, "a", a, BYTES)
    check_array(op, "b", b, BYTES)
    check_alike(op, "a and b", (a, b))
    if tuple(a.shape) != tuple(b.shape):
        raise ArgumentError(
            f"{op}: a has shape {tuple(a.shape)}, b {tuple(b.shape)}; they must be equal. Expand one of them first."
        )
    if not isinstance(requant, AddRequant):
        raise DTypeError(f"{op}: requant is a {type(requant).__name__}; accepted: qkernels.AddRequant.")
    byte_zero_point(op, "zero_point_a", requant.zero_point_a, a)
    byte_zero_point(op, "zero_point_b", requant.zero_point_b, b)
    name = name_of_dtype(op, out_dtype, dtype_name(a), BYTES)
    limits = requant.limits(activation, name)
    return Request(op, a, None, None, name, backend, b=b, requant=requant, limits=limits)


def concat_requant(
    xs, scales, zero_points, output_scale, output_zero_point=0, axis=1, out_dtype=None, backend=None
):
    """Join tensors of codes of different scales into one of one scale. Exact.

    Each input becomes ``requantize(x - zero_point)`` with the multiplier of scale / output_scale, rounding "single",
    so within 1/2 + 2**-22 code steps of the real ratio, before clipping; where scale, zero point and dtype equal
    the output's, codes are copied.

    Args:
        xs: int8 or uint8 tensors whose shapes differ along axis alone.
        scales, zero_points: one for each. axis: as in torch.cat; 1, the channels of NCHW, unless said otherwise.
        out_dtype: int8 or uint8; None is the dtype of the first.

    Returns:
        codes in the memory order of the inputs if they share one, else contiguous.

    Raises:
        ArgumentError, DTypeError: lists of different lengths, shapes that do not fit, zero points outside of the codes.
    """
    key = None
    if type(xs) in (list, tuple) and xs and plans.readable(*xs):
        shapes = [v for x in xs for v in (x.dtype, x.shape)]
        if type(scales) in (list, tuple) and type(zero_points) in (list, tuple):
            key = plans.key_of(
                *("concat_requant", len(xs), len(scales), len(zero_points), *shapes, *scales, *zero_points),
                *(output_scale, output_zero_point, axis, out_dtype, backend),
            )
        plan = plans.find(key)
        if plan is not None and all(x.is_contiguous() for x in xs):
            return plan(xs)
    r = concat_requant_request(
        xs, scales, zero_points, output_scale, output_zero_point, axis, out_dtype, backend
    )
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.concat(r))
    return kernel.run(r)


def concat_requant_request(
    xs, scales, zero_points, output_scale, output_zero_point=0, axis=1, out_dtype=None, backend=None
):
    op = "concat_requant"
    if not all(isinstance(v, list | tuple) for v in (xs, scales, zero_points)):
        kinds = ", ".join(type(v).__name__ for v in (xs, scales, zero_points))
        raise DTypeError(f"{op}: xs, scales, zero_points are {kinds}; accepted: lists or tuples.")
    if not xs or not len(xs) == len(scales) == len(zero_points):
        raise ArgumentError(
            f"{op}: there are {len(xs)} xs, {len(scales)} scales, {len(zero_points)} zero points; accepted: as many of "
            "each, one or more."
        )
    for i, x in enumerate(xs):
        check_array(op, f"xs[{i}]", x, BYTES)
    check_alike(op, "xs", xs)
    axis = integer(op, "axis", axis, -xs[0].ndim, xs[0].ndim - 1) % xs[0].ndim
    rest = {(*x.shape[:axis], 0, *x.shape[axis + 1 :]) for x in xs}
    if len(rest) > 1:
        shapes = ", ".join(str(tuple(x.shape)) for x in xs)
        raise ArgumentError(f"{op}: xs have shapes {shapes}; they may differ along axis {axis} alone.")
    name = name_of_dtype(op, out_dtype, dtype_name(xs[0]), BYTES)
    out = positive(op, "output_scale", output_scale)
    zero = integer(op, "output_zero_point", output_zero_point, -128, 255)
    limits = code_limits(op, zero, None, name)
    zero_points = [
        byte_zero_point(op, f"zero_points[{i}]", z, x) for i, (z, x) in enumerate(zip(zero_points, xs))
    ]
    scales = [positive(op, f"scales[{i}]", s) for i, s in enumerate(scales)]
    requants = tuple(
        None if (s, z, dtype_name(x)) == (out, zero, name) else kept_requant(op, s / out, zero)
        for s, z, x in zip(scales, zero_points, xs)
    )
    return Request(
        op,
        xs[0],
        None,
        None,
        name,
        backend,
        xs=xs,
        axis=axis,
        zero_points=zero_points,
        requants=requants,
        limits=limits,
    )


_requants = {}  # (op, scale, zero point) -> Requant: the same object each time, so that its table is found again


def kept_requant(op, scale, zero_point):
    key = (op, scale, zero_point)
    if key not in _requants:
        if len(_requants) >= 1024:
            _requants.clear()
        _requants[key] = scale_requant(op, scale, zero_point)
    return _requants[key]


def lookup_int8(q, table, backend=None):
    """``table[q - lowest code]``: any function of 8-bit codes, by a table of 256 bytes in registers. Exact.

    ``lookup_table(function, ...)`` makes the table of SiLU, sigmoid, hard-swish or any other real function.

    Args:
        q: int8 or uint8, any shape and strides.
        table: 256 int8 or uint8, in the order of the codes' values: entry 0 for -128 (int8) or 0 (uint8).

    Returns:
        the table's dtype, shaped like q, in its memory order.
    """
    key = None
    if plans.readable(q) and type(table) is np.ndarray and table.shape == (256,):
        key = plans.key_of("lookup_int8", q.dtype, table.dtype.name, backend)
        plan = plans.find(key)
        if plan is not None and plans.layout(q) is not None and q.ndim:
            return plan(q, cpu_integer.table_bytes(table, dtype_name(q)))
    r = lookup_int8_request(q, table, backend)
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.lookup(r.isa, None, r.out_name))
    return kernel.run(r)


def lookup_int8_request(q, table, backend=None):
    op = "lookup_int8"
    check_array(op, "q", q, BYTES)
    t = as_numpy(table, op, "table")
    if t.dtype.name not in BYTES:
        raise DTypeError(f"{op}: table has dtype {t.dtype}; accepted: int8, uint8.")
    if t.shape != (256,):
        raise ArgumentError(f"{op}: table has shape {t.shape}; accepted: (256,).")
    return Request(op, q, None, None, t.dtype.name, backend, table=t)


def lookup_table(
    function, scale, zero_point=0, output_scale=None, output_zero_point=0, dtype="int8", out_dtype=None
):
    """The table of a real function for ``lookup_int8``:
    ``clip(rint(function(scale * (code - zero_point)) / output_scale) + output_zero_point)``, ties to even.

    The function is called once, on 256 float64 numbers; running the table is integer only.

    Args:
        function: float64 array -> array, e.g. ``lambda x: x / (1 + np.exp(-x))`` for SiLU.
        scale, zero_point, dtype: of the codes that go in. output_*: of those that come out; None as those that go in.

    Returns:
        int8 or uint8 (256,), within half a step of the function.
    """
    where = "lookup_table"
    s = positive(where, "scale", scale)
    out = s if output_scale is None else positive(where, "output_scale", output_scale)
    dtype = np.dtype(name_of_dtype(where, dtype, "int8", BYTES))
    out_type = np.dtype(name_of_dtype(where, out_dtype, dtype.name, BYTES))
    zero = integer(where, "zero_point", zero_point, int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    lo, hi = int(np.iinfo(out_type).min), int(np.iinfo(out_type).max)
    out_zero = integer(where, "output_zero_point", output_zero_point, lo, hi)
    if not callable(function):
        raise DTypeError(f"{where}: function is a {type(function).__name__}; accepted: something to call.")
    x = s * (np.arange(256.0) + np.iinfo(dtype).min - zero)
    with np.errstate(all="ignore"):
        y = np.asarray(function(x), np.float64) / out
    if y.shape != (256,) or np.isnan(y).any():
        raise ArgumentError(f"{where}: function gives shape {y.shape}, or NaN; accepted: 256 numbers.")
    return np.clip(np.rint(y) + out_zero, lo, hi).astype(out_type)


def gelu_int(q, scale, zero_point=0, output_scale=None, output_zero_point=0, out_dtype=None, backend=None):
    """I-BERT's i-GELU (Kim et al. 2021): ``x / 2 * (1 + L(x / sqrt 2))``,
    ``L(t) = sgn(t) (1 - 0.2888 (min(|t|, 1.769) - 1.769)**2)``, in integers. Exact.

    Within 1/2 + 0.0182 / output_scale + 2**-8 code steps of ``x * Phi(x)``: 0.0182 is i-GELU's own distance. The result
    depends on the code alone, so the kernel is a table of the 256 results of the integer definition.

    Args:
        q: int8 or uint8. scale, zero_point: what its codes mean.
        output_scale, output_zero_point: of the result; a scale of None is the input's.
        out_dtype: int8 or uint8; None is the dtype of q.

    Returns:
        codes shaped like q, in its memory order.
    """
    key = None
    if plans.readable(q):
        key = plans.key_of(
            *("gelu_int", q.dtype, scale, zero_point, output_scale, output_zero_point, out_dtype, backend)
        )
        plan = plans.find(key)
        if plan is not None and plans.layout(q) is not None and q.ndim:
            return plan(q)
    r = gelu_int_request(q, scale, zero_point, output_scale, output_zero_point, out_dtype, backend)
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.lookup(r.isa, cpu_integer.gelu_bytes(r), r.out_name))
    return kernel.run(r)


def gelu_int_request(
    q, scale, zero_point=0, output_scale=None, output_zero_point=0, out_dtype=None, backend=None
):
    op = "gelu_int"
    check_array(op, "q", q, BYTES)
    s = positive(op, "scale", scale)
    out = s if output_scale is None else positive(op, "output_scale", output_scale)
    zero = byte_zero_point(op, "zero_point", zero_point, q)
    out_zero = integer(op, "output_zero_point", output_zero_point, -128, 255)
    name = name_of_dtype(op, out_dtype, dtype_name(q), BYTES)
    limits = code_limits(op, out_zero, None, name)
    to_erf, requant = gelu_requants(s, out, out_zero)
    return Request(
        op, q, None, None, name, backend, zero_point=zero, to_erf=to_erf, requant=requant, limits=limits
    )


# ---- rows ------------------------------------------------------------------------------------------------------


def softmax_int(q, scale, axis=-1, out_dtype=None, backend=None):
    """Softmax in integers with I-BERT's i-exp (Kim et al. 2021): ``exp(p) ~ 0.3585 (p + 1.353)**2 + 0.344`` on
    (-ln 2, 0], shifted right for each halving. Exact against ``reference.softmax_int``.

    Results are codes of scale 1/256 and zero point 0 (uint8) or -128 (int8); 1.0 saturates at 255/256. Within
    0.9 + n * 2**-15 code steps, that is 0.0035 + n * 2**-23, of the real softmax of n values: 1/2 from rounding, 0.36
    from the polynomial (between -3.1e-3 and 2.5e-3 of a value; p (1 - p) <= 1/4 of that difference remains), the rest
    from integers of 24 bits and a reciprocal of 16; one more step at 1.

    Args:
        q: int8, uint8 or int32; a zero point does not matter. scale: the real value of one step.
        axis: over which values sum up to 1; at most 2**24 of them.
        out_dtype: uint8 (None) or int8.

    Returns:
        codes shaped like q.
    """
    key = None
    if type(axis) is int and axis == -1 and plans.readable(q):
        key = plans.key_of("softmax_int", q.dtype, scale, out_dtype, backend)
        plan = plans.find(key)
        if plan is not None and q.ndim and q.shape[-1] <= MOST_EXPONENTS and q.is_contiguous():
            return plan(q)
    r = softmax_int_request(q, scale, axis, out_dtype, backend)
    kernel, axis = registry.pick(r), r.options["axis"]
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.softmax(r))
    y = kernel.run(r)
    return y if axis == q.ndim - 1 else swapped(y, axis)


def softmax_int_request(q, scale, axis=-1, out_dtype=None, backend=None):
    op = "softmax_int"
    check_array(op, "q", q, (*BYTES, "int32"))
    axis = integer(op, "axis", axis, -q.ndim, q.ndim - 1) % q.ndim
    if q.shape[axis] > MOST_EXPONENTS:
        raise ArgumentError(
            f"{op}: q has shape {tuple(q.shape)}, {q.shape[axis]} values along axis {axis}; accepted: up to 2**24."
        )
    to_exponent = exponent_requant(positive(op, "scale", scale))
    name = name_of_dtype(op, out_dtype, "uint8", BYTES)
    x = q if axis == q.ndim - 1 else swapped(q, axis)
    return Request(op, x, None, None, name, backend, to_exponent=to_exponent, axis=axis)


def swapped(x, axis):
    return x.transpose(axis, -1) if is_torch(x) else x.swapaxes(axis, -1)


def layer_norm_int(q, norm, out_dtype=None, backend=None):
    """``(x - mean) / sqrt(var + eps) * weight + bias`` over the last dimension in integers (I-BERT, Kim et al. 2021: an
    integer square root by Newton's iteration). Exact against ``reference.layer_norm_int``.

    Let G be the largest weight / output_scale. Rows whose values span less than 2**15 steps, int8 and uint8 always, are
    within 1/2 + max(G, 1/2, largest bias / output_scale / 1024) * 2**-15 code steps of the float definition. int32 rows
    of a wider span are first rounded to 15 bits, which may add G * (sqrt(2 n) * 2**-14 + n * 2**-15).

    Args:
        q: int8, uint8 or int32 (..., n); a zero point does not matter.
        norm: LayerNormInt, from ``LayerNormInt.from_float(weight, bias, scale, output_scale, ...)``.
        out_dtype: int8 (None) or uint8.

    Returns:
        codes shaped like q.
    """
    key = None
    if isinstance(norm, LayerNormInt) and plans.readable(q):
        key = plans.key_of("", q.dtype, out_dtype, backend)
        plan = norm._native.get(key)
        if plan is not None and q.ndim and q.shape[-1] == len(norm.weight) and q.is_contiguous():
            return plan(q)
    r = layer_norm_int_request(q, norm, out_dtype, backend)
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        norm._native[key] = plans.layer_norm(r)
    return kernel.run(r)


def layer_norm_int_request(q, norm, out_dtype=None, backend=None):
    op = "layer_norm_int"
    check_array(op, "q", q, (*BYTES, "int32"))
    if not isinstance(norm, LayerNormInt):
        raise DTypeError(f"{op}: norm is a {type(norm).__name__}; accepted: qkernels.LayerNormInt.")
    if q.shape[-1] != len(norm.weight):
        raise ArgumentError(
            f"{op}: q has shape {tuple(q.shape)}; norm is for rows of {len(norm.weight)} values."
        )
    name = name_of_dtype(op, out_dtype, "int8", BYTES)
    limits = code_limits(op, norm.zero_point, None, name)
    return Request(op, q, None, None, name, backend, norm=norm, limits=limits)


# ---- pooling ---------------------------------------------------------------------------------------------------


def pair(op, name, value, lo):
    """An integer or two of them as (rows, columns)."""
    values = tuple(value) if isinstance(value, list | tuple) else (value, value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        raise ArgumentError(f"{op}: {name} is {value!r}; accepted: one integer, or two for rows and columns.")
    return tuple(integer(op, name, v, lo, 2**31 - 1) for v in values)


def pool_plan(op, q, kernel_size, stride, padding, *rest):
    """(key, plan) of a pooling call like one before; None where there is none, or where q's memory is not NHWC."""
    if not plans.readable(q) or q.ndim != 4:
        return None, None
    geometry = []
    for v in (kernel_size, stride, padding):
        geometry += (len(v), *v) if type(v) is tuple else (v,)
    key = plans.key_of(op, q.dtype, q.shape, *geometry, *rest)
    plan = plans.find(key)
    if plan is not None and not q.is_contiguous(memory_format=sys.modules["torch"].channels_last):
        plan = None
    return key, plan


def checked_window(op, q, kernel_size, stride, padding, dilation, ceil_mode, count_include_pad):
    check_array(op, "q", q, BYTES)
    if q.ndim != 4 or not all(q.shape[2:]):
        raise ArgumentError(f"{op}: q has shape {tuple(q.shape)}; accepted: (N, C, H, W) with H, W >= 1.")
    kernel = pair(op, "kernel_size", kernel_size, 1)
    stride = kernel if stride is None else pair(op, "stride", stride, 1)
    padding, dilation = pair(op, "padding", padding, 0), pair(op, "dilation", dilation, 1)
    for name, value in (("ceil_mode", ceil_mode), ("count_include_pad", count_include_pad)):
        if not isinstance(value, bool):
            raise DTypeError(f"{op}: {name} is {value!r}; accepted: True, False.")
    for i, name in enumerate(("rows", "columns")):
        reach = dilation[i] * (kernel[i] - 1) + 1
        if 2 * padding[i] > reach:
            raise ArgumentError(
                f"{op}: padding is {padding[i]} for {name}; accepted: up to half of the window's reach {reach}."
            )
        if q.shape[2 + i] + 2 * padding[i] < reach:
            raise ArgumentError(
                f"{op}: the window's reach is {reach} {name}, q with its padding has "
                f"{q.shape[2 + i] + 2 * padding[i]}; accepted: a window that fits."
            )
    size = tuple(int(s) for s in q.shape[2:])
    return pool_window(size, kernel, stride, padding, dilation, ceil_mode, count_include_pad)


def max_pool2d_int(q, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, backend=None):
    """The largest code of each window, as ``torch.nn.functional.max_pool2d``; the padding never wins. Exact.

    Args:
        q: int8 or uint8 (N, C, H, W); channels_last memory is read as it is, any other is copied to it.
        kernel_size, stride, padding, dilation: an integer, or two for rows and columns; stride None is kernel_size.

    Returns:
        the dtype of q, (N, C, OH, OW), in channels_last memory.
    """
    key, plan = pool_plan("max_pool2d_int", q, kernel_size, stride, padding, dilation, ceil_mode, backend)
    if plan is not None:
        return plan(q)
    r = max_pool2d_int_request(q, kernel_size, stride, padding, dilation, ceil_mode, backend)
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.pool(r, _native.max_pool_codes, *cpu_integer.max_pool_arguments(r)))
    return kernel.run(r)


def max_pool2d_int_request(q, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, backend=None):
    op = "max_pool2d_int"
    window = checked_window(op, q, kernel_size, stride, padding, dilation, ceil_mode, True)
    return Request(op, q, None, None, dtype_name(q), backend, window=window)


def avg_pool2d_int(
    q,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    zero_point=0,
    scale=None,
    output_scale=None,
    output_zero_point=None,
    backend=None,
):
    """The mean of each window, as ``torch.nn.functional.avg_pool2d`` on ``q - zero_point``, rounded once, half up.

    Same scale (scale and output_scale None): the exact mean rounded, within 1/2 code step. With both scales the mean
    moves to another scale and zero point in the same rounding, within 1/2 + 2**-22 steps before clipping.

    Args:
        q: int8 or uint8 (N, C, H, W); channels_last memory is read as it is, any other is copied to it.
        kernel_size, stride, padding: an integer, or two for rows and columns; stride None is kernel_size.
        zero_point: the code of 0, which padding counts as.
        output_zero_point: None is zero_point.

    Returns:
        the dtype of q, (N, C, OH, OW), in channels_last memory.
    """
    rest = ceil_mode, count_include_pad, zero_point, scale, output_scale, output_zero_point, backend
    key, plan = pool_plan("avg_pool2d_int", q, kernel_size, stride, padding, *rest)
    if plan is not None:
        return plan(q)
    r = avg_pool2d_int_request(q, kernel_size, stride, padding, *rest)
    kernel = registry.pick(r)
    if key is not None and kernel.backend == "cpu":
        plans.keep(key, plans.pool(r, _native.avg_pool_codes, *cpu_integer.avg_pool_arguments(r)))
    return kernel.run(r)


def avg_pool2d_int_request(
    q,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    zero_point=0,
    scale=None,
    output_scale=None,
    output_zero_point=None,
    backend=None,
):
    op = "avg_pool2d_int"
    window = checked_window(op, q, kernel_size, stride, padding, 1, ceil_mode, count_include_pad)
    divisors = sorted(
        {int(a * b) for a in set(window.rows[2].tolist()) for b in set(window.columns[2].tolist())}
    )
    if divisors[-1] > MOST_AVERAGED:
        raise ArgumentError(f"{op}: a window holds {divisors[-1]} values; accepted: up to {MOST_AVERAGED}.")
    zero = byte_zero_point(op, "zero_point", zero_point, q)
    out_zero = (
        zero if output_zero_point is None else byte_zero_point(op, "output_zero_point", output_zero_point, q)
    )
    if (scale is None) != (output_scale is None):
        raise ArgumentError(
            f"{op}: scale is {scale}, output_scale {output_scale}; accepted: both or neither."
        )
    ratio = None
    if scale is not None:
        ratio = positive(op, "scale", scale) / positive(op, "output_scale", output_scale)
        if ratio > 2**15:
            raise ArgumentError(f"{op}: scale is {ratio:.3g} times output_scale; accepted: up to 2**15.")
    elif out_zero != zero:
        raise ArgumentError(
            f"{op}: output_zero_point is {out_zero}, zero_point {zero}, without scales; accepted: the same, or scales."
        )
    requants = None if ratio is None else {d: average_requant(ratio, d, out_zero) for d in divisors}
    name = dtype_name(q)
    return Request(
        *(op, q, None, None, name, backend),
        window=window,
        zero_point=zero,
        ratio=ratio,
        output_zero_point=out_zero,
        requants=requants,
        limits=code_limits(op, out_zero, None, name),
    )


def global_avg_pool2d_int(
    q, zero_point=0, scale=None, output_scale=None, output_zero_point=None, backend=None
):
    """The mean over all rows and columns, (N, C, H, W) -> (N, C, 1, 1): ``adaptive_avg_pool2d(q, 1)`` on codes.

    One window of ``avg_pool2d_int``, with its arguments.
    """
    size = tuple(q.shape[2:]) if getattr(q, "ndim", 0) == 4 and all(q.shape[2:]) else 1  # else refused below
    return avg_pool2d_int(
        *(q, size, None, 0, False, True, zero_point, scale, output_scale, output_zero_point, backend)
    )
