"""NumPy arrays and CPU torch tensors behind one small interface, without importing torch.

A caller can only hold a tensor if torch is imported already, so ``sys.modules`` is enough to recognise one.
"""

import sys

import numpy as np

from .errors import ArgumentError, DTypeError


def is_torch(x):
    """True for a ``torch.Tensor``; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, getattr(torch, "Tensor", ()))


def is_half(a):
    """Whether float16 holds every number of an array exactly; False for None."""
    if a is None:
        return False
    with np.errstate(over="ignore"):
        return bool((a.astype(np.float16).astype(np.float32) == a).all())


def reciprocal(scale):
    """float32 1 / scales, rounded as the reference does; None for None."""
    return None if scale is None else np.float32(1) / np.asarray(scale, np.float32)


def as_numpy(x, where, name):
    """``x`` as a NumPy array, without a copy where the dtype exists in NumPy (bfloat16 becomes float32).

    Raises:
        ArgumentError: a tensor that is not on the CPU.
        DTypeError: neither a number, an array, a sequence of numbers nor a tensor.
    """
    if is_torch(x):
        if x.device.type != "cpu":
            raise ArgumentError(
                f"{where}: {name} is on device {x.device}; accepted: cpu. Call {name}.cpu() first."
            )
        x = x.detach().resolve_neg()
        try:
            return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
        except (TypeError, RuntimeError) as e:  # sparse, quantized or conjugate tensors, float8
            raise DTypeError(f"{where}: {name} has no NumPy form: {e}; accepted: plain dense tensors.") from e
    try:
        a = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as e:
        raise DTypeError(f"{where}: {name} is a {type(x).__name__} and no array: {e}") from e
    if a.dtype == object or a.dtype.kind in "SUMm":
        raise DTypeError(
            f"{where}: {name} is a {type(x).__name__} of dtype {a.dtype}; accepted: numbers, arrays, "
            "torch tensors."
        )
    return a


def as_kind(a, like):
    """The NumPy array ``a`` as the kind that ``like`` is: a tensor on the same memory, or ``a`` itself."""
    if a is None or is_torch(a) or not is_torch(like):
        return a
    a = np.ascontiguousarray(a)  # keeps the negative stride of a dimension of 1, which torch refuses
    return sys.modules["torch"].from_numpy(
        a if a.flags.writeable and min(a.strides, default=0) >= 0 else a.copy()
    )


def as_float32(x, where, name):
    """``x`` as a float32 NumPy array.

    Raises:
        DTypeError: complex or boolean numbers.
    """
    a = as_numpy(x, where, name)
    if a.dtype.kind in "cb":
        raise DTypeError(f"{where}: {name} has dtype {a.dtype}; accepted: real numbers (kept as float32).")
    with np.errstate(over="ignore"):
        return a.astype(np.float32, copy=False)


def first_bad(bad):
    """The index of the first True of a boolean array, as a tuple of ints, or None."""
    flat = np.flatnonzero(bad)
    return None if flat.size == 0 else tuple(int(i) for i in np.unravel_index(flat[0], np.shape(bad)))
