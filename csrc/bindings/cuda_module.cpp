// The extension module of the CUDA kernels; importing it touches no driver.
#include "cuda_common.h"

#ifdef QK_EMULATE
namespace qk::cuda::emulator {
void set_schedule(uint64_t seed);
}
#endif

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of qkernels. Private: qkernels.cuda checks what reaches it.";
#ifdef QK_EMULATE
    m.attr("emulated") = true;
    m.def("set_schedule", &qk::cuda::emulator::set_schedule, "The order in which threads run; see emulator.h.");
#else
    m.attr("emulated") = false;
#endif
    // (count, why it is 0)
    m.def("device_count", [] {
        std::string why;
        const int count = qk::cuda::device_count(&why);
        return py::make_tuple(count, why);
    });
    m.def("device", [](int index) {
        const qk::cuda::Device d = qk::cuda::device(index);
        py::dict out;
        out["name"] = d.name;
        out["capability"] = py::make_tuple(d.major, d.minor);
        out["multiprocessors"] = d.multiprocessors;
        out["shared_bytes"] = d.shared_bytes;
        out["l2_bytes"] = d.l2_bytes;
        out["memory_bytes"] = d.memory_bytes;
        return out;
    });
    bind_cuda_gemm(m);
    bind_cuda_float(m);
    bind_cuda_binary(m);
    bind_cuda_int4(m);
}
