"""What the integer core multiplies: the codes of integer weights, or the integers that a small table has for them."""

from dataclasses import dataclass

import numpy as np

from .base import WeightFormat


@dataclass(frozen=True, eq=False)
class TableOperand:
    """A weight of table indices as the integer core reads it: ``W[n, k] = scale[n, g] * table[index[n, k]]``.

    It answers what integer weights are asked: codes(), scale, zero_point, group_size, input_scale.

        index  uint8 (N, K), below 2**bits, bits 1 to 4
        table  int8 (2**bits,), the operands
        scale  float32 (N, G), (N, 1) or (1, 1): the weight's, times the multiplier of its int_table
    """

    bits: int
    index: np.ndarray
    table: np.ndarray
    scale: np.ndarray
    group_size: object
    input_scale: object

    zero_point = None

    @property
    def matrix_shape(self):
        return self.index.shape

    @property
    def is_grouped(self):
        return self.group_size is not None and self.group_size < self.index.shape[1]

    def codes(self):
        """The operands, int8 (N, K)."""
        return self.table[self.index]


def has_table(w):
    """Whether a weight's codes index a table, so that they are not what is multiplied."""
    return type(w).int_table is not WeightFormat.int_table


def int_table(w):
    """``w.int_table()`` with int8 and float32 arrays, made once; None where there is none."""
    if "_int_table" not in w.__dict__:
        found = w.int_table()
        w.__dict__["_int_table"] = (
            None if found is None else (np.asarray(found[0], np.int8), np.float32(found[1]))
        )
    return w.__dict__["_int_table"]


def code_extreme(w):
    """max|operand| of a weight; None for a table without integers."""
    if not has_table(w):
        return w.code_extreme
    found = int_table(w)
    return None if found is None else int(np.abs(found[0].astype(np.int32)).max())


def why_no_integers(w):
    """None, or why the integer core cannot take the weight."""
    if not has_table(w) or int_table(w) is not None:
        return None
    return (
        f"the table of this {type(w).__name__} is not integers that int8 holds (w.int_table() is None): give it float "
        "activations, input_quant=None"
    )


def integer_operand(w):
    """The weight itself, or its TableOperand; ``why_no_integers(w)`` is None. NumPy arrays."""
    w = w.numpy()
    if not has_table(w):
        return w
    (table, multiplier), stored = int_table(w), w.lookup()
    scale = stored.scale * multiplier
    return TableOperand(stored.bits, stored.index, table, scale, stored.group_size, stored.input_scale)
