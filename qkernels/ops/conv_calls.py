"""Remembered convolution calls: a small layer runs in some microseconds, and checking all arguments takes more."""

import sys

import numpy as np

from .. import registry

MOST = 64  # a weight sees a few shapes and options; more is a leak


def key_of(x, *options):
    """What a call is found again by; None where something is unusual. The careful path then says what is wrong."""
    torch = sys.modules.get("torch")
    if torch is not None and type(x) in (torch.Tensor, torch.nn.Parameter):
        if not x.is_cpu or x.layout is not torch.strided or x.is_neg():
            return None
        return (x.dtype, x.shape, x.stride(), *options, registry._forced)
    if type(x) is np.ndarray and x.flags.aligned:
        return (x.dtype, x.shape, x.strides, *options, registry._forced)
    return None


def again(key, x, w, bias):
    """The result of a call like one before, or None where there was none."""
    try:
        run, scale, empty, before, version, vector = w.__dict__["_conv_calls"][key]
    except (AttributeError, KeyError, TypeError):  # no weight, none yet, or an option that has no hash
        return None
    if bias is not before or (bias is not None and _version(bias) != version):
        return None
    out = empty()
    if type(x) is np.ndarray:
        row = run(x.ctypes.data, scale, vector, out.ctypes.data, registry.num_threads())
    else:
        row = run(x.data_ptr(), scale, vector, out.data_ptr(), sys.modules["torch"].get_num_threads())
    return out if row < 0 else None  # the careful path says which value is not finite


def keep(key, request):
    """Remember a call that a CPU kernel has just computed."""
    done = request.done
    if key is None or done is None:
        return
    bias = request.bias
    if isinstance(bias, np.ndarray):  # may be written to without a trace
        return
    try:
        calls = request.w.__dict__.setdefault("_conv_calls", {})
        if len(calls) >= MOST:
            calls.clear()
        run, scale, vector, keep_alive = done
        version = None if bias is None else _version(bias)
        calls[key] = run, scale, Empty(request, keep_alive), bias, version, vector
    except (TypeError, RuntimeError):
        return


def _version(bias):
    return bias._version


class Empty:
    """Makes uninitialized results of one shape."""

    def __init__(self, request, keep_alive=None):
        self.keep_alive = keep_alive
        self.torch = None if isinstance(request.x, np.ndarray) else sys.modules["torch"]
        if self.torch is not None:
            torch = self.torch
            order = torch.channels_last if request.channels_last else torch.contiguous_format
            self.options = {"dtype": getattr(torch, request.out_name), "memory_format": order}
        self.shape, self.channels_last, self.name = request.shape, request.channels_last, request.out_name

    def __call__(self):
        if self.torch is not None:
            return self.torch.empty(self.shape, **self.options)
        if not self.channels_last:
            return np.empty(self.shape, self.name)
        b, n, height, width = self.shape
        return np.empty((b, height, width, n), self.name).transpose(0, 3, 1, 2)
