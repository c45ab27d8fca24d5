"""Batch norm folded into the layer before it, in floats, so that a quantizer sees the weights that count."""

import copy

import torch
import torch.fx
from torch import nn

from .errors import ArgumentError, DTypeError

# batch norms by the layer whose output they normalise over dimension 1
NORMS = {
    nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
    nn.Conv3d: (nn.BatchNorm3d, nn.SyncBatchNorm),
}
ALL_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norm(model, pairs=None, inplace=False):
    """``model`` in eval mode with batch norms folded into the layer whose output they normalise (thesis eq. 1.3).

    ``W'[o] = W[o] * gamma[o] / sqrt(var[o] + eps)``,
    ``b'[o] = (b[o] - mean[o]) * gamma[o] / sqrt(var[o] + eps) + beta[o]``

    computed in float64, rounded once (the thesis's text has b' otherwise; this is the form that equals the two layers).
    The batch norm becomes ``nn.Identity``. An output channel with gamma = 0 becomes dead: its weights are all zero and
    its output is the bias, which the quantizers handle.

    Without ``pairs``, those are folded of which it is known that the norm, and nothing else, reads what the layer puts
    out: by a trace of the model (torch.fx) where it has one, else neighbours in an ``nn.Sequential``. Others stay as
    they are. Folded are layers of exactly the types Linear, Conv1d, Conv2d, Conv3d; with a Linear before a BatchNorm1d
    the input must be (N, C), which only a run could tell. What ``pairs`` names is taken at its word that the norm reads
    the layer's output and nothing else does, and subclasses are taken for what they derive from.

    Args:
        pairs: [(layer name, batch norm name), ...]; or None to look for them.
        inplace: change ``model`` itself; else a copy.

    Raises:
        ArgumentError: no pair found; or one that cannot be folded: training mode, no running statistics, channels that
            differ, a layer or norm used at several places, hooks, parametrized weights, or a type not named above.
        DTypeError: a model of another type.
    """
    if not isinstance(model, nn.Module):
        raise DTypeError(f"fold_batch_norm: model is a {type(model).__name__}; accepted: torch.nn.Module.")
    model = model if inplace else copy.deepcopy(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    if pairs is None:
        found = _traced_pairs(model, modules)
        found = _neighbours(model) if found is None else found
        chosen = [(a, b) for a, b in found if type(modules[a]) in NORMS and _why_not(modules, a, b) is None]
        if not chosen:
            reasons = [f"{a}, {b}: {_why_not(modules, a, b)}" for a, b in found]
            raise ArgumentError(
                "fold_batch_norm: no batch norm of the model can be folded"
                + (f" ({'; '.join(reasons)})" if reasons else "")
                + "; accepted: a layer directly followed by one, in eval mode, or pairs=[(layer, norm), ...]."
            )
    else:
        chosen = [tuple(pair) for pair in pairs]
        names = [n for pair in chosen for n in pair]
        for name in names:
            if name not in modules:
                raise ArgumentError(f"fold_batch_norm: pairs: {name!r} is no module of the model.")
        if len(set(names)) < len(names):
            raise ArgumentError("fold_batch_norm: pairs names a module twice; accepted: once each.")
        for a, b in chosen:
            reason = _why_not(modules, a, b)
            if reason is not None:
                raise ArgumentError(f"fold_batch_norm: {a!r} and {b!r} cannot be folded: {reason}.")
    for a, b in chosen:
        _fold(modules[a], modules[b])
        parent, _, child = b.rpartition(".")
        setattr(modules[parent], child, nn.Identity())
    return model


def _why_not(modules, layer_name, norm_name):
    """Why a pair cannot be folded; None if it can."""
    layer, norm = modules[layer_name], modules[norm_name]
    norms = next((n for t, n in NORMS.items() if isinstance(layer, t)), None)
    if norms is None:
        return f"{layer_name} is a {type(layer).__name__}; accepted: Linear, Conv1d, Conv2d, Conv3d"
    if not isinstance(norm, norms):
        return f"{norm_name} is a {type(norm).__name__}; accepted after a {type(layer).__name__}: {norms[0].__name__}"
    for name, m in ((layer_name, layer), (norm_name, norm)):
        if sum(other is m for other in modules.values()) > 1:
            return f"{name} is used at several places"
        if m._forward_hooks or m._forward_pre_hooks:
            return f"{name} has forward hooks"
    if hasattr(layer, "parametrizations"):
        return f"the weight of {layer_name} is computed by a parametrization"
    if any(p is layer.weight for n, m in modules.items() if m is not layer for p in m._parameters.values()):
        return f"another module shares the weight of {layer_name}"
    if norm.training:
        return f"{norm_name} is in training mode; call model.eval() first"
    if norm.running_mean is None or norm.running_var is None:
        return f"{norm_name} has no running statistics (track_running_stats=False)"
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if norm.num_features != channels:
        return f"{layer_name} has {channels} output channels, {norm_name} {norm.num_features}"
    return None


def _fold(layer, norm):
    dtype = layer.weight.dtype
    with torch.no_grad():
        mean, scale = norm.running_mean.double(), torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -mean if layer.bias is None else layer.bias.double() - mean
        bias = bias * scale + (0 if norm.bias is None else norm.bias.double())
        weight = layer.weight.double() * scale.reshape(-1, *(1,) * (layer.weight.ndim - 1))
    layer.weight = nn.Parameter(weight.to(dtype), layer.weight.requires_grad)
    layer.bias = nn.Parameter(bias.to(dtype), layer.weight.requires_grad)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m, name):
        return isinstance(m, (*NORMS, *ALL_NORMS)) or super().is_leaf_module(m, name)


def _traced_pairs(model, modules):
    """Pairs where the norm alone reads the layer's only output; None for a model that cannot be traced."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may do anything
        return None
    calls = [node for node in graph.nodes if node.op == "call_module"]
    count = {}
    for node in calls:
        count[node.target] = count.get(node.target, 0) + 1
    pairs = []
    for node in calls:
        if not isinstance(modules[node.target], ALL_NORMS) or len(node.args) != 1 or node.kwargs:
            continue
        source = node.args[0]
        if getattr(source, "op", None) != "call_module" or not isinstance(
            modules[source.target], tuple(NORMS)
        ):
            continue
        if len(source.users) == 1 and count[source.target] == count[node.target] == 1:
            pairs.append((source.target, node.target))
    return pairs


def _neighbours(model):
    """(layer, norm) next to each other in a Sequential."""
    pairs = []
    for prefix, module in model.named_modules():
        if type(module) is nn.Sequential:
            names = [f"{prefix}.{n}".lstrip(".") for n in module._modules]
            children = list(module._modules.values())
            for i in range(len(names) - 1):
                if isinstance(children[i], tuple(NORMS)) and isinstance(children[i + 1], ALL_NORMS):
                    pairs.append((names[i], names[i + 1]))
    return pairs
