"""What follows the accumulators of a binary layer: activations with learned shifts, and integer thresholds."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ._arrays import as_float32, as_numpy, first_bad
from .errors import ArgumentError, DTypeError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@dataclass(frozen=True, eq=False)
class DPReLU:
    """``x -> alpha (x - gamma) + zeta if x > gamma else beta (x - gamma) + zeta`` per channel (thesis eq. 3.34).

    Args:
        alpha, beta, gamma, zeta: a number for all channels, or (N,); finite, kept as float32.

    Raises:
        ArgumentError: shapes that differ, or numbers that are not finite.
    """

    alpha: object
    beta: object
    gamma: object = 0.0
    zeta: object = 0.0

    def __post_init__(self):
        arrays = {name: as_float32(getattr(self, name), "DPReLU", name) for name in self.__dataclass_fields__}
        length = max(a.size for a in arrays.values()) if any(a.ndim for a in arrays.values()) else 1
        for name, a in arrays.items():
            if a.ndim > 1 or a.size not in (1, length):
                raise ArgumentError(f"DPReLU: {name} has shape {a.shape}; accepted: a number or ({length},).")
            bad = first_bad(~np.isfinite(a))
            if bad is not None:
                raise ArgumentError(f"DPReLU: {name}{list(bad)} is {a[bad]}; accepted: finite numbers.")
            object.__setattr__(self, name, a.reshape(-1))

    @property
    def channels(self):
        """1 where every parameter is one number for all channels, else N."""
        return max(a.size for a in self.arrays())

    def arrays(self):
        return self.alpha, self.beta, self.gamma, self.zeta


def RPReLU(beta, gamma=0.0, zeta=0.0):
    """``x -> x - gamma + zeta if x > gamma else beta (x - gamma) + zeta`` (ReActNet): DPReLU with alpha = 1."""
    return DPReLU(1.0, beta, gamma, zeta)


@dataclass(frozen=True, eq=False)
class Threshold:
    """Accumulators to signs: +1 where ``acc >= value[n]``, or ``acc <= value[n]`` where ``flip[n]``; else -1.

    With ``multiplicity`` the result is ``multiplicity[n] * sign`` as int8: a neuron that counts several times, negative
    or not at all, lambda of ``lambda * sign(W x)`` (thesis eq. 3.41). It feeds a layer with int8 activations; to stay
    binary, duplicate neurons with ``BinaryWeight.repeat`` instead.

    Args:
        value: (N,) integers within int32.
        flip: (N,) booleans, or None: all False.
        multiplicity: (N,) integers in -127..127, or None.

    Raises:
        ArgumentError, DTypeError: a value outside of the above.
    """

    value: object
    flip: object = None
    multiplicity: object = None

    def __post_init__(self):
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("value", _integers("value", self.value, INT32_MIN, INT32_MAX, np.int32))
        n = self.value.shape[0]
        flip = np.zeros(n, bool) if self.flip is None else as_numpy(self.flip, "Threshold", "flip")
        if flip.dtype != bool or flip.shape != (n,):
            raise ArgumentError(
                f"Threshold: flip has dtype {flip.dtype}, shape {flip.shape}; accepted: booleans ({n},), as many as "
                "there are values."
            )
        put("flip", flip)
        if self.multiplicity is not None:
            put("multiplicity", _integers("multiplicity", self.multiplicity, -127, 127, np.int32))
            if self.multiplicity.shape != (n,):
                raise ArgumentError(
                    f"Threshold: multiplicity has shape {self.multiplicity.shape}; accepted: ({n},), one per value."
                )

    @classmethod
    def from_batch_norm(cls, gamma, beta, mean, var, eps=1e-5, scale=1.0, bias=0.0, multiplicity=None):
        """The integers for which the sign of a batch norm's output is that of real arithmetic:

        ``+1 where gamma (scale * acc + bias - mean) / sqrt(var + eps) + beta >= 0``

        gamma < 0 turns the comparison round; where gamma or scale is 0 the sign does not depend on acc and the
        threshold is never, or always, reached. Decided with rational numbers, so no rounding moves a threshold.

        Args:
            gamma, beta, mean, var: (N,) or one number; finite, var + eps > 0.
            scale: >= 0, what an accumulator is worth: alpha of the weight times the scale of x; (N,) or one number.
            bias: of the layer before the batch norm; (N,) or one number.
            multiplicity: see the class.

        Raises:
            ArgumentError: numbers outside of that.
        """
        where = "Threshold.from_batch_norm"
        given = {
            "gamma": gamma,
            "beta": beta,
            "mean": mean,
            "var": var,
            "scale": scale,
            "bias": bias,
            "eps": eps,
        }
        arrays = {name: as_numpy(v, where, name) for name, v in given.items()}
        for name, a in arrays.items():
            if a.dtype.kind not in "iuf" or a.ndim > 1 or not np.isfinite(a).all():
                raise ArgumentError(
                    f"{where}: {name} has dtype {a.dtype}, shape {a.shape}; accepted: finite numbers, () or (N,)."
                )
        try:
            columns = np.broadcast_arrays(*(a.reshape(-1) for a in arrays.values()))
        except ValueError:
            shapes = {name: a.shape for name, a in arrays.items()}
            raise ArgumentError(f"{where}: shapes are {shapes}; accepted: (N,) or one number each.") from None
        pairs = [_threshold(*(Fraction(float(v)) for v in row)) for row in zip(*columns, strict=True)]
        value, flip = zip(*pairs, strict=True) if pairs else ((), ())
        return cls(np.array(value, np.int64), np.array(flip, bool), multiplicity)


def _threshold(gamma, beta, mean, var, scale, bias, eps):
    """(value, flip) of one channel, from rationals."""
    spread = var + eps
    if spread <= 0 or scale < 0:
        raise ArgumentError(
            f"Threshold.from_batch_norm: var + eps is {float(spread)}, scale {float(scale)}; accepted: var + eps > 0, "
            "scale >= 0."
        )

    def positive(acc):
        return _not_negative(gamma * (scale * acc + bias - mean), beta, spread)

    if gamma == 0 or scale == 0:
        return (INT32_MIN, False) if positive(0) else (INT32_MAX, False)
    flip = gamma < 0
    step = -1 if flip else 1  # towards where the output grows
    try:
        real = (float(mean - bias) - float(beta) * math.sqrt(spread) / float(gamma)) / float(scale)
        guess = int(min(max(math.floor(real) if flip else math.ceil(real), INT32_MIN), INT32_MAX))
    except (OverflowError, ValueError, ZeroDivisionError):
        guess = 0
    for value in (guess, guess - step, guess + step):  # float64 is rarely further off
        if INT32_MIN < value < INT32_MAX and positive(value) and not positive(value - step):
            return value, flip
    low, high = (INT32_MAX, INT32_MIN) if flip else (INT32_MIN, INT32_MAX)  # from -1 to +1
    if positive(low):
        return low, flip
    while abs(high - low) > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if positive(middle) else (middle, high)
    return high, flip


def _not_negative(a, b, c):
    """Whether a / sqrt(c) + b >= 0 for rationals, c > 0."""
    if a >= 0 and b >= 0:
        return True
    if (a < 0 and b < 0) or (a == 0 and b < 0) or (b == 0 and a < 0):
        return False
    return a * a >= b * b * c if a > 0 else b * b * c >= a * a


def _integers(name, x, lo, hi, dtype):
    a = as_numpy(x, "Threshold", name)
    if a.dtype.kind not in "iu":
        raise DTypeError(f"Threshold: {name} has dtype {a.dtype}; accepted: integers.")
    if a.ndim != 1:
        raise ArgumentError(f"Threshold: {name} has shape {a.shape}; accepted: (N,).")
    bad = first_bad((a < lo) | (a > hi))
    if bad is not None:
        raise ArgumentError(f"Threshold: {name}[{bad[0]}] is {a[bad]}; accepted: {lo}..{hi}.")
    return a.astype(dtype)
