"""Recipes that turn the linear layers and convolutions of a float model into compressed ones."""

import copy
import fnmatch
import sys
import types
from collections.abc import Mapping

import torch
from torch import nn

from .calibration import calibrate, channel_amax, smoothing_scale, static_scale
from .errors import ArgumentError, DTypeError
from .folding import fold_batch_norm
from .nn import Conv2d, Linear
from .quant import InputQuant
from .recipes import ALIASES, RECIPES, Recipe, as_recipe  # noqa: F401

LAYERS = (nn.Linear, nn.Conv2d)  # of exactly these types


def compress(model, recipe, calibration=None, inplace=False):
    """``model`` with its ``nn.Linear`` and ``nn.Conv2d`` layers replaced by those of ``qkernels.nn``.

    Layers of exactly that type count; subclasses (such as MultiheadAttention's ``out_proj``, whose weight is
    read past its ``forward``) and layers compressed before stay as they are. A layer that occurs at several
    places is replaced by one layer at all of them.

    Args:
        recipe: a name out of RECIPES (or "int8", which is "int8-token"), a Recipe, or {pattern: either,
            or None to leave layers alone}; patterns are shell-style on module names; the first match counts.
        calibration: an iterable of model inputs, which static recipes need and dynamic ones use if it is there
            (Recipe.smooth): each a tensor, a tuple of arguments, or a mapping of keyword arguments. The model
            runs on them in eval mode.
        inplace: change ``model`` itself; else it stays as it is and only what is not replaced is copied.

    Returns:
        The compressed model.

    Raises:
        ArgumentError: unknown recipe, a recipe or pattern that matches no layer, no calibration, a layer that
            calibration did not reach or where it was not finite, a layer with hooks.
        DTypeError: a model or recipe of another type.
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(f"compress: model is a {type(model).__name__}; accepted: torch.nn.Module.")
    chosen = choose_layers(model, recipe)
    given = calibration is not None
    watched = {n: m for n, (m, r) in chosen.items() if r.static or (given and (r.smooth or r.correct))}
    static, means = [name for name in watched if chosen[name][1].static], {}
    stats = calibrate(model, watched, calibration, static, means) if watched else {}
    if inplace and "" in chosen:
        raise ArgumentError(
            "compress: model is such a layer itself, which inplace=True cannot replace; use False."
        )
    new, weights = {}, {}
    for name, (layer, r) in chosen.items():
        compress_layer = compress_conv if isinstance(layer, nn.Conv2d) else compress_linear
        new[id(layer)] = compress_layer(layer, r, stats.get(name), name, weights, means.get(name))
    if not inplace:
        model = copy.deepcopy(model, memo=dict(new))
    else:
        for parent in list(model.modules()):
            for child, module in list(parent._modules.items()):
                if id(module) in new:
                    setattr(parent, child, new[id(module)])
    keep_off_fused_paths(model)
    return model


def keep_off_fused_paths(model):
    """Make torch's transformer encoders call their layers: fused, they read linear1.weight as a tensor."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and Linear in map(type, module.children()):
            module.activation_relu_or_gelu = 0
        if isinstance(module, nn.TransformerEncoder) and Linear in map(type, module.modules()):
            module.use_nested_tensor = False


def choose_layers(model, recipe):
    """{first name: (layer, Recipe)} of the layers that a recipe, in any of its forms, compresses.

    Raises:
        ArgumentError: no layer matches, a pattern that matches none or none that is left, or one layer at two
            names with two recipes.
    """
    by_pattern = recipe if isinstance(recipe, Mapping) else {"*": recipe}
    by_pattern = {p: None if r is None else as_recipe(r) for p, r in by_pattern.items()}
    names = {n: m for n, m in model.named_modules(remove_duplicate=False) if type(m) in LAYERS}
    there = (
        f"The model's layers to compress: {', '.join(n or '(the model itself)' for n in names) or 'none'}."
    )
    chosen, first, used = {}, {}, set()
    for name, layer in names.items():
        pattern = next((p for p in by_pattern if fnmatch.fnmatchcase(name, p)), None)
        used.add(pattern)
        r = by_pattern.get(pattern)
        if id(layer) in first and first[id(layer)][1] != r:
            raise ArgumentError(
                f"compress: {first[id(layer)][0]} and {name} are one layer, and recipe gives them different "
                "recipes; give both the same."
            )
        if id(layer) not in first:
            first[id(layer)] = (name, r)
            if r is not None:
                chosen[name] = (layer, r)
    unused = [p for p in by_pattern if p not in used]
    if unused and isinstance(recipe, Mapping):
        shadowed = any(fnmatch.fnmatchcase(n, p) for p in unused for n in names)
        hint = " Patterns are tried in order: put special ones first." if shadowed else ""
        raise ArgumentError(
            f"compress: recipe has patterns that no layer takes: {', '.join(unused)}.{hint} {there}"
        )
    if not chosen:
        raise ArgumentError(
            f"compress: recipe matches no layer; accepted: one that compresses at least one. {there}"
        )
    return chosen


def compress_linear(linear, recipe, stats=None, name="", weights=None, mean=None):
    """A ``qkernels.nn.Linear`` from a ``torch.nn.Linear``; ``weights`` shares the codes of tied weights, ``mean`` is of
    each input channel.

    Static scales are max|x| over the largest code. With "channel", an input channel that was all zero gets the median
    of the other channels' scales, so that it neither swells the folded weight nor clips early.
    """
    where, recipe = f"compress: layer {name!r}" if name else "nn.Linear.from_float", as_recipe(recipe)
    if not isinstance(linear, nn.Linear):
        raise DTypeError(f"{where}: linear is a {type(linear).__name__}; accepted: torch.nn.Linear.")
    _no_hooks(where, linear)
    folded = scale = None
    if recipe.smooth and stats is not None:
        stats = channel_amax(where, stats, linear.in_features)
        folded = smoothing_scale(stats, linear.weight, recipe.smooth)
        stats = stats / folded
    if recipe.static:
        scale = static_scale(where, stats, linear.in_features, recipe.input, recipe.input_bits)
    kind, options = recipe.rounding()
    key = (id(linear.weight), kind, options)
    folded = scale if recipe.input == "channel" else folded
    weight = None if folded is not None or weights is None else weights.get(key)
    if weight is None:
        weight = kind.quantize(linear.weight.detach().cpu(), input_scale=folded, **dict(options))
        if folded is None and weights is not None:
            weights[key] = weight
    q = None
    if recipe.input is not None:
        scale = scale if recipe.input == "tensor" else None
        q = InputQuant(recipe.input_bits, recipe.input, scale, power=recipe.input_power)
    bias = None if linear.bias is None else linear.bias.detach().cpu().clone()
    if recipe.correct and mean is not None:
        bias = corrected(bias, linear.weight.detach().cpu(), weight.dense(), mean)
    return Linear(weight, bias, q).train(linear.training)


def corrected(bias, w, rounded, mean):
    """``bias + sum over an output's weights of (w - rounded) * mean`` of the input channel they multiply, float32 (N,).

    Args:
        w, rounded: (N, K), or (O, I, kh, kw) of a convolution with C / I groups.
        mean: float64 (C,).
    """
    n, per_group = w.shape[:2]
    lost = (w.double() - rounded.double()).reshape(n, per_group, -1).sum(2)
    each = mean.reshape(-1, per_group).repeat_interleave(n * per_group // len(mean), 0)
    shift = (lost * each).sum(1).float()
    return shift if bias is None else bias.float() + shift


def compress_conv(conv, recipe, stats=None, name="", weights=None, mean=None):
    """A ``qkernels.nn.Conv2d`` from a ``torch.nn.Conv2d``; ``weights`` shares the codes of tied weights.

    As compress_linear, per input channel. Two things differ: "token" is "tensor", and with groups > 1 a weight cannot
    carry the scale of each input channel, so "channel" keeps them in the module and smoothing does without.
    """
    where, recipe = f"compress: layer {name!r}" if name else "nn.Conv2d.from_float", as_recipe(recipe)
    if not isinstance(conv, nn.Conv2d):
        raise DTypeError(f"{where}: conv is a {type(conv).__name__}; accepted: torch.nn.Conv2d.")
    _no_hooks(where, conv)
    if conv.padding_mode != "zeros":
        raise ArgumentError(f"{where}: padding_mode is {conv.padding_mode!r}; accepted: 'zeros'.")
    if recipe.format != "int" or recipe.input_power is not None:
        raise ArgumentError(
            f"{where}: recipe has format {recipe.format!r}, input_power {recipe.input_power}, and the layer is a "
            "convolution; accepted: 'int' without a power. Give it another recipe, or leave it out with {name: None}."
        )
    granularity = "tensor" if recipe.input == "token" else recipe.input
    w, folded, scale, grouped = conv.weight.detach().cpu(), None, None, conv.groups > 1
    if recipe.smooth and stats is not None and not grouped:
        stats = channel_amax(where, stats, conv.in_channels)
        folded = smoothing_scale(stats, conv.weight, recipe.smooth)
        stats = stats / folded
    if recipe.static:
        scale = static_scale(where, stats, conv.in_channels, granularity, recipe.input_bits)
    if granularity == "channel":
        if grouped:
            s = torch.from_numpy(scale).reshape(conv.groups, 1, -1, 1, 1)
            w = (w.float().unflatten(0, (conv.groups, -1)) * s).flatten(0, 1)
        else:
            folded, scale = scale, None
    kind, options = recipe.rounding()
    key = (id(conv.weight), kind, options)
    shared = folded is None and granularity != "channel" and weights is not None
    weight = weights.get(key) if shared else None
    if weight is None:
        weight = kind.quantize(w, input_scale=folded, **dict(options))
        if shared:
            weights[key] = weight
    q = None if granularity is None else InputQuant(recipe.input_bits, granularity, scale)
    bias = None if conv.bias is None else conv.bias.detach().cpu().clone()
    if recipe.correct and mean is not None:
        folded_in = grouped and granularity == "channel"  # w holds the scales of its inputs
        bias = corrected(bias, w, weight.dense(), mean / torch.from_numpy(scale) if folded_in else mean)
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    return Conv2d(weight, bias, *geometry, q).train(conv.training)


def _no_hooks(where, layer):
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise ArgumentError(
            f"{where} has forward hooks, which would be lost; remove them, compress, add them again."
        )


class _Callable(types.ModuleType):
    def __call__(self, *args, **options):
        return compress(*args, **options)


# `import qkernels.compress` binds the name that `qkernels.compress(model, recipe)` calls: both must work.
sys.modules[__name__].__class__ = _Callable
compress.RECIPES = RECIPES
compress.fold_batch_norm = fold_batch_norm
