"""Reads a gguf file: its metadata, and its matrices as the blocks that it stores.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md describes version 3 of the format, all little-endian.
"""

import struct
from dataclasses import dataclass

import numpy as np

from ...errors import FormatError, UnsupportedError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
# type of a tensor -> name, weights in a block, bytes of a block
KINDS = {0: ("F32", 1, 4), 3: ("Q4_1", 32, 20), 8: ("Q8_0", 32, 34)}


@dataclass(frozen=True)
class Blocks:
    """A matrix (N, K) as stored: ``rows`` uint8 (N, bytes), each row the blocks of K weights of ``kind``.

    Q4_1  float16 d, float16 m, 16 bytes of 4-bit q: weight i is in the low nibble of byte i, weight 16 + i in the high
          one; weight = d * q + m.
    Q8_0  float16 d, 32 int8 q; weight = d * q.
    F32   float32.
    """

    kind: str
    rows: np.ndarray

    @classmethod
    def stack(cls, *parts):
        """One matrix under the other; rows of a block format do not depend on each other."""
        if len({(p.kind, p.rows.shape[1]) for p in parts}) != 1:
            shown = ", ".join(f"{p.kind} {p.rows.shape}" for p in parts)
            raise FormatError(f"Blocks.stack: the parts are {shown}; accepted: one kind, one row length.")
        return cls(parts[0].kind, np.concatenate([p.rows for p in parts]))

    @property
    def nbytes(self):
        return self.rows.nbytes

    def dense(self):
        """The matrix in float32 (N, K), products and sums in float32."""
        if self.kind == "F32":
            return self.rows.view("<f4")
        size = 20 if self.kind == "Q4_1" else 34
        blocks = self.rows.reshape(len(self.rows), -1, size)
        d = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        if self.kind == "Q8_0":
            w = d * blocks[..., 2:].view(np.int8)
        else:
            q = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], -1)
            w = d * q + np.ascontiguousarray(blocks[..., 2:4]).view("<f2").astype(np.float32)
        return w.reshape(len(self.rows), -1)


class File:
    """``metadata``, {key: value}, and ``tensors``, {name: Blocks}, which are read when they are used.

    Raises:
        FormatError: not a gguf file of version 3, or cut short.
        UnsupportedError: a tensor of a kind that KINDS lacks.
    """

    def __init__(self, path):
        self._bytes, self._at, self._path = np.asarray(np.memmap(path, np.uint8, "r")), 0, path
        try:
            self._head()
        except (struct.error, UnicodeDecodeError, KeyError) as e:
            raise FormatError(f"demo: {path} is cut short or no gguf file ({e!r}).") from None

    def _head(self):
        magic, version, tensors, keys = self._read("4s"), self._read("I"), self._read("Q"), self._read("Q")
        if magic != b"GGUF" or version != 3:
            raise FormatError(
                f"demo: {self._path} starts with {magic!r}, version {version}; accepted: b'GGUF', 3."
            )
        self.metadata = {self._string(): self._value(self._read("I")) for _ in range(keys)}
        infos = [self._info() for _ in range(tensors)]
        start = self._at + -self._at % self.metadata.get("general.alignment", 32)
        self.tensors = {name: self._blocks(name, *info, start) for name, *info in infos}

    def _read(self, code):
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self):
        size = self._read("Q")
        return self._read(f"{size}s").decode()

    def _value(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            kind, count = self._read("I"), self._read("Q")
            return [self._value(kind) for _ in range(count)]
        return self._read(NUMBERS[kind])

    def _info(self):
        name, dims = self._string(), self._read("I")
        shape = [self._read("Q") for _ in range(dims)]  # innermost first
        return name, shape, self._read("I"), self._read("Q")

    def _blocks(self, name, shape, kind, offset, start):
        if kind not in KINDS:
            known = ", ".join(k for k, *_ in KINDS.values())
            raise UnsupportedError(f"demo: {self._path}: {name} is of type {kind}; accepted: {known}.")
        kind, weights, size = KINDS[kind]
        n, width = int(np.prod(shape[1:], dtype=np.int64)), shape[0] // weights * size
        raw = self._bytes[start + offset : start + offset + n * width]
        if shape[0] % weights or len(raw) != n * width:
            raise FormatError(
                f"demo: {self._path}: {name} is {shape} in {kind}, which the file does not hold."
            )
        return Blocks(kind, raw.reshape(n, width))
