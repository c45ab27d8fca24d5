"""qkernels itself: the public functions, and the kernel alone.

The public functions allocate their result in each call, like those of torch and zentorch; on torch tensors,
or NumPy arrays without torch.  The kernel alone has weights, input and result bound before, as the rows of
LiteRT, onnxruntime and OpenVINO do.
"""

from __future__ import annotations

import numpy as np

from . import qkernels_float
from .problem import Built, Variant
from .problems import BinaryProduct, Convolution, Int4Linear, Linear


def load(threads: int, problem: str):
    import qkernels as qk
    from qkernels import cpu, registry

    try:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        tensor = torch.from_numpy
    except ImportError:
        torch, tensor = None, lambda a: a
    isa = registry.current_isa()
    number = registry.ISAS[isa][0]

    def weights(p: Linear, copies: int) -> list[qk.IntWeight]:
        scale = tensor(p.w_scale[:, None].copy())
        return [qk.IntWeight.pack(tensor(p.weight(i)), scale) for i in range(copies)]

    def packed(p: Linear, copies: int) -> list:
        return [cpu.packed(qk.IntWeight.pack(p.weight(i), p.w_scale[:, None])) for i in range(copies)]

    def requant(p: Linear) -> tuple[np.ndarray, float, qk.Requant]:
        reference = p.reference(p.x_s8, p.x_scale)
        out_scale = p.output_scale(reference)
        return (
            reference,
            out_scale,
            qk.Requant.from_scale(p.w_scale.astype(np.float64) * p.x_scale / out_scale),
        )

    def gemm_alone(p: Linear, copies: int) -> Built:
        out = np.empty((p.M, p.N), np.int32)
        args = (number, p.x_s8.ctypes.data, True, p.M, p.K, 0, out.ctypes.data, threads)
        calls = [lambda run=w.matmul: run(*args) for w in packed(p, copies)]
        return Built(calls, lambda: (calls[0](), out * p.w_scale.astype(np.float64))[1], p.reference(p.x_s8))

    def gemm(p: Linear, copies: int) -> Built:
        x = tensor(p.x_s8)
        calls = [lambda w=w: qk.matmul_int(x, w) for w in weights(p, copies)]
        return Built(
            calls, lambda: np.asarray(calls[0]()) * p.w_scale.astype(np.float64), p.reference(p.x_s8)
        )

    def requant_alone(p: Linear, copies: int) -> Built:
        reference, out_scale, r = requant(p)
        out, arrays = np.empty((p.M, p.N), np.int8), cpu.requant_arrays(r, p.N, -128, 127)
        args = (number, p.x_s8.ctypes.data, True, p.M, p.K, 0, arrays, 0, out.ctypes.data, threads)
        calls = [lambda run=w.matmul_requant, keep=r: run(*args) for w in packed(p, copies)]
        return Built(calls, lambda: (calls[0](), out * out_scale)[1], reference)

    def requantized(p: Linear, copies: int) -> Built:
        x, (reference, out_scale, r) = tensor(p.x_s8), requant(p)
        calls = [lambda w=w: qk.linear_requant(x, w, r) for w in weights(p, copies)]
        return Built(calls, lambda: np.asarray(calls[0]()) * out_scale, reference)

    def linear_alone(p: Linear, copies: int) -> Built:
        out, kind = np.empty((p.M, p.N), np.float32), cpu.FLOATS["float32"]
        plans = [cpu.linear_plan(w, qk.InputQuant(), kind, kind, None, isa) for w in packed(p, copies)]
        args = (p.x.ctypes.data, p.M, p.K, 0, out.ctypes.data, threads)
        calls = [lambda run=plan.run: run(*args) for plan in plans]
        return Built(calls, lambda: (calls[0](), out)[1], p.reference(p.x))

    def linear(dtype: str | None):
        def build(p: Linear, copies: int) -> Built:
            x = tensor(p.x)
            x = x.to(getattr(torch, dtype)) if dtype else x
            quant = qk.InputQuant()
            calls = [lambda w=w: qk.linear(x, w, input_quant=quant) for w in weights(p, copies)]
            real = (lambda y: y.float().numpy()) if dtype else np.asarray
            return Built(calls, lambda: real(calls[0]()), p.reference(p.x))

        return build

    def int4(p: Int4Linear, i: int, wrap) -> qk.IntWeight:
        scale = wrap(p.w_scale.copy())
        return qk.IntWeight.pack(wrap(p.weight(i)), scale, bits=4, group_size=p.group or None)

    def int4_alone(p: Int4Linear, copies: int) -> Built:
        out, kind = np.empty((p.M, p.N), np.float32), cpu.FLOATS["float32"]
        blocks = [cpu.packed(int4(p, i, lambda a: a)) for i in range(copies)]
        plans = [cpu.linear_plan(w, qk.InputQuant(), kind, kind, None, isa) for w in blocks]
        args = (p.x.ctypes.data, p.M, p.K, 0, out.ctypes.data, threads)
        calls = [lambda run=plan.run: run(*args) for plan in plans]
        return Built(calls, lambda: (calls[0](), out)[1], p.reference())

    def int4_linear(p: Int4Linear, copies: int) -> Built:
        x, quant = tensor(p.x), qk.InputQuant()
        weights = [int4(p, i, tensor) for i in range(copies)]
        calls = [lambda w=w: qk.linear(x, w, input_quant=quant) for w in weights]
        return Built(calls, lambda: np.asarray(calls[0]()), p.reference())

    def int8_of_int4(p: Int4Linear, copies: int) -> Built:
        """The same layer with the codes held as int8 and one scale a channel: what four bits save."""
        out, kind = np.empty((p.M, p.N), np.float32), cpu.FLOATS["float32"]
        scale = p.w_scale[:, :1].copy()
        blocks = [cpu.packed(qk.IntWeight.pack(p.weight(i), scale)) for i in range(copies)]
        plans = [cpu.linear_plan(w, qk.InputQuant(), kind, kind, None, isa) for w in blocks]
        args = (p.x.ctypes.data, p.M, p.K, 0, out.ctypes.data, threads)
        calls = [lambda run=plan.run: run(*args) for plan in plans]
        w = p.weight()[p.columns].astype(np.float64) * scale[p.columns]
        reference = p.x[p.rows].astype(np.float64) @ w.T
        return Built(calls, lambda: (calls[0](), out)[1], reference)

    def binary_weights(p: BinaryProduct, copies: int, wrap) -> list:
        one = np.ones(p.N, np.float32)
        return [qk.BinaryWeight(wrap(p.weight(i)), wrap(one), (p.N, p.K)) for i in range(copies)]

    def binary_alone(p: BinaryProduct, copies: int) -> Built:
        from qkernels import cpu_binary

        out, (plan, keep) = np.empty((p.M, p.N), np.int32), cpu_binary.plan("int32", p.N)
        blocks = [cpu_binary.packed(w) for w in binary_weights(p, copies, lambda a: a)]
        args = (number, p.x_bits.ctypes.data, p.K // 8, 0, 0, p.M, 0, 0, plan, out.ctypes.data, threads)
        calls = [lambda run=w.run_bits, keep=keep: run(*args) for w in blocks]
        return Built(calls, lambda: (calls[0](), out)[1], p.reference())

    def binary(p: BinaryProduct, copies: int) -> Built:
        x = tensor(p.x_bits)
        calls = [lambda w=w: qk.matmul_binary(x, w) for w in binary_weights(p, copies, tensor)]
        return Built(calls, lambda: np.asarray(calls[0]()), p.reference())

    def signs_alone(p: BinaryProduct, copies: int) -> Built:
        """The same product of int8 codes +1 and -1."""
        x, out = p.signs(p.x_bits), np.empty((p.M, p.N), np.int32)
        args = (number, x.ctypes.data, True, p.M, p.K, 0, out.ctypes.data, threads)
        scale = np.ones((p.N, 1), np.float32)
        blocks = [cpu.packed(qk.IntWeight.pack(p.signs(p.weight(i)), scale)) for i in range(copies)]
        calls = [lambda run=w.matmul, keep=x: run(*args) for w in blocks]
        return Built(calls, lambda: (calls[0](), out)[1], p.reference())

    def conv(signed: bool, rounding: str, alone: bool):
        """NCHW in the order of channels_last; alone: the plan that a public call leaves with its weight."""

        def build(p: Convolution, copies: int) -> Built:
            wrap = (lambda a: a) if alone else tensor
            zero, codes, name = (0, p.x_s8, "int8") if signed else (128, p.x_u8, "uint8")
            x, scale = wrap(codes.transpose(0, 3, 1, 2)), wrap(p.w_scale[:, None].copy())
            weights = [qk.IntWeight.pack(wrap(p.weight(i)), scale) for i in range(copies)]
            r = qk.Requant.from_scale(p.w_scale.astype(np.float64) * p.x_scale / p.y_scale, zero, rounding)
            sizes = {"stride": p.stride, "padding": p.pad, "groups": p.groups, "out_dtype": name}
            calls = [lambda w=w: qk.conv2d_requant(x, w, r, None, zero, **sizes) for w in weights]
            out = None
            if alone:
                out = np.empty((p.B, p.out, p.out, p.O), name)
                for call in calls:
                    call()
                plans = [next(iter(w._conv_plans.values())) for w in weights]
                args = (x.ctypes.data, 0, 0, out.ctypes.data, threads)
                calls = [lambda run=plan.run, keep=(x, weights, r): run(*args) for plan in plans]

            def result():
                y = calls[0]()
                y = out if alone else np.asarray(y).transpose(0, 2, 3, 1)
                return (y.astype(np.float64) - zero) * p.y_scale

            return Built(calls, result, p.reference())

        return build

    linear_variants = [
        Variant("qkernels kernel alone s8->s32", "gemm", gemm_alone, "exact"),
        Variant("qkernels matmul_int s8->s32", "gemm", gemm, "exact"),
        Variant("qkernels kernel alone s8->s8", "requant", requant_alone, "codes_out"),
        Variant("qkernels linear_requant s8->s8", "requant", requantized, "codes_out"),
        Variant("qkernels kernel alone f32->f32", "linear_f32", linear_alone, "dynamic"),
        Variant("qkernels linear f32->f32", "linear_f32", linear(None), "dynamic"),
    ]
    if torch:
        linear_variants.append(
            Variant("qkernels linear bf16->bf16", "linear_bf16", linear("bfloat16"), "dynamic")
        )
    variants = {
        "linear": linear_variants,
        "w4a16": [
            *qkernels_float.variants(threads, torch),
            Variant("qkernels kernel alone, 8-bit activations", "w4a8", int4_alone, "dynamic", 0.5),
        ],
        "w4a8": [
            Variant("qkernels kernel alone", "w4", int4_alone, "dynamic", 0.5),
            Variant("qkernels linear", "w4", int4_linear, "dynamic", 0.5),
            Variant("qkernels int8 kernel alone", "int8", int8_of_int4, "dynamic"),
        ],
        "binary": [
            Variant("qkernels kernel alone", "binary", binary_alone, "exact", 0.125),
            Variant("qkernels matmul_binary", "binary", binary, "exact", 0.125),
            Variant("qkernels int8 kernel alone", "int8", signs_alone, "exact"),
        ],
        "conv": [
            Variant("qkernels kernel alone u8->u8", "conv", conv(False, "float", True), "codes_out"),
            Variant("qkernels kernel alone s8->s8", "conv", conv(True, "float", True), "codes_out"),
            Variant(
                "qkernels kernel alone s8->s8 fixed point", "conv", conv(True, "single", True), "codes_out"
            ),
            Variant("qkernels conv2d_requant u8->u8", "conv", conv(False, "float", False), "codes_out"),
        ],
    }[problem]
    return "qkernels " + qk.__version__, variants, []
