"""onnxruntime's CPU provider (MLAS), inputs and outputs bound once.
 The cold cases are one session of many nodes, so the cost of ``run`` is shared between them; a warm case is
a session of one node and contains it (the note says how much that is).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .problem import Built, Variant, sample_warm
from .problems import Convolution, Int4Linear, Linear

MS = "com.microsoft"


def load(threads: int, problem: str):
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    kinds = {np.dtype(t): helper.np_dtype_to_tensor_dtype(np.dtype(t)) for t in ("f4", "u1", "i1", "i4")}

    def run(op, extra, x, weights, out, reference, real=lambda y: y, domain="") -> Built:
        """A session of one node a weight (N, K): ``op(x, *inputs)``; see ``layers``."""
        shape = [x.shape[0], weights[0].shape[0]]
        return layers(op, extra, x, [w.T for w in weights], shape, out, reference, real, domain)

    def layers(
        op, extra, x, weights, shape, out, reference, real=lambda y: y, domain="", **attributes
    ) -> Built:
        """A session of one node a weight; ``extra``: constants, and a function that orders the inputs after x
        around the weight's name."""
        constants, inputs_of = extra
        initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
        initializers += [
            numpy_helper.from_array(np.ascontiguousarray(w), f"w{i}") for i, w in enumerate(weights)
        ]
        names = [f"y{i}" for i in range(len(weights))]
        nodes = [
            helper.make_node(op, ["x", *inputs_of(f"w{i}")], [y], domain=domain, **attributes)
            for i, y in enumerate(names)
        ]
        return Built(*session(nodes, initializers, x, names, shape, out, real), reference, len(names))

    def session(nodes, initializers, x, names, shape, out, real):
        graph = helper.make_graph(
            nodes,
            "peer",
            [helper.make_tensor_value_info("x", kinds[x.dtype], list(x.shape))],
            [helper.make_tensor_value_info(n, kinds[np.dtype(out)], shape) for n in names],
            initializers,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        s = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = s.io_binding()
        bound = ort.OrtValue.ortvalue_from_numpy(x)
        outputs = [ort.OrtValue.ortvalue_from_shape_and_type(shape, out) for _ in names]
        binding.bind_ortvalue_input("x", bound)
        for name, value in zip(names, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        # the wrapped method: InferenceSession.run_with_iobinding itself adds 40 us of Python
        call = partial(s._sess.run_with_iobinding, binding._iobinding, ort.RunOptions())
        return [lambda keep=(s, binding, bound, outputs): call()], lambda: real(outputs[0].numpy())

    def weights_of(p: Linear, copies: int):
        return [p.weight(i) for i in range(copies)]

    def matmul_integer(p: Linear, copies: int) -> Built:
        """u8 activations: x86 has no fast kernel for signed ones there (6 GMAC/s a core)."""
        scale, extra = p.w_scale.astype(np.float64), ({}, lambda w: [w])
        weights, reference = weights_of(p, copies), p.reference(p.x_u8)
        return run("MatMulInteger", extra, p.x_u8, weights, np.int32, reference, lambda y: y * scale)

    def qlinear_matmul(p: Linear, copies: int) -> Built:
        reference = p.reference(p.x_u8.astype(np.int16) - 128, p.x_scale)
        out_scale = np.float32(p.output_scale(reference))
        constants = {
            "xs": np.float32(p.x_scale),
            "xz": np.uint8(128),
            "ws": p.w_scale,
            "wz": np.zeros(p.N, np.int8),
            "ys": out_scale,
            "yz": np.uint8(128),
        }
        extra = (constants, lambda w: ["xs", "xz", w, "ws", "wz", "ys", "yz"])
        weights = weights_of(p, copies)
        return run(
            "QLinearMatMul",
            extra,
            p.x_u8,
            weights,
            np.uint8,
            reference,
            lambda y: (y - np.float64(128)) * out_scale,
        )

    def dynamic(p: Linear, copies: int) -> Built:
        extra = ({"ws": p.w_scale, "wz": np.zeros(p.N, np.int8)}, lambda w: [w, "ws", "wz"])
        weights = weights_of(p, copies)
        return run("DynamicQuantizeMatMul", extra, p.x, weights, np.float32, p.reference(p.x), domain=MS)

    def matmul(p: Linear, copies: int) -> Built:
        weights = [p.float_weight(i) for i in range(copies)]
        return run("MatMul", ({}, lambda w: [w]), p.x, weights, np.float32, p.reference(p.x))

    def matmul_nbits(level: int):
        """Accuracy level 4: activations quantized to int8, a scale a group; 0: float32 products.  Without groups:
        groups of 128 of one scale, there is no other way."""

        def build(p: Int4Linear, copies: int) -> Built:
            group = p.group or 128
            blocks = [p.nibbles(i).reshape(p.N, -1, group // 2) for i in range(copies)]
            about = {"K": p.K, "N": p.N, "bits": 4, "block_size": group, "accuracy_level": level}
            extra = ({"s": p.scales(group).ravel()}, lambda w: [w, "s"])
            shape, reference = [p.M, p.N], p.reference()
            return layers("MatMulNBits", extra, p.x, blocks, shape, np.float32, reference, domain=MS, **about)

        return build

    def float_int4(p: Int4Linear, copies: int) -> Built:
        weights = [p.float_weight(i) for i in range(copies)]
        return run("MatMul", ({}, lambda w: [w]), p.x, weights, np.float32, p.reference())

    def qlinear_conv(channels_last: bool):
        """The contributed operator takes channels last, as a whole network would after optimization."""

        def build(p: Convolution, copies: int) -> Built:
            constants = {
                "xs": np.float32(p.x_scale),
                "xz": np.uint8(128),
                "ws": p.w_scale,
                "wz": np.zeros(p.O, np.int8),
                "ys": np.float32(p.y_scale),
                "yz": np.uint8(128),
            }
            attributes = {
                "kernel_shape": [p.kernel] * 2,
                "strides": [p.stride] * 2,
                "pads": [p.pad] * 4,
                "group": p.groups,
            }
            x, shape, order = p.x_u8, [p.B, p.out, p.out, p.O], (0, 1, 2, 3)
            domain = MS
            if channels_last:
                attributes["channels_last"] = 1
            else:
                x, shape, order = (
                    np.ascontiguousarray(x.transpose(0, 3, 1, 2)),
                    [p.B, p.O, p.out, p.out],
                    (0, 2, 3, 1),
                )
                domain = ""
            extra = (constants, lambda w: ["xs", "xz", w, "ws", "wz", "ys", "yz"])
            return layers(
                "QLinearConv",
                extra,
                x,
                [p.weight(i) for i in range(copies)],
                shape,
                np.uint8,
                p.reference(),
                lambda y: (y.transpose(order) - np.float64(128)) * p.y_scale,
                domain,
                **attributes,
            )

        return build

    x = np.zeros((1, 16), np.float32)
    null = session([helper.make_node("Relu", ["x"], ["y"])], [], x, ["y"], [1, 16], np.float32, lambda y: y)
    overhead = float(np.median(sample_warm(Built(*null, x), 0.02)))
    assert kinds[np.dtype("f4")] == TensorProto.FLOAT
    variants = {
        "linear": [
            Variant("onnxruntime MatMulInteger u8->s32", "gemm", matmul_integer, "exact"),
            Variant("onnxruntime QLinearMatMul u8->u8", "requant", qlinear_matmul, "codes_out"),
            Variant("onnxruntime DynamicQuantizeMatMul", "linear_f32", dynamic, "dynamic"),
            Variant("onnxruntime MatMul f32", "float32", matmul, "float32", 4),
        ],
        "w4a8": [
            Variant("onnxruntime MatMulNBits level 4", "w4", matmul_nbits(4), "dynamic", 0.5),
            Variant("onnxruntime MatMul f32", "float32", float_int4, "float32", 4),
        ],
        "w4a16": [
            Variant("onnxruntime MatMulNBits level 0 f32->f32", "w4a16_f32", matmul_nbits(0), "float32", 0.5),
            Variant("onnxruntime MatMul f32", "float32", float_int4, "float32", 4),
        ],
        "conv": [
            Variant("onnxruntime QLinearConv NHWC u8->u8", "conv", qlinear_conv(True), "codes_out"),
            Variant("onnxruntime QLinearConv NCHW u8->u8", "conv", qlinear_conv(False), "codes_out"),
        ],
    }[problem]
    notes = [f"onnxruntime: an empty run costs {overhead:.1f} us; the warm rows contain it"]
    return f"onnxruntime {ort.__version__} (onnx {onnx.__version__})", variants, notes
