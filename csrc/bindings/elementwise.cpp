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
    m.def("quantize_activations",
          [](int isa, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx, int mode, int bits, bool is_signed,
             float scale, int zero_point, Address inv_k, Address codes, Address scales, int threads) {
              const qk::Kernels& kernels = checked_isa(isa);
              if (x_type < 0 || x_type > 2 || mode < 0 || mode > 3 || (mode == 3 && inv_k == 0) || bits < 2 || bits > 8)
                  throw std::invalid_argument("quantize_activations: a mode or dtype number is out of range");
              present("quantize_activations: x", x, rows * k);
              py::gil_scoped_release release;
              return qk::quantize_activations(kernels, pointer<void>(x), static_cast<qk::DType>(x_type), rows, k, ldx,
                                              {static_cast<qk::InputMode>(mode), is_signed, scale, zero_point, bits},
                                              pointer<float>(inv_k), pointer<uint8_t>(codes), pointer<float>(scales),
                                              threads);
          });
}
