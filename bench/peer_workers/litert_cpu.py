"""LiteRT (TensorFlow Lite) with its default XNNPACK delegate.
 One interpreter a weight copy: XNNPACK packs the weights of each, and a graph of many layers on one input
would quantize that input only once.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np

from .problem import Built, Variant
from .problems import Convolution, Int4Linear, Linear
from .tflite import convolution, fully_connected


def load(threads: int, problem: str):
    from ai_edge_litert.interpreter import Interpreter

    def built(
        copies: int, model: bytes, x: np.ndarray, reference: np.ndarray, out_scale: float = 1.0
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

    def static(p: Linear, copies: int) -> Built:
        reference = p.reference(p.x_s8, p.x_scale)
        out_scale = float(np.float32(p.output_scale(reference)))
        model = fully_connected(p.weight(), p.w_scale, p.M, p.x_scale, out_scale)
        return built(copies, model, p.x_s8, reference, out_scale)

    def dynamic(p: Linear, copies: int) -> Built:
        return built(copies, fully_connected(p.weight(), p.w_scale, p.M), p.x, p.reference(p.x))

    def int4(p: Int4Linear, copies: int) -> Built:
        """Dynamic range: XNNPACK quantizes each row of the input to 8 bits; scales a channel or a block."""
        scale = p.w_scale if p.group else p.w_scale[:, 0]
        return built(copies, fully_connected(p.weight(), scale, p.M, bits=4), p.x, p.reference())

    def conv(p: Convolution, copies: int) -> Built:
        """Its padding SAME puts the odd row last where the stride is 2: the same work elsewhere."""
        before = max((p.out - 1) * p.stride + p.kernel - p.H, 0) // 2
        return built(copies, convolution(p), p.x_s8, p.reference(before), p.y_scale)

    variants = {
        "linear": [
            Variant("LiteRT XNNPACK FC s8->s8", "requant", static, "codes_out"),
            Variant("LiteRT XNNPACK FC dynamic f32->f32", "linear_f32", dynamic, "dynamic"),
        ],
        "w4a8": [Variant("LiteRT XNNPACK FC int4 dynamic", "w4", int4, "dynamic", 0.5)],
        "conv": [Variant("LiteRT XNNPACK convolution s8->s8", "conv", conv, "codes_out")],
    }[problem]
    return "ai-edge-litert " + version("ai-edge-litert"), variants, []
