"""The reference as a backend: from checked requests to the NumPy functions and back to the caller's kind of array."""

import sys

import numpy as np

from . import reference
from ._arrays import as_kind, as_numpy, is_torch
from .formats.operand import integer_operand


def _rows(r):
    x = as_numpy(r.x, r.op, "x").reshape(r.m, r.n)
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def _result(r, out, name=None):
    """NumPy (m, columns) to x's kind, dtype `name` and batch shape; torch rounds to bfloat16 and float16 itself."""
    if not is_torch(r.x):
        with np.errstate(over="ignore"):
            return r.shaped(out if name is None else out.astype(name))
    torch = sys.modules["torch"]
    t = torch.from_numpy(np.ascontiguousarray(out))
    return r.shaped(t if name is None else t.to(getattr(torch, name)))


def linear(r):
    bias = None if r.bias is None else as_numpy(r.bias, r.op, "bias").astype(np.float32)
    w, q, act = r.w.numpy(), r.options["input_quant"], r.options["activation"]
    if q is not None and q.bits == 1:
        return linear_signs(r)
    if q is None:
        y = reference.linear_float(_rows(r), w, bias, act, compute_dtype=r.options["compute_dtype"])
    else:
        y = reference.linear_int(_rows(r), w, q, bias, act)
    return _result(r, y, r.out_name)


def matmul_int(r):
    w = integer_operand(r.w)
    return _result(r, reference.matmul_int(_rows(r), w.codes(), r.options["x_zero_point"], w.zero_point))


def linear_requant(r):
    w = integer_operand(r.w)
    bias = None if r.bias is None else as_numpy(r.bias, r.op, "bias")
    acc = reference.matmul_int(_rows(r), w.codes(), r.options["x_zero_point"], w.zero_point)
    acc = acc if bias is None else acc + bias
    return _result(
        r, reference.requantize(acc, r.options["requant"], *r.options["limits"]).astype(r.out_name)
    )


def requantize(r):
    y = reference.requantize(_rows(r), r.options["requant"], *r.options["limits"])
    return _result(r, y.astype(r.out_name))


def quantize_activations(r):
    codes, scale = reference.quantize_activations(_rows(r), r.options["input_quant"])
    kind = r.options["input_quant"].granularity
    if kind == "token":
        scale = scale.reshape(*r.batch, 1)
    elif kind == "tensor":
        scale = scale.reshape((1,) * (len(r.batch) + 1))
    return _result(r, codes), r.like(scale)


def power_dequantize(r):
    scale = r.options["scale"].reshape(-1, 1)
    return _result(r, reference.power_dequantize(_rows(r), scale, r.options["exponent"]), r.out_name)


# ---- integer-only operations, on arrays of any shape -----------------------------------------------------------


def _codes(r, x=None):
    return as_numpy(r.x if x is None else x, r.op, "q")


def _like(r, y):
    return as_kind(np.ascontiguousarray(y).astype(r.out_name), r.x)


def add_requant(r):
    o = r.options
    return _like(r, reference.add_requant(_codes(r), _codes(r, o["b"]), o["requant"], *o["limits"]))


def concat_requant(r):
    o = r.options
    xs = [_codes(r, x) for x in o["xs"]]
    return _like(r, reference.concat_requant(xs, o["zero_points"], o["requants"], *o["limits"], o["axis"]))


def lookup_int8(r):
    return _like(r, reference.lookup_int8(_codes(r), r.options["table"]))


def gelu_int(r):
    o = r.options
    return _like(r, reference.gelu_int(_codes(r), o["zero_point"], o["to_erf"], o["requant"], *o["limits"]))


def softmax_int(r):
    if not r.m or not r.n:
        return _like(r, _codes(r))
    y = reference.softmax_int(_codes(r).reshape(r.m, r.n), r.options["to_exponent"])
    return _like(r, (y - (128 if r.out_name == "int8" else 0)).reshape(r.x.shape))


def layer_norm_int(r):
    if not r.m:
        return _like(r, _codes(r))
    y = reference.layer_norm_int(_codes(r).reshape(r.m, r.n), r.options["norm"], *r.options["limits"])
    return _like(r, y.reshape(r.x.shape))


def max_pool2d_int(r):
    return _like(r, reference.max_pool2d(_codes(r), r.options["window"]))


def avg_pool2d_int(r):
    o = r.options
    y = reference.avg_pool2d(_codes(r), o["window"], o["zero_point"], o["requants"], *o["limits"])
    return _like(r, y)


# ---- signs -----------------------------------------------------------------------------------------------


def _bits_accumulator(bits, nonzero, w):
    if len(w.planes) == 1 and nonzero is None:
        return reference.binary_matmul(bits, w.packed, w.shape[1])
    full = reference.pack_signs(np.ones((1, w.shape[1]), np.float32))
    x_there = full if nonzero is None else nonzero
    w_there = w.nonzero if len(w.planes) == 2 else np.broadcast_to(full, w.packed.shape)
    return reference.ternary_matmul(bits, np.broadcast_to(x_there, bits.shape), w.packed, w_there)


def _bits(r, x):
    """Rows of bits, those past K cleared."""
    bits, k = as_numpy(x, r.op, "x_bits").reshape(r.m, r.n), r.w.shape[1]
    return np.packbits(np.unpackbits(bits, axis=1, count=k, bitorder="little"), axis=1, bitorder="little")


def _accumulator(r):
    there = r.options["x_nonzero"]
    return _bits_accumulator(_bits(r, r.x), None if there is None else _bits(r, there.x), r.w.numpy())


def _float_bias(r):
    return None if r.bias is None else as_numpy(r.bias, r.op, "bias").astype(np.float32)


def _result_as(r, out, name=None):
    if not is_torch(r.x):
        with np.errstate(over="ignore"):
            return r.shaped_as(out if name is None else out.astype(name))
    torch = sys.modules["torch"]
    t = torch.from_numpy(np.ascontiguousarray(out))
    return r.shaped_as(t if name is None else t.to(getattr(torch, name)))


def linear_signs(r):
    x, w, q = _rows(r), r.w.numpy(), r.options["input_quant"]
    acc = _bits_accumulator(reference.pack_signs(x), None, w)
    scale = reference.sign_scale(x, q)
    return _result(
        r, reference.scaled(acc, w.alpha, scale, _float_bias(r), r.options["activation"]), r.out_name
    )


def matmul_binary(r):
    return _result_as(r, _accumulator(r))


def linear_binary(r):
    acc, o = _accumulator(r), r.options
    if o["kind"] == "threshold":
        return _result_as(
            r, np.packbits(reference.threshold_bits(acc, o["threshold"]), axis=1, bitorder="little")
        )
    if o["kind"] == "multiple":
        return _result_as(r, reference.threshold_multiples(acc, o["threshold"]))
    scale = o["x_scale"]
    scale = (
        np.ones((1, 1), np.float32)
        if scale is None
        else as_numpy(scale, r.op, "x_scale").astype(np.float32).reshape(-1, 1)
    )
    y = reference.scaled(acc, r.w.numpy().alpha, scale, _float_bias(r), o["activation"])
    if o["kind"] == "sign":
        return _result_as(r, np.packbits(y >= 0, axis=1, bitorder="little"))
    return _result_as(r, y, r.out_name)


def pack_signs(r):
    x, q = _rows(r), r.options["input_quant"]
    bits = _result_as(r, reference.pack_signs(x))
    return bits if q is None else (bits, r.scales(reference.sign_scale(x, q), q.granularity == "token"))


def _images(r):
    x = as_numpy(r.x, r.op, "x")
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def _image_result(r, out):
    """NumPy (B, O, H, W) to x's kind, r.out_name and memory order."""
    y = r.empty()
    if is_torch(y):
        y.copy_(sys.modules["torch"].from_numpy(np.ascontiguousarray(out)))
    else:
        y[...] = out
    return y


def conv2d(r):
    bias = None if r.bias is None else as_numpy(r.bias, r.op, "bias").astype(np.float32)
    w, q, act = r.w.numpy(), r.options["input_quant"], r.options["activation"]
    if q is None:
        return _image_result(r, reference.conv2d_float(_images(r), w, r.geometry, bias, act))
    if q.bits == 1:
        y = reference.conv2d_signs(_images(r), w, q, r.geometry, bias, act, r.options["zeros"])
        return _image_result(r, y)
    return _image_result(r, reference.conv2d(_images(r), w, q, r.geometry, bias, act))


def conv2d_int(r):
    w = r.w.numpy()
    codes = w.codes().reshape(w.shape)
    acc = reference.conv2d_int(_images(r), codes, r.geometry, r.options["x_zero_point"], w.zero_point)
    return _image_result(r, acc)


def conv2d_requant(r):
    w, o = r.w.numpy(), r.options
    codes = w.codes().reshape(w.shape)
    bias = None if r.bias is None else as_numpy(r.bias, r.op, "bias")
    rest = o["requant"], *o["limits"], bias, o["x_zero_point"], w.zero_point
    return _image_result(r, reference.conv2d_requant(_images(r), codes, r.geometry, *rest))


# ---- decoding --------------------------------------------------------------------------------------------------


def _read(r, x, name):
    return as_numpy(x, r.op, name)


@np.errstate(all="ignore")  # what overflows becomes infinite, as in the kernels
def rms_norm(r):
    x = _read(r, r.x, "x")
    if r.options["residual"] is not None:
        x += _read(r, r.options["residual"], "residual")
    return _like(r, reference.rms_norm(x, _read(r, r.options["weight"], "weight"), r.options["eps"]))


@np.errstate(all="ignore")  # what overflows becomes infinite, as in the kernels
def swiglu(r):
    return _like(r, reference.swiglu(_read(r, r.x, "gate_up")))


@np.errstate(all="ignore")  # what overflows becomes infinite, as in the kernels
def decode_attention(r):
    o = r.options
    turn, store = _read(r, o["turn"], "turn"), _read(r, o["store"], "store")
    return _like(r, reference.decode_attention(_read(r, r.x, "qkv"), turn, store, o["position"]))
