"""qkernels itself: the bare prepacked kernel and the public functions on torch tensors (NumPy arrays
without torch)."""

from __future__ import annotations

import numpy as np

from .problem import Built, Problem, Variant


def load(threads: int):
    import qkernels as qk
    from qkernels import _native

    try:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        tensor = torch.from_numpy
    except ImportError:
        torch, tensor = None, lambda a: a
    isa = _native.best_isa()

    def weight(p: Problem, i: int) -> qk.IntWeight:
        return qk.IntWeight.pack(tensor(p.weight(i)), tensor(p.w_scale[:, None].copy()))

    def aligned(size: int) -> np.ndarray:
        a = np.zeros(size + 64, np.uint8)
        return a[-a.ctypes.data % 64 :][:size]

    def bare(p: Problem, copies: int) -> Built:
        """The kernel as the layers call it: prepacked weights, a result array that exists, addresses."""
        out = np.empty((p.M, p.N), np.int32)
        size = _native.int8_packed_bytes(p.N, p.K, False, False)
        packed = []
        for i in range(copies):
            w, block = p.weight(i), aligned(size)
            _native.int8_prepack(
                w.ctypes.data, p.N, p.K, p.w_scale.ctypes.data, 1, 0, 0, 0, block.ctypes.data, size
            )
            packed.append(_native.PackedInt8(block.ctypes.data, size, block))
        x, y = p.x_s8.ctypes.data, out.ctypes.data
        calls = [lambda f=w.matmul: f(isa, x, True, p.M, p.K, 0, y, threads) for w in packed]
        return Built(calls, lambda: (calls[0](), out * p.w_scale.astype(np.float64))[1], p.reference(p.x_s8))

    def matmul_int(p: Problem, copies: int) -> Built:
        x, weights = tensor(p.x_s8), [weight(p, i) for i in range(copies)]
        calls = [lambda w=w: qk.matmul_int(x, w) for w in weights]
        return Built(
            calls, lambda: np.asarray(calls[0]()) * p.w_scale.astype(np.float64), p.reference(p.x_s8)
        )

    def linear_requant(p: Problem, copies: int) -> Built:
        x, weights = tensor(p.x_s8), [weight(p, i) for i in range(copies)]
        reference = p.reference(p.x_s8, p.x_scale)
        out_scale = p.output_scale(reference)
        requant = qk.Requant.from_scale(p.w_scale.astype(np.float64) * p.x_scale / out_scale)
        calls = [lambda w=w: qk.linear_requant(x, w, requant) for w in weights]
        return Built(calls, lambda: np.asarray(calls[0]()) * out_scale, reference)

    def linear(dtype: str | None):
        def build(p: Problem, copies: int) -> Built:
            x, weights = tensor(p.x), [weight(p, i) for i in range(copies)]
            x = x.to(getattr(torch, dtype)) if dtype else x
            quant = qk.InputQuant()
            calls = [lambda w=w: qk.linear(x, w, input_quant=quant) for w in weights]
            real = (lambda y: y.float().numpy()) if dtype else np.asarray
            return Built(calls, lambda: real(calls[0]()), p.reference(p.x))

        return build

    variants = [
        Variant("qkernels kernel alone s8->s32", "gemm", bare, "exact"),
        Variant("qkernels matmul_int s8->s32", "gemm", matmul_int, "exact"),
        Variant("qkernels linear_requant s8->s8", "requant", linear_requant, "codes_out"),
        Variant("qkernels linear f32->f32", "linear_f32", linear(None), "dynamic"),
    ]
    if torch:
        variants.append(Variant("qkernels linear bf16->bf16", "linear_bf16", linear("bfloat16"), "dynamic"))
    return "qkernels " + qk.__version__, variants, []
