"""What the weight formats check alike: arrays, shapes, scales, groups, codes."""

import math
import operator

import numpy as np

from .._arrays import as_float32, as_numpy, first_bad, is_torch
from ..errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from ..quant import SCALE_MAX, SCALE_MIN
from .bits import row_bytes

TINY = np.float32(2.0**-100)  # a channel whose max|w| is below this counts as all zero
LEAST_GROUP = 16


def checked_arrays(where, weight, dtypes, required):
    """The fields of ``weight`` that ``dtypes`` names, those that are None left out, as NumPy arrays by name.

    Raises:
        DTypeError: a required one that is None, another dtype, no array, or some of NumPy and some of torch.
    """
    given = {name: getattr(weight, name) for name in dtypes if getattr(weight, name) is not None}
    for name in required:
        if name not in given:
            raise DTypeError(f"{where}: {name} is None; accepted: an array or tensor of {dtypes[name]}.")
    arrays = {name: as_numpy(a, where, name) for name, a in given.items()}
    for name, a in arrays.items():
        if a.dtype != dtypes[name] or not hasattr(given[name], "dtype"):
            raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: an array of {dtypes[name]}.")
    if len({is_torch(a) for a in given.values()}) > 1:
        raise DTypeError(f"{where}: arrays of NumPy and of torch; accepted: one kind. Use {where}.pack.")
    return arrays


def check_packed(where, packed, shape, bits):
    """Refuse rows of codes that are not (N, ceil(K * bits / 8))."""
    needed = shape[0], row_bytes(math.prod(shape[1:]), bits)
    if packed.shape != needed:
        raise FormatError(
            f"{where}: packed has shape {packed.shape}; shape {shape} with {bits} bits needs {needed}."
        )


def check_granularity(where, granularity, group_size, accepted=("channel", "tensor")):
    """Refuse an unknown granularity, and groups within one scale for all."""
    if not isinstance(granularity, str) or granularity not in accepted:
        raise ArgumentError(
            f"{where}: granularity is {granularity!r}; accepted: {', '.join(map(repr, accepted))}."
        )
    if granularity == "tensor" and group_size is not None:
        raise ArgumentError(
            f"{where}: granularity is 'tensor' with group_size={group_size}; accepted: 'channel'."
        )


def signed_codes(where, codes, bits):
    """Two's complement codes of ``bits`` bits as int8 (N, K), and the shape that was given.

    Raises:
        DTypeError: codes that are not integers.
        FormatError: codes out of range, or of another number of dimensions.
    """
    half = 2 ** (bits - 1)
    hint = f"For unsigned codes subtract {half} from codes and zero points."
    q = integers(where, "codes", codes, np.int8, hint, (-half, half - 1))
    shape = checked_shape(where, q.shape, "codes have shape")
    return q.reshape(shape[0], math.prod(shape[1:])), shape


def as_matrix(W, where, input_scale=None):
    """Floats (N, K), or (O, I, kh, kw) flattened, times input_scale; and the shape that was given.

    Raises:
        ArgumentError: another number of dimensions, or a value that is not finite.
        FormatError: an input_scale of another length.
    """
    w = as_float32(W, where, "W")
    if w.ndim not in (2, 4):
        raise ArgumentError(
            f"{where}: W has shape {w.shape}; accepted: (N, K), out features by in features, or (O, I, kh, kw)."
        )
    bad = first_bad(~np.isfinite(w))
    if bad is not None:
        at = ", ".join(map(str, bad))
        raise ArgumentError(f"{where}: W[{at}] is {w[bad]}; accepted: finite float32 numbers.")
    if input_scale is not None:
        s = as_float32(input_scale, where, "input_scale")
        check_input_scale(where, s, w.shape[1])
        with np.errstate(over="ignore"):
            w = w * s.reshape(1, -1, *(1,) * (w.ndim - 2))
    return w.reshape(w.shape[0], math.prod(w.shape[1:])), w.shape


def groups_of(w, size):
    """(N, K) as (N, ceil(K / size), size), zeros after the end of a short last group."""
    n, k = w.shape
    count = max(1, -(-k // size))
    if k == count * size:
        return w.reshape(n, count, size)
    out = np.zeros((n, count * size), w.dtype)
    out[:, :k] = w
    return out.reshape(n, count, size)


def check_input_scale(where, s, k):
    """Refuse an input scale that is not (K,), or whose reciprocal is not a normal float32."""
    if s.shape != (k,):
        raise FormatError(
            f"{where}: input_scale has shape {s.shape}; the weight has K = {k}, so it must be ({k},)."
        )
    bad = first_bad(~((s >= SCALE_MIN) & (s <= SCALE_MAX)))
    if bad is not None:
        raise FormatError(
            f"{where}: input_scale[{bad[0]}] is {s[bad]}; accepted: between 2**-126 and 2**126. Give unused "
            "inputs the scale 1."
        )


def check_scale(where, name, s, n, k, group_size=None):
    """Refuse scales that are not one per group, channel or tensor, or not finite and >= 0."""
    if group_size is not None and group_size < k:
        count = -(-k // group_size)
        if s.shape != (n, count):
            raise FormatError(
                f"{where}: {name} has shape {s.shape}; codes are ({n}, {k}) with group_size={group_size}, so {name} "
                f"must be ({n}, {count}). If K is not a multiple of group_size the last group is short: use ceil(K / "
                "group_size)."
            )
    elif s.shape not in ((n, 1), (1, 1)):
        raise FormatError(
            f"{where}: {name} has shape {s.shape}; the codes are ({n}, {k}), so {name} must be ({n}, 1) per "
            "channel or (1, 1) per tensor."
        )
    bad = first_bad(~(np.isfinite(s) & (s >= 0)))
    if bad is not None:
        raise FormatError(
            f"{where}: {name}[{bad[0]}, {bad[1]}] is {s[bad]}; accepted: finite and not negative."
        )


def checked_shape(where, shape, what="shape is"):
    """A weight's shape as a tuple of counts: (N, K) or (O, I, kh, kw)."""
    try:
        sizes = tuple(operator.index(d) for d in shape)
        if len(sizes) in (2, 4) and min(sizes) >= 0:
            return sizes
    except (TypeError, ValueError):
        pass
    raise FormatError(f"{where}: {what} {shape!r}; accepted: (N, K), or (O, I, kh, kw) of a convolution.")


def checked_bits(where, bits, least=2):
    """Bits of a code as an int, ``least`` to 8."""
    if isinstance(bits, bool) or not isinstance(bits, int | np.integer) or not least <= bits <= 8:
        hint = " (1: BinaryWeight)" if least == 2 else ""
        raise UnsupportedError(f"{where}: bits is {bits!r}; accepted: {least} to 8{hint}.")
    return int(bits)


def checked_group(where, size):
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < LEAST_GROUP:
        raise UnsupportedError(
            f"{where}: group_size is {size!r}; accepted: None or an integer from {LEAST_GROUP} on."
        )
    return int(size)


def integers(where, name, x, dtype, hint, span=None):
    a = as_numpy(x, where, name)
    if a.dtype.kind not in "iu":
        raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: integers. Round before packing.")
    lo, hi = span or (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if a.size and (a.dtype != dtype or span) and (a.min() < lo or a.max() > hi):
        raise FormatError(
            f"{where}: {name} spans {a.min()}..{a.max()}; accepted: {lo}..{hi}. {hint}".rstrip()
        )
    return a.astype(dtype, copy=False)


def as_column(a):
    """A number as (1, 1), a vector (N,) as (N, 1)."""
    return a.reshape(-1, 1) if a.ndim < 2 else a
