"""NumKong: Hamming distances, and products of 0 and 1, on packed bits.

Its kernels run on one thread; on two, halves of the rows go to two Python threads, as its manual shows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from .problem import Built, Variant
from .problems import BinaryProduct


def load(threads: int, problem: str):
    import numkong as nk

    pool = ThreadPoolExecutor(threads)

    def call(f, x, w, out, rows: int):
        if threads == 1 or rows < threads:
            return lambda: f(x, w, out=out)
        cuts = [rows * i // threads for i in range(threads + 1)]

        def halves():
            parts = pairwise(cuts[1:])
            jobs = [pool.submit(f, x, w, out=out, start_row=a, end_row=b) for a, b in parts]
            f(x, w, out=out, start_row=0, end_row=cuts[1])
            for job in jobs:
                job.result()

        return halves

    def products(pack, multiply, signs):
        def build(p: BinaryProduct, copies: int) -> Built:
            out = nk.zeros((p.M, p.N), dtype="uint32")
            packed = [pack(p.weight(i), dtype="uint1") for i in range(copies)]
            calls = [call(multiply, p.x_bits, w, out, p.M) for w in packed]
            return Built(
                calls, lambda: (calls[0](), signs(p, np.asarray(out).astype(np.float64)))[1], p.reference()
            )

        return build

    def of_distances(p: BinaryProduct, y):
        return p.K - 2 * y

    def of_ands(p: BinaryProduct, y):
        """The products of signs from those of bits; a caller would have to add this, it is not timed."""
        ones = [np.bitwise_count(b).sum(1, dtype=np.int64) for b in (p.x_bits, p.weight())]
        return p.K - 2 * ones[0][:, None] - 2 * ones[1][None] + 4 * y

    hamming = products(nk.hammings_pack, nk.hammings_packed, of_distances)
    dots = products(nk.dots_pack, nk.dots_packed, of_ands)
    variants = [
        Variant("numkong hammings_packed", "binary", hamming, "exact", 0.125),
        Variant("numkong dots_packed of bits", "binary", dots, "exact", 0.125),
    ]
    return "numkong " + nk.__version__, variants, []
