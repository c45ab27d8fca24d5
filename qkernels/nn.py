"""Modules that take the place of torch's: the same calls, compressed weights."""

import contextlib

import torch
from torch import nn

from . import _torch_conv, _torch_ops, ops
from ._arrays import as_float32, as_kind, as_numpy
from .errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from .formats import FORMATS, BinaryWeight, IntWeight, TernaryWeight
from .formats.base import check_integer
from .formats.operand import why_no_integers
from .geometry import Geometry
from .quant import InputQuant

SIGNS = BinaryWeight, TernaryWeight  # what InputQuant(bits=1) multiplies


def _checked(where, weight, bias, input_quant, activation, out_dtype, formats=(IntWeight,)):
    """The bias as a float32 tensor or None; raises for arguments that no module takes."""
    if not isinstance(weight, formats):
        accepted = ", ".join(f"qkernels.{f.__name__}" for f in formats)
        raise DTypeError(f"{where}: weight is a {type(weight).__name__}; accepted: {accepted}.")
    if not isinstance(input_quant, InputQuant | None):
        raise DTypeError(
            f"{where}: input_quant is a {type(input_quant).__name__}; accepted: InputQuant, None."
        )
    if input_quant is not None:
        _check_product(where, weight, input_quant)
    if not isinstance(activation, str | None) or activation not in ops.ACTIVATIONS:
        accepted = ", ".join(map(repr, ops.ACTIVATIONS))
        raise ArgumentError(f"{where}: activation is {activation!r}; accepted: {accepted}.")
    if bias is not None:
        if torch.is_tensor(bias) and not bias.is_cpu and bias.is_floating_point():  # a module on "meta"
            bias = bias.detach().to(torch.float32)
        else:
            bias = as_kind(as_float32(bias, where, "bias"), torch.empty(0))
        if bias.shape != (weight.shape[0],):
            raise ArgumentError(
                f"{where}: bias has shape {tuple(bias.shape)}; weight is {weight.shape}, so it must be "
                f"({weight.shape[0]},)."
            )
    if not any(out_dtype is d for d in (None, torch.float32, torch.bfloat16, torch.float16)):
        raise DTypeError(
            f"{where}: out_dtype is {out_dtype}; accepted: None, float32, bfloat16, float16 of torch."
        )
    return bias


def _check_product(where, weight, input_quant):
    """Refuse a weight and an input_quant that no integer product joins."""
    check_integer(where, weight)
    if input_quant.bits == 1 and not isinstance(weight, SIGNS):
        accepted = ", ".join(f"qkernels.{f.__name__}" for f in SIGNS)
        raise DTypeError(f"{where}: weight is a {type(weight).__name__}; accepted with bits=1: {accepted}.")
    reason = why_no_integers(weight)
    if reason is not None:
        raise UnsupportedError(f"{where}: {reason}.")


class _Compressed(nn.Module):
    """What the modules share: their buffers are the arrays of a weight, from which calls are prepared.

    ``format`` is the weight's class and ``options`` what it takes beside arrays and shape. Options that were fitted to
    one weight (a power's exponent) are buffers too, float64: another state dict brings its own.

    ``_prepare()`` makes ``_call``, the arguments of the op after x (the weight first, the InputQuant at place _QUANT),
    and ``_layout``, the weight as compiled code takes it.
    """

    _QUANT = 3
    _DEVICES = ("cpu",)  # where calls are prepared as soon as the buffers are there

    @property
    def weight(self):
        """The weight that the buffers are."""
        return (self._call or self._prepare())[0]

    @property
    def input_quant(self):
        """The module's InputQuant, its static scale read from the buffers; None for weight-only."""
        return (self._call or self._prepare())[self._QUANT]

    def _hold(self, weight, **others):
        """Make buffers of the arrays of a weight, what was fitted to it, and ``others``, arrays or None."""
        kind, options = type(weight), weight.options()
        self.format = kind
        self.options = {name: v for name, v in options.items() if name not in kind.FITTED}
        arrays = {name: as_kind(getattr(weight, name), torch.empty(0)) for name in kind.array_names()}
        fitted = {name: torch.tensor(options[name], dtype=torch.float64) for name in kind.FITTED}
        for name, a in {**arrays, **fitted, **others}.items():
            self.register_buffer(name, a)

    def _weight(self, shape):
        """The weight that the buffers are."""
        kind = self.format
        buffers = {name: getattr(self, name) for name in (*kind.FITTED, *kind.array_names())}
        if self._on("cuda"):  # weights live on the host; a device has their compute layout
            buffers = {name: None if b is None else b.cpu() for name, b in buffers.items()}
        fitted = {name: float(as_numpy(buffers[name], kind.__name__, name)) for name in kind.FITTED}
        arrays = {name: buffers[name] for name in kind.array_names()}
        return kind(**arrays, **self.options, **fitted, shape=shape)

    def _forget(self):
        self._call = self._layout = None

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name in self.__dict__.get("_buffers", ()):
            self._forget()

    def _apply(self, fn, recurse=True):
        def move(t):
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        super()._apply(move, recurse)
        self._forget()
        if any(map(self._on, self._DEVICES)):
            # to_empty, fake tensors: what is wrong shows at the next call
            with contextlib.suppress(FormatError, ArgumentError, DTypeError, UnsupportedError):
                self._prepare()
        return self

    def _on(self, device):
        return all(b is None or b.device.type == device for b in self._buffers.values())

    def _load_from_state_dict(self, state, prefix, metadata, strict, missing, unexpected, errors):
        # Into new memory: other weights may share the present arrays, and frozen ones must not change.
        for name, buffer in self._buffers.items():
            if buffer is None or prefix + name not in state:
                continue
            came = state[prefix + name]
            floats = buffer.is_floating_point() and came.is_floating_point()
            wanted = came.dtype if floats else buffer.dtype
            if came.dtype != wanted:
                errors.append(f"{prefix}{name} has dtype {came.dtype}; accepted: {wanted}.")
                return
            if came.shape == buffer.shape and not buffer.is_meta:
                self._buffers[name] = buffer.clone()
            elif name in self.format.RAGGED and came.dim() == buffer.dim():
                self._buffers[name] = came.new_empty(came.shape)
        before = len(errors)
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, unexpected, errors)
        self._forget()
        if len(errors) == before and any(map(self._on, self._DEVICES)):
            try:
                self._prepare()
            except (ArgumentError, DTypeError, FormatError, UnsupportedError) as e:
                errors.append(f"{prefix.rstrip('.') or 'nn.' + type(self).__name__}: {e}")

    def _shown(self):
        """What both modules show behind their geometry."""
        facts = {"format": self.format.__name__, **self.options}
        for name in self.format.FITTED:
            fitted = getattr(self, name)
            facts[name] = None if fitted.is_meta else f"{fitted.item():.4g}"
        if self.granularity is not None:
            static = self.granularity == "channel" or self.x_scale is not None
            facts["input"] = f"{'static' if static else 'dynamic'} per {self.granularity}"
            facts["input_bits"] = self.input_bits if self.input_bits != 8 else None
            facts["input_power"] = self.input_power
        facts["activation"] = self.activation
        return "".join(f", {name}={value}" for name, value in facts.items() if value is not None)

    def __getstate__(self):
        return {**self.__dict__, "_call": None, "_layout": None}

    def __setstate__(self, state):
        super().__setstate__(state)
        if self._on("cpu"):
            self._prepare()


class Linear(_Compressed):
    """``y = activation(x W^T + bias)``: ``nn.Linear`` whose weight is of any weight format.

    The state dict holds the portable arrays as buffers, by the names of the format's fields, and a PowerWeight's
    ``exponent``, float64 (); ``bias`` float32 (N,); ``x_scale`` and ``x_zero_point`` of a static per-tensor input.
    Absent ones are left out. Other options of the format, granularity, signedness and activation belong to the module,
    as the stride of a convolution does. Layouts that kernels compute with are never saved: one, of the core that the
    input_quant takes, is made from the buffers and kept beside them. Change buffers by
    assignment or ``load_state_dict``, not in place. They keep their dtypes under ``.half()`` and the like:
    the module computes in the dtype of x.

    There is no gradient: the module is for inference.

    Args:
        weight: a weight format (N, K); its arrays are shared, not copied.
        bias: float (N,) or None.
        input_quant: InputQuant, or None for weight-only. With bits=1: BinaryWeight or TernaryWeight.
        activation: None, "relu", "relu6", "gelu", "silu".
        out_dtype: torch dtype of y; None is x's.

    Raises:
        DTypeError, ArgumentError: what qkernels.linear refuses of these.
        UnsupportedError: an input_quant with a weight that has no integers to multiply, such as a table that
            ``weight.int_table()`` has none for.
    """

    _DEVICES = "cpu", "cuda"

    def __init__(self, weight, bias=None, input_quant=None, activation=None, out_dtype=None):
        super().__init__()
        where = "nn.Linear"
        bias = _checked(where, weight, bias, input_quant, activation, out_dtype, tuple(FORMATS.values()))
        if len(weight.shape) != 2:
            raise ArgumentError(f"{where}: weight has shape {weight.shape}; accepted: (N, K). Use nn.Conv2d.")
        self.out_features, self.in_features = weight.shape
        self.activation, self.out_dtype = activation, out_dtype
        self.granularity = self.signed = self.input_bits = x_scale = x_zero_point = None
        self.input_power = None
        if input_quant is not None:
            self.granularity, self.signed = input_quant.granularity, input_quant.signed
            self.input_bits, self.input_power = input_quant.bits, input_quant.power
            if self.granularity == "channel":
                input_quant.weight_scale(where, weight.input_scale)
            elif input_quant.scale is not None:
                x_scale = torch.tensor(input_quant.scale, dtype=torch.float32)
                if input_quant.zero_point is not None:
                    x_zero_point = torch.tensor(input_quant.zero_point, dtype=torch.int16)
        self._hold(weight, bias=bias, x_scale=x_scale, x_zero_point=x_zero_point)
        self._prepare(weight if torch.is_tensor(weight.packed) else None)

    @classmethod
    def from_float(cls, linear, recipe, stats=None):
        """A compressed copy of a ``torch.nn.Linear`` by a recipe (a name or a qkernels.compress.Recipe).

        Args:
            stats: for static recipes, max|x[..., k]| that calibration saw, float32 (K,).

        Raises:
            ArgumentError: no stats, or of another shape.
        """
        from .compress import compress_linear

        return compress_linear(linear, recipe, stats)

    def _prepare(self, weight=None):
        """Make from the buffers what calls need: ``_call``, arguments of ops.linear after x, and ``_layout``, the only
        layout that is made, as compiled code takes it. Eager calls use the same memory."""
        shape = (self.out_features, self.in_features)
        w = weight or self._weight(shape)
        q = None
        if self.granularity is not None:
            scale = None if self.x_scale is None else self.x_scale.item()
            zero_point = None if self.x_zero_point is None else int(self.x_zero_point)
            q = InputQuant(
                self.input_bits, self.granularity, scale, self.signed, zero_point, self.input_power
            )
        self._layout = _torch_ops.layout_for(w, q) if self._on("cpu") else None
        self._call = w, self.bias, self.activation, q
        return self._call

    def forward(self, x):
        if torch.compiler.is_compiling():
            return self._compiled(x)
        w, bias, activation, q = self._call or self._prepare()
        return ops.linear(x, w, bias, activation, q, None, self.out_dtype)

    def _compiled(self, x):
        if self._call is None:
            raise UnsupportedError(
                "nn.Linear: the buffers were changed; call the module once before compiling it."
            )
        if self._layout is None:  # on a device the kernel depends on x
            w, bias, activation, q = self._call
            return _torch_ops.linear(x, w, bias, activation, q, None, self.out_dtype, None)
        rest = self._call[3], False, self.activation, self.out_dtype
        return _torch_ops.linear_on_block(x, self._layout, self.bias, self.out_features, *rest)

    def extra_repr(self):
        text = (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
        return text + self._shown()


class Conv2d(_Compressed):
    """``nn.Conv2d`` whose weight is an IntWeight (O, I, kh, kw), with an activation: images (B, C, H, W) in and out.

    Fastest on ``torch.channels_last`` images, which then stay so. State dict, dtypes and gradients are as in Linear;
    ``x_scale`` may also be float32 (C,), the scales of a "channel" input with groups > 1, whose weight has them folded
    in.

    Args:
        weight: IntWeight (O, C / groups, kh, kw); its arrays are shared, not copied.
        bias: float (O,) or None.
        stride, padding, dilation, groups: as qkernels.conv2d takes them.
        input_quant: InputQuant of granularity "tensor" or "channel", or None for weight-only.
        activation: None, "relu", "relu6", "gelu", "silu".
        out_dtype: torch dtype of y; None is x's.

    Raises:
        DTypeError, ArgumentError: what qkernels.conv2d refuses of these.
    """

    _QUANT = 7

    def __init__(
        self,
        weight,
        bias=None,
        stride=1,
        padding=0,
        dilation=1,
        groups=1,
        input_quant=None,
        activation=None,
        out_dtype=None,
    ):
        super().__init__()
        where = "nn.Conv2d"
        bias = _checked(where, weight, bias, input_quant, activation, out_dtype)
        g = self.geometry = Geometry.of(where, weight.shape, stride, padding, dilation, groups)
        self.out_channels, self.in_channels, self.kernel_size = g.out_channels, g.channels, g.kernel
        self.activation, self.out_dtype = activation, out_dtype
        self.granularity = self.signed = self.input_bits = x_scale = x_zero_point = None
        self.input_power = None
        if input_quant is not None:
            ops.check_conv_quant(where, weight, input_quant, g)
            self.granularity, self.signed = input_quant.granularity, input_quant.signed
            self.input_bits = input_quant.bits
            if input_quant.scale is not None and not (self.granularity == "channel" and g.groups == 1):
                x_scale = torch.tensor(input_quant.scale, dtype=torch.float32)
            if input_quant.zero_point is not None:
                x_zero_point = torch.tensor(input_quant.zero_point, dtype=torch.int16)
        self._hold(weight, bias=bias, x_scale=x_scale, x_zero_point=x_zero_point)
        self._numbers = _torch_conv.numbers(g)
        self._prepare(weight if torch.is_tensor(weight.packed) else None)

    @classmethod
    def from_float(cls, conv, recipe, stats=None):
        """A compressed copy of a ``torch.nn.Conv2d`` by a recipe (a name or a qkernels.compress.Recipe).

        Args:
            stats: for static recipes, max|x[:, c]| that calibration saw, float32 (C,).

        Raises:
            ArgumentError: no stats, or of another shape; a padding_mode other than "zeros".
        """
        from .compress import compress_conv

        return compress_conv(conv, recipe, stats)

    def _prepare(self, weight=None):
        g = self.geometry
        shape = (g.out_channels, g.channels // g.groups, *g.kernel)
        w = weight or self._weight(shape)
        q = None
        if self.granularity is not None:
            scale = None if self.x_scale is None else self.x_scale.numpy()
            scale = float(scale) if scale is not None and scale.ndim == 0 else scale
            zero_point = None if self.x_zero_point is None else int(self.x_zero_point)
            q = InputQuant(self.input_bits, self.granularity, scale, self.signed, zero_point)
        self._layout = None if q is None else _torch_conv.layout(w, g, q)
        self._call = (
            *(w, self.bias, g.stride, g.padding, g.dilation, g.groups, self.activation, q),
            self.out_dtype,
        )
        return self._call

    def forward(self, x):
        if torch.compiler.is_compiling():
            return self._compiled(x)
        return ops.conv2d(x, *(self._call or self._prepare()))

    def _compiled(self, x):
        if self._call is None:
            raise UnsupportedError(
                "nn.Conv2d: the buffers were changed; call the module once before compiling it."
            )
        q = self._call[self._QUANT]
        if q is None:
            raise UnsupportedError(
                "nn.Conv2d: torch.compile takes no weight-only layer yet; give it an input_quant."
            )
        rest = q, self.activation, self.out_dtype
        return _torch_conv.conv2d_packed(x, *self._layout, self.bias, *self._numbers, *rest)

    def extra_repr(self):
        g = self.geometry
        text = (
            f"{g.channels}, {g.out_channels}, kernel_size={g.kernel}, stride={g.stride}, padding={g.padding}"
        )
        text += f", dilation={g.dilation}" if g.dilation != (1, 1) else ""
        text += f", groups={g.groups}" if g.groups > 1 else ""
        return text + f", bias={self.bias is not None}" + self._shown()
