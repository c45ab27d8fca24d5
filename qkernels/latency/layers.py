"""Latency of single linear layers, for ``qkernels latency``."""

import importlib.util
import time

import numpy as np

from ..errors import ArgumentError
from ..formats import IntWeight
from ..ops import linear
from ..quant import InputQuant

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


def measure(shape, threads=None, seconds=0.5):
    """Time ``linear`` on an (M, K, N) shape: int8 with dynamic per-token activations, and torch's float32.

    The two take turns on the same data; the weights stay in the caches as far as they fit (warm). float32 is
    None where torch is not installed.

    Returns:
        {"shape", "int8": {"us", "spread"}, "float32": the same or None, "gmac_per_second",
        "weight_gb_per_second"}; us is a median, spread half the distance of the quartiles, relative to it.
    """
    m, k, n = shape
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32)
    weight, quant = IntWeight.quantize(w), InputQuant()
    calls = {}
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(threads or torch.get_num_threads())
        x, dense = torch.from_numpy(x), torch.from_numpy(w)
        calls["float32"] = lambda: torch.nn.functional.linear(x, dense)
    calls["int8"] = lambda: linear(x, weight, input_quant=quant)
    times = {name: [] for name in calls}
    for _ in range(10):
        for call in calls.values():
            call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["int8"]) < 10:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    ours, theirs = (_summary(times.get(name)) for name in ("int8", "float32"))
    return {
        "shape": shape,
        "int8": ours,
        "float32": theirs,
        "gmac_per_second": m * k * n / ours["us"] * 1e-3,
        "weight_gb_per_second": weight.nbytes / ours["us"] * 1e-3,
    }


def _summary(samples):
    if samples is None:
        return None
    low, mid, high = np.percentile(samples, [25, 50, 75])
    return {"us": mid * 1e6, "spread": (high - low) / 2 / mid}
