"""PyTorch itself: oneDNN, fbgemm and MKL as its operators call them."""

from __future__ import annotations

import warnings

import numpy as np

from .problem import Built, Variant
from .problems import BinaryProduct, Convolution, Int4Linear, Linear


def load(threads: int, problem: str):
    warnings.filterwarnings("ignore")
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    onednn, quantized, mkldnn = torch.ops.onednn, torch.ops.quantized, torch.ops.mkldnn
    tensor = torch.from_numpy

    def built(calls, reference, real=lambda y: y.float().numpy()) -> Built:
        return Built(calls, lambda: real(calls[0]()), reference)

    def float_linear(dtype, prepacked: bool):
        def build(p: Linear | Int4Linear, copies: int) -> Built:
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

        def build(p: Linear, copies: int) -> Built:
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

    def int_mm(p: Linear, copies: int) -> Built:
        x = tensor(p.x_s8)
        weights = [tensor(p.weight(i)).t() for i in range(copies)]
        return built(
            [lambda w=w: torch._int_mm(x, w) for w in weights],
            p.reference(p.x_s8),
            lambda y: y.double().numpy() * p.w_scale,
        )

    def quantized_linear(engine: str, dynamic: bool):
        """``torch.ao`` modules: u8 in and out with a static scale, or float32 with dynamic activations."""

        def build(p: Linear, copies: int) -> Built:
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

    def prepacked(weight, x, reference):
        """float32 with the weight in oneDNN's own layout: the honest baseline."""
        w = mkldnn._reorder_linear_weight(tensor(weight), len(x))
        x = tensor(x)
        return built([lambda: mkldnn._linear_pointwise(x, w, None, "none", [], "")], reference)

    def int4_pack(dtype):
        """Weight-only, products in ``dtype``; without groups: groups of 128 of one scale.  float32 activations may
        get a reference kernel."""

        def build(p: Int4Linear, copies: int) -> Built:
            group, x = p.group or 128, tensor(p.x).to(dtype)
            pack, mm = (
                torch.ops.aten._convert_weight_to_int4pack_for_cpu,
                torch.ops.aten._weight_int4pack_mm_for_cpu,
            )
            scale_zero = torch.zeros(p.K // group, p.N, 2, dtype=dtype)
            scale_zero[..., 0] = tensor(p.scales(group).T.copy())
            packed = [
                (pack(tensor((p.weight(i) + 8).astype(np.int32)), 1), scale_zero.clone())
                for i in range(copies)
            ]
            return built([lambda w=w, s=s: mm(x, w, group, s) for w, s in packed], p.reference())

        return build

    def dynamic_int4(p: Int4Linear, copies: int) -> Built:
        """8-bit activations a row; on x86 a reference kernel, which the probe finds out."""
        group, x = p.group or p.K, tensor(p.x)
        scale = tensor(p.w_scale).to(torch.bfloat16) if p.group else tensor(p.w_scale)
        pack, mm = torch.ops.aten._dyn_quant_pack_4bit_weight, torch.ops.aten._dyn_quant_matmul_4bit
        packed = [pack(tensor(p.nibbles(i)), scale, None, group, p.K, p.N) for i in range(copies)]
        return built([lambda w=w: mm(x, w, group, p.K, p.N) for w in packed], p.reference())

    def signs_float(p: BinaryProduct, copies: int) -> Built:
        w, x = (BinaryProduct.signs(b).astype(np.float32) for b in (p.weight(), p.x_bits))
        return prepacked(w, x, p.reference())

    def float_conv(p: Convolution, copies: int) -> Built:
        """Channels last, the weight in oneDNN's layout."""
        last = torch.channels_last
        x = tensor(p.x_s8.transpose(0, 3, 1, 2).astype(np.float32) * np.float32(p.x_scale)).to(
            memory_format=last
        )
        w = tensor(p.weight().astype(np.float32) * p.w_scale[:, None, None, None])
        sizes = ([p.pad] * 2, [p.stride] * 2, [1, 1], p.groups)
        w = mkldnn._reorder_convolution_weight(w, *sizes, list(x.shape))
        calls = [lambda: mkldnn._convolution_pointwise(x, w, None, *sizes, "none", [], "")]
        scale = p.w_scale.astype(np.float64) * p.x_scale
        return built(calls, p.accumulators() * scale, lambda y: y.permute(0, 2, 3, 1).numpy())

    def quantized_conv(engine: str):
        """``torch.ao``'s u8 convolution, channels last."""

        def build(p: Convolution, copies: int) -> Built:
            torch.backends.quantized.engine = engine
            x = torch._make_per_tensor_quantized_tensor(tensor(p.x_u8).permute(0, 3, 1, 2), p.x_scale, 128)
            scale, zero = tensor(p.w_scale).double(), torch.zeros(p.O, dtype=torch.int64)
            sizes = ([p.stride] * 2, [p.pad] * 2, [1, 1], p.groups)
            packed = [
                quantized.conv2d_prepack(
                    torch._make_per_channel_quantized_tensor(tensor(p.weight(i)), scale, zero, 0),
                    None,
                    *sizes,
                )
                for i in range(copies)
            ]
            calls = [lambda w=w: quantized.conv2d(x, w, p.y_scale, 128) for w in packed]
            return built(calls, p.reference(), lambda y: y.dequantize().permute(0, 2, 3, 1).numpy())

        return build

    def onednn_conv(p: Convolution, copies: int) -> Built:
        """What torch.compile makes of an exported int8 convolution."""
        x = tensor(p.x_u8).permute(0, 3, 1, 2)
        scale, zero = tensor(p.w_scale), torch.zeros(p.O, dtype=torch.int32)
        sizes = ([p.stride] * 2, [p.pad] * 2, [1, 1], p.groups)
        packed = [
            onednn.qconv_prepack(tensor(p.weight(i)), scale, p.x_scale, 128, *sizes, list(x.shape))
            for i in range(copies)
        ]
        calls = [
            lambda w=w: onednn.qconv_pointwise(
                x, p.x_scale, 128, w, scale, zero, None, *sizes, p.y_scale, 128, torch.uint8, "none", [], ""
            )
            for w in packed
        ]
        real = lambda y: (y.permute(0, 2, 3, 1).double().numpy() - 128) * p.y_scale  # noqa: E731
        return built(calls, p.reference(), real)

    f32, bf16 = torch.float32, torch.bfloat16
    variants = {
        "linear": [
            Variant("torch onednn.qlinear u8->f32", "gemm", qlinear(False, f32), "exact"),
            Variant("torch onednn.qlinear s8->f32", "gemm", qlinear(True, f32), "exact"),
            Variant("torch._int_mm s8->s32", "gemm", int_mm, "exact"),
            Variant("torch onednn.qlinear u8->s8", "requant", qlinear(False, torch.int8), "codes_out"),
            Variant(
                "torch quantized.linear fbgemm u8->u8",
                "requant",
                quantized_linear("fbgemm", False),
                "codes_out",
            ),
            Variant(
                "torch quantized.linear onednn u8->u8",
                "requant",
                quantized_linear("onednn", False),
                "codes_out",
            ),
            Variant(
                "torch quantized.linear_dynamic fbgemm",
                "linear_f32",
                quantized_linear("fbgemm", True),
                "dynamic",
            ),
            Variant(
                "torch quantized.linear_dynamic onednn",
                "linear_f32",
                quantized_linear("onednn", True),
                "dynamic",
            ),
            Variant("torch F.linear f32", "float32", float_linear(f32, False), "float32", 4),
            Variant("torch mkldnn prepacked f32", "float32", float_linear(f32, True), "float32", 4),
            Variant("torch F.linear bf16", "bfloat16", float_linear(bf16, False), "bfloat16", 2),
            Variant("torch mkldnn prepacked bf16", "bfloat16", float_linear(bf16, True), "bfloat16", 2),
        ],
        "w4a8": [
            Variant("torch _weight_int4pack_mm bf16->bf16", "w4", int4_pack(bf16), "bfloat16", 0.5),
            Variant("torch _dyn_quant_matmul_4bit", "w4", dynamic_int4, "dynamic", 0.5),
            Variant(
                "torch mkldnn prepacked f32",
                "float32",
                lambda p, _: prepacked(p.float_weight(), p.x, p.reference()),
                "float32",
                4,
            ),
        ],
        "w4a16": [
            Variant(
                "torch _weight_int4pack_mm bf16->bf16", "w4a16_bf16", int4_pack(bf16), "weight_only", 0.5
            ),
            Variant("torch _weight_int4pack_mm f32->f32", "w4a16_f32", int4_pack(f32), "weight_only", 0.5),
            Variant("torch F.linear bf16", "dense_bf16", float_linear(bf16, False), "weight_only", 2),
            Variant("torch mkldnn prepacked bf16", "dense_bf16", float_linear(bf16, True), "weight_only", 2),
            Variant("torch mkldnn prepacked f32", "float32", float_linear(f32, True), "float32", 4),
        ],
        "binary": [Variant("torch mkldnn prepacked f32", "float32", signs_float, "float32", 32)],
        "conv": [
            Variant("torch quantized.conv2d fbgemm u8->u8", "conv", quantized_conv("fbgemm"), "codes_out"),
            Variant("torch quantized.conv2d onednn u8->u8", "conv", quantized_conv("onednn"), "codes_out"),
            Variant("torch onednn.qconv u8->u8", "conv", onednn_conv, "codes_out"),
            Variant("torch mkldnn prepacked f32", "float32", float_conv, "float32", 4),
        ],
    }[problem]
    return "torch " + torch.__version__, variants, []
