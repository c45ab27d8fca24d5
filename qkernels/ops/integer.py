"""Operations on integer codes: the exact product, and the product requantized."""

import numpy as np

from .. import registry
from .request import (
    Request,
    check_array,
    check_requant,
    check_vector,
    check_weight,
    integer_input,
    name_of_dtype,
)


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
    zero_point = integer_input("matmul_int", xq, w, x_zero_point)
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
    check_array(op, "xq", xq, ("int8", "uint8"))
    check_weight(op, xq, w)
    check_vector(op, "bias", bias, w.shape[0], ("int32",), xq)
    zero_point = integer_input(op, xq, w, x_zero_point, bias)
    name = name_of_dtype(op, out_dtype, "int8", ("int8", "uint8"))
    limits = check_requant(op, requant, w.shape[0]).limits(activation, np.dtype(name))
    return Request(op, xq, w, bias, name, backend, x_zero_point=zero_point, requant=requant, limits=limits)
