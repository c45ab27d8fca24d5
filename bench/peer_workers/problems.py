"""The problems of ``bench/peers.py``: what is computed, on which inputs, over which grid."""

from __future__ import annotations

import numpy as np

from .problem import Problem

SLACK = 1 << 20  # weight copies are windows of one random pool, 64 bytes apart
SHAPES = [(384, 384), (384, 1536), (1536, 384), (768, 3072), (4096, 4096), (4096, 11008)]  # K x N
MS = [1, 16, 128, 512]
COLD_MAX_M = 16


class Pool:
    """Random weights: a window of one array of random numbers for each weight copy."""

    def __init__(self, low: int, high: int, dtype):
        self.low, self.high, self.dtype = low, high, dtype
        self.numbers = np.empty(0, dtype)

    def __call__(self, i: int, shape: tuple) -> np.ndarray:
        """Weight copy i, the caller's own memory."""
        size, start = int(np.prod(shape)), i * 64 % SLACK
        if self.numbers.size < size + SLACK:
            rng = np.random.default_rng(7)
            self.numbers = rng.integers(self.low, self.high, size + SLACK, dtype=self.dtype)
        return self.numbers[start : start + size].reshape(shape).copy()


class Product(Problem):
    """A matrix product of M rows, K inputs and N outputs, checked at some rows and columns."""

    probes = ({"M": 16, "K": 384, "N": 384},)

    def __init__(self, M: int, K: int, N: int, seed: tuple = ()):
        self.M, self.K, self.N = M, K, N
        self.macs, self.weights = M * K * N, K * N
        self.rng = np.random.default_rng((M, K, N, *seed))
        self.rows = np.unique(np.linspace(0, M - 1, min(M, 48)).astype(int))
        self.columns = np.unique(np.linspace(0, N - 1, min(N, 192)).astype(int))

    def checked(self, y: np.ndarray) -> np.ndarray:
        return y.reshape(self.M, self.N)[np.ix_(self.rows, self.columns)]

    def output_scale(self, reference: np.ndarray) -> float:
        """A scale of 8-bit results that clips nothing of what is checked."""
        return float(np.abs(reference).max() / 120)

    @staticmethod
    def grid(args) -> list[dict]:
        shapes = args.shapes or SHAPES
        return [{"M": m, "K": k, "N": n} for k, n in shapes for m in args.m or MS]

    @staticmethod
    def columns_of(row: dict) -> dict:
        """What names a cell in the tables."""
        return {"K x N": f"{row['K']}x{row['N']}", "M": str(row["M"])}

    @staticmethod
    def order(row: dict) -> tuple:
        return row["K"] * row["N"], row["K"], row["M"]

    @staticmethod
    def cold(shape: dict) -> bool:
        """Whether the cell is timed with cold weights as well."""
        return shape["M"] <= COLD_MAX_M


class Linear(Product):
    """``y = x @ (w_scale[:, None] * w).T`` with int8 weights, a scale per output channel.

    ``x`` float32 (M, K), ``x_s8`` and ``x_u8`` its 8-bit stand-ins (scale ``x_scale``, zero point 0),
    ``weight(i)`` the int8 (N, K) codes of copy i, ``w_scale`` float32 (N,) with values that float16 holds
    exactly.
    """

    x_scale = 0.02
    pool = Pool(-127, 128, np.int8)

    def __init__(self, M: int, K: int, N: int):
        super().__init__(M, K, N)
        self.x = self.rng.standard_normal((M, K), dtype=np.float32)
        self.x_s8 = self.rng.integers(-127, 128, (M, K), dtype=np.int8)
        self.x_u8 = self.rng.integers(0, 256, (M, K), dtype=np.uint8)
        self.w_scale = (0.01 * self.rng.uniform(0.5, 1.5, N)).astype(np.float16).astype(np.float32)

    def weight(self, i: int = 0) -> np.ndarray:
        return self.pool(i, (self.N, self.K))

    def float_weight(self, i: int = 0) -> np.ndarray:
        return self.weight(i).astype(np.float32) * self.w_scale[:, None]

    def reference(self, x: np.ndarray, scale: float = 1.0) -> np.ndarray:
        """The float64 product ``scale * x @ (w_scale * w(0)).T`` at the checked rows and columns."""
        w = self.weight(0)[self.columns].astype(np.float64) * self.w_scale[self.columns, None]
        return x[self.rows].astype(np.float64) @ w.T * scale


class Int4Linear(Product):
    """``y = x @ W.T``, ``W[n, k] = w_scale[n, k // group] * w[n, k]`` with 4-bit codes w in -8..7.

    ``group`` 0: one scale per output channel.  ``w_scale`` float32 (N, K / group) with values that bfloat16
    and float16 hold exactly, so that no peer rounds them.
    """

    pool = Pool(-8, 8, np.int8)
    probes = tuple({"M": 16, "K": 384, "N": 384, "group": g} for g in (64, 0, 32, 128))

    def __init__(self, M: int, K: int, N: int, group: int):
        super().__init__(M, K, N, (group,))
        self.group = group
        self.x = self.rng.standard_normal((M, K), dtype=np.float32)
        steps = self.rng.integers(128, 256, (N, K // (group or K)))
        self.w_scale = (steps * 2.0**-12).astype(np.float32)

    def weight(self, i: int = 0) -> np.ndarray:
        """Codes of weight copy i: int8 (N, K) in -8..7."""
        return self.pool(i, (self.N, self.K))

    def nibbles(self, i: int = 0) -> np.ndarray:
        """Codes + 8, two a byte, even k in the low half: uint8 (N, K / 2)."""
        u = (self.weight(i) + 8).view(np.uint8)
        return u[:, 0::2] | (u[:, 1::2] << 4)

    def scales(self, group: int) -> np.ndarray:
        """The scales repeated for a peer that has smaller groups only: float32 (N, K / group)."""
        return np.repeat(self.w_scale, (self.group or self.K) // group, axis=1)

    def float_weight(self, i: int = 0) -> np.ndarray:
        return self.weight(i).astype(np.float32) * self.scales(1)

    def reference(self, x: np.ndarray | None = None, w: np.ndarray | None = None) -> np.ndarray:
        """The float64 product of x (M, K) and a dense w (N, K), by default of this problem's."""
        x = self.x if x is None else x
        if w is None:
            w = self.weight(0)[self.columns].astype(np.float64) * self.scales(1)[self.columns]
        else:
            w = w[self.columns].astype(np.float64)
        return x[self.rows].astype(np.float64) @ w.T

    @staticmethod
    def grid(args) -> list[dict]:
        groups = (0, 32, 64, 128) if args.groups is None else args.groups
        return [{**shape, "group": g} for g in groups for shape in Product.grid(args)]

    @staticmethod
    def columns_of(row: dict) -> dict:
        return {"group": str(row["group"] or "channel"), **Product.columns_of(row)}

    @staticmethod
    def order(row: dict) -> tuple:
        return row["group"], *Product.order(row)


class WeightOnly(Int4Linear):
    """The product of ``Int4Linear`` on float activations that nobody may quantize.

    bfloat16 holds every ``x``, so float32 and bfloat16 peers multiply the same numbers.
    """

    def __init__(self, M: int, K: int, N: int, group: int):
        super().__init__(M, K, N, group)
        self.x.view(np.uint32)[:] &= np.uint32(0xFFFF0000)


class BinaryProduct(Product):
    """``y[m, n] = sum_k x[m, k] * w[n, k]`` of +1 and -1, from packed bits: 1 is +1, least significant bit first.

    ``x_bits`` uint8 (M, K / 8); ``weight(i)`` uint8 (N, K / 8).
    """

    pool = Pool(0, 256, np.uint8)
    probes = ({"M": 16, "K": 1024, "N": 1024},)
    shapes = ((1024, 1024), (1024, 4096), (4096, 1024), (4096, 4096))

    def __init__(self, M: int, K: int, N: int):
        super().__init__(M, K, N)
        self.x_bits = self.rng.integers(0, 256, (M, K // 8), dtype=np.uint8)

    def weight(self, i: int = 0) -> np.ndarray:
        return self.pool(i, (self.N, self.K // 8))

    @staticmethod
    def signs(bits: np.ndarray) -> np.ndarray:
        """Packed bits as int8 +1 and -1."""
        return np.unpackbits(bits, axis=1, bitorder="little").view(np.int8) * np.int8(2) - np.int8(1)

    def reference(self) -> np.ndarray:
        x, w = (
            self.signs(b).astype(np.float64) for b in (self.x_bits[self.rows], self.weight()[self.columns])
        )
        return x @ w.T

    @staticmethod
    def grid(args) -> list[dict]:
        shapes = args.shapes or BinaryProduct.shapes
        return [{"M": m, "K": k, "N": n} for k, n in shapes for m in args.m or MS]


# C -> O, H, kernel, stride, groups
LAYERS = {
    "resnet50": [
        (3, 64, 224, 7, 2, 1),
        (64, 256, 56, 1, 1, 1),
        (64, 64, 56, 3, 1, 1),
        (128, 128, 28, 3, 1, 1),
        (512, 128, 28, 1, 1, 1),
        (256, 256, 14, 3, 1, 1),
        (1024, 256, 14, 1, 1, 1),
        (512, 512, 7, 3, 1, 1),
    ],
    "mobilenetv2": [
        (16, 96, 112, 1, 1, 1),
        (144, 24, 56, 1, 1, 1),
        (384, 64, 14, 1, 1, 1),
        (576, 96, 14, 1, 1, 1),
        (960, 320, 7, 1, 1, 1),
        (32, 32, 112, 3, 1, 32),
        (96, 96, 112, 3, 2, 96),
        (144, 144, 56, 3, 1, 144),
        (384, 384, 14, 3, 1, 384),
        (576, 576, 14, 3, 2, 576),
        (960, 960, 7, 3, 1, 960),
    ],
}


class Convolution(Problem):
    """A convolution of 8-bit codes to 8-bit codes, symmetric weights with a scale per output channel.

    ``x_u8`` uint8 (B, H, H, C), channels last, zero point 128; ``x_s8`` the same numbers with zero point 0.
    ``weight(i)`` int8 (O, C / groups, kernel, kernel).  ``y_scale`` is the scale of the results, zero point
    128 or 0; ``real(codes)`` turns signed ones to real units.  Padding is (kernel - 1) / 2.
    """

    x_scale = 0.02
    pool = Pool(-127, 128, np.int8)
    probes = (
        {"B": 1, "C": 64, "O": 64, "H": 14, "kernel": 3, "stride": 1, "groups": 1},
        {"B": 1, "C": 64, "O": 64, "H": 14, "kernel": 3, "stride": 2, "groups": 64},
    )

    def __init__(self, B: int, C: int, O: int, H: int, kernel: int, stride: int, groups: int):  # noqa: E741
        self.B, self.C, self.O, self.H = B, C, O, H
        self.kernel, self.stride, self.groups, self.pad = kernel, stride, groups, (kernel - 1) // 2
        self.out = (H + 2 * self.pad - kernel) // stride + 1
        self.weights = O * C // groups * kernel * kernel
        self.macs = B * self.out**2 * self.weights
        rng = np.random.default_rng((B, C, O, H, kernel, stride, groups))
        self.x_s8 = rng.integers(-127, 128, (B, H, H, C), dtype=np.int8)
        self.x_u8 = (self.x_s8.astype(np.int16) + 128).astype(np.uint8)
        self.w_scale = (0.01 * rng.uniform(0.5, 1.5, O)).astype(np.float16).astype(np.float32)
        self.y_scale = float(np.float32(self.x_scale * 0.01 * 73**2 * (self.weights / O) ** 0.5 / 40))

    def weight(self, i: int = 0) -> np.ndarray:
        return self.pool(i, (self.O, self.C // self.groups, self.kernel, self.kernel))

    def accumulators(self, before: int | None = None) -> np.ndarray:
        """The exact integer result, int64 (B, out, out, O); ``before``: rows and columns padded in front, the
        others follow."""
        pads = (self.pad if before is None else before, self.kernel)
        x = np.pad(self.x_s8.astype(np.float64), ((0, 0), pads, pads, (0, 0)))
        w = (
            self.weight()
            .astype(np.float64)
            .reshape(self.groups, self.O // self.groups, -1, *(self.kernel,) * 2)
        )
        last, y = self.stride * (self.out - 1) + 1, 0.0
        for i in range(self.kernel):
            for j in range(self.kernel):
                part = x[:, i : i + last : self.stride, j : j + last : self.stride]
                part = part.reshape(*part.shape[:3], self.groups, -1)
                y = y + np.einsum("bhwgc,goc->bhwgo", part, w[..., i, j], optimize=True)
        return np.rint(y).reshape(self.B, self.out, self.out, self.O).astype(np.int64)

    def reference(self, before: int | None = None) -> np.ndarray:
        """The result rounded to 8 bits, in real units, (B, out, out, O)."""
        scale = self.w_scale.astype(np.float64) * self.x_scale / self.y_scale
        return np.clip(np.rint(self.accumulators(before) * scale), -128, 127) * self.y_scale

    def checked(self, y: np.ndarray) -> np.ndarray:
        return y.reshape(self.B, self.out, self.out, self.O)

    @staticmethod
    def grid(args) -> list[dict]:
        names = ("C", "O", "H", "kernel", "stride", "groups")
        return [
            {"B": b, **dict(zip(names, layer, strict=True))}
            for b in args.batch
            for net in args.nets or LAYERS
            for layer in LAYERS[net]
        ]

    @staticmethod
    def columns_of(row: dict) -> dict:
        depthwise = row["groups"] == row["C"] > 1
        kind = "depthwise" if depthwise else f"{row['C']}->{row['O']}"
        kernel = f"{row['kernel']}x{row['kernel']}" + (f" s{row['stride']}" if row["stride"] > 1 else "")
        return {
            "layer": f"{kernel} {kind}" + (f" {row['C']}" if depthwise else ""),
            "at": str(row["H"]),
            "B": str(row["B"]),
        }

    @staticmethod
    def order(row: dict) -> tuple:
        return row["B"], row["groups"] > 1, row["kernel"], -row["H"], row["C"], row["O"], row["stride"]

    @staticmethod
    def cold(shape: dict) -> bool:
        return False


PROBLEMS = {
    "linear": Linear,
    "w4a8": Int4Linear,
    "w4a16": WeightOnly,
    "binary": BinaryProduct,
    "conv": Convolution,
}
