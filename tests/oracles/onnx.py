"""onnxruntime on models of one operator."""

import numpy as np
import onnxruntime
from onnx import helper


def run(op, inputs, output_dtype, domain="", **attributes):
    """The output of one ONNX operator; ``inputs`` maps its input names to arrays, in order."""
    ort = {name: np.asarray(a) for name, a in inputs.items()}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in ort.items()
    ]
    y = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(output_dtype)), None)
    graph = helper.make_graph(
        [helper.make_node(op, list(ort), ["y"], domain=domain, **attributes)], "one", infos, [y]
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, ort)[0]
