"""What the float core reads of a weight: codes that index a table, scaled and shifted."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Lookup:
    """``W[n, k] = (scale[n, g] * table[t, index[n, k]] + offset[n, g]) / input_scale[k]``, ``g = k // group_size``.

    Every weight format of up to 8 bits can be said so; ``WeightFormat.lookup()`` does. All arrays are NumPy's.

        index        uint8 (N, K), below 2**bits
        table        float32 (T, 2**bits), finite. T = 1: one table; T = N: one for each row; T = N * G: one for each
                     group of each row, that of row n and group g at n * G + g
        scale        float32 (N, G), (N, 1) or (1, 1), as the format stores it
        offset       float32, shaped like scale, or None: nothing is added
        group_size   int, or None: not grouped (G = 1)
        input_scale  float32 (K,) or None
    """

    bits: int
    index: np.ndarray
    table: np.ndarray
    scale: np.ndarray
    offset: object = None
    group_size: object = None
    input_scale: object = None

    @property
    def is_grouped(self):
        return self.group_size is not None and self.group_size < self.index.shape[1]

    @property
    def groups(self):
        """G: groups in a row."""
        return -(-self.index.shape[1] // self.group_size) if self.is_grouped else 1

    def per_code(self, a):
        """An array shaped like scale, repeated so that it broadcasts against (N, K)."""
        return np.repeat(a, self.group_size, axis=1)[:, : self.index.shape[1]] if self.is_grouped else a

    def values(self):
        """``table[t, index[n, k]]``: float32 (N, K)."""
        if self.table.shape[0] == 1:
            return self.table[0][self.index]
        n, k = self.index.shape
        tables = self.table.reshape(n, -1, self.table.shape[1])
        size = self.group_size if tables.shape[1] > 1 else max(k, 1)
        return tables[np.arange(n)[:, None], np.arange(k)[None, :] // size, self.index]

    def dense(self):
        """The float64 (N, K) matrix."""
        w = self.values().astype(np.float64) * self.per_code(self.scale.astype(np.float64))
        if self.offset is not None:
            w = w + self.per_code(self.offset.astype(np.float64))
        return w if self.input_scale is None else w / self.input_scale
