"""The CPU backend of decoding: from checked requests to csrc/cpu/decode.cpp."""

import math

import numpy as np

from . import _native
from ._arrays import is_torch
from .cpu import address
from .cpu_integer import empty
from .registry import ISAS, num_threads


def dense(a):
    """``a`` as the kernels read it: contiguous, or a copy that is."""
    return a.detach().resolve_neg().contiguous() if is_torch(a) else np.require(a, requirements="CA")


def rms_norm(r):
    x, weight, residual = dense(r.x), dense(r.options["weight"]), r.options["residual"]
    residual = None if residual is None else dense(residual)
    out = empty(x, tuple(x.shape), "float32")
    if math.prod(x.shape):
        arrays = address(x), address(residual), address(weight)
        _native.rms_norm(ISAS[r.isa][0], *arrays, r.m, r.n, r.options["eps"], address(out))
    return out


def swiglu(r):
    x = dense(r.x)
    out = empty(x, (*r.batch, r.n // 2), "float32")
    if math.prod(x.shape):
        _native.swiglu(ISAS[r.isa][0], address(x), r.m, r.n // 2, address(out))
    return out


def decode_attention(r):
    store, (heads, kv_heads, head) = r.options["store"], r.options["heads"]
    qkv, turn = dense(r.x), dense(r.options["turn"])
    out = empty(qkv, (1, heads * head), "float32")
    pitch = store.stride(0) if is_torch(store) else store.strides[0] // 4
    sizes = pitch, store.shape[1], heads, kv_heads, head, r.options["position"]
    _native.decode_attention(
        ISAS[r.isa][0], address(qkv), address(turn), address(store), *sizes, address(out), num_threads()
    )
    return out
