"""``linear``: check the arguments, pick a kernel, call it."""

import sys

from .. import registry
from .._arrays import is_torch
from ..cpu import FLOATS, dtype_name
from ..errors import ArgumentError, DTypeError
from ..quant import InputQuant
from . import binary
from .plans import keep_plan, observed, same_as_before
from .request import (
    Request,
    check_accumulator,
    check_activation,
    check_array,
    check_vector,
    check_weight,
    name_of_dtype,
)

COMPUTE_DTYPES = (None, "float32", "bfloat16")


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
    1e-6 + 2e-6 * |y|.

    Without an ``input_quant`` activations stay floats (weight-only): ``y = act(sum_k x[m, k] * W[n, k] + bias[n])``, W
    what ``w.lookup()`` says. Sums are float32, of products of bfloat16 (both sides rounded to it, half to even) or of
    float32; how close that is, docs/numerics.md says for each.

    For inference: no gradient flows through the result.

    With InputQuant(power=0.5) xq is ``sign(q) * q**2`` of its codes q, exact as well: ``qkernels.reference.linear_int``
    says how 5 to 8 bits are split. Where codes of w index a table, wq is the table's integer.

    With InputQuant(bits=1) both sides are signs: acc is that of ``matmul_binary`` and alpha of the weight its scale.

    Args:
        x: (..., K) float32, bfloat16 or float16; torch tensor on the CPU or a CUDA device, or NumPy array; any strides.
        w: a weight (N, K) of any format; BinaryWeight or TernaryWeight with InputQuant(bits=1). With other input_quants
            its values must be integers of int8 times a scale: of formats with a table ``w.int_table()`` says so.
        bias: (N,) floats, used as float32; or None.
        activation: None, "relu", "relu6", "gelu" or "silu"; with bits=1 also a DPReLU.
        input_quant: InputQuant, or None for float activations.
        compute_dtype: of the products in weight-only calls: "bfloat16", "float32", or None: bfloat16 where the CPU
            multiplies it (AVX512-BF16), else float32; on CUDA float16 where x is float16, else bfloat16.
        out_dtype: float32, bfloat16 or float16; None is the dtype of x.
        backend: None (the fastest that takes the call where x is), "cpu", "cuda", "triton" or "reference"; a named one
            never falls back.

    Returns:
        (..., N), of the kind that x is.

    Raises:
        ArgumentError: shapes, devices or values outside of the above; x not finite where it is quantized (on a CUDA
            device, where a call does not wait for the numbers, results of such a row are NaN instead).
        DTypeError: a dtype outside of the above.
        UnsupportedError: no kernel takes the call.
    """
    traced = False
    if is_torch(x):
        torch = sys.modules["torch"]
        if torch.compiler.is_compiling():
            from .. import _torch_ops

            return _torch_ops.linear(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
        traced = observed(torch, x)
        if not traced:
            y = same_as_before(torch, x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
            if y is not None:
                return y
    request = linear_request(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
    kernel = registry.pick(request)
    if traced and (kernel.backend == "cpu" or x.is_cuda):
        from .. import _torch_ops

        return _torch_ops.linear_traced(kernel, request)
    if is_torch(x) and w.shape[1] and kernel.backend == ("cuda" if x.is_cuda else "cpu"):
        keep_plan(kernel.run, request, activation, input_quant, compute_dtype, out_dtype, backend)
    return kernel.run(request)


def linear_request(
    x, w, bias=None, activation=None, input_quant=None, compute_dtype=None, out_dtype=None, backend=None
):
    op = "linear"
    if isinstance(input_quant, InputQuant) and input_quant.bits == 1:
        return binary.linear_request(x, w, bias, activation, input_quant, compute_dtype, out_dtype, backend)
    check_array(op, "x", x, tuple(FLOATS))
    check_weight(op, x, w)
    check_vector(op, "bias", bias, w.shape[0], (*FLOATS, "float64"), x)
    check_activation(op, activation)
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
        check_accumulator(op, w, *input_quant.operand_limits, input_quant.zero_point or 0)
    elif not isinstance(compute_dtype, str | None) or compute_dtype not in COMPUTE_DTYPES:
        accepted = ", ".join(map(repr, COMPUTE_DTYPES))
        raise ArgumentError(f"{op}: compute_dtype is {compute_dtype!r}; accepted: {accepted}.")
    name = name_of_dtype(
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
