"""bitsandbytes: NF4 weights, products in the type of the activations.

Its codes are points of the normal distribution, not integers: the weight is quantized by the library itself
and the result checked against what it dequantizes to.
"""

from __future__ import annotations

import warnings

from .problem import Built, Variant
from .problems import Int4Linear


def load(threads: int, problem: str):
    warnings.filterwarnings("ignore")
    import bitsandbytes as bnb
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)

    def linear4bit(dtype):
        def build(p: Int4Linear, copies: int) -> Built:
            x = torch.from_numpy(p.x).to(dtype)
            layers, options = [], {"quant_type": "nf4", "compress_statistics": False}
            for i in range(copies):
                layer = bnb.nn.Linear4bit(p.K, p.N, bias=False, compute_dtype=dtype, **options)
                w = torch.from_numpy(p.float_weight(i))
                layer.weight = bnb.nn.Params4bit(w, requires_grad=False, blocksize=p.group or 128, **options)
                layers.append(layer.to("cpu").eval())
            w, state = layers[0].weight.data, layers[0].weight.quant_state
            dense = bnb.functional.dequantize_4bit(w, state).float().numpy().reshape(p.N, p.K)
            calls = [lambda f=layer: f(x) for layer in layers]
            return Built(calls, lambda: calls[0]().float().numpy(), p.reference(w=dense))

        return build

    f32, bf16 = torch.float32, torch.bfloat16
    variants = {
        "w4a8": [Variant("bitsandbytes Linear4bit NF4 bf16->bf16", "w4", linear4bit(bf16), "bfloat16", 0.5)],
        "w4a16": [
            Variant(
                "bitsandbytes Linear4bit NF4 bf16->bf16", "w4a16_bf16", linear4bit(bf16), "weight_only", 0.5
            ),
            Variant("bitsandbytes Linear4bit NF4 f32->f32", "w4a16_f32", linear4bit(f32), "weight_only", 0.5),
        ],
    }[problem]
    return "bitsandbytes " + bnb.__version__, variants, []
