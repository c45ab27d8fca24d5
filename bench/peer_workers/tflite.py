"""Writes .tflite models of one fully connected layer, without TensorFlow."""

from __future__ import annotations

import numpy as np


def fully_connected(
    codes: np.ndarray,
    w_scale: np.ndarray,
    M: int,
    in_scale: float | None = None,
    out_scale: float | None = None,
) -> bytes:
    """A model ``(M, K) -> (M, N)`` of one FULLY_CONNECTED with int8 weights, one scale per output channel.

    Scales given: int8 in and out, zero points 0.  Scales None: float32 in and out ("dynamic range": the
    runtime quantizes the input in each call).

    Raises ImportError without ai-edge-litert and flatbuffers.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as s

    N, K = codes.shape
    static = in_scale is not None

    def tensor(name, shape, kind, buffer, scale=None):
        t = s.TensorT()
        t.name, t.shape, t.type, t.buffer = name, list(shape), kind, buffer
        if scale is not None:
            t.quantization = s.QuantizationParametersT()
            t.quantization.scale = np.atleast_1d(np.float32(scale)).tolist()
            t.quantization.zeroPoint = [0] * len(t.quantization.scale)
            t.quantization.quantizedDimension = 0
        return t

    empty, data = s.BufferT(), s.BufferT()
    data.data = np.ascontiguousarray(codes).view(np.uint8).ravel()
    float32, int8 = s.TensorType.FLOAT32, s.TensorType.INT8
    graph = s.SubGraphT()
    graph.name = "main"
    graph.tensors = [
        tensor("x", (M, K), int8 if static else float32, 0, in_scale),
        tensor("w", (N, K), int8, 1, w_scale),
        tensor("y", (M, N), int8 if static else float32, 0, out_scale),
    ]
    graph.inputs, graph.outputs = [0], [2]

    op = s.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, -1], [2]
    op.builtinOptionsType = s.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = s.FullyConnectedOptionsT()
    op.builtinOptions.asymmetricQuantizeInputs = not static
    graph.operators = [op]

    code = s.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = s.BuiltinOperator.FULLY_CONNECTED
    code.version = 5
    model = s.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], [empty, data]
    builder = flatbuffers.Builder(codes.size + 4096 + 8 * N)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())
