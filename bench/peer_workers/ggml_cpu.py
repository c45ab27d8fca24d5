"""ggml, the tensor library of llama.cpp, through the shared libraries that llama-cpp-python brings.

Its Q4_0 has groups of 32 of float16 scales; a problem with larger groups, or none, repeats its scales, so
all peers multiply by the same matrix.  ggml quantizes the activations in every product.  A case is one graph
of many products, so the cost of a run is shared between them.
"""

from __future__ import annotations

import ctypes as c
import importlib.util
from pathlib import Path

import numpy as np

from .problem import Built, Variant
from .problems import Int4Linear

F32, Q4_0, WEIGHTS = 0, 2, 1  # of ggml.h and ggml-backend.h
BLOCK = np.dtype([("scale", np.float16), ("codes", np.uint8, 16)])


class InitParams(c.Structure):
    _fields_ = (("mem_size", c.c_size_t), ("mem_buffer", c.c_void_p), ("no_alloc", c.c_bool))


POINTER, SIZE, INT64, INT = c.c_void_p, c.c_size_t, c.c_int64, c.c_int
SIGNATURES = {
    "ggml_init": (POINTER, [InitParams]),
    "ggml_free": (None, [POINTER]),
    "ggml_tensor_overhead": (SIZE, []),
    "ggml_graph_overhead_custom": (SIZE, [SIZE, c.c_bool]),
    "ggml_new_tensor_2d": (POINTER, [POINTER, INT, INT64, INT64]),
    "ggml_new_graph_custom": (POINTER, [POINTER, SIZE, c.c_bool]),
    "ggml_mul_mat": (POINTER, [POINTER, POINTER, POINTER]),
    "ggml_set_input": (None, [POINTER]),
    "ggml_set_output": (None, [POINTER]),
    "ggml_build_forward_expand": (None, [POINTER, POINTER]),
    "ggml_gallocr_new": (POINTER, [POINTER]),
    "ggml_gallocr_alloc_graph": (c.c_bool, [POINTER, POINTER]),
    "ggml_gallocr_free": (None, [POINTER]),
    "ggml_backend_cpu_init": (POINTER, []),
    "ggml_backend_cpu_set_n_threads": (None, [POINTER, INT]),
    "ggml_backend_get_device": (POINTER, [POINTER]),
    "ggml_backend_get_default_buffer_type": (POINTER, [POINTER]),
    "ggml_backend_dev_backend_reg": (POINTER, [POINTER]),
    "ggml_backend_dev_supports_op": (c.c_bool, [POINTER, POINTER]),
    "ggml_backend_reg_get_proc_address": (POINTER, [POINTER, c.c_char_p]),
    "ggml_backend_buft_name": (c.c_char_p, [POINTER]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, [POINTER, POINTER]),
    "ggml_backend_buffer_set_usage": (None, [POINTER, INT]),
    "ggml_backend_buffer_free": (None, [POINTER]),
    "ggml_backend_tensor_set": (None, [POINTER, POINTER, SIZE, SIZE]),
    "ggml_backend_tensor_get": (None, [POINTER, POINTER, SIZE, SIZE]),
    "ggml_backend_graph_compute": (INT, [POINTER, POINTER]),
    "ggml_cpu_has_avx512_vnni": (INT, []),
}


class Library:
    """The functions of SIGNATURES as attributes, without their prefix."""

    def __init__(self):
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None:
            raise ImportError("No module named 'llama_cpp'")
        found = [Path(p) / "lib" for p in spec.submodule_search_locations]
        files = [next(found[0].glob(f"libggml{part}.so")) for part in ("-base", "-cpu", "")]
        libraries = [c.CDLL(str(f), c.RTLD_GLOBAL) for f in files]
        for name, (result, arguments) in SIGNATURES.items():
            f = getattr(next(lib for lib in libraries if hasattr(lib, name)), name)
            f.restype, f.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), f)


class Graph:
    """Products of one input with some weights; freed with its last user."""

    def __init__(self, g: Library, backend, buffers, weights: list[np.ndarray], x: np.ndarray, nodes: int):
        (M, K), N = x.shape, len(weights[0])
        self.g, self.out = g, np.empty((M, N), np.float32)
        self.weights = g.init(InitParams(g.tensor_overhead() * (len(weights) + 8), None, True))
        w = [g.new_tensor_2d(self.weights, Q4_0, K, N) for _ in weights]
        self.buffer = g.backend_alloc_ctx_tensors_from_buft(self.weights, buffers)
        g.backend_buffer_set_usage(self.buffer, WEIGHTS)
        for tensor, blocks in zip(w, weights, strict=True):
            g.backend_tensor_set(tensor, blocks.ctypes.data, 0, blocks.nbytes)
        size = g.tensor_overhead() * (nodes + 16) + g.graph_overhead_custom(nodes + 16, False)
        self.context = g.init(InitParams(size, None, True))
        inputs = g.new_tensor_2d(self.context, F32, K, M)
        g.set_input(inputs)
        graph = g.new_graph_custom(self.context, nodes + 16, False)
        results = [g.mul_mat(self.context, w[i % len(w)], inputs) for i in range(nodes)]
        for y in results:
            g.build_forward_expand(graph, y)
        self.first = results[0]
        g.set_output(self.first)
        if not g.backend_dev_supports_op(g.backend_get_device(backend), self.first):
            raise RuntimeError("ggml has no kernel for this weight layout on this CPU")
        self.allocator = g.gallocr_new(g.backend_get_default_buffer_type(backend))
        g.gallocr_alloc_graph(self.allocator, graph)
        g.backend_tensor_set(inputs, x.ctypes.data, 0, x.nbytes)
        self.call = lambda: g.backend_graph_compute(backend, graph)

    def result(self) -> np.ndarray:
        self.call()
        self.g.backend_tensor_get(self.first, self.out.ctypes.data, 0, self.out.nbytes)
        return self.out

    def __del__(self):
        if hasattr(self, "allocator"):
            self.g.gallocr_free(self.allocator)
            self.g.free(self.context)
            self.g.backend_buffer_free(self.buffer)
            self.g.free(self.weights)


def blocks(p: Int4Linear, i: int) -> np.ndarray:
    """Weight copy i as Q4_0: byte j of a block holds codes j (low half) and j + 16, plus 8."""
    u = (p.weight(i) + 8).view(np.uint8).reshape(p.N, p.K // 32, 2, 16)
    b = np.empty((p.N, p.K // 32), BLOCK)
    b["scale"], b["codes"] = p.scales(32), u[:, :, 0] | (u[:, :, 1] << 4)
    return b


def load(threads: int, problem: str):
    from importlib.metadata import PackageNotFoundError, version

    g = Library()
    backend = g.backend_cpu_init()
    g.backend_cpu_set_n_threads(backend, threads)
    device = g.backend_get_device(backend)
    plain, repacked = g.backend_get_default_buffer_type(backend), None
    address = g.backend_reg_get_proc_address(
        g.backend_dev_backend_reg(device), b"ggml_backend_dev_get_extra_bufts"
    )
    extra = c.CFUNCTYPE(c.POINTER(POINTER), POINTER)(address)(device) if address else None
    for i in range(8 if extra else 0):
        if not extra[i]:
            break
        if b"REPACK" in g.backend_buft_name(extra[i]):
            repacked = extra[i]

    def product(buffers):
        def build(p: Int4Linear, copies: int) -> Built:
            weights = [blocks(p, i) for i in range(copies)]
            nodes = copies if copies > 1 else 32 if p.macs < 2e7 else 4 if p.macs < 2e8 else 1
            graph = Graph(g, backend, buffers, weights, p.x, nodes)
            return Built([lambda keep=graph: keep.call()], graph.result, p.reference(), nodes)

        return build

    category = {"w4a8": "w4", "w4a16": "w4a8"}[problem]  # with float activations: for scale
    variants = [Variant("ggml Q4_0 x Q8_0", category, product(plain), "dynamic", 0.5625)]
    if repacked:
        variants.append(Variant("ggml Q4_0 repacked x Q8_0", category, product(repacked), "dynamic", 0.5625))
    notes = [] if g.cpu_has_avx512_vnni() else ["ggml: built without AVX-512 VNNI; build it on this machine"]
    try:
        return "ggml of llama-cpp-python " + version("llama-cpp-python"), variants, notes
    except PackageNotFoundError:
        return "ggml of llama-cpp-python", variants, notes
