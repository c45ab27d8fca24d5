// What this machine has, and how fast it is.
#include "../cpu/roofline.h"
#include "common.h"

void bind_machine(py::module_& m) {
    m.def("isas", [] {
        py::dict d;
        for (int i = 0; i < qk::kIsaCount; ++i) {
            d[qk::kIsaNames[i]] = py::make_tuple(i, qk::supported(static_cast<qk::Isa>(i)));
        }
        return d;
    });
    m.def("best_isa", [] { return static_cast<int>(qk::best_isa()); });
    m.def("peak_names", [] {  // in the order of their numbers; those this machine can run
        static const char* names[] = {"int8 avx512vnni", "int8 avx2",     "bf16 avx512", "fp32 avx512",
                                      "fp32 avx2",       "binary avx512", "bf16 amx"};
        py::dict d;
        for (int i = 0; i < static_cast<int>(qk::Peak::kCount); ++i)
            if (qk::peak_supported(static_cast<qk::Peak>(i))) d[names[i]] = i;
        return d;
    });
    m.def(
        "measure_peak",
        [](int kind, int threads, double milliseconds) {
            if (kind < 0 || kind >= static_cast<int>(qk::Peak::kCount))
                throw std::invalid_argument("measure_peak: unknown kind");
            py::gil_scoped_release release;
            return qk::measure_peak(static_cast<qk::Peak>(kind), threads, milliseconds);
        },
        py::arg("kind"), py::arg("threads") = 1, py::arg("milliseconds") = 50.0);
    m.def("measure_read_bandwidth", &qk::measure_read_bandwidth, py::arg("bytes"), py::arg("threads") = 1,
          py::arg("repeats") = 5, py::call_guard<py::gil_scoped_release>());
    m.def("measure_fork_join", &qk::measure_fork_join, py::arg("threads"), py::arg("repeats") = 1000,
          py::call_guard<py::gil_scoped_release>());
    m.def("core_ghz", &qk::core_ghz);
}
