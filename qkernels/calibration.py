"""What the inputs of a model's layers look like, and the static scales that follow."""

from collections.abc import Mapping

import numpy as np
import torch

from ._arrays import as_float32
from .errors import ArgumentError

TINY = 2.0**-100  # an amax below this counts as zero, as in quantize_activations


def calibrate(model, layers, calibration, required, means=None):
    """{name: max|x[..., k]| float32 (K,), of a convolution per channel} over all inputs of each of {name: layer}.

    Args:
        required: names of the layers that they must reach.
        means: a dict that takes the mean of x[..., k] over them, {name: float64 (K,)}.

    Raises:
        ArgumentError: no calibration inputs, a layer they do not reach, or an input that is not finite.
    """
    if calibration is None:
        raise ArgumentError(
            "compress: calibration is None, and the recipe is static; accepted: an iterable of model inputs. "
            "About a hundred typical ones will do. A dynamic recipe, such as 'int8-token', needs none."
        )
    seen, sums = {}, {}

    def watch(name):
        def hook(module, args, kwargs):
            x = args[0] if args else kwargs["input"]
            x = x.movedim(-3, -1) if isinstance(module, torch.nn.Conv2d) else x
            rows = x.detach().reshape(-1, x.shape[-1])
            if rows.shape[0]:
                amax = rows.abs().amax(0).float()
                seen[name] = torch.maximum(seen[name], amax) if name in seen else amax
                total, count = sums.get(name, (0, 0))
                sums[name] = total + rows.sum(0, dtype=torch.float64), count + rows.shape[0]

        return hook

    modes = [(m, m.training) for m in model.modules()]
    hooks = [layer.register_forward_pre_hook(watch(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        model.eval()
        with torch.no_grad():
            for inputs in calibration:
                if isinstance(inputs, Mapping):
                    model(**inputs)
                else:
                    model(*(inputs if isinstance(inputs, tuple | list) else (inputs,)))
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    unreached = [name or "(the model itself)" for name in required if name not in seen]
    if unreached:
        raise ArgumentError(
            f"compress: calibration did not reach every layer whose recipe is static; not {', '.join(unreached)}. "
            "Give inputs that use them, or leave them out with {name: None}."
        )
    for name, amax in seen.items():
        if not amax.isfinite().all():
            raise ArgumentError(
                f"compress: calibration: the input of layer {name!r} is not finite; accepted: finite inputs."
            )
    if means is not None:
        means.update({name: (total / count).cpu() for name, (total, count) in sums.items()})
    return {name: amax.cpu() for name, amax in seen.items()}


def channel_amax(where, stats, k):
    """``stats`` checked: float32 (K,), max|x| per input channel."""
    if stats is None:
        raise ArgumentError(
            f"{where}: stats is None, and the recipe is static; accepted: float32 ({k},), max|x| per k."
        )
    amax = as_float32(stats, where, "stats")
    if amax.shape != (k,) or not (amax >= 0).all() or not np.isfinite(amax).all():
        raise ArgumentError(
            f"{where}: stats has shape {amax.shape}; accepted: ({k},), finite and not negative."
        )
    return amax


def smoothing_scale(amax, weight, exponent):
    """``s[k] = amax[k]**a / max|W[:, k]|**(1 - a)``, float32 (K,); 1 where either is zero (Xiao et al. 2022, eq. 4)."""
    w = weight.detach().abs().float().cpu().transpose(0, 1).flatten(1)
    w = w.amax(1).numpy() if w.shape[1] else np.zeros_like(amax)
    used = (amax >= TINY) & (w >= TINY)
    with np.errstate(divide="ignore", invalid="ignore"):
        s = amax**exponent / w ** (1 - exponent)
    return np.where(used, np.clip(s, 2.0**-60, 2.0**60), 1).astype(np.float32)


def static_scale(where, stats, k, granularity, bits=8):
    """max|x| / (2**(bits - 1) - 1), a float ("tensor") or float32 (K,) ("channel"), from max|x| per channel."""
    most = np.float32(2 ** (bits - 1) - 1)
    amax = channel_amax(where, stats, k)
    if granularity == "tensor":
        amax = np.max(amax, initial=0)
        return float(np.float32(1) if amax < TINY else amax / most)
    used = amax >= TINY
    guard = np.median(amax[used]) if used.any() else float(most)
    return np.where(used, amax, np.float32(guard)) / most
