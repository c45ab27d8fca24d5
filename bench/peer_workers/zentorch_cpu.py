"""zentorch (AMD's plugin for PyTorch, on ZenDNN and AOCL).
 It reorders weights in place and caches them by address: every weight here is a fresh tensor of its own,
the reference is computed from other memory, and ``drop`` empties the cache between cases, when no case is
left that relies on it.
"""

from __future__ import annotations

import warnings

from .problem import Built, Variant
from .problems import Int4Linear, Linear


def drop() -> None:
    import torch

    torch.ops.zentorch.zentorch_clear_weight_cache()


def load(threads: int, problem: str):
    warnings.filterwarnings("ignore")
    import torch
    import zentorch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    ops, tensor = torch.ops.zentorch, torch.from_numpy

    def built(calls, reference) -> Built:
        return Built(calls, lambda: calls[0]().float().numpy(), reference)

    def float_linear(dtype):
        def build(p: Linear | Int4Linear, copies: int) -> Built:
            x = tensor(p.x).to(dtype)
            weights = [tensor(p.float_weight(i)).to(dtype) for i in range(copies)]
            return built([lambda w=w: ops.zentorch_linear_unary(x, w) for w in weights], p.reference(p.x))

        return build

    def qlinear(signed: bool):
        def build(p: Linear, copies: int) -> Built:
            x = tensor(p.x_s8 if signed else p.x_u8)
            x_scale, x_zero = torch.tensor([p.x_scale]), torch.tensor([0], dtype=torch.int32)
            w_scale, w_zero = tensor(p.w_scale), torch.zeros(p.N, dtype=torch.int32)
            weights = [tensor(p.weight(i)) for i in range(copies)]
            calls = [
                lambda w=w: ops.zentorch_qlinear(
                    x, w, x_scale, x_zero, w_scale, w_zero, None, None, None, torch.float32
                )
                for w in weights
            ]
            return built(calls, p.reference(x.numpy(), p.x_scale))

        return build

    def dynamic(dtype):
        def build(p: Linear, copies: int) -> Built:
            x, w_scale = tensor(p.x).to(dtype), tensor(p.w_scale)
            weights = [tensor(p.weight(i)) for i in range(copies)]
            calls = [lambda w=w: ops.zentorch_dynamic_qlinear(x, w, w_scale, None) for w in weights]
            return built(calls, p.reference(p.x))

        return build

    def weight_only(p: Int4Linear, copies: int) -> Built:
        """Products in bfloat16.  Some group sizes give NaN on some machines: the check of each cell refuses them."""
        x, scale = tensor(p.x).to(torch.bfloat16), tensor(p.w_scale.T.copy()).to(torch.bfloat16)
        weights = [ops.zentorch_woq_repack_weight(tensor(p.weight(i))).t() for i in range(copies)]
        return built([lambda w=w: ops.zentorch_woq_linear(x, w, scale, None) for w in weights], p.reference())

    f32, bf16 = torch.float32, torch.bfloat16
    variants = {
        "linear": [
            Variant("zentorch qlinear u8->f32", "gemm", qlinear(False), "exact"),
            Variant("zentorch qlinear s8->f32", "gemm", qlinear(True), "exact"),
            Variant("zentorch dynamic_qlinear f32->f32", "linear_f32", dynamic(f32), "dynamic"),
            Variant("zentorch dynamic_qlinear bf16->bf16", "linear_bf16", dynamic(bf16), "dynamic"),
            Variant("zentorch linear f32", "float32", float_linear(f32), "float32", 4),
            Variant("zentorch linear bf16", "bfloat16", float_linear(bf16), "bfloat16", 2),
        ],
        "w4a8": [Variant("zentorch woq_linear bf16->bf16", "w4", weight_only, "bfloat16", 0.5)],
        "w4a16": [
            Variant("zentorch woq_linear bf16->bf16", "w4a16_bf16", weight_only, "weight_only", 0.5),
            Variant("zentorch linear bf16", "dense_bf16", float_linear(bf16), "weight_only", 2),
        ],
    }[problem]
    return "zentorch " + zentorch.__version__.split("+")[0], variants, []
