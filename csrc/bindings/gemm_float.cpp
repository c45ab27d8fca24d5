// Prepacked weights of the float core and what runs on them.
#include "../cpu/gemm_float.h"

#include "common.h"

namespace {

class PackedFloat : public Packed<qk::FloatView> {
  public:
    PackedFloat(Address data, int64_t bytes, py::object owner)
        : Packed(data, bytes, std::move(owner), "weight of the float core", "prepack_float") {}
};

class FloatPlan : public LinearCall {
  public:
    FloatPlan(py::object packed, int isa, bool exact, int x_type, int out_type, int activation)
        : packed_(packed.cast<const PackedFloat&>()), keep_(packed) {
        const qk::Kernels& kernels = checked_isa(isa);
        if (x_type < 0 || x_type > 2 || out_type < 0 || out_type > 2 || activation < 0 || activation > 4)
            throw std::invalid_argument("FloatPlan: a dtype or activation number is out of range");
        products_ = &qk::float_kernels(static_cast<qk::Isa>(isa), exact);
        store_ = kernels.store_sum[out_type];
        x_type_ = static_cast<qk::DType>(x_type);
        out_bytes_ = out_type == 0 ? 4 : 2;
        activation_ = static_cast<qk::Activation>(activation);
    }
    const char* products() const { return products_->name; }
    int64_t n() const override { return packed_.view().header->n; }
    int64_t k() const override { return packed_.view().header->k; }
    int64_t run(Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) const override {
        qk::Epilogue e;
        e.out = pointer<void>(out);
        e.ldo = n();
        e.out_bytes = out_bytes_;
        e.bias = pointer<float>(bias);
        e.activation = activation_;
        qk::gemm_float(*products_, pointer<void>(x), x_type_, m, ldx, packed_.view(), e, store_, threads);
        return -1;
    }

  private:
    const PackedFloat& packed_;
    py::object keep_;
    const qk::FloatKernels* products_;
    qk::EpilogueFn store_;
    qk::DType x_type_;
    int out_bytes_;
    qk::Activation activation_;
};

}  // namespace

void bind_gemm_float(py::module_& m) {
    py::class_<qk::FloatSource>(m, "FloatSource", "What prepack_float reads; csrc/cpu/gemm_float.h.")
        .def(py::init([](int64_t n, int64_t k, int64_t bits, int64_t segment, int64_t tables_of, bool half_scale,
                         bool half_offset, bool ramp, Address index, Address table, Address scale, Address offset,
                         int64_t row_step, int64_t part_step, Address input_scale) {
            if (n < 0 || k < 0 || segment < 0 || segment > k || (segment == 0 && k > 0) || bits < 1 ||
                bits > qk::kFloatMaxBits || tables_of < 0 || tables_of > 2 || (ramp && bits != 8))
                throw std::invalid_argument("FloatSource: a size is out of range");
            return qk::FloatSource{
                {n, k, bits, segment, tables_of, half_scale, half_offset, offset != 0, input_scale != 0},
                pointer<uint8_t>(index),
                pointer<float>(table),
                ramp,
                pointer<float>(scale),
                pointer<float>(offset),
                row_step,
                part_step,
                pointer<float>(input_scale)};
        }));
    m.def("packed_float_bytes", [](const qk::FloatSource& s) { return qk::packed_float_bytes(s); });
    m.def("prepack_float", [](const qk::FloatSource& s, Address out, int64_t out_bytes) {
        if (qk::packed_float_bytes(s) > out_bytes)
            throw std::invalid_argument("prepack_float: the output buffer is too small");
        py::gil_scoped_release release;
        qk::prepack_float(s, pointer<void>(out));
    });

    py::class_<PackedFloat>(m, "PackedFloat", "A checked view of a prepacked weight of the float core.")
        .def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly(
            "shape", [](const PackedFloat& p) { return py::make_tuple(p.view().header->n, p.view().header->k); });

    py::class_<FloatPlan, LinearCall>(m, "FloatPlan", "linear(x, w) with float activations, ready to run.")
        .def(py::init<py::object, int, bool, int, int, int>())
        .def_property_readonly("products", &FloatPlan::products);
}
