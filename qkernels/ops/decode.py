"""What decoding one token needs between its linear layers, float32.

A layer of a small network runs in tens of microseconds, so calls on plain contiguous tensors skip the registry. They
are for eager code: torch.compile cannot look into them.
"""

import functools
import sys

import numpy as np

from .. import _native, registry
from .._arrays import is_torch
from ..errors import ArgumentError
from ..integer_quant import integer, positive
from .integer_elementwise import check_alike
from .request import Request, check_array

FLOAT = ("float32",)


@functools.cache
def _isa_number(forced):  # by registry._forced, as ops.plans
    return registry.ISAS[registry.current_isa()][0]


def _plain(t, torch):
    """The address of a contiguous float32 tensor on the CPU without anything that torch must do first, else 0."""
    kind = type(t)
    if (
        (kind is torch.Tensor or kind is torch.nn.Parameter)
        and t.dtype is torch.float32
        and t.is_cpu
        and t.is_contiguous()
        and not t.is_neg()
    ):
        return t.data_ptr()
    return 0


def _cache(t, torch):
    """A plain tensor (planes, length, head), none of them 0, whose planes are contiguous and apart."""
    if (
        type(t) is not torch.Tensor
        or t.dtype is not torch.float32
        or not t.is_cpu
        or t.dim() != 3
        or t.is_neg()
    ):
        return False
    (_, length, head), (pitch, step, one) = t.shape, t.stride()
    return step == head > 0 and one == 1 and pitch >= length * head


def _eager(torch):
    return torch._C._len_torch_dispatch_stack() == 0 and torch._C._get_tracing_state() is None


def rms_norm(x, weight, eps, residual=None, backend=None):
    """``y = x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang and Sennrich 2019), float32.

    With ``residual``, first ``x += residual`` in place: x is a network's residual stream, residual what a layer adds
    to it, so that a layer needs no additions of its own.

    Args:
        x: float32 (..., K); with residual it is written, so it must be contiguous. weight: float32 (K,).
        eps: above 0. residual: None, or float32 shaped like x.

    Returns:
        y, float32 shaped like x; within 1e-5 of the reference, relatively.

    Raises:
        ArgumentError: shapes that differ, an eps that is not positive, an x that cannot be written in place.
        DTypeError: other dtypes or kinds.
    """
    torch = sys.modules.get("torch")
    fast = torch is not None and backend is None and type(eps) is float and eps > 0 and _eager(torch)
    if fast and (at := _plain(x, torch)) and (w := _plain(weight, torch)):
        shape = x.shape
        added = 0 if residual is None else _plain(residual, torch)
        if weight.shape == shape[-1:] != () and (residual is None or (added and residual.shape == shape)):
            out, k = torch.empty_like(x), shape[-1]
            rows = x.numel() // k
            _native.rms_norm(_isa_number(registry._forced), at, added, w, rows, k, eps, out.data_ptr())
            return out
    r = rms_norm_request(x, weight, eps, residual, backend)
    return registry.pick(r).run(r)


def rms_norm_request(x, weight, eps, residual=None, backend=None):
    op = "rms_norm"
    check_array(op, "x", x, FLOAT)
    check_array(op, "weight", weight, FLOAT)
    if tuple(weight.shape) != (x.shape[-1],):
        raise ArgumentError(
            f"{op}: weight has shape {tuple(weight.shape)}, x {tuple(x.shape)}; weight must be ({x.shape[-1]},)."
        )
    check_alike(op, "x and weight", (x, weight))
    if residual is not None:
        check_array(op, "residual", residual, FLOAT)
        check_alike(op, "x and residual", (x, residual))
        if tuple(residual.shape) != tuple(x.shape):
            raise ArgumentError(
                f"{op}: residual has shape {tuple(residual.shape)}; it is added to x, so it must be {tuple(x.shape)}."
            )
        check_written(op, "x", x, True)
    eps = positive(op, "eps", eps)
    return Request(op, x, None, None, "float32", backend, weight=weight, eps=eps, residual=residual)


def check_written(op, name, a, is_dense):
    """Refuse what a kernel cannot write in place."""
    if is_torch(a):
        fine = not a.is_neg() and (not is_dense or a.is_contiguous())
    else:
        fine = a.flags.writeable and a.flags.aligned and (not is_dense or a.flags.c_contiguous)
    if not fine:
        raise ArgumentError(
            f"{op}: {name} of shape {tuple(a.shape)} is written in place; accepted: contiguous, writeable memory. "
            "Pass a contiguous copy."
        )


def swiglu(gate_up, backend=None):
    """``silu(gate) * up`` (Shazeer 2020), gate the first half of the last axis; silu(x) = x / (1 + exp(-x)).

    Args:
        gate_up: float32 (..., 2 n), as one linear layer of both gives it.

    Returns:
        float32 (..., n); silu is within 1e-6 absolute + 1e-5 relative.

    Raises:
        ArgumentError: an odd last axis.
        DTypeError: other dtypes or kinds.
    """
    torch = sys.modules.get("torch")
    if torch is not None and backend is None and _eager(torch) and (at := _plain(gate_up, torch)):
        *batch, width = gate_up.shape or (0,)
        if width and width % 2 == 0:
            out = gate_up.new_empty(*batch, width // 2)
            rows = gate_up.numel() // width
            _native.swiglu(_isa_number(registry._forced), at, rows, width // 2, out.data_ptr())
            return out
    r = swiglu_request(gate_up, backend)
    return registry.pick(r).run(r)


def swiglu_request(gate_up, backend=None):
    op = "swiglu"
    check_array(op, "gate_up", gate_up, FLOAT)
    if gate_up.shape[-1] % 2:
        raise ArgumentError(
            f"{op}: gate_up has shape {tuple(gate_up.shape)}; its last axis is gate and up, so it must be even."
        )
    return Request(op, gate_up, None, None, "float32", backend)


def decode_attention(qkv, turn, store, position, backend=None):
    """Attention of one token with rotary positions and grouped heads, over a cache that it is first put into.

    Queries and keys are turned, pair by pair of neighbours: ``(a + ib) * (c + is)`` (Su et al. 2021, eq. 34). Key and
    value go into ``store`` at ``position``; each query head then gives ``softmax(q K^T / sqrt(head)) V`` over positions
    0..position. heads / kv_heads queries in a row share a key.

    Args:
        qkv: float32 (1, (heads + 2 * kv_heads) * head): queries, keys, values; head is even.
        turn: float32 (heads + 2 * kv_heads, head / 2, 2), c and s; those of values are not read.
        store: float32 (2 * kv_heads, length, head), keys then values; written. Each head's (length, head) is
            contiguous, dimension 0 may have any stride beyond that: a slice of a larger cache.
        position: 0..length - 1.

    Returns:
        float32 (1, heads * head); within 1e-5 of the reference, relatively to the largest value.

    Raises:
        ArgumentError: shapes, strides or a position that do not fit.
        DTypeError: other dtypes or kinds.
    """
    torch = sys.modules.get("torch")
    fast = torch is not None and backend is None and type(position) is int and _eager(torch)
    if fast and (at := _plain(qkv, torch)) and (t := _plain(turn, torch)) and _cache(store, torch):
        planes, length, head = store.shape
        kv = planes // 2
        heads = qkv.numel() // head - planes
        if (
            heads > 0
            and kv * 2 == planes > 0
            and heads % kv == head % 2 == 0
            and 0 <= position < length
            and qkv.shape == (1, (heads + planes) * head)
            and turn.shape == (heads + planes, head // 2, 2)
        ):
            out = qkv.new_empty(1, heads * head)
            _native.decode_attention(
                *(_isa_number(registry._forced), at, t, store.data_ptr(), store.stride(0), length),
                *(heads, kv, head, position, out.data_ptr(), torch.get_num_threads()),
            )
            return out
    r = decode_attention_request(qkv, turn, store, position, backend)
    return registry.pick(r).run(r)


def decode_attention_request(qkv, turn, store, position, backend=None):
    op = "decode_attention"
    for name, a in (("qkv", qkv), ("turn", turn), ("store", store)):
        check_array(op, name, a, FLOAT)
    check_alike(op, "qkv, turn and store", (qkv, turn, store))
    shape = tuple(store.shape)
    if len(shape) != 3 or shape[0] % 2 or shape[2] % 2 or 0 in shape:
        raise ArgumentError(
            f"{op}: store has shape {shape}; accepted: (2 * kv_heads, length, head), none of them 0, head even."
        )
    planes, length, head = shape
    heads = qkv.shape[-1] // head - planes
    if tuple(qkv.shape) != (1, (heads + planes) * head) or heads < 1 or heads % (planes // 2):
        raise ArgumentError(
            f"{op}: qkv has shape {tuple(qkv.shape)}; store is {shape}, so it must be (1, (heads + {planes}) * {head}) "
            f"with heads a multiple of {planes // 2}."
        )
    if tuple(turn.shape) != (heads + planes, head // 2, 2):
        raise ArgumentError(
            f"{op}: turn has shape {tuple(turn.shape)}; accepted: {(heads + planes, head // 2, 2)}, one complex number "
            "for each pair."
        )
    check_written(op, "store", store, False)
    strides = store.stride() if is_torch(store) else np.array(store.strides) / 4
    if not (strides[2] == 1 and strides[1] == head and strides[0] >= length * head):
        raise ArgumentError(
            f"{op}: store has strides {tuple(map(float, strides))} in numbers; accepted: ({length * head} or more, "
            f"{head}, 1). Take a slice of the cache's first dimension."
        )
    position = integer(op, "position", position, 0, length - 1)
    options = {"turn": turn, "store": store, "position": position, "heads": (heads, planes // 2, head)}
    return Request(op, qkv, None, None, "float32", backend, **options)
