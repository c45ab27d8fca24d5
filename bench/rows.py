"""What a bench row is: a kernel of the registry on one shape, its data and its bare calls."""

import functools
import math
from dataclasses import dataclass
from functools import partial

import numpy as np

import qkernels as qk
from qkernels import cpu, ops, registry
from qkernels.latency import roofline
from qkernels.memory import aligned

# K x N of MiniLM, BERT-base and LLaMA-7B: K inputs, N outputs
SHAPES = [(384, 384), (384, 1536), (1536, 384), (768, 3072), (4096, 4096), (4096, 11008)]
WIDTHS = [384, 1536, 4096]
MS = [1, 16, 128, 512]
QUICK_SHAPES, QUICK_WIDTHS, QUICK_MS = [(384, 1536), (4096, 4096)], [1536], [1, 128]
SMALL, SMALL_MS = (
    384,
    [1, 16],
)  # for kernels other than the fastest: they are here to be seen, not to be tuned
MAX_COPIES = 4096


@dataclass(frozen=True)
class Row:
    """One row. ``mode`` "warm" repeats one weight, "cold" goes through more weights than any cache holds.

    ``variant`` says what differs from the bench file's usual call. ``weight_only``: float activations, whose floor is
    made of float products; ``exact`` where those are float32 on every ISA.
    """

    kernel: registry.Kernel
    M: int
    K: int
    N: int
    mode: str = "warm"
    threads: int = 1
    variant: str = ""
    weight_only: bool = False
    exact: bool = False

    def __str__(self):
        name = f"{self.kernel} {self.variant}" if self.variant else str(self.kernel)
        n = f" N={self.N}" if self.kernel.format else ""
        return f"{name}  M={self.M} K={self.K}{n} {self.mode} {self.threads}t"

    @property
    def id(self):
        return "-".join(str(self).split())

    @property
    def macs(self):
        return self.M * self.K * self.N if self.kernel.format else 0


@dataclass(frozen=True)
class Case:
    """A row ready to be timed.

    ``calls`` to go through; ``nbytes`` that a call must move: those of the compressed weight (activations
    stay in a cache), or what an elementwise op reads and writes; ``error()`` after calls[0]; ``keep`` the
    arrays whose addresses the calls have.
    """

    calls: list
    nbytes: int
    error: object
    keep: tuple = ()


def is_fastest(kernel):
    """The kernel that calls get on this machine."""
    kind = kernel.format, kernel.core
    same = [k for k in registry.kernels(kernel.op) if (k.format, k.core) == kind and k.backend == "cpu"]
    allowed = [k for k in same if registry.RANK[k.isa] <= registry.RANK[registry.current_isa()]]
    return bool(allowed) and kernel is allowed[0]


def is_here(kernel):
    """Other formats and weight-only products have files of their own: bench_binary.py, bench_narrow.py and
    bench_linear_float.py."""
    return kernel.format in (None, "IntWeight") and kernel.core != "gemm_float"


def thread_counts():
    return sorted({1, min(2, roofline.usable_cores())})


def gemm_rows(op, quick, variants=()):
    """Rows of an op with a weight: the fastest kernel everywhere, others and variants on a small shape."""
    fastest = [k for k in registry.kernels(op) if is_fastest(k) and is_here(k)]
    rows = [
        Row(kernel, m, k, n, mode, threads)
        for k, n in (QUICK_SHAPES if quick else SHAPES)
        for kernel in fastest
        for m in (QUICK_MS if quick else MS)
        for mode in ("warm", "cold")
        for threads in thread_counts()
    ]
    rows += [Row(kernel, m, *SHAPES[1], variant=v) for kernel in fastest for v in variants for m in (1, 128)]
    return rows + small_rows(op)


def elementwise_rows(op, quick, variants=()):
    """Rows of an op without a weight, on the widths that layers have."""
    fastest = [k for k in registry.kernels(op) if is_fastest(k)]
    rows = [
        Row(kernel, m, k, k, threads=threads)
        for kernel in fastest
        for k in (QUICK_WIDTHS if quick else WIDTHS)
        for m in (QUICK_MS if quick else MS)
        for threads in thread_counts()
    ]
    rows += [Row(kernel, m, 1536, 1536, variant=v) for kernel in fastest for v in variants for m in (1, 128)]
    return rows + small_rows(op)


def small_rows(op):
    others = [k for k in registry.kernels(op) if not is_fastest(k) and is_here(k)]
    return [Row(k, m, SMALL, SMALL) for k in others for m in SMALL_MS]


# ---- data ------------------------------------------------------------------------------------------------


def random(row, kind="normal"):
    """Activations (M, K) of a row: "normal" float32, or codes of an integer dtype over its full range."""
    rng = np.random.default_rng((row.M, row.K, row.N))
    if kind == "normal":
        return rng.standard_normal((row.M, row.K), np.float32)
    info = np.iinfo(kind)
    return rng.integers(info.min, info.max, (row.M, row.K), kind, endpoint=True)


class Weights:
    """The weight of one shape and, where rows are cold, prepacked copies that exceed the last-level cache."""

    def __init__(self, k, n):
        rng = np.random.default_rng((k, n))
        codes = rng.integers(-127, 127, (n, k), np.int8, endpoint=True)
        scale = rng.uniform(0.005, 0.015, (n, 1)).astype(np.float32)
        self.weight = qk.IntWeight.pack(codes, scale)

    @functools.cached_property
    def copies(self):
        count = math.ceil(roofline.beyond_cache_bytes() / self.weight.nbytes)
        block = cpu.packed_tensor(self.weight)
        return [copy_of(block) for _ in range(min(max(count, 3), MAX_COPIES))]

    def packed(self, row):
        return self.copies if row.mode == "cold" else [cpu.packed(self.weight)]


def copy_of(block):
    copy = aligned(block.nbytes)
    copy[:] = block
    return qk._native.PackedWeight(copy.ctypes.data, copy.nbytes, copy)


_kept = functools.lru_cache(maxsize=1)(Weights)  # rows come ordered by shape; copies take much memory


def weights(row):
    return _kept(row.K, row.N)


# ---- calls and errors ------------------------------------------------------------------------------------


def registry_call(row, *args, **options):
    """The call of a kernel without a bare call here: arguments checked once, then the registry's entry."""
    with registry.force_isa(row.kernel.isa):
        request = getattr(ops, f"{row.kernel.op}_request")(*args, backend=row.kernel.backend, **options)
    request.isa = row.kernel.isa
    return partial(row.kernel.run, request)


def relative_error(y, x, w):
    """Frobenius error of y against x @ w.T in float64, relative; at the first 32 rows and 128 columns."""
    return difference(y[:32, :128], x[:32].astype(np.float64) @ w[:128].astype(np.float64).T)


def difference(y, expected):
    """Frobenius norm of y - expected, relative to that of expected."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))
