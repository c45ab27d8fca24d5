"""A whole float network turned into one that computes in integers only, from the image to the logits.

``IntegerNetwork.from_float`` traces a network of convolutions, ReLU, additions, pooling and linear layers with
torch.fx, watches the range of every tensor on calibration inputs, and writes down one step for each layer with
what is fused into it: batch norm, padding, ReLU. A tensor is uint8 codes with one static scale and zero point;
a step reads codes and writes codes (thesis 1.4.2).
"""

import copy
import fnmatch
import operator
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from . import ops, registry
from .errors import ArgumentError, DTypeError, UnsupportedError
from .folding import fold_batch_norm
from .formats import IntWeight
from .integer_program import Program
from .integer_quant import AddRequant
from .quant import InputQuant, Requant

ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", F.relu: "relu", F.relu6: "relu6", torch.relu: "relu"}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)  # in eval mode
ADDITIONS = (operator.add, operator.iadd, torch.add)
ACCEPTED = (
    "Conv2d, Linear, BatchNorm2d after a Conv2d, ReLU, ReLU6, ZeroPad2d before a Conv2d, addition of two tensors, "
    "AdaptiveAvgPool2d(1), Flatten, Identity, Dropout"
)
MOST_PROGRAMS = 16  # a network sees a few shapes; each keeps the memory of all layers
BIAS_LIMIT = 2.0**28  # |bias| in units of the accumulator stays below: a weight scale is never smaller


@dataclass(frozen=True)
class Codes:
    """What the codes of a tensor mean: ``real = scale * (code - zero_point)``, uint8."""

    scale: float
    zero_point: int

    @classmethod
    def of(cls, lo, hi):
        """The codes that span lo..hi and 0."""
        lo, hi = min(float(lo), 0.0), max(float(hi), 0.0)
        scale = float(np.float32((hi - lo) / 255)) if hi > lo else 1.0
        return cls(scale, round(-lo / scale))


@dataclass
class Step:
    """One operation of an IntegerNetwork: ``slots[target] = run(*slots[sources])``."""

    name: str  # of the layer in the float network
    op: str  # of qkernels.ops, or "flatten"
    sources: tuple
    target: int
    options: dict  # what the operation takes beside its inputs
    codes: object = None  # Codes of what it writes; None for the int32 sums of the last step
    done: tuple = ()  # slots that no later step reads

    def run(self, *xs):
        if self.op == "flatten":
            return torch.flatten(*xs, 1)
        request = self.request(*xs)
        return registry.pick(request).run(request)

    def request(self, *xs):
        """The checked call, from which the registry picks a kernel."""
        whole = (xs[0].shape[2:],) if self.op == "avg_pool2d_int" else ()  # the window is all of the image
        return getattr(ops, f"{self.op}_request")(*xs, *whole, **self.options)

    @property
    def weight(self):
        """IntWeight, or None."""
        return self.options.get("w")

    @property
    def bias(self):
        """int32 tensor in units of the accumulator, or None."""
        return self.options.get("bias")

    @property
    def nbytes(self):
        """Bytes of weight and bias."""
        return sum(0 if a is None else a.nbytes for a in (self.weight, self.bias))


class IntegerNetwork(nn.Module):
    """``logits = network(x)``: x float32, which is quantized once, or its uint8 codes; logits float32.

    The logits are the int32 sums of the last layer times their scale; every step before is in integers.

    Attributes:
        steps: list of Step, in order.
        input_codes: Codes of the input.
    """

    def __init__(self, steps, slots, input_codes, scale, bias):
        super().__init__()
        self.steps, self.slots, self.input_codes = steps, slots, input_codes
        self.scale, self.bias = scale, bias
        self._input = InputQuant(8, "tensor", input_codes.scale, False, input_codes.zero_point)
        self._programs = threading.local()

    @classmethod
    def from_float(cls, model, calibration, input_codes=None, weight_bits=8):
        """Build the network from a float one.

        Weights have a scale per output channel (and with fewer than 8 bits a zero point), activations one per tensor,
        all from min to max.

        Args:
            model: an nn.Module that torch.fx can trace, with one input and one output; it is not changed.
            calibration: an iterable of inputs, float32 tensors.
            input_codes: Codes of the input if they are known, such as those of 8-bit pixels, else calibrated.
            weight_bits: 2 to 8, or {pattern: bits} with shell-style patterns on module names; the first match counts,
                and a layer without one has 8.

        Raises:
            UnsupportedError: a layer that has no integer form here; the message names it.
            ArgumentError: no calibration inputs, or values that are not finite.
        """
        if not isinstance(model, nn.Module):
            raise DTypeError(f"IntegerNetwork: model is a {type(model).__name__}; accepted: torch.nn.Module.")
        model = copy.deepcopy(model).eval()
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            model = fold_batch_norm(model, inplace=True)
        graph = fx.symbolic_trace(model)
        graph.graph.eliminate_dead_code()
        plan = _Plan(graph)
        return _Builder(plan, _watch(graph, plan, calibration), input_codes, weight_bits).build()

    def forward(self, x):
        program = self._program(x)
        return self.logits(self.step_by_step(x)[-1]) if program is None else program(x)

    def step_by_step(self, x, keep=False):
        """What each step wrote, in the order of slots; None where no later step reads it, unless ``keep``."""
        slots = [None] * self.slots
        slots[0] = x if x.dtype == torch.uint8 else self.quantize(x)
        for step in self.steps:
            slots[step.target] = step.run(*[slots[s] for s in step.sources])
            if not keep:
                for s in step.done:
                    slots[s] = None
        return slots

    def logits(self, acc):
        """The int32 sums of the last step as float32."""
        return (acc + self.bias) * self.scale

    def _program(self, x):
        """The Program for inputs like x, made at the first call and kept for this thread; None if x has another
        memory order than NCHW or channels last."""
        if not torch.is_tensor(x) or x.device.type != "cpu" or not x.numel():
            return None
        kept = self._programs.__dict__
        key = (x.shape, x.stride(), x.dtype, registry.num_threads(), registry.current_isa())
        if key not in kept:
            if len(kept) >= MOST_PROGRAMS:
                kept.clear()
            dense = (x.is_contiguous() or _channels_last(x)) and not x.is_neg()
            slots = self.step_by_step(x, keep=True) if dense else None
            kept[key] = Program(self, x, slots) if dense else None
        return kept[key]

    def __getstate__(self):
        return {**self.__dict__, "_programs": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._programs = threading.local()

    def quantize(self, x):
        """Codes of a float input, in its memory order."""
        if _channels_last(x):
            return ops.quantize_activations(x.permute(0, 2, 3, 1), self._input)[0].permute(0, 3, 1, 2)
        return ops.quantize_activations(x, self._input)[0]

    def clock(self, x):
        """Seconds of each step of one call, {name: seconds}, and of "quantize"; {} where calls keep no Program."""
        program = self._program(x)
        return {} if program is None else program.clock(x)

    @property
    def nbytes(self):
        """Bytes of all weights, their scales and biases."""
        return sum(step.nbytes for step in self.steps) + self.bias.nbytes

    def extra_repr(self):
        return f"{len(self.steps)} steps, {self.nbytes} bytes"


def _channels_last(x):
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


@dataclass
class _Layer:
    """Nodes of the traced graph that become one step: ``first`` computes, ``last`` is what others read."""

    kind: str  # "conv", "linear", "add", "pool", "flatten"
    first: fx.Node
    last: fx.Node
    sources: list
    module: object = None
    activation: object = None
    pad: tuple = (0, 0, 0, 0)  # left, right, top, bottom


class _Plan:
    """Which nodes of a traced graph become which step."""

    def __init__(self, graph):
        self.modules = dict(graph.named_modules())
        self.layers, self.alias, self.pads, fused = [], {}, {}, set()
        for node in graph.graph.nodes:
            if node in fused:
                continue
            if node.op == "placeholder":
                if hasattr(self, "input"):
                    raise UnsupportedError("IntegerNetwork: the model has two inputs; accepted: one.")
                self.input = node
            elif node.op == "output":
                self.output = self.source(node.args[0], node)
            else:
                layer = self._layer(node)
                if layer is not None:
                    self.layers.append(layer)
                    fused.add(layer.last)
        unfinished = [n for n in self.pads if any(self._kind(u)[0] != "conv" for u in n.users)]
        if unfinished:
            self._refuse(unfinished[0])

    def source(self, node, user):
        """The node whose codes ``node`` stands for."""
        if not isinstance(node, fx.Node):
            self._refuse(user)
        return self.alias.get(node, node)

    def _refuse(self, node):
        what = type(self.modules[node.target]).__name__ if node.op == "call_module" else node.target
        name = node.target if node.op == "call_module" else node.name
        raise UnsupportedError(f"IntegerNetwork: {name} is {what}; accepted: {ACCEPTED}.")

    def _kind(self, node):
        """(kind, module or None) of a node."""
        if node.op == "call_module":
            m = self.modules[node.target]
            if isinstance(m, nn.Conv2d) and m.padding_mode == "zeros":
                return "conv", m
            if isinstance(m, nn.AdaptiveAvgPool2d) and m.output_size in (1, (1, 1)):
                return "pool", m
            if isinstance(m, nn.Flatten) and (m.start_dim, m.end_dim) == (1, -1):
                return "flatten", m
            kinds = {nn.Linear: "linear", nn.ZeroPad2d: "pad"} | dict.fromkeys(NOTHING, "nothing")
            kinds |= {k: "activation" for k in ACTIVATIONS}
            return kinds.get(type(m)), m
        if node.op == "call_function":
            if node.target in ADDITIONS and len(node.args) == 2 and not node.kwargs:
                return "add", None
            return "activation" if node.target in ACTIVATIONS else None, None
        return None, None

    def _layer(self, node):
        kind, module = self._kind(node)
        if kind is None:
            self._refuse(node)
        args = node.args if kind == "add" else node.args[:1]
        sources = [self.source(a, node) for a in args]
        if kind == "nothing":
            self.alias[node] = sources[0]
            return None
        if kind == "pad":
            self.alias[node], self.pads[node] = sources[0], tuple(module.padding)
            return None
        if kind == "activation":  # one that follows a layer is fused into it below
            self._refuse(node)
        layer = _Layer(kind, node, node, sources, module)
        if kind == "conv":
            layer.pad = self._padding(node, module)
        if kind in ("conv", "linear", "add"):
            self._fuse_activation(layer)
        self.alias[node] = layer.last
        return layer

    def _padding(self, node, conv):
        if isinstance(conv.padding, str):
            self._refuse(node)
        top, left = conv.padding
        before = self.pads.get(node.args[0], (0, 0, 0, 0))
        return before[0] + left, before[1] + left, before[2] + top, before[3] + top

    def _fuse_activation(self, layer):
        """Take a ReLU that alone reads the layer, past modules that do nothing, into it."""
        node = layer.last
        while len(node.users) == 1:
            (user,) = node.users
            kind, module = self._kind(user)
            if kind == "activation":
                layer.activation = ACTIVATIONS[user.target if module is None else type(module)]
                layer.last = user
            if kind != "nothing":
                return
            node = user


class _Watch(fx.Interpreter):
    """Runs a traced graph and keeps of some of its nodes the range, {node: (lowest, highest)}, and the mean of each
    channel, {node: (sum over inputs of float64 (C,), how many)}."""

    def __init__(self, graph, nodes):
        super().__init__(graph)
        self.nodes, self.ranges, self.sums = set(nodes), {}, {}

    def run_node(self, node):
        y = super().run_node(node)
        if node in self.nodes and y.numel():
            lo, hi = (float(v) for v in torch.aminmax(y))
            if not (np.isfinite(lo) and np.isfinite(hi)):
                raise ArgumentError(f"IntegerNetwork: calibration: {node.name} is not finite.")
            before = self.ranges.get(node, (lo, hi))
            self.ranges[node] = min(lo, before[0]), max(hi, before[1])
            total, count = self.sums.get(node, (0, 0))
            mean = y.mean([d for d in range(y.dim()) if d != 1]).double().numpy()
            self.sums[node] = total + mean * len(y), count + len(y)
        return y

    def mean(self, node):
        total, count = self.sums[node]
        return total / count


def _watch(graph, plan, calibration):
    watch = _Watch(graph, [plan.input, *(layer.last for layer in plan.layers)])
    with torch.no_grad():
        for x in calibration:
            watch.run(x)
    if not watch.ranges:
        raise ArgumentError(
            "IntegerNetwork: calibration has no inputs; accepted: an iterable of model inputs."
        )
    return watch


class _Builder:
    """Writes the steps of a plan."""

    def __init__(self, plan, watch, input_codes, weight_bits):
        self.plan, self.watch = plan, watch
        self.bits = weight_bits if isinstance(weight_bits, Mapping) else {"*": weight_bits}
        self.codes = {plan.input: input_codes or Codes.of(*watch.ranges[plan.input])}
        self.slots = {plan.input: 0}

    def build(self):
        layers, steps = self.plan.layers, []
        if not layers or layers[-1].kind != "linear" or layers[-1].last is not self.plan.output:
            raise UnsupportedError(
                "IntegerNetwork: the last layer must be a Linear whose output is the model's."
            )
        for layer in layers:
            self.slots[layer.last] = len(self.slots)
            step = getattr(self, f"_{layer.kind}")(layer)
            self.codes[layer.last] = step.codes
            steps.append(step)
        last_use = {s: n for n, step in enumerate(steps) for s in step.sources}
        for slot, n in last_use.items():
            steps[n].done += (slot,)
        return IntegerNetwork(steps, len(self.slots), self.codes[self.plan.input], self.scale, self.bias)

    def _step(self, layer, op, codes, **options):
        sources = tuple(self.slots[s] for s in layer.sources)
        name = layer.first.target if layer.first.op == "call_module" else layer.first.name
        return Step(name, op, sources, self.slots[layer.last], options, codes)

    def _multiply(self, layer, op, **options):
        """A step that multiplies by a weight and requantizes."""
        x, y = self.codes[layer.sources[0]], self._range(layer)
        weight, bias, scale = self._integers(layer)
        options |= {
            "w": weight,
            "requant": Requant.from_scale(scale / y.scale, y.zero_point, output_scale=y.scale),
            "bias": bias,
            "x_zero_point": x.zero_point,
            "activation": layer.activation,
            "out_dtype": torch.uint8,
        }
        return self._step(layer, op, y, **options)

    def _conv(self, layer):
        conv, (left, right, top, bottom) = layer.module, layer.pad
        return self._multiply(
            layer,
            "conv2d_requant",
            stride=conv.stride,
            padding=(top, bottom, left, right),
            dilation=conv.dilation,
            groups=conv.groups,
        )

    def _linear(self, layer):
        if layer.last is not self.plan.output:
            return self._multiply(layer, "linear_requant")
        weight, self.bias, scale = self._integers(layer)
        self.scale = torch.from_numpy(scale.astype(np.float32))
        return self._step(
            layer, "matmul_int", None, w=weight, x_zero_point=self.codes[layer.sources[0]].zero_point
        )

    def _add(self, layer):
        a, b = (self.codes[s] for s in layer.sources)
        y = self._range(layer)
        requant = AddRequant.from_scales(a.scale, a.zero_point, b.scale, b.zero_point, y.scale, y.zero_point)
        return self._step(layer, "add_requant", y, requant=requant, activation=layer.activation)

    def _pool(self, layer):
        x, y = self.codes[layer.sources[0]], self._range(layer)
        scales = {"scale": x.scale, "output_scale": y.scale, "output_zero_point": y.zero_point}
        return self._step(layer, "avg_pool2d_int", y, zero_point=x.zero_point, **scales)

    def _flatten(self, layer):
        return self._step(layer, "flatten", self.codes[layer.sources[0]])

    def _range(self, layer):
        return Codes.of(*self.watch.ranges[layer.last])

    def _integers(self, layer):
        """A float layer as (IntWeight, int32 bias, float64 scale of the accumulator per output channel).

        A channel whose weights are all zero, or so small that its bias would leave int32 in their units, takes a
        scale that its bias fits: folding batch norms leaves such channels behind.

        The bias also takes what rounding the weights moves each output by, on average: the sum over its weights of
        their rounding errors times the mean of the input channel they multiply (Nagel et al. 2019, section 4.2).
        """
        module, name = layer.module, layer.first.target
        bits = next((b for pattern, b in self.bits.items() if fnmatch.fnmatchcase(name, pattern)), 8)
        x_scale, x_mean = self.codes[layer.sources[0]].scale, self.watch.mean(layer.sources[0])
        w = module.weight.detach().double().numpy()
        n, per_group = w.shape[:2]
        bias = np.zeros(n) if module.bias is None else module.bias.detach().double().numpy()
        rows = w.reshape(n, -1)
        codes, zero_point, scale = _rounded(rows, bits, np.abs(bias) / (x_scale * BIAS_LIMIT))
        lost = rows - (codes - zero_point[:, None]) * scale[:, None].astype(np.float64)
        lost = lost.reshape(n, per_group, -1).sum(2)
        bias = bias + (lost * np.repeat(x_mean.reshape(-1, per_group), n * per_group // len(x_mean), 0)).sum(
            1
        )
        codes = torch.from_numpy(codes.astype(np.int8).reshape(w.shape))
        zero_point = torch.from_numpy(zero_point.astype(np.int16)) if zero_point.any() else None
        weight = IntWeight.pack(codes, torch.from_numpy(scale), zero_point, bits)
        scale = scale.astype(np.float64) * x_scale
        return weight, torch.from_numpy(np.rint(bias / scale).astype(np.int32)), scale

    def _range(self, layer):
        return Codes.of(*self.watch.ranges[layer.last])


def _rounded(rows, bits, least_scale):
    """(codes, zero points (N,), float32 scales (N,)) of weights (N, K): symmetric with 8 bits, else from min to max."""
    hi, lo = rows.max(1, initial=0), rows.min(1, initial=0)
    most = 2 ** (bits - 1) - 1
    scale = np.maximum(hi, -lo) / most if bits == 8 else (hi - lo) / (2 * most + 1)
    scale = np.maximum(scale, least_scale)
    scale = np.where(scale < 2.0**-100, 1, scale).astype(np.float32)
    zero_point = np.zeros(len(rows)) if bits == 8 else np.rint(-most - 1 - lo / scale)
    least = -most if bits == 8 else -most - 1
    return np.clip(np.rint(rows / scale[:, None]) + zero_point[:, None], least, most), zero_point, scale
