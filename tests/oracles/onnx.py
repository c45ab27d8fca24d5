"""onnxruntime on models of one operator, and the node tests that ONNX defines its operators by."""

import importlib

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators
FOUR_BITS = {True: TensorProto.INT4, False: TensorProto.UINT4}  # by whether signed

# Without VNNI, onnxruntime adds two products of uint8 and int8 in int16, which saturates.
with open("/proc/cpuinfo") as _file:
    _HAS_VNNI = any(flag.endswith("vnni") for flag in _file.read().split())


def exact(codes):
    """int8 weights whose products with uint8 onnxruntime adds exactly on this machine: halved where it must be."""
    return codes if _HAS_VNNI else codes // np.int8(2)


class Nibbles:
    """A constant of 4-bit integers, which NumPy has no type for."""

    def __init__(self, values, signed=True):
        self.values, self.kind = np.asarray(values), FOUR_BITS[signed]


def run(op, inputs, output_dtype, domain="", **attributes):
    """The output of one ONNX operator; ``inputs`` maps its input names to arrays or Nibbles, in order.

    output_dtype: of NumPy, or FOUR_BITS[signed]: then the values come widened to int8 or uint8.
    """
    narrow = {n: a for n, a in inputs.items() if isinstance(a, Nibbles)}
    constants = [helper.make_tensor(n, a.kind, a.values.shape, a.values.ravel()) for n, a in narrow.items()]
    arrays = {n: np.asarray(a) for n, a in inputs.items() if n not in narrow}
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
        for name, a in arrays.items()
    ]
    nodes = [helper.make_node(op, list(inputs), ["y"], domain=domain, **attributes)]
    if output_dtype in FOUR_BITS.values():
        wide = TensorProto.INT8 if output_dtype == TensorProto.INT4 else TensorProto.UINT8
        nodes.append(helper.make_node("Cast", ["y"], ["wide"], to=wide))
        y = helper.make_tensor_value_info("wide", wide, None)
    else:
        y = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(output_dtype)), None)
    graph = helper.make_graph(nodes, "one", infos, [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, arrays)[0]


def node_tests(op):
    """The node tests of an operator: name -> (attributes, inputs by name, expected output).

    Arrays as ONNX holds them; 4- and 2-bit ones widened to int8 or uint8, scalars kept.
    """
    package = importlib.import_module("onnx.backend.test.case.node")
    importlib.import_module(f"{package.__name__}.{op.lower()}")  # a module registers its tests when imported
    found = {}
    for case in package._NodeTestCases:
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type == op:
            (inputs, (output,)) = case.data_sets[0]
            attributes = {a.name: helper.get_attribute_value(a) for a in nodes[0].attribute}
            named = zip(filter(None, nodes[0].input), map(plain, inputs), strict=True)
            found[case.name] = attributes, dict(named), plain(output)
    return found


def plain(a):
    a = numpy_helper.to_array(a) if isinstance(a, TensorProto) else np.asarray(a)
    name = a.dtype.name
    if name in ("int4", "uint4", "int2", "uint2"):
        return a.astype(np.uint8 if name.startswith("u") else np.int8)
    return a
