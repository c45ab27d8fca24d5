"""Where a convolution reads: kernel, stride, padding, dilation, groups."""

import operator
from dataclasses import dataclass

from .errors import ArgumentError, DTypeError


@dataclass(frozen=True)
class Geometry:
    """Checked numbers of a two-dimensional convolution, each pair (height, width).

    padding   (top, bottom, left, right); may be larger than the image.
    channels  of the input, all groups together.
    """

    out_channels: int
    channels: int
    kernel: tuple
    stride: tuple
    padding: tuple
    dilation: tuple
    groups: int

    @classmethod
    def of(cls, where, w_shape, stride=1, padding=0, dilation=1, groups=1):
        """From arguments as torch has them, for a weight of shape (O, I, kh, kw).

        padding is a number, a pair (height, width), (top, bottom, left, right), "valid" or "same" (stride 1 only; an
        odd total puts the larger half below and to the right, as torch does).

        Raises:
            ArgumentError, DTypeError: anything else.
        """
        if len(w_shape) != 4:
            raise ArgumentError(
                f"{where}: w has shape {tuple(w_shape)}; accepted: (O, I, kh, kw), as nn.Conv2d.weight."
            )
        out_channels, per_group, kh, kw = map(int, w_shape)
        stride, dilation = _pair(where, "stride", stride, 1), _pair(where, "dilation", dilation, 1)
        groups = _count(where, "groups", groups, 1)
        if out_channels % groups:
            raise ArgumentError(
                f"{where}: groups is {groups}; w has {out_channels} output channels, which it must divide."
            )
        if kh < 1 or kw < 1:
            raise ArgumentError(f"{where}: w has a kernel of {kh}x{kw}; accepted: at least 1x1.")
        padding = _padding(where, padding, (kh, kw), stride, dilation)
        return cls(out_channels, per_group * groups, (kh, kw), stride, padding, dilation, groups)

    @property
    def depthwise(self):
        """Every input channel is convolved alone (with one or several kernels)."""
        return self.groups == self.channels and self.groups > 1

    def out_size(self, where, height, width):
        """(height, width) of the output.

        Raises:
            ArgumentError: the kernel does not fit into the padded image.
        """
        top, bottom, left, right = self.padding
        sizes = []
        for size, extra, k, s, d in zip(
            (height, width), (top + bottom, left + right), self.kernel, self.stride, self.dilation
        ):
            reach = d * (k - 1) + 1
            if size + extra < reach:
                raise ArgumentError(
                    f"{where}: x is {height}x{width} with padding {self.padding}; the kernel {self.kernel} with "
                    f"dilation {self.dilation} needs at least {reach}. Pad more."
                )
            sizes.append((size + extra - reach) // s + 1)
        return tuple(sizes)


def _count(where, name, value, least):
    try:
        number = operator.index(None if isinstance(value, bool) else value)
    except TypeError:
        raise DTypeError(f"{where}: {name} is {value!r}; accepted: integers.") from None
    if not least <= number < 2**31:
        raise ArgumentError(f"{where}: {name} is {number}; accepted: {least} or more.")
    return number


def _pair(where, name, value, least):
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ArgumentError(f"{where}: {name} is {value!r}; accepted: a number, or (height, width).")
        return tuple(_count(where, name, v, least) for v in value)
    return (_count(where, name, value, least),) * 2


def _padding(where, padding, kernel, stride, dilation):
    if isinstance(padding, str):
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding != "same":
            raise ArgumentError(f"{where}: padding is {padding!r}; accepted: numbers, 'valid', 'same'.")
        if stride != (1, 1):
            raise ArgumentError(f"{where}: padding 'same' with stride {stride}; accepted: stride 1.")
        total = [d * (k - 1) for k, d in zip(kernel, dilation)]
        return (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
    if isinstance(padding, tuple | list) and len(padding) == 4:
        return tuple(_count(where, "padding", v, 0) for v in padding)
    if isinstance(padding, tuple | list) and len(padding) != 2:
        raise ArgumentError(
            f"{where}: padding is {padding!r}; accepted: a number, (height, width), (top, bottom, left, right), "
            "'valid', 'same'."
        )
    height, width = _pair(where, "padding", padding, 0)
    return (height, height, width, width)
