"""LiteRT on models of one operator, which are built here flatbuffer by flatbuffer."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

TYPES = {np.dtype(np.int8): schema.TensorType.INT8, np.dtype(np.int32): schema.TensorType.INT32}
ACTIVATIONS = {
    None: schema.ActivationFunctionType.NONE,
    "relu": schema.ActivationFunctionType.RELU,
    "relu6": schema.ActivationFunctionType.RELU6,
}


def fully_connected(
    x, w, bias, x_scale, x_zp, w_scale, y_scale, y_zp, activation=None, resolver="BUILTIN_REF"
):
    """int8 (M, K) x int8 (N, K) + int32 (N,) -> int8 (M, N) by LiteRT's FullyConnected.

    w_scale: one number per tensor, or (N,) per channel. bias may be None.
    resolver: a name of OpResolverType; "AUTO" is XNNPACK.
    """
    w_scale = np.atleast_1d(np.asarray(w_scale, np.float32))
    tensors, buffers = [], [schema.BufferT()]

    def tensor(name, shape, dtype, scale, zero_point, data=None):
        t, q = schema.TensorT(), schema.QuantizationParametersT()
        q.scale, q.zeroPoint, q.quantizedDimension = list(map(float, scale)), list(zero_point), 0
        t.name, t.shape, t.type, t.quantization, t.buffer = name, list(shape), TYPES[np.dtype(dtype)], q, 0
        if data is not None:
            b = schema.BufferT()
            b.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            t.buffer = len(buffers)
            buffers.append(b)
        tensors.append(t)
        return len(tensors) - 1

    (m, k), n = x.shape, w.shape[0]
    zeros = [0] * len(w_scale)
    inputs = [
        tensor("x", (m, k), np.int8, [x_scale], [x_zp]),
        tensor("w", (n, k), np.int8, w_scale, zeros, w),
    ]
    if bias is None:
        inputs.append(-1)
    else:
        inputs.append(tensor("bias", (n,), np.int32, np.float32(x_scale) * w_scale, zeros, bias))
    y = tensor("y", (m, n), np.int8, [y_scale], [y_zp])

    options = schema.FullyConnectedOptionsT()
    options.fusedActivationFunction = ACTIVATIONS[activation]
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, inputs, [y]
    op.builtinOptionsType, op.builtinOptions = schema.BuiltinOptions.FullyConnectedOptions, options
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 12
    graph = schema.SubGraphT()
    graph.name, graph.tensors, graph.inputs, graph.outputs, graph.operators = "main", tensors, [0], [y], [op]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    interpreter = Interpreter(
        model_content=bytes(builder.Output()),
        experimental_op_resolver_type=OpResolverType[resolver],
        num_threads=1,
    )
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def effective_scale(x_scale, w_scale, y_scale):
    """The real multiplier as LiteRT forms it: the per-tensor product in float32, all else in float64."""
    x_scale, w_scale, y_scale = (np.asarray(s, np.float32) for s in (x_scale, w_scale, y_scale))
    if w_scale.size == 1:
        return np.float64(x_scale * w_scale) / np.float64(y_scale)
    return np.float64(x_scale) * np.float64(w_scale) / np.float64(y_scale)
