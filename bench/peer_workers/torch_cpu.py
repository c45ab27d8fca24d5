"""PyTorch itself: oneDNN, fbgemm and MKL as its operators call them."""

from __future__ import annotations

import warnings

from .problem import Built, Problem, Variant


def load(threads: int):
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    onednn, quantized, mkldnn = torch.ops.onednn, torch.ops.quantized, torch.ops.mkldnn
    tensor = torch.from_numpy

    def built(calls, reference, real=lambda y: y.float().numpy()) -> Built:
        return Built(calls, lambda: real(calls[0]()), reference)

    def float_linear(dtype, prepacked: bool):
        def build(p: Problem, copies: int) -> Built:
            x = tensor(p.x).to(dtype)
            weights = [tensor(p.float_weight(i)).to(dtype) for i in range(copies)]
            if prepacked:
                weights = [mkldnn._reorder_linear_weight(w, p.M) for w in weights]
                calls = [lambda w=w: mkldnn._linear_pointwise(x, w, None, "none", [], "") for w in weights]
            else:
                calls = [lambda w=w: torch.nn.functional.linear(x, w) for w in weights]
            return built(calls, p.reference(p.x))

        return build

    def qlinear(signed: bool, dtype):
        """Static scale, zero point 0.  Signed activations may fall to a reference kernel: the probe finds
        out."""

        def build(p: Problem, copies: int) -> Built:
            x = tensor(p.x_s8 if signed else p.x_u8)
            reference = p.reference(x.numpy(), p.x_scale)
            scale, zero = tensor(p.w_scale), torch.zeros(p.N, dtype=torch.int32)
            out_scale = 1.0 if dtype is torch.float32 else p.output_scale(reference)
            packed = [onednn.qlinear_prepack(tensor(p.weight(i)), [p.M, p.K]) for i in range(copies)]
            calls = [
                lambda w=w: onednn.qlinear_pointwise(
                    x, p.x_scale, 0, w, scale, zero, None, out_scale, 0, dtype, "none", [], ""
                )
                for w in packed
            ]
            return built(calls, reference, lambda y: y.float().numpy() * out_scale)

        return build

    def int_mm(p: Problem, copies: int) -> Built:
        x = tensor(p.x_s8)
        weights = [tensor(p.weight(i)).t() for i in range(copies)]
        return built(
            [lambda w=w: torch._int_mm(x, w) for w in weights],
            p.reference(p.x_s8),
            lambda y: y.double().numpy() * p.w_scale,
        )

    def quantized_linear(engine: str, dynamic: bool):
        """``torch.ao`` modules: u8 in and out with a static scale, or float32 with dynamic activations."""

        def build(p: Problem, copies: int) -> Built:
            torch.backends.quantized.engine = engine
            scale, zero = tensor(p.w_scale).double(), torch.zeros(p.N, dtype=torch.int64)
            packed = [
                quantized.linear_prepack(
                    torch._make_per_channel_quantized_tensor(tensor(p.weight(i)), scale, zero, 0), None
                )
                for i in range(copies)
            ]
            if dynamic:
                x = tensor(p.x)
                return built([lambda w=w: quantized.linear_dynamic(x, w) for w in packed], p.reference(p.x))
            x = torch._make_per_tensor_quantized_tensor(tensor(p.x_u8), p.x_scale, 128)
            reference = p.reference(p.x_u8.astype("int16") - 128, p.x_scale)
            out_scale = p.output_scale(reference)
            calls = [lambda w=w: quantized.linear(x, w, out_scale, 128) for w in packed]
            return built(calls, reference, lambda y: y.dequantize().numpy())

        return build

    f32, bf16 = torch.float32, torch.bfloat16
    variants = [
        Variant("torch onednn.qlinear u8->f32", "gemm", qlinear(False, f32), "exact"),
        Variant("torch onednn.qlinear s8->f32", "gemm", qlinear(True, f32), "exact"),
        Variant("torch._int_mm s8->s32", "gemm", int_mm, "exact"),
        Variant("torch onednn.qlinear u8->s8", "requant", qlinear(False, torch.int8), "codes_out"),
        Variant(
            "torch quantized.linear fbgemm u8->u8", "requant", quantized_linear("fbgemm", False), "codes_out"
        ),
        Variant(
            "torch quantized.linear onednn u8->u8", "requant", quantized_linear("onednn", False), "codes_out"
        ),
        Variant(
            "torch quantized.linear_dynamic fbgemm", "linear_f32", quantized_linear("fbgemm", True), "dynamic"
        ),
        Variant(
            "torch quantized.linear_dynamic onednn", "linear_f32", quantized_linear("onednn", True), "dynamic"
        ),
        Variant("torch F.linear f32", "float32", float_linear(f32, False), "float32", 4),
        Variant("torch mkldnn prepacked f32", "float32", float_linear(f32, True), "float32", 4),
        Variant("torch F.linear bf16", "bfloat16", float_linear(bf16, False), "bfloat16", 2),
        Variant("torch mkldnn prepacked bf16", "bfloat16", float_linear(bf16, True), "bfloat16", 2),
    ]
    return "torch " + torch.__version__, variants, []
