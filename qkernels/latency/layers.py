"""Latency of single linear layers, for ``qkernels latency``."""

import importlib.util
import os

import numpy as np

from ..errors import ArgumentError
from ..formats import IntWeight
from ..ops import linear
from ..quant import InputQuant
from ..registry import current_isa, num_threads
from . import roofline
from .measure import in_turns

DEFAULT_SHAPES = [f"{m}x{k}x{n}" for k, n in ((384, 384), (384, 1536), (1536, 384)) for m in (1, 16, 128)]


def parse(text):
    """ "16x384x1536" -> (16, 384, 1536): rows of x, in features, out features.

    Raises:
        ArgumentError: not three positive integers.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise ArgumentError(f"latency: shape is {text!r}; accepted: MxKxN, such as 16x384x1536.")
    return tuple(map(int, parts))


def measure(shape, threads=None, seconds=0.3):
    """Time ``linear`` on an (M, K, N) shape: int8 with dynamic per-token activations, and torch's float32.

    The two take turns on the same data; the weights stay in the caches as far as they fit (warm).

    Returns:
        {"shape", "int8": a Timing, "float32": a Timing, or None without torch, "gmac_per_second",
        "share_of_peak": of this machine's int8 peak on those threads, or None for an ISA without one}
    """
    m, k, n = shape
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    weight, quant = IntWeight.quantize(w), InputQuant()
    calls = {"int8": lambda: linear(x, weight, input_quant=quant)}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads or torch.get_num_threads())
        x, dense = torch.from_numpy(x), torch.from_numpy(w)
        calls["float32"] = lambda: torch.nn.functional.linear(x, dense)
    elif threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    timings = in_turns(calls, seconds, threads=num_threads())
    speed = m * k * n / timings["int8"].us * 1e-3
    limit = roofline.quick(num_threads()).peaks.get(f"int8 {current_isa()}")
    return {
        "shape": shape,
        "int8": timings["int8"],
        "float32": timings.get("float32"),
        "gmac_per_second": speed,
        "share_of_peak": speed / limit[num_threads() > 1] if limit else None,
    }
