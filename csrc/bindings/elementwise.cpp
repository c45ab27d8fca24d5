// Operations without a weight.
#include "../cpu/quantize.h"
#include "common.h"

void bind_elementwise(py::module_& m) {
    py::class_<RequantArrays>(m, "RequantArrays")
        .def(py::init(
            [](Address multiplier, Address shift, Address scale, int rounding, int zero_point, int lo, int hi) {
                if (rounding < 0 || rounding > 2) throw std::invalid_argument("RequantArrays: rounding is 0, 1 or 2");
                return RequantArrays{multiplier, shift, scale, rounding, zero_point, lo, hi};
            }));
    m.def(
        "quantize_activations",
        [](int isa, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx, int mode, int bits, bool is_signed,
           float scale, int zero_point, Address inv_k, Address codes, Address scales, int threads, bool power) {
            const qk::Kernels& kernels = checked_isa(isa);
            if (x_type < 0 || x_type > 2 || mode < 0 || mode > 3 || (mode == 3 && inv_k == 0) || bits < 2 || bits > 8 ||
                (power && (mode == 3 || zero_point != 0)))
                throw std::invalid_argument("quantize_activations: a mode or dtype number is out of range");
            present("quantize_activations: x", x, rows * k);
            py::gil_scoped_release release;
            return qk::quantize_activations(
                kernels, pointer<void>(x), static_cast<qk::DType>(x_type), rows, k, ldx,
                {static_cast<qk::InputMode>(mode), is_signed, scale, zero_point, bits, power}, pointer<float>(inv_k),
                pointer<uint8_t>(codes), pointer<float>(scales), threads);
        },
        py::arg("isa"), py::arg("x"), py::arg("x_type"), py::arg("rows"), py::arg("k"), py::arg("ldx"), py::arg("mode"),
        py::arg("bits"), py::arg("is_signed"), py::arg("scale"), py::arg("zero_point"), py::arg("inv_k"),
        py::arg("codes"), py::arg("scales"), py::arg("threads"), py::arg("power") = false);
    // codes (rows, k) bytes, row pitch ldx -> out (rows, k), contiguous; scales: one a row (scale_step 1) or one (0)
    m.def("power_dequantize", [](int isa, Address codes, int64_t rows, int64_t k, int64_t ldx, Address table,
                                 Address scales, int scale_step, int out_type, Address out, int threads) {
        const qk::Kernels& kernels = checked_isa(isa);
        if (out_type < 0 || out_type > 2 || scale_step < 0 || scale_step > 1)
            throw std::invalid_argument("power_dequantize: a dtype number or a step is out of range");
        present("power_dequantize: codes", codes, rows * k);
        py::gil_scoped_release release;
        qk::dequantize(kernels, pointer<uint8_t>(codes), rows, k, ldx, pointer<float>(table), pointer<float>(scales),
                       scale_step, static_cast<qk::DType>(out_type), pointer<void>(out), threads);
    });
}
