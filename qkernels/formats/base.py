"""What every weight format has in common."""

import math
from dataclasses import dataclass, fields, replace

import numpy as np

from .._arrays import as_numpy, is_torch
from ..errors import UnsupportedError


def nbytes(a):
    """Bytes of a NumPy array or torch tensor; 0 for None."""
    if a is None:
        return 0
    return a.numel() * a.element_size() if is_torch(a) else a.nbytes


@dataclass(frozen=True, eq=False)
class WeightFormat:
    """A compressed weight of ``shape`` (N, K): out features, in features, as in ``nn.Linear.weight``.

    That of a convolution has the shape (O, I, kh, kw) and is the matrix ``matrix_shape`` (O, I * kh * kw), its rows
    flattened in the order (I, kh, kw).

    A format is frozen and validated once, when it is built; its arrays are not copied, so they must not be
    written to afterwards. Compute layouts that a backend attaches are neither pickled nor copied.
    """

    version = 1  # of the portable layout, written into files
    OPTIONS = ()  # fields beside the arrays and the shape, written into files too
    FITTED = ()  # options that are numbers found for one weight: modules keep them with its arrays
    RAGGED = ()  # arrays whose length depends on what the others hold
    is_grouped = False  # whether a row has more than one scale
    offset = None  # what IntWeight may add to a scaled code

    @classmethod
    def array_names(cls):
        """The fields that hold arrays, or None where a weight lacks one."""
        return tuple(f.name for f in fields(cls) if f.name not in (*cls.OPTIONS, "shape"))

    def options(self):
        """The values of OPTIONS by name."""
        return {name: getattr(self, name) for name in self.OPTIONS}

    @property
    def nbytes(self):
        """Bytes of all portable arrays: codes, scales, zero points, input scales."""
        return sum(nbytes(v) for v in self.arrays().values())

    @property
    def matrix_shape(self):
        """(N, K): of a convolution (O, I * kh * kw)."""
        return self.shape[0], math.prod(self.shape[1:])

    @property
    def bits_per_weight(self):
        """Bits stored per weight, scales included."""
        n, k = self.matrix_shape
        return 8.0 * self.nbytes / (n * k) if n * k else 0.0

    def arrays(self):
        """The portable arrays by field name, those that are None left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v for name, v in values.items() if hasattr(v, "dtype")}

    def flat_input_scale(self):
        """input_scale as it meets the matrix, float32 (K,), NumPy's, or None: kh * kw times each of a convolution."""
        s = getattr(self, "input_scale", None)
        if s is None:
            return None
        return np.repeat(as_numpy(s, type(self).__name__, "input_scale"), math.prod(self.shape[2:]))

    def dense(self):
        """The float32 (N, K) matrix that the format stands for."""
        raise NotImplementedError

    def lookup(self):
        """The same weight as codes that index a table (formats/lookup.py), which is what the float core reads."""
        raise NotImplementedError

    def int_table(self):
        """``(ints, multiplier)``, int8 (2**bits,) and a float, whose product is the table of ``lookup()`` exactly; None
        where there is none: more than 4 bits, more than one table, or entries that int8 does not hold.
        """
        return None

    def numpy(self):
        """The same weight with NumPy fields on the same memory."""
        arrays = self.arrays()
        if not any(map(is_torch, arrays.values())):
            return self
        where = type(self).__name__
        return replace(self, **{name: as_numpy(a, where, name) for name, a in arrays.items()})

    def __getstate__(self):
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __repr__(self):
        return (
            f"{type(self).__name__}({'x'.join(map(str, self.shape))}, {self.bits_per_weight:.2f} bits/weight)"
        )


def check_integer(where, w):
    """Refuse a weight whose values are no scaled integers: an integer product has no place for its offset."""
    if w.offset is not None:
        raise UnsupportedError(
            f"{where}: w has an offset, real numbers that no product of integers can add; accepted with integer "
            "activations: offset=None. Leave out input_quant (weight-only), or round again with "
            f"IntWeight.quantize(w.dense(), bits={w.bits}, symmetric=False)."
        )
