// Prepacked weights of the integer core and what runs on them.
#include "../cpu/gemm.h"

#include <cstdlib>

#include "common.h"

namespace {

class PackedWeight : public Packed<qk::GemmView> {
  public:
    PackedWeight(Address data, int64_t bytes, py::object owner)
        : Packed(data, bytes, std::move(owner), "weight", "prepack") {}
};

// The largest operand that activations become: of split codes h or l, below 128 or 256.
int64_t x_extreme(const qk::InputQuant& q) {
    if (q.split()) return q.is_signed ? std::max(64, (q.largest() + 64) >> 7) : 255;
    return q.power ? q.largest() : std::max(q.hi() - q.zero_point, q.zero_point - q.lo());
}

void not_grouped(const qk::GemmView& w) {
    if (w.header->grouped != 0) throw std::invalid_argument("group-wise scales have no integer result");
}

// What Python has checked for its own calls; the torch operator takes any numbers from a graph.
void check_linear(const qk::GemmView& w, const qk::InputQuant& q) {
    const qk::GemmHeader& h = *w.header;
    if (q.mode == qk::InputMode::channel && h.has_input_scale == 0)
        throw std::invalid_argument("LinearPlan: per-channel activations need a weight with input_scale");
    if (q.power && (q.mode == qk::InputMode::channel || q.zero_point != 0))
        throw std::invalid_argument("LinearPlan: power codes have one scale a token or tensor, and no zero_point");
    const bool is_static = q.mode == qk::InputMode::static_tensor;
    if (q.zero_point < (is_static ? q.lo() : 0) || q.zero_point > (is_static ? q.hi() : 0) ||
        !(q.scale >= 0x1p-126f && q.scale <= 0x1p126f))
        throw std::invalid_argument("LinearPlan: scale or zero_point is out of range");
    if ((h.grouped ? h.segment : h.k) * x_extreme(q) * code_extreme(w) > INT32_MAX)
        throw std::invalid_argument("LinearPlan: K = " + std::to_string(h.k) + " could overflow the accumulator");
}

class LinearPlan : public LinearCall {
  public:
    LinearPlan(py::object packed, int isa, int mode, int bits, bool is_signed, float scale, int zero_point, int x_type,
               int out_type, int activation, bool power)
        : packed_(packed.cast<const PackedWeight&>()), keep_(packed) {
        if (mode < 0 || mode > 3 || x_type < 0 || x_type > 2 || out_type < 0 || out_type > 2 || activation < 0 ||
            activation > 4 || bits < 2 || bits > 8)
            throw std::invalid_argument("LinearPlan: a mode, dtype or activation number is out of range");
        isa_ = &checked_isa(isa);
        quant_ = {static_cast<qk::InputMode>(mode), is_signed, scale, zero_point, bits, power};
        check_linear(packed_.view(), quant_);
        const bool sums = packed_.view().header->grouped || quant_.split();
        store_ = (sums ? isa_->store_sum : isa_->store_float)[out_type];
        x_type_ = static_cast<qk::DType>(x_type);
        out_bytes_ = out_type == 0 ? 4 : 2;
        activation_ = static_cast<qk::Activation>(activation);
    }
    int64_t n() const override { return packed_.view().header->n; }
    int64_t k() const override { return packed_.view().header->k; }
    // The refused row is one with a value that is not finite.
    int64_t run(Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) const override {
        const qk::GemmView& w = packed_.view();
        qk::Epilogue e;
        e.out = pointer<void>(out);
        e.ldo = n();
        e.out_bytes = out_bytes_;
        e.w_scale = w.scale();
        e.bias = pointer<float>(bias);
        e.activation = activation_;
        return qk::gemm_quantized(*isa_, pointer<void>(x), x_type_, m, ldx, quant_, w, e, store_, threads);
    }

  private:
    const PackedWeight& packed_;
    py::object keep_;
    const qk::Kernels* isa_;
    qk::InputQuant quant_;
    qk::EpilogueFn store_;
    qk::DType x_type_;
    int out_bytes_;
    qk::Activation activation_;
};

}  // namespace

int64_t code_extreme(const qk::GemmView& w) {
    const qk::GemmHeader& h = *w.header;
    int64_t extreme = 0;
    for (int64_t p = 0; p < h.panels(); ++p) {
        const int bits = static_cast<int>(w.panel(p).bits), levels = 1 << bits;
        const int64_t lanes = h.parts() * qk::kPanelN;
        for (int64_t i = 0; i < lanes && bits < 8 && bits > 1 && !h.has_lookup; ++i) {
            const int offset = static_cast<int8_t>(w.offset()[p * lanes + i]);
            extreme = std::max<int64_t>(extreme, std::max(offset, levels - 1 - offset));
        }
        if (bits == 8) extreme = std::max<int64_t>(extreme, 128);
        for (int i = 0; bits < 8 && h.has_lookup && i < levels; ++i)
            extreme = std::max<int64_t>(extreme, std::abs(int{h.lookup[i]}));
        for (int64_t n = p * qk::kPanelN; h.has_zero_point && n < std::min(h.n, (p + 1) * qk::kPanelN); ++n)
            extreme = std::max(extreme, std::max(int64_t{127} - w.zero_point()[n], int64_t{128} + w.zero_point()[n]));
        if (bits == 1) extreme = std::max<int64_t>(extreme, 1);
    }
    return extreme;
}

void bind_gemm(py::module_& m) {
    py::class_<qk::PrepackSource>(m, "PrepackSource", "What prepack reads; csrc/cpu/gemm.h.")
        .def(py::init([](int64_t n, int64_t k, int64_t segment, bool grouped, int bits, Address row_bits,
                         Address columns, Address codes, Address scale, Address zero_point, int64_t row_step,
                         int64_t part_step, Address input_scale, Address lookup) {
            if (n < 0 || k < 0 || segment < 0 || segment > k || (segment == 0 && k > 0) || bits < 1 || bits > 8)
                throw std::invalid_argument("PrepackSource: a size is out of range");
            if (lookup != 0 && (bits < 2 || bits > qk::kLookupBits || row_bits != 0 || zero_point != 0))
                throw std::invalid_argument(
                    "PrepackSource: a table is for 2 to 4 bits in every row, without zero points");
            const bool patch = zero_point != 0 && bits == 8;
            return qk::PrepackSource{{n, k, segment, grouped, patch, input_scale != 0, columns != 0, lookup != 0},
                                     bits,
                                     pointer<uint8_t>(row_bits),
                                     pointer<int32_t>(columns),
                                     pointer<int8_t>(codes),
                                     pointer<float>(scale),
                                     pointer<int16_t>(zero_point),
                                     row_step,
                                     part_step,
                                     pointer<float>(input_scale),
                                     pointer<int8_t>(lookup)};
        }));
    m.def("packed_bytes", [](const qk::PrepackSource& s) { return qk::packed_bytes(s); });
    m.def("prepack", [](const qk::PrepackSource& s, Address out, int64_t out_bytes) {
        if (qk::packed_bytes(s) > out_bytes) throw std::invalid_argument("prepack: the output buffer is too small");
        py::gil_scoped_release release;
        qk::prepack(s, pointer<void>(out));
    });

    py::class_<PackedWeight>(m, "PackedWeight", "A checked view of a prepacked weight.")
        .def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly(
            "shape", [](const PackedWeight& p) { return py::make_tuple(p.view().header->n, p.view().header->k); })
        .def_property_readonly("has_zero_point",
                               [](const PackedWeight& p) { return p.view().header->has_zero_point != 0; })
        .def_property_readonly("is_grouped", [](const PackedWeight& p) { return p.view().header->grouped != 0; })
        .def_property_readonly("has_input_scale",
                               [](const PackedWeight& p) { return p.view().header->has_input_scale != 0; })
        // x (m, k) codes, row pitch ldx -> out (m, n) int32, contiguous
        .def("matmul",
             [](const PackedWeight& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx, int x_zero,
                Address out, int threads) {
                 const qk::Kernels& kernels = checked_isa(isa);
                 not_grouped(p.view());
                 present("matmul_int: xq", x, m * p.view().header->k);
                 py::gil_scoped_release release;
                 qk::Epilogue e;
                 e.out = pointer<void>(out);
                 e.ldo = p.view().header->n;
                 qk::gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e, kernels.store_i32,
                                threads);
             })
        .def("matmul_requant", [](const PackedWeight& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx,
                                  int x_zero, const RequantArrays& r, Address bias, Address out, int threads) {
            const qk::Kernels& kernels = checked_isa(isa);
            not_grouped(p.view());
            present("linear_requant: xq", x, m * p.view().header->k);
            py::gil_scoped_release release;
            qk::Epilogue e = r.epilogue();
            e.out = pointer<void>(out);
            e.ldo = p.view().header->n;
            e.bias_i32 = pointer<int32_t>(bias);
            e.out_bytes = 1;
            qk::gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e,
                           kernels.store_byte[r.rounding], threads);
        });

    py::class_<LinearPlan, LinearCall>(m, "LinearPlan", "linear(x, w) with quantized activations, ready to run.")
        .def(py::init<py::object, int, int, int, bool, float, int, int, int, int, bool>());
}
