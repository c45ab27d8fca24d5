"""Weights that are indices into a codebook."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .._arrays import as_float32, as_numpy, first_bad
from ..errors import ArgumentError, FormatError
from .checks import check_granularity, check_scale, checked_bits, checked_group
from .coded import CodedWeight, cut, given_scale, nearest, scale_of, small_int_table, unsigned_codes, wrap

# Quantiles of the normal distribution over their largest (Dettmers et al. 2023, QLoRA, appendix E).
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
GRANULARITIES = ("tensor", "channel", "group")
ITERATIONS = 100


@dataclass(frozen=True, eq=False, repr=False)
class CodebookWeight(CodedWeight):
    """Indices into tables: ``W[n, k] ~ scale[n, g] * codebook[t, index[n, k]] / input_scale[k]``.

    Portable layout (version 1)
        packed       uint8 (N, ceil(K * bits / 8)): indices 0..2**bits - 1, 1 to 8 bits, a bitstream as in IntWeight.
                     The bits past K are 0.
        codebook     float32 (T, 2**bits), finite, in any order. T = 1: one for all, t = 0; T = N: one a row, t = n;
                     T = N * G, G = ceil(K / group_size): one for each group, t = n * G + g.
        scale        float32 (N, G), (N, 1) per channel or (1, 1) per tensor, finite and >= 0; None is 1.
        input_scale  float32 (K,), (I,) of a convolution, in 2**-126..2**126, or None: as in IntWeight.

        bits = 2, codebook -1 0 0.5 2, scale 2, indices 3, 0, 1, 2, 3   ->   bytes 0x93 0x03, values 4, -2, 0, 1, 4

    Raises:
        FormatError: shapes or values that contradict the layout.
        DTypeError: arrays of other dtypes.
        UnsupportedError: bits outside of 1..8, or a group_size below 16.
    """

    OPTIONS = ("bits", "group_size")
    DTYPES: ClassVar = {**CodedWeight.DTYPES, "codebook": "float32"}
    REQUIRED = ("packed", "codebook")
    LEAST_BITS = 1

    packed: object
    codebook: object
    scale: object = None
    bits: int = 4
    group_size: object = None
    shape: tuple = None
    input_scale: object = None

    def _check_scale(self, where, arrays, n, k):
        if "scale" in arrays:
            check_scale(where, "scale", arrays["scale"], n, k, self.group_size)

    def _check(self, where, arrays):
        table, n = arrays["codebook"], self.shape[0]
        counts = sorted({1, max(n, 1), max(n * self._groups, 1)})
        if table.ndim != 2 or table.shape[0] not in counts or table.shape[1] != 2**self.bits:
            raise FormatError(
                f"{where}: codebook has shape {table.shape}; shape {self.shape} with {self.bits} bits and group_size="
                f"{self.group_size} needs (T, {2**self.bits}), T one of {', '.join(map(str, counts))}."
            )
        bad = first_bad(~np.isfinite(table))
        if bad is not None:
            raise FormatError(
                f"{where}: codebook[{bad[0]}, {bad[1]}] is {table[bad]}; accepted: finite numbers."
            )

    @property
    def _groups(self):
        return -(-self.matrix_shape[1] // self.group_size) if self.is_grouped else 1

    @classmethod
    def quantize(cls, W, bits=4, codebook=None, granularity=None, group_size=None, input_scale=None):
        """Indices of the nearest entries, in float32; halfway, the one whose rank among the entries is even.

        codebook None    k-means: Lloyd's iterations on the sorted weights in float64, at most 100, from 2**bits numbers
                         evenly spaced between the smallest and the largest (Han et al. 2016, Deep Compression, section
                         3.3); a codebook for the tensor (default), each channel or each group. No scale.
                 "nf4"   the 16 numbers of NormalFloat4 (Dettmers et al. 2023, QLoRA) and scale = max|w|, of groups of
                         64 (default) or group_size, of channels or the tensor, as bitsandbytes has them
                 array   (2**bits,) numbers, for all. Without granularity and group_size no scale; else scale = max|w| /
                         max|entry|

        Where max|w| is below 2**-100 and there is a scale, it is 1.

        Args:
            W: (N, K) floats, or (O, I, kh, kw) of a convolution; NumPy or torch; rounded to float32 first.
            bits: 1 to 8; 4 for "nf4".
            granularity: "tensor", "channel" or "group"; None: "group" where there is a group_size, else see above.
            group_size: from 16 on, for "group" only.
            input_scale: as in IntWeight.quantize.

        Raises:
            ArgumentError: as IntWeight.quantize; a codebook of another shape, not finite or all zero with a scale.
            FormatError, UnsupportedError: see the class.
        """
        where = "CodebookWeight.quantize"
        bits, group_size = checked_bits(where, bits, 1), checked_group(where, group_size)
        named = isinstance(codebook, str)
        if named and (codebook != "nf4" or bits != 4):
            raise ArgumentError(
                f"{where}: codebook is {codebook!r} with bits={bits}; accepted: None, 'nf4' with 4 bits, or an array."
            )
        if granularity is None:
            scaled = named or (codebook is not None and group_size is not None)
            granularity = "group" if named or group_size is not None else "tensor"
        else:
            scaled = codebook is not None
        if named and group_size is None and isinstance(granularity, str) and granularity == "group":
            group_size = 64
        check_granularity(where, granularity, None, GRANULARITIES)
        if (granularity == "group") != (group_size is not None):
            raise ArgumentError(
                f"{where}: granularity is {granularity!r} with group_size={group_size}; accepted: a group_size with "
                "'group' and with nothing else."
            )
        parts = cut(where, W, group_size, "tensor" if granularity == "tensor" else "channel", input_scale)
        scale = None
        if codebook is None:
            codes, tables = _means(parts, granularity, group_size, bits)
        else:
            table = NF4 if named else _given_codebook(where, codebook, bits, scaled)
            x = parts.values
            if scaled:
                scale = scale_of(where, parts.amax, float(np.abs(table).max()))
                x = x / scale
                scale = scale.reshape(parts.scale_shape)
            order = np.argsort(table, kind="stable")
            codes, tables = order.astype(np.uint8)[nearest(table[order], x)], table[None]
        q = parts.matrix(codes)
        packed, tables, scale, si = wrap(W, q, bits, tables, scale, parts.input_scale)
        return cls(packed, tables, scale, bits, group_size, parts.shape, si)

    @classmethod
    def pack(cls, codes, codebook, scale=None, bits=4, group_size=None, input_scale=None):
        """Wrap a compressor's own indices, without rounding anything.

        Args:
            codes: (N, K) or (O, I, kh, kw) integers 0..2**bits - 1.
            codebook: (2**bits,) or (T, 2**bits), see the class.
            scale: None, a number or (1, 1) per tensor; (N,) or (N, 1) per channel; (N, ceil(K / group_size)) per group.

        Raises:
            DTypeError, FormatError, UnsupportedError: see the class.
        """
        where = "CodebookWeight.pack"
        bits, group_size = checked_bits(where, bits, 1), checked_group(where, group_size)
        q, shape = unsigned_codes(where, codes, bits)
        tables = as_float32(codebook, where, "codebook")
        tables = tables[None] if tables.ndim == 1 else tables
        s = None if scale is None else given_scale(where, scale, q, group_size)
        si = None if input_scale is None else as_float32(input_scale, where, "input_scale")
        packed, tables, s, si = wrap(codes, q, bits, tables, s, si)
        return cls(packed, tables, s, bits, group_size, shape, si)

    def table(self):
        """The codebook, NumPy's."""
        return as_numpy(self.codebook, "CodebookWeight", "codebook")

    def float_scale(self):
        """The scales, or ones."""
        if self.scale is None:
            return np.ones((self.shape[0], self._groups) if self.is_grouped else (1, 1), np.float32)
        return super().float_scale()

    def int_table(self):
        """The codebook itself where it is one, of integers that int8 holds, with up to 4 bits; else None."""
        return small_int_table(self.table(), 1.0)


def _given_codebook(where, codebook, bits, scaled):
    table = as_float32(codebook, where, "codebook")
    if table.shape != (2**bits,) or not np.isfinite(table).all():
        raise ArgumentError(
            f"{where}: codebook has shape {table.shape}; accepted: ({2**bits},) finite numbers with {bits} bits."
        )
    if scaled and not np.abs(table).max() >= 2.0**-100:
        raise ArgumentError(f"{where}: codebook has no entry above 2**-100, so no scale fits it.")
    return table


def _means(parts, granularity, group_size, bits):
    """Indices shaped like parts.values, and codebooks (T, 2**bits), by k-means on the tensor, rows or groups."""
    n, k = parts.matrix(parts.values).shape
    size = parts.values.shape[2]
    if granularity == "tensor" or n * k == 0:
        rows, counts = parts.values.reshape(1, -1), np.array([n * k])
        if n * k == 0:
            return np.zeros(parts.values.shape, np.uint8), np.zeros((1, 2**bits), np.float32)
    else:
        rows = parts.values.reshape(-1, size)
        lengths = np.minimum(size, k - size * np.arange(parts.values.shape[1]))
        counts = np.tile(lengths, n)
    tables = lloyd(rows, counts, 2**bits)
    if len(tables) == 1:
        return nearest(tables[0], parts.values), tables
    codes = np.empty(rows.shape, np.uint8)
    for i, table in enumerate(tables):
        codes[i] = nearest(table, rows[i])
    return codes.reshape(parts.values.shape), tables


def lloyd(rows, counts, levels):
    """1-D k-means of the first counts[r] (> 0) numbers of each row (R, L): ascending means, float32 (R, levels).

    On sorted rows a cluster is an interval and its sum a difference of prefix sums, so an iteration costs levels
    searches. An empty cluster keeps its center. Sums are float64.
    """
    r, size = rows.shape
    inside = np.arange(size) < counts[:, None]
    x = np.sort(np.where(inside, rows, np.inf), axis=1).astype(np.float64)
    x = np.where(inside, x, 0)
    prefix = np.concatenate([np.zeros((r, 1)), np.cumsum(x, axis=1)], axis=1)
    low, high = x[:, :1], x[np.arange(r), counts - 1][:, None]
    span = np.where(high > low, high - low, 1)
    start = 2.0 * np.arange(r)[:, None]  # all rows as one ascending sequence: row r in 2 r .. 2 r + 1
    keys = (np.where(inside, (x - low) / span, 1.5) + start).ravel()
    centers = low + (high - low) * np.linspace(0, 1, levels)
    edges = None
    for _ in range(ITERATIONS):
        mids = ((centers[:, 1:] + centers[:, :-1]) / 2 - low) / span
        at = np.searchsorted(keys, np.clip(mids, 0, 1) + start) - np.arange(r)[:, None] * size
        if edges is not None and (at == edges).all():
            break
        edges = at
        full = np.concatenate([np.zeros((r, 1), np.int64), edges, counts[:, None]], axis=1)
        count, sums = np.diff(full, axis=1), np.diff(np.take_along_axis(prefix, full, 1), axis=1)
        centers = np.where(count > 0, sums / np.maximum(count, 1), centers)
    return centers.astype(np.float32)
