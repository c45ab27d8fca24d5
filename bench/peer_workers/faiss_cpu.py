"""faiss: all Hamming distances between two sets of packed bits; +1 and -1 differ where the bits do."""

from __future__ import annotations

import numpy as np

from .problem import Built, Variant
from .problems import BinaryProduct


def load(threads: int, problem: str):
    import faiss

    faiss.omp_set_num_threads(threads)

    def hammings(p: BinaryProduct, copies: int) -> Built:
        weights, out = [p.weight(i) for i in range(copies)], np.zeros((p.M, p.N), np.int32)
        x, y, pointers = faiss.swig_ptr(p.x_bits), faiss.swig_ptr(out), [faiss.swig_ptr(w) for w in weights]
        calls = [lambda w=w, keep=weights: faiss.hammings(x, w, p.M, p.N, p.K // 8, y) for w in pointers]
        return Built(calls, lambda: (calls[0](), p.K - 2.0 * out)[1], p.reference())

    variants = [Variant("faiss hammings", "binary", hammings, "exact", 0.125)]
    return "faiss-cpu " + faiss.__version__, variants, []
