"""Weight-only products of qkernels, in every 4-bit format that it has: the public function, and the kernel alone."""

from __future__ import annotations

import copy

import numpy as np

from .problem import Built, Variant
from .problems import Int4Linear


def variants(threads: int, torch) -> list[Variant]:
    """``torch`` None: NumPy arrays, which leaves bfloat16 out."""
    import qkernels as qk
    from qkernels import cpu, cpu_float, registry

    tensor = torch.from_numpy if torch else lambda a: a

    def int4(p: Int4Linear, copies: int) -> list:
        scale = tensor(p.w_scale.copy())
        pack = qk.IntWeight.pack
        return [pack(tensor(p.weight(i)), scale, bits=4, group_size=p.group or None) for i in range(copies)]

    def quantized(name: str, **options):
        def make(p: Int4Linear, copies: int) -> list:
            w = getattr(qk, name).quantize(tensor(p.float_weight()), group_size=p.group or None, **options)
            return [copy.copy(w) for _ in range(copies)]  # copies share codes, not what kernels make of them

        return make

    others = {
        "power4": ("PowerWeight", {"bits": 4, "exponent": 0.5}),
        "NF4": ("CodebookWeight", {"bits": 4, "codebook": "nf4"}),
        "e2m1": ("FloatWeight", {"kind": "e2m1"}),
    }
    formats = {"int4": int4} | {k: quantized(f, **o) for k, (f, o) in others.items()}

    def built(p: Int4Linear, make, weights: list, calls: list, y) -> Built:
        """``y()`` gives the result of calls[0]."""
        dense = None if make is int4 else np.asarray(weights[0].dense())
        real = (lambda: y().float().numpy()) if torch else y
        return Built(calls, real, p.reference(w=dense))

    def activations(p: Int4Linear, dtype: str):
        return tensor(p.x).to(getattr(torch, dtype)) if torch else p.x

    def linear(make, dtype: str, compute: str | None):
        def build(p: Int4Linear, copies: int) -> Built:
            x, weights = activations(p, dtype), make(p, copies)
            calls = [lambda w=w: qk.linear(x, w, compute_dtype=compute) for w in weights]
            return built(p, make, weights, calls, lambda: calls[0]())

        return build

    def alone(make, dtype: str, compute: str | None):
        def build(p: Int4Linear, copies: int) -> Built:
            x, weights, isa = activations(p, dtype), make(p, copies), registry.current_isa()
            out = x.new_empty((p.M, p.N)) if torch else np.empty((p.M, p.N), dtype)
            kind = cpu.FLOATS[dtype]
            plans = [cpu_float.linear_plan(w, kind, dtype, None, isa, compute) for w in weights]
            args = (cpu.address(x), p.M, p.K, 0, cpu.address(out), threads)
            calls = [lambda run=plan.run, keep=x: run(*args) for plan in plans]
            return built(p, make, weights, calls, lambda: (calls[0](), out)[1])

        return build

    def variant(how, what: str, name: str, short: str, dtype: str, compute: str | None = None) -> Variant:
        make, exact = formats[name], ", float32 products" if compute else ""
        tolerance = "float32" if compute else "weight_only"
        text = f"qkernels {what} {name} {short}->{short}{exact}"
        return Variant(text, f"w4a16_{short}", how(make, dtype, compute), tolerance, 0.5)

    found = []
    for short, dtype in (("f32", "float32"), ("bf16", "bfloat16"))[: 2 if torch else 1]:
        found += [variant(alone, "kernel alone", name, short, dtype) for name in formats]
        found.append(variant(linear, "linear", "int4", short, dtype))
    return [*found, variant(alone, "kernel alone", "int4", "f32", "float32", "float32")]
