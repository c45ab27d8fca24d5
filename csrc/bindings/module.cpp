// The extension module. The files of this folder are the only ones that know Python.
#include "common.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of qkernels. Private: qkernels.ops checks what reaches it.";
    py::class_<LinearCall>(m, "LinearCall").def("run", &LinearCall::checked);
    bind_machine(m);
    bind_elementwise(m);
    bind_gemm(m);
    bind_gemm_float(m);
    bind_integer(m);
    bind_binary(m);
    bind_conv(m);
    bind_decode(m);
    bind_program(m);
}
