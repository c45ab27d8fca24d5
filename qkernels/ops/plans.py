"""The remembered fast call of ``linear`` on torch tensors."""

import sys

from .. import cpu, cpu_binary, cpu_float, cuda_linear, registry
from ..cpu import FLOATS, dtype_name
from ..errors import ArgumentError


def observed(torch, x):
    """True where torch must see an operator rather than addresses: tracing, dispatch modes, tensor subclasses."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or not _plain(torch, x)
    )


def _plain(torch, x):
    return type(x) is torch.Tensor or type(x) is torch.nn.Parameter


def same_as_before(torch, x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend):
    """A small layer runs in a few microseconds: a call like one before skips everything but what x and bias decide.

    None where there was none, or where anything is unusual: the careful path then computes, or says what is wrong.
    """
    if x.is_cuda:
        options = x.dtype, activation, input_quant, compute_dtype, out_dtype, backend
        return cuda_linear.same_as_before(x, w, bias, options)
    try:
        plan = w.__dict__["_plans"][
            x.dtype, activation, input_quant, compute_dtype, out_dtype, backend, registry._forced
        ]
        n, k, out_type, run, _keep = plan
        shape, b = x.shape, 0
        if shape[-1] != k or not x.is_cpu or not x.is_contiguous() or x.is_neg():
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
        (cpu_binary if input_quant.bits == 1 else cpu).refuse_row("linear", row)
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


def keep_plan(run, r, activation, input_quant, compute_dtype, out_dtype, backend):
    torch = sys.modules["torch"]
    if r.x.is_cuda:
        options = r.x.dtype, activation, input_quant, compute_dtype, out_dtype, backend
        return cuda_linear.keep_plan(run, r, options)
    plans = r.w.__dict__.setdefault("_plans", {})
    key = (r.x.dtype, activation, input_quant, compute_dtype, out_dtype, backend, registry._forced)
    if key not in plans:
        if len(plans) > 64:  # as many as there are combinations of options in one program; a leak otherwise
            plans.clear()
        x_type, keep = FLOATS[dtype_name(r.x)], None
        if input_quant is None:
            native = cpu_float.linear_plan(r.w, x_type, r.out_name, activation, r.isa, compute_dtype)
        elif input_quant.bits == 1:
            native, keep = cpu_binary.linear_plan(r.w, input_quant, x_type, r.out_name, activation, r.isa)
        else:
            native = cpu.linear_plan(
                cpu.packed(r.w), input_quant, x_type, FLOATS[r.out_name], activation, r.isa
            )
        out_type = getattr(torch, r.out_name)
        plans[key] = (*r.w.shape, None if out_type is r.x.dtype else out_type, native.run, keep)
