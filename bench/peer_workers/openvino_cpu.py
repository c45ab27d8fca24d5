"""OpenVINO's CPU plugin.
 The cold cases are one model of many layers, so the cost of an inference request is shared between them; a
warm case is a model of one layer and contains it (the note says how much that is).
"""

from __future__ import annotations

import numpy as np

from .problem import Built, Variant, sample_warm
from .problems import Convolution, Int4Linear, Linear


def load(threads: int, problem: str):
    import openvino as ov
    import openvino.opset15 as op

    core = ov.Core()

    def run(p, copies: int, layer, precision: str = "f32", reference=None, **config) -> Built:
        """One model of ``copies`` layers ``layer(parameter, i)`` on one input."""
        parameter = op.parameter([p.M, p.K], ov.Type.f32)
        results = [op.result(layer(parameter, i)) for i in range(copies)]
        reference = p.reference(p.x) if reference is None else reference
        return Built(*request(results, parameter, p.x, precision, config), reference, copies)

    def request(results, parameter, x, precision, config):
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,
            **config,
        }
        r = core.compile_model(ov.Model(results, [parameter], "peer"), "CPU", config).create_infer_request()
        tensor = ov.Tensor(x, shared_memory=True)
        r.set_input_tensor(0, tensor)

        def call(r=r, keep=(tensor, x)):
            r.start_async()
            r.wait()

        return [call], lambda: np.array(r.get_output_tensor(0).data)

    def compressed(p: Linear, copies: int) -> Built:
        """int8 weights with one scale a channel; the plugin quantizes the activations, one scale a token
        (group K)."""
        scale = p.w_scale.astype(np.float16)[:, None]

        def layer(x, i):
            w = op.multiply(op.convert(op.constant(p.weight(i)), "f16"), op.constant(scale))
            return op.matmul(x, op.convert(w, "f32"), False, True)

        return run(p, copies, layer, DYNAMIC_QUANTIZATION_GROUP_SIZE=p.K)

    def low_precision(p: Linear, copies: int) -> Built:
        """Static: FakeQuantize on the input, int8 weights; OpenVINO's low precision passes make it an int8
        layer."""
        edge = np.float32(np.abs(p.x).max())
        low, high = (op.constant(np.float32([[v]])) for v in (-edge, edge * 127 / 128))
        scale = p.w_scale[:, None]
        shared = {}

        def layer(x, i):
            if not shared:
                shared["x"] = op.fake_quantize(x, low, high, low, high, 256)
            w = op.multiply(op.convert(op.constant(p.weight(i)), "f32"), op.constant(scale))
            return op.matmul(shared["x"], w, False, True)

        return run(p, copies, layer)

    def floating(precision: str):
        def build(p: Linear, copies: int) -> Built:
            def layer(x, i):
                return op.matmul(x, op.constant(p.float_weight(i)), False, True)

            return run(p, copies, layer, precision)

        return build

    def int4(group_of_activations, precision: str = "f32"):
        """u4 weights with zero point 8, as NNCF exports them; the plugin quantizes the activations in groups, or,
        where those are of size 0, multiplies in ``precision``."""

        def build(p: Int4Linear, copies: int) -> Built:
            group = p.group or p.K
            scale = op.constant(p.w_scale.astype(np.float16)[:, :, None])
            shape = op.constant(np.array([p.N, p.K], np.int64))
            eight = ov.Tensor(ov.Type.u4, [1, 1, 1])
            eight.data[:] = 8

            def layer(x, i):
                codes = ov.Tensor(ov.Type.u4, [p.N, p.K // group, group])  # owns its memory
                codes.data[:] = p.nibbles(i).reshape(codes.data.shape)
                w = op.subtract(op.convert(op.constant(codes), "f16"), op.convert(op.constant(eight), "f16"))
                w = op.multiply(w, scale)
                return op.matmul(x, op.convert(op.reshape(w, shape, False), "f32"), False, True)

            size = group_of_activations(group)
            return run(p, copies, layer, precision, p.reference(), DYNAMIC_QUANTIZATION_GROUP_SIZE=size)

        return build

    def conv(p: Convolution, copies: int) -> Built:
        """u8 in, u8 out: the low precision passes fold the scales into an int8 convolution."""
        parameter = op.parameter([p.B, p.C, p.H, p.H], ov.Type.u8)
        x = op.multiply(op.subtract(op.convert(parameter, "f32"), np.float32(128)), np.float32(p.x_scale))
        edges = [op.constant(np.float32([[[[v * p.y_scale]]]])) for v in (-128, 127)]
        codes = [op.constant(np.float32([[[[v]]]])) for v in (0, 255)]
        results = []
        for i in range(copies):
            w = op.multiply(
                op.convert(op.constant(p.weight(i)), "f32"), op.constant(p.w_scale[:, None, None, None])
            )
            pads, ones = [p.pad] * 2, [1, 1]
            if p.groups > 1:
                shape = op.constant(
                    np.array([p.groups, p.O // p.groups, p.C // p.groups, p.kernel, p.kernel])
                )
                y = op.group_convolution(x, op.reshape(w, shape, False), [p.stride] * 2, pads, pads, ones)
            else:
                y = op.convolution(x, w, [p.stride] * 2, pads, pads, ones)
            results.append(op.result(op.convert(op.fake_quantize(y, *edges, *codes, 256), "u8")))
        x = np.ascontiguousarray(p.x_u8.transpose(0, 3, 1, 2))
        calls, result = request(results, parameter, x, "f32", {})
        real = lambda: (result().transpose(0, 2, 3, 1) - np.float64(128)) * p.y_scale  # noqa: E731
        return Built(calls, real, p.reference(), copies)

    weight_only = [Variant("openvino int4 f32->f32", "w4a16_f32", int4(lambda _: 0), "weight_only", 0.5)]
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if has_bf16:  # elsewhere the hint is ignored without a word
        inside = int4(lambda _: 0, "bf16")
        weight_only += [
            Variant("openvino int4, bf16 inside, f32->f32", "w4a16_f32", inside, "weight_only", 0.5)
        ]
    parameter = op.parameter([1, 16], ov.Type.f32)
    x = np.zeros((1, 16), np.float32)
    null = request([op.result(op.relu(parameter))], parameter, x, "f32", {})
    overhead = float(np.median(sample_warm(Built(*null, x), 0.02)))
    variants = {
        "linear": [
            Variant("openvino int8 weights, dynamic per token", "linear_f32", compressed, "dynamic"),
            Variant("openvino int8 static (LPT) f32->f32", "linear_f32", low_precision, "dynamic"),
            Variant("openvino MatMul f32", "float32", floating("f32"), "float32", 4),
            Variant(
                "openvino MatMul bf16 inside, f32 in and out", "bfloat16", floating("bf16"), "bfloat16", 2
            ),
        ],
        "w4a8": [
            Variant(
                "openvino int4, activations in groups of the weight", "w4", int4(lambda g: g), "dynamic", 0.5
            ),
        ],
        "w4a16": weight_only,
        "conv": [Variant("openvino int8 convolution u8->u8", "conv", conv, "codes_out")],
    }[problem]
    notes = [f"openvino: an empty inference costs {overhead:.1f} us; the warm rows contain it"]
    if problem == "w4a16" and not has_bf16:
        notes.append("openvino: its CPU plugin multiplies no bfloat16 on this machine; that row is left out")
    return "openvino " + ov.__version__.split("-")[0], variants, notes
