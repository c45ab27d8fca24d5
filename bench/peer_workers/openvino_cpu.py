"""OpenVINO's CPU plugin.
 The cold cases are one model of many layers, so the cost of an inference request is shared between them; a
warm case is a model of one layer and contains it (the note says how much that is).
"""

from __future__ import annotations

import numpy as np

from .problem import Built, Problem, Variant, sample_warm


def load(threads: int):
    import openvino as ov
    import openvino.opset15 as op

    core = ov.Core()

    def run(p: Problem, copies: int, layer, precision: str = "f32", **config) -> Built:
        """One model of ``copies`` layers ``layer(parameter, i)`` on one input."""
        parameter = op.parameter([p.M, p.K], ov.Type.f32)
        results = [op.result(layer(parameter, i)) for i in range(copies)]
        return Built(*request(results, parameter, p.x, precision, config), p.reference(p.x), copies)

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

    def compressed(p: Problem, copies: int) -> Built:
        """int8 weights with one scale a channel; the plugin quantizes the activations, one scale a token
        (group K)."""
        scale = p.w_scale.astype(np.float16)[:, None]

        def layer(x, i):
            w = op.multiply(op.convert(op.constant(p.weight(i)), "f16"), op.constant(scale))
            return op.matmul(x, op.convert(w, "f32"), False, True)

        return run(p, copies, layer, DYNAMIC_QUANTIZATION_GROUP_SIZE=p.K)

    def low_precision(p: Problem, copies: int) -> Built:
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
        def build(p: Problem, copies: int) -> Built:
            def layer(x, i):
                return op.matmul(x, op.constant(p.float_weight(i)), False, True)

            return run(p, copies, layer, precision)

        return build

    parameter = op.parameter([1, 16], ov.Type.f32)
    x = np.zeros((1, 16), np.float32)
    null = request([op.result(op.relu(parameter))], parameter, x, "f32", {})
    overhead = float(np.median(sample_warm(Built(*null, x), 0.02)))
    variants = [
        Variant("openvino int8 weights, dynamic per token", "linear_f32", compressed, "dynamic"),
        Variant("openvino int8 static (LPT) f32->f32", "linear_f32", low_precision, "dynamic"),
        Variant("openvino MatMul f32", "float32", floating("f32"), "float32", 4),
        Variant("openvino MatMul bf16 inside, f32 in and out", "bfloat16", floating("bf16"), "bfloat16", 2),
    ]
    notes = [f"openvino: an empty inference costs {overhead:.1f} us; the warm rows contain it"]
    return "openvino " + ov.__version__.split("-")[0], variants, notes
