"""Corrections to Triton's interpreter, so that it computes what a GPU does. Imported where TRITON_INTERPRET=1, only.

Triton 3.6 interprets ``tl.fma`` as a product and a sum that round twice, rounds float32 to bfloat16 by cutting bits,
and multiplies bfloat16 matrices as the integers that hold them. It also looks through ``triton.language`` anew for
every call of a helper, which takes milliseconds, and takes bounds of loops from arrays in a way that NumPy 2.4 refuses.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

from qkernels.reference.linear import fused_multiply_add, to_bfloat16

_Builder, _Handle = triton_interpreter.InterpreterBuilder, triton_interpreter.TensorHandle
_cast, _dot = _Builder.cast_impl, _Builder.create_dot
_call, _patch = triton_interpreter.InterpretedFunction.__call__, triton_interpreter._patch_lang_tensor


def _fma(self, x, y, z):
    if z.data.dtype != np.float32:
        raise NotImplementedError("qkernels uses tl.fma on float32 alone")
    x, y, z = np.broadcast_arrays(x.data, y.data, z.data)
    return _Handle(fused_multiply_add(x, y.astype(np.float64), np.ascontiguousarray(z)), tl.float32)


def _narrow(x):
    return (to_bfloat16(x).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _widen(x):
    return (np.ascontiguousarray(x).astype(np.uint32) << np.uint32(16)).view(np.float32)


def _cast_impl(self, src, dst_type):
    source, target = src.dtype.scalar, dst_type.scalar
    if target == tl.bfloat16 and source != tl.bfloat16:
        return _Handle(_narrow(src.data.astype(np.float32)), target)
    if source == tl.bfloat16 and target != tl.bfloat16:
        return _cast(self, _Handle(_widen(src.data), tl.float32), dst_type)
    return _cast(self, src, dst_type)


def _create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
    a, b = (_Handle(_widen(t.data), tl.float32) if t.dtype.scalar == tl.bfloat16 else t for t in (a, b))
    return _dot(self, a, b, d, input_precision, max_num_imprecise_acc)


def _call_helper(self, *args, **kwargs):
    if self.fn.__module__.startswith("triton."):  # sees another module, which only the slow way prepares
        return _call(self, *args, **kwargs)
    return self.rewrite()(*args, **kwargs)


def _patch_tensor(tensor, scope):
    _patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


_Builder.create_fma = _fma
_Builder.cast_impl = _cast_impl
_Builder.create_dot = _create_dot
triton_interpreter.InterpretedFunction.__call__ = _call_helper
triton_interpreter._patch_lang_tensor = _patch_tensor
