"""Writes .tflite models of one layer, without TensorFlow.

Raises ImportError without ai-edge-litert and flatbuffers.
"""

from __future__ import annotations

import numpy as np


class Model:
    """A graph of one operator under construction."""

    def __init__(self):
        from ai_edge_litert import schema_py_generated as schema

        self.s, self.tensors, self.buffers = schema, [], [schema.BufferT()]

    def tensor(self, name, shape, kind: str, scale=None, zero: int = 0, axis: int = 0, data=None) -> int:
        """Adds a tensor; ``kind`` is a name of TensorType; a ``scale`` (N, groups) is block-wise."""
        s, t = self.s, self.s.TensorT()
        t.name, t.shape, t.type, t.buffer = name, list(shape), getattr(s.TensorType, kind), 0
        if data is not None:
            t.buffer = self.buffer(data)
        if scale is not None:
            scale = np.atleast_1d(np.float32(scale))
            t.quantization = q = s.QuantizationParametersT()
            if scale.ndim == 2:
                q.detailsType = s.QuantizationDetails.BlockwiseQuantization
                q.details = s.BlockwiseQuantizationT()
                q.details.blockSize = shape[1] // scale.shape[1]
                q.details.scales = self.constant("scales", scale.astype(np.float16), "FLOAT16")
                q.details.zeroPoints = -1
            else:
                q.scale, q.zeroPoint = scale.tolist(), [zero] * len(scale)
            q.quantizedDimension = axis
        self.tensors.append(t)
        return len(self.tensors) - 1

    def constant(self, name, data, kind: str) -> int:
        return self.tensor(name, data.shape, kind, data=data)

    def buffer(self, data) -> int:
        b = self.s.BufferT()
        b.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        self.buffers.append(b)
        return len(self.buffers) - 1

    def finish(self, operator: str, version: int, options, inputs: list[int], output: int) -> bytes:
        """The file: ``operator`` is a name of BuiltinOperator, the first of ``inputs`` is the graph's."""
        import flatbuffers

        s, op, code, graph, model = (
            self.s,
            *(t() for t in (self.s.OperatorT, self.s.OperatorCodeT, self.s.SubGraphT, self.s.ModelT)),
        )
        op.opcodeIndex, op.inputs, op.outputs = 0, inputs, [output]
        op.builtinOptionsType = getattr(s.BuiltinOptions, type(options).__name__[:-1])
        op.builtinOptions = options
        code.builtinCode = code.deprecatedBuiltinCode = getattr(s.BuiltinOperator, operator)
        code.version = version
        graph.name, graph.tensors, graph.operators = "main", self.tensors, [op]
        graph.inputs, graph.outputs = inputs[:1], [output]
        model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], self.buffers
        builder = flatbuffers.Builder(4096 + 2 * sum(len(b.data) for b in self.buffers if b.data is not None))
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def fully_connected(
    codes: np.ndarray,
    w_scale: np.ndarray,
    M: int,
    in_scale: float | None = None,
    out_scale: float | None = None,
    bits: int = 8,
) -> bytes:
    """A model ``(M, K) -> (M, N)`` of one FULLY_CONNECTED with integer weights: one scale per output channel
    (N,), or with 4 bits one per block (N, K / block).

    Scales given: int8 in and out, zero points 0.  Scales None: float32 in and out ("dynamic range": the
    runtime quantizes the input in each call).
    """
    m, (N, K) = Model(), codes.shape
    static = in_scale is not None
    if bits == 4:
        u = (codes & 15).view(np.uint8)
        codes = u[:, 0::2] | (u[:, 1::2] << 4)
    kind = "INT8" if static else "FLOAT32"
    inputs = [
        m.tensor("x", (M, K), kind, in_scale),
        m.tensor("w", (N, K), f"INT{bits}", w_scale, data=codes),
        -1,
    ]
    y = m.tensor("y", (M, N), kind, out_scale)
    options = m.s.FullyConnectedOptionsT()
    options.asymmetricQuantizeInputs = not static
    return m.finish("FULLY_CONNECTED", 12 if bits == 4 else 5, options, inputs, y)


def convolution(p) -> bytes:
    """The model of a ``problems.Convolution``: int8 in and out, channels last; a group a channel is depthwise."""
    m, zeros = Model(), np.zeros(p.O, np.int32)
    depthwise = p.groups > 1
    weight = p.weight().transpose(1, 2, 3, 0) if depthwise else p.weight().transpose(0, 2, 3, 1)
    inputs = [
        m.tensor("x", (p.B, p.H, p.H, p.C), "INT8", p.x_scale),
        m.tensor("w", weight.shape, "INT8", p.w_scale, axis=3 if depthwise else 0, data=weight),
        m.tensor("b", (p.O,), "INT32", p.w_scale * np.float32(p.x_scale), data=zeros),
    ]
    y = m.tensor("y", (p.B, p.out, p.out, p.O), "INT8", p.y_scale)
    options = m.s.DepthwiseConv2DOptionsT() if depthwise else m.s.Conv2DOptionsT()
    options.padding, options.strideW, options.strideH = m.s.Padding.SAME, p.stride, p.stride
    options.dilationWFactor = options.dilationHFactor = 1
    if depthwise:
        options.depthMultiplier = p.O // p.C
    return m.finish("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", 3, options, inputs, y)
