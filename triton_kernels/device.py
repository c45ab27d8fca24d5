"""Layouts and requantization parameters as tensors of one device, kept with the weight that they belong to."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from qkernels.memory import kept_on

from .layout import float_layout, input_inverse, int_layout

BIAS = {torch.bfloat16: 128, torch.float16: 1024, torch.float32: 0}


class Arrays:
    """A layout with tensors in place of its arrays."""

    def __init__(self, layout, device):
        for f in fields(layout):
            value = getattr(layout, f.name)
            if isinstance(value, np.ndarray):
                value = torch.from_numpy(np.ascontiguousarray(value)).to(device)
            setattr(self, f.name, value)

    @property
    def nbytes(self):
        """Bytes on the device."""
        return sum(v.numel() * v.element_size() for v in vars(self).values() if isinstance(v, torch.Tensor))


def int_arrays(w, device):
    """The weight prepacked for the integer core."""
    return kept_on(w, "_triton_int", device, lambda: Arrays(int_layout(w), device))


def float_arrays(w, device, dtype):
    """The weight prepacked for the float core; its table, if any, rounded to the dtype of the products."""

    def make():
        made = Arrays(float_layout(w), device)
        made.table = None if made.table is None else made.table.to(dtype)
        if (
            made.zero is not None
        ):  # what is added, to the bits that a nibble's float is made of: nibbles.nibble_floats
            made.zero = -(made.zero + (BIAS[dtype] if made.units.planes > 1 else 0)).to(dtype)
        return made

    return kept_on(w, f"_triton_float_{dtype}", device, make)


@dataclass(frozen=True, eq=False)
class RequantArrays:
    multiplier: object
    shift: object
    scale: object
    zero_point: int
    rounding: str


def requant_arrays(requant, device):
    """The parameters of a Requant on a device."""

    def make():
        arrays = (requant.multiplier, requant.shift, requant.scale)
        tensors = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)
        return RequantArrays(*tensors, requant.zero_point, requant.rounding)

    return kept_on(requant, "_triton", device, make)


def channel_scales(quant, device):
    """The scales (K,) of an InputQuant of granularity "channel", and 1 / them, on a device."""

    def make():
        scale = quant.scale
        return tuple(torch.from_numpy(a).to(device) for a in (scale, input_inverse(scale)))

    return kept_on(quant, "_triton", device, make)
