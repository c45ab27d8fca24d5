// Prepacked weights of the integer core and what runs on them.
#include "../cpu/gemm.h"

#include "common.h"

namespace {

// A prepacked weight: the block's owner is kept alive, its header is checked once.
class PackedInt8 {
  public:
    PackedInt8(Address data, int64_t bytes, py::object owner) : view_(check(data, bytes)), owner_(std::move(owner)) {}
    const qk::Int8View& view() const { return view_; }

  private:
    static const void* check(Address data, int64_t bytes) {
        if (data % 8 != 0 || !qk::Int8View::valid(pointer<void>(data), bytes))
            throw std::invalid_argument("not a prepacked int8 weight (" + std::to_string(bytes) +
                                        " bytes): make it with prepack and do not change it");
        return pointer<void>(data);
    }
    qk::Int8View view_;
    py::object owner_;
};

// What Python has checked for its own calls; the torch operator takes any numbers from a graph.
void check_linear(const qk::Int8View& w, const qk::InputQuant& q) {
    const qk::Int8Header& h = *w.header;
    if (q.mode == qk::InputMode::channel && h.has_input_scale == 0)
        throw std::invalid_argument("LinearInt8: per-channel activations need a weight with input_scale");
    const bool is_static = q.mode == qk::InputMode::static_tensor;
    const int lo = is_static && q.is_signed ? -128 : 0, hi = !is_static ? 0 : q.is_signed ? 127 : 255;
    if (q.zero_point < lo || q.zero_point > hi || !(q.scale >= 0x1p-126f && q.scale <= 0x1p126f))
        throw std::invalid_argument("LinearInt8: scale or zero_point is out of range");
    int64_t extreme = 128;  // max|code - zero_point|
    for (int64_t n = 0; h.has_zero_point && n < h.n; ++n)
        extreme = std::max(extreme, std::max(int64_t{127} - w.zero_point()[n], int64_t{128} + w.zero_point()[n]));
    const int x_extreme =
        q.is_signed ? std::max(128 + q.zero_point, 127 - q.zero_point) : std::max(q.zero_point, 255 - q.zero_point);
    if (h.k * x_extreme * extreme > INT32_MAX)
        throw std::invalid_argument("LinearInt8: K = " + std::to_string(h.k) + " could overflow the accumulator");
}

}  // namespace

void bind_gemm(py::module_& m) {
    m.def("int8_packed_bytes", [](int64_t n, int64_t k, bool zero_point, bool input_scale) {
        return qk::int8_layout(n, k, zero_point, input_scale).total_bytes;
    });
    m.def("int8_prepack", [](Address codes, int64_t n, int64_t k, Address scale, int64_t scale_step, Address zero_point,
                             int64_t zero_step, Address input_scale, Address out, int64_t out_bytes) {
        if (n < 0 || k < 0 || qk::int8_layout(n, k, zero_point != 0, input_scale != 0).total_bytes > out_bytes)
            throw std::invalid_argument("int8_prepack: the output buffer is too small");
        py::gil_scoped_release release;
        qk::int8_prepack(pointer<int8_t>(codes), n, k, pointer<float>(scale), scale_step, pointer<int16_t>(zero_point),
                         zero_step, pointer<float>(input_scale), pointer<void>(out));
    });

    py::class_<PackedInt8>(m, "PackedInt8", "A checked view of a prepacked int8 weight.")
        .def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly(
            "shape", [](const PackedInt8& p) { return py::make_tuple(p.view().header->n, p.view().header->k); })
        .def_property_readonly("has_zero_point",
                               [](const PackedInt8& p) { return p.view().header->has_zero_point != 0; })
        .def_property_readonly("has_input_scale",
                               [](const PackedInt8& p) { return p.view().header->has_input_scale != 0; })
        // x (m, k) codes, row pitch ldx -> out (m, n) int32, contiguous
        .def("matmul",
             [](const PackedInt8& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx, int x_zero,
                Address out, int threads) {
                 const qk::Kernels& kernels = checked_isa(isa);
                 present("matmul_int: xq", x, m * p.view().header->k);
                 py::gil_scoped_release release;
                 qk::Epilogue e;
                 e.out = pointer<void>(out);
                 e.ldo = p.view().header->n;
                 qk::int8_gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e,
                                     kernels.store_i32, threads);
             })
        .def("matmul_requant", [](const PackedInt8& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx,
                                  int x_zero, const RequantArrays& r, Address bias, Address out, int threads) {
            const qk::Kernels& kernels = checked_isa(isa);
            present("linear_requant: xq", x, m * p.view().header->k);
            py::gil_scoped_release release;
            qk::Epilogue e = r.epilogue();
            e.out = pointer<void>(out);
            e.ldo = p.view().header->n;
            e.bias_i32 = pointer<int32_t>(bias);
            e.out_bytes = 1;
            qk::int8_gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e,
                                kernels.store_byte[r.rounding], threads);
        });

    // linear with integer activations: everything that does not change between calls is held here, so that a call
    // from Python passes six integers.
    struct LinearInt8 {
        const PackedInt8* packed;
        py::object keep;
        const qk::Kernels* isa;
        qk::InputQuant quant;
        qk::DType x_type;
        int out_type;
        qk::Activation activation;
    };
    py::class_<LinearInt8>(m, "LinearInt8", "linear(x, int8 weight) with quantized activations, ready to run.")
        .def(py::init([](py::object packed, int isa, int mode, bool is_signed, float scale, int zero_point, int x_type,
                         int out_type, int activation) {
            const auto& p = packed.cast<const PackedInt8&>();
            if (mode < 0 || mode > 3 || x_type < 0 || x_type > 2 || out_type < 0 || out_type > 2 || activation < 0 ||
                activation > 4)
                throw std::invalid_argument("LinearInt8: a mode, dtype or activation number is out of range");
            const qk::InputQuant quant{static_cast<qk::InputMode>(mode), is_signed, scale, zero_point};
            check_linear(p.view(), quant);
            return LinearInt8{&p,
                              packed,
                              &checked_isa(isa),
                              quant,
                              static_cast<qk::DType>(x_type),
                              out_type,
                              static_cast<qk::Activation>(activation)};
        }))
        // Returns the number of a row with a non-finite value, or -1.
        .def("run", [](const LinearInt8& l, Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) {
            const qk::Int8View& w = l.packed->view();
            present("linear: x", x, m * w.header->k);
            present("linear: the result", out, m * w.header->n);
            py::gil_scoped_release release;
            qk::Epilogue e;
            e.out = pointer<void>(out);
            e.ldo = w.header->n;
            e.out_bytes = l.out_type == 0 ? 4 : 2;
            e.w_scale = w.scale();
            e.bias = pointer<float>(bias);
            e.activation = l.activation;
            return qk::int8_gemm_float(*l.isa, pointer<void>(x), l.x_type, m, ldx, l.quant, w, e,
                                       l.isa->store_float[l.out_type], threads);
        });
}
