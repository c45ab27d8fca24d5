"""``conv2d`` as a torch operator, for torch.compile and export; as _torch_ops does it for ``linear``."""

import torch
from torch.utils._python_dispatch import _disable_current_modes

from . import _native, cpu_conv
from ._torch_ops import _FLOAT_DTYPES, _library, check_block, check_floats, float_vector
from .cpu import ACTIVATIONS, input_mode
from .errors import ArgumentError, UnsupportedError
from .formats import IntWeight
from .formats.base import check_integer
from .geometry import Geometry
from .registry import ISAS, current_isa, num_threads

_library.define(
    "conv2d_int(Tensor x, Tensor packed, Tensor? input_scale, Tensor? bias, int[] kernel, int[] stride, int[] padding, "
    "int[] dilation, int mode, int bits, bool signed, float scale, int zero_point, int activation, "
    "ScalarType out_dtype) -> Tensor"
)


def _sizes(x, kernel, stride, padding, dilation):
    """(O, H', W') for a kernel (O, kh, kw), with arithmetic that symbolic sizes take too."""
    height = (x.shape[2] + padding[0] + padding[1] - dilation[0] * (kernel[1] - 1) - 1) // stride[0] + 1
    width = (x.shape[3] + padding[2] + padding[3] - dilation[1] * (kernel[2] - 1) - 1) // stride[1] + 1
    return kernel[0], height, width


def _empty(x, kernel, stride, padding, dilation, out_dtype):
    sizes = _sizes(x, kernel, stride, padding, dilation)
    last = x.stride(1) == 1 and x.shape[1] > 1
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty((x.shape[0], *sizes), dtype=out_dtype, device=x.device, memory_format=order)


def _conv2d_int(
    x,
    packed,
    input_scale,
    bias,
    kernel,
    stride,
    padding,
    dilation,
    mode,
    bits,
    signed,
    scale,
    zero_point,
    activation,
    out_dtype,
):
    op = "qkernels::conv2d_int"
    check_block(op, packed)
    block = _native.PackedConv(packed.data_ptr(), packed.numel(), packed)
    n, channels, kh, kw, _ = block.shape
    if x.dim() != 4 or x.shape[1] != channels or list(kernel) != [n, kh, kw]:
        raise ValueError(
            f"{op}: x is {tuple(x.shape)} and kernel {list(kernel)}; the weight has {channels} channels and "
            f"{[n, kh, kw]}."
        )
    check_floats(op, x, out_dtype)
    if (len(stride), len(padding), len(dilation)) != (2, 4, 2):
        raise ValueError(f"{op}: stride, padding and dilation take 2, 4 and 2 numbers.")
    bias = float_vector(op, "bias", bias, n, x.device)
    input_scale = float_vector(op, "input_scale", input_scale, channels, x.device)
    out = _empty(x, kernel, stride, padding, dilation, out_dtype)
    if min(out.shape) < 0:
        raise ValueError(f"{op}: the kernel does not fit into the padded image of {tuple(x.shape)}.")
    if out.numel() == 0:
        return out
    x = x.detach().resolve_neg()
    if 1 not in (x.stride(1), x.stride(3)) or x.numel() == 0:
        x = x.contiguous()
    last = out.stride(1) == 1 and out.is_contiguous(memory_format=torch.channels_last)
    plan = _native.ConvPlan(
        block,
        ISAS[current_isa()][0],
        (x.shape[0], *x.shape[2:], *out.shape[2:], *stride, *dilation, padding[0], padding[2]),
        _FLOAT_DTYPES[x.dtype],
        x.stride(),
        mode,
        bits,
        signed,
        scale,
        zero_point,
        _FLOAT_DTYPES[out_dtype],
        not last,
        activation,
        None,
    )
    addresses = (0 if v is None else v.data_ptr() for v in (input_scale, bias))
    row = plan.run(x.data_ptr(), *addresses, out.data_ptr(), num_threads())
    if row >= 0:
        cpu_conv.refuse_row("conv2d", row, x.shape[2])
    return out


@torch.library.register_fake("qkernels::conv2d_int", lib=_library)
def _(
    x,
    packed,
    input_scale,
    bias,
    kernel,
    stride,
    padding,
    dilation,
    mode,
    bits,
    signed,
    scale,
    zero_point,
    activation,
    out_dtype,
):
    return _empty(x, kernel, stride, padding, dilation, out_dtype)


_library.impl("conv2d_int", _conv2d_int, "CPU")
# For inference: no gradient flows through the result, as in eager calls.
_library.impl("conv2d_int", torch.library.fallthrough_kernel, "Autograd")


def layout(w, geometry, input_quant):
    """(packed, input_scale): the prepacked block as a tensor on the memory of eager calls, and float32 (C,) or None."""
    with _disable_current_modes():  # real memory, also where fake tensors are being traced
        key = cpu_conv.kind_of(w, geometry), geometry.groups
        cpu_conv.packed_conv(w, geometry)
        kept = w.__dict__.setdefault("_conv_tensors", {})
        if key not in kept:
            kept[key] = torch.from_numpy(w.__dict__["_conv"][key][1])
        scale = cpu_conv.channel_scale(w, input_quant, geometry)
        return kept[key], None if scale is None else torch.from_numpy(scale)


def _ready_conv(self, stride, padding, dilation, groups):
    g = Geometry.of("conv2d", self.shape, stride, padding, dilation, groups)
    self.__dict__["_conv_traced"] = (*layout(self, g, None), *numbers(g), g.channels)
    return True


# Run by Dynamo while it traces, not looked into: see _torch_ops.
_ready_conv._dynamo_marked_constant = True
IntWeight._ready_conv = _ready_conv


def numbers(g):
    """A geometry as the operator takes it: (O, kh, kw), stride, padding, dilation."""
    return (g.out_channels, *g.kernel), g.stride, g.padding, g.dilation


def conv2d_packed(
    x, packed, input_scale, bias, kernel, stride, padding, dilation, input_quant, activation, out_dtype
):
    """``conv2d`` on a prepacked block; what a module calls while it is compiled."""
    mode = input_mode(input_quant)
    return torch.ops.qkernels.conv2d_int(
        x,
        packed,
        input_scale,
        bias,
        kernel,
        stride,
        padding,
        dilation,
        mode,
        input_quant.bits,
        input_quant.signed,
        input_quant.scale if mode == 2 else 1.0,
        input_quant.zero_point or 0,
        ACTIVATIONS[activation],
        out_dtype or x.dtype,
    )


def conv2d(
    x,
    w,
    bias,
    stride,
    padding,
    dilation,
    groups,
    activation,
    input_quant,
    out_dtype,
    backend,
    padding_mode,
):
    """``qkernels.conv2d`` under torch.compile. The operator checks the rest when it runs."""
    if input_quant is None or backend not in (None, "cpu") or padding_mode != "zeros":
        raise UnsupportedError(
            "conv2d: under torch.compile an input_quant is needed, backend must be None and padding_mode 'zeros'."
        )
    if input_quant.bits == 1:
        raise UnsupportedError("conv2d: under torch.compile InputQuant(bits=1) does not work yet.")
    if input_quant.power is not None:
        raise UnsupportedError(
            "conv2d: input_quant has power=0.5; accepted: power=None. Power codes are for linear."
        )
    if input_quant.granularity == "token":
        raise ArgumentError("conv2d: input_quant has granularity 'token'; accepted: 'tensor', 'channel'.")
    if input_quant.granularity == "channel" and input_quant.scale is not None:
        raise UnsupportedError("conv2d: under torch.compile the scale of granularity 'channel' must be None.")
    if activation not in ACTIVATIONS:
        raise ArgumentError(
            f"conv2d: activation is {activation!r}; accepted: None, 'relu', 'relu6', 'gelu', 'silu'."
        )
    check_integer("conv2d", w)
    w._ready_conv(stride, padding, dilation, groups)
    packed, scale, kernel, stride, padding, dilation, channels = w._conv_traced
    if x.dim() != 4 or x.shape[1] != channels:
        raise ArgumentError(
            f"conv2d: x has shape {tuple(x.shape)}; w has shape {w.shape}, so x must be (B, {channels}, H, W)."
        )
    return conv2d_packed(
        x, packed, scale, bias, kernel, stride, padding, dilation, input_quant, activation, out_dtype
    )
