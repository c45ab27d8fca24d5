"""LiteRT (TensorFlow Lite) with its default XNNPACK delegate.
 One interpreter a weight copy: XNNPACK packs the weights of each, and a graph of many layers on one input
would quantize that input only once.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from .problem import Built, Problem, Variant
from .tflite import fully_connected


def load(threads: int):
    from ai_edge_litert.interpreter import Interpreter

    def built(
        p: Problem, copies: int, model: bytes, x: np.ndarray, reference: np.ndarray, out_scale: float
    ) -> Built:
        interpreters = [Interpreter(model_content=model, num_threads=threads) for _ in range(copies)]
        for it in interpreters:
            it.allocate_tensors()
            it.set_tensor(it.get_input_details()[0]["index"], x)
        first = interpreters[0]
        ops = [op["op_name"] for op in first._get_ops_details()]
        if "DELEGATE" not in ops:
            raise RuntimeError(f"XNNPACK did not take the layer; the graph is {ops}")
        index = first.get_output_details()[0]["index"]
        return Built(
            [it.invoke for it in interpreters],
            lambda: first.get_tensor(index) * np.float64(out_scale),
            reference,
        )

    def static(p: Problem, copies: int) -> Built:
        reference = p.reference(p.x_s8, p.x_scale)
        out_scale = float(np.float32(p.output_scale(reference)))
        model = fully_connected(p.weight(), p.w_scale, p.M, p.x_scale, out_scale)
        return built(p, copies, model, p.x_s8, reference, out_scale)

    def dynamic(p: Problem, copies: int) -> Built:
        return built(p, copies, fully_connected(p.weight(), p.w_scale, p.M), p.x, p.reference(p.x), 1.0)

    variants = [
        Variant("LiteRT XNNPACK FC s8->s8", "requant", static, "codes_out"),
        Variant("LiteRT XNNPACK FC dynamic f32->f32", "linear_f32", dynamic, "dynamic"),
    ]
    return "ai-edge-litert " + version("ai-edge-litert"), variants, []
