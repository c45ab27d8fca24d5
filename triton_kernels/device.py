"""Layouts and requantization parameters as tensors of one device, kept with the weight that they belong to."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from qkernels.cuda import upload
from qkernels.memory import kept_on

from .layout import FloatLayout, IntLayout, Units, float_layout, int_layout

_ARRAYS = {f.name: None for kind in (IntLayout, FloatLayout) for f in fields(kind)}  # in an order that stays
for _name in ("units", "shape", "square"):
    del _ARRAYS[_name]
ALIGN = 256  # bytes, of an array in a block
BIAS = {torch.bfloat16: 128, torch.float16: 1024, torch.float32: 0}


class Arrays:
    """A layout whose arrays are tensors: parts of ``block``, uint8 on the device, which a torch operator takes whole.

    ``facts`` say what is where in it, in numbers, strings and tuples of those, and are checked, since they come with a
    graph: (units, shape, square, ((name, dtype, shape, offset) of an array ...)). Arrays that are not there are None.
    """

    def __init__(self, block, facts):
        units, self.shape, self.square, parts = facts
        self.block, self.facts, self.units = block, facts, Units(*units)
        for name in _ARRAYS:
            setattr(self, name, None)
        for name, dtype, shape, at in parts:
            dtype = getattr(torch, dtype)
            self._check(name, shape)
            end = at + math.prod(shape) * dtype.itemsize
            if at < 0 or at % ALIGN or end > block.numel():
                raise ValueError(f"packed: {name} would lie at {at} to {end} of {block.numel()} bytes.")
            setattr(self, name, block[at:end].view(dtype).view(shape))
        if any(getattr(self, name) is None for name in ("codes", "scale")):
            raise ValueError("packed: codes or scales are missing.")

    def _check(self, name, shape):
        u, (n, k) = self.units, self.shape
        by_group = u.groups, n
        width = 256 if u.planes == 1 else 16
        tables = (16,), (1, width), (n, width), (n * u.groups, width)
        expected = {"codes": (n, u.units * u.words), "w_zero": (n,)}.get(name, by_group)
        expected = (k,) if name.startswith("input_") else expected
        if name not in _ARRAYS or shape not in (tables if name == "table" else (expected,)) or u.k != k:
            raise ValueError(f"packed: {name} is {shape}, of a weight {self.shape} in {u}.")

    @classmethod
    def of(cls, layout, device):
        """Those of a layout with NumPy arrays or CPU tensors, uploaded."""
        tensors, parts, at = [], [], 0
        for name in _ARRAYS:
            value = getattr(layout, name, None)
            if value is not None:
                t = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
                tensors.append(t)
                parts.append((name, str(t.dtype).removeprefix("torch."), tuple(t.shape), at))
                at += -(-t.numel() * t.element_size() // ALIGN) * ALIGN
        u, block = layout.units, torch.zeros(max(at, ALIGN), dtype=torch.uint8)
        units = tuple(getattr(u, f.name) for f in fields(u))
        facts = units, tuple(layout.shape), bool(layout.square), tuple(parts)
        here = cls(block, facts)
        for t, (name, *_) in zip(tensors, parts, strict=True):
            getattr(here, name).copy_(t)
        return cls(upload(block.numpy(), device), facts)

    @property
    def nbytes(self):
        """Bytes on the device."""
        return self.block.numel()


def int_arrays(w, device):
    """The weight prepacked for the integer core; Arrays are given back."""
    if isinstance(w, Arrays):
        return w
    return kept_on(w, "_triton_int", device, lambda: Arrays.of(int_layout(w), device))


def float_arrays(w, device, dtype):
    """The weight prepacked for the float core, its table, if any, rounded to the dtype of the products.

    Arrays are given back.
    """

    def make():
        layout, table, zero = float_layout(w), None, None
        if layout.table is not None:
            table = torch.from_numpy(layout.table).to(dtype)
        if (
            layout.zero is not None
        ):  # what is added, to the bits that a nibble's float is made of: nibbles.nibble_floats
            zero = torch.from_numpy(layout.zero)
            zero = -(zero + (BIAS[dtype] if layout.units.planes > 1 else 0)).to(dtype)
        return Arrays.of(replace(layout, table=table, zero=zero), device)

    if isinstance(w, Arrays):
        return w
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
        tensors = (upload(np.ascontiguousarray(a), device) for a in arrays)
        return RequantArrays(*tensors, requant.zero_point, requant.rounding)

    return kept_on(requant, "_triton", device, make)
