// Prepacked binary and ternary weights and what runs on them.
#include "../cpu/binary.h"

#include <atomic>

#include "common.h"

namespace {

class PackedBinary : public Packed<qk::BinaryView> {
  public:
    PackedBinary(Address data, int64_t bytes, py::object owner)
        : Packed(data, bytes, std::move(owner), "binary weight", "prepack") {}
    bool turn() const { return turns_.fetch_add(1, std::memory_order_relaxed) % 2; }  // calls go forth and back

  private:
    mutable std::atomic<uint32_t> turns_{0};
};

const qk::BinaryKernels& checked_binary_isa(int isa) {
    checked_isa(isa);
    return qk::binary_kernels(static_cast<qk::Isa>(isa));
}

qk::SignScale checked_mode(int mode) {
    if (mode < 0 || mode > 2) throw std::invalid_argument("binary: a scale mode is 0, 1 or 2");
    return static_cast<qk::SignScale>(mode);
}

// Addresses of per-channel arrays of n values each, and what is done with accumulators.
struct BinaryPlan {
    int out, activation;
    Address bias, up, down, gamma, zeta;  // float32; 0: none
    Address threshold, flip, times;       // int32

    qk::BinaryEpilogue epilogue(const qk::BinaryView& w, Address to) const {
        qk::BinaryEpilogue e;
        const int64_t n = w.header->n;
        const auto kind = static_cast<qk::BinaryOut>(out);
        e.out = pointer<void>(to);
        e.ldo = kind == qk::BinaryOut::sign || kind == qk::BinaryOut::threshold ? qk::ceil_div(n, 8) : n;
        e.alpha = w.alpha();
        e.bias = pointer<float>(bias);
        e.activation = static_cast<qk::Activation>(activation);
        e.up = pointer<float>(up);
        e.down = pointer<float>(down);
        e.gamma = pointer<float>(gamma);
        e.zeta = pointer<float>(zeta);
        e.threshold = pointer<int32_t>(threshold);
        e.flip = pointer<int32_t>(flip);
        e.times = pointer<int32_t>(times);
        return e;
    }
};

}  // namespace

void bind_binary(py::module_& m) {
    m.def("binary_packed_bytes",
          [](int64_t n, int64_t k, bool ternary) { return qk::binary_layout(n, k, ternary ? 2 : 1).total_bytes; });
    m.def("binary_prepack", [](Address signs, Address nonzero, int64_t n, int64_t k, int64_t products, Address alpha,
                               Address out, int64_t out_bytes) {
        if (n < 0 || k < 0 || qk::binary_layout(n, k, nonzero != 0 ? 2 : 1).total_bytes > out_bytes)
            throw std::invalid_argument("binary_prepack: the output buffer is too small");
        py::gil_scoped_release release;
        qk::binary_prepack(pointer<uint8_t>(signs), pointer<uint8_t>(nonzero), n, k, products, pointer<float>(alpha),
                           pointer<void>(out));
    });
    m.def("pack_signs", [](int isa, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx, int mode, float scale,
                           Address bits, int64_t pitch, Address scales, int threads) {
        const qk::BinaryKernels& kernels = checked_binary_isa(isa);
        if (x_type < 0 || x_type > 2) throw std::invalid_argument("pack_signs: a dtype number is out of range");
        const qk::SignScale kind = checked_mode(mode);
        if (pitch < qk::ceil_div(k, 8)) throw std::invalid_argument("pack_signs: rows of bits overlap");
        present("pack_signs: x", x, rows * k);
        py::gil_scoped_release release;
        return qk::pack_signs(kernels, pointer<void>(x), static_cast<qk::DType>(x_type), rows, k, ldx, kind, scale,
                              pointer<uint8_t>(bits), pitch, pointer<float>(scales), threads);
    });

    py::class_<BinaryPlan>(m, "BinaryPlan", "What becomes of the accumulators of a binary product.")
        .def(py::init([](int out, int activation, Address bias, Address up, Address down, Address gamma, Address zeta,
                         Address threshold, Address flip, Address times) {
            const auto kind = static_cast<qk::BinaryOut>(out);
            if (out < 0 || kind >= qk::BinaryOut::kCount || activation < 0 || activation > 4)
                throw std::invalid_argument("BinaryPlan: an output or activation number is out of range");
            const bool integers = kind == qk::BinaryOut::threshold || kind == qk::BinaryOut::multiple;
            if ((up != 0 && (down == 0 || gamma == 0 || zeta == 0)) || (integers && (threshold == 0 || flip == 0)) ||
                (kind == qk::BinaryOut::multiple && times == 0))
                throw std::invalid_argument("BinaryPlan: an array is missing");
            return BinaryPlan{out, activation, bias, up, down, gamma, zeta, threshold, flip, times};
        }));

    py::class_<PackedBinary> packed_binary(m, "PackedBinary",
                                           "A checked view of a prepacked binary or ternary weight.");
    packed_binary.def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly(
            "shape", [](const PackedBinary& p) { return py::make_tuple(p.view().header->n, p.view().header->k); })
        // signs (m, ceil(k / 8)) bytes, nonzero likewise or 0, x_scale float32 (step 0 or 1) or 0
        .def("run_bits",
             [](const PackedBinary& p, int isa, Address signs, int64_t pitch, Address nonzero, int64_t nonzero_pitch,
                int64_t rows, Address x_scale, int x_scale_step, const BinaryPlan& plan, Address out, int threads) {
                 const qk::BinaryKernels& kernels = checked_binary_isa(isa);
                 present("a binary product: x_bits", signs, rows * p.view().header->k);
                 py::gil_scoped_release release;
                 qk::BinaryEpilogue e = plan.epilogue(p.view(), out);
                 e.x_scale = pointer<float>(x_scale);
                 e.x_scale_step = x_scale_step != 0;
                 qk::binary_gemm_bits(kernels,
                                      {pointer<uint8_t>(signs), pointer<uint8_t>(nonzero), rows, pitch, nonzero_pitch},
                                      p.view(), e, static_cast<qk::BinaryOut>(plan.out), p.turn(), threads);
             });

    // images of packed signs (binary.h): the numbers of BinaryImages after `bits`, in order; ldo: channels of a pixel
    // of out
    packed_binary.def("run_conv",
                      [](const PackedBinary& p, int isa, Address bits, const std::vector<int64_t>& n, Address tap_sums,
                         float x_scale, const BinaryPlan& plan, Address out, int64_t ldo, int threads) {
                          const qk::BinaryKernels& kernels = checked_binary_isa(isa);
                          const qk::BinaryHeader& h = *p.view().header;
                          if (n.size() != 16) throw std::invalid_argument("run_conv: sixteen numbers are needed");
                          const qk::BinaryImages x{pointer<uint64_t>(bits),
                                                   n[0],
                                                   n[1],
                                                   n[2],
                                                   n[3],
                                                   n[4],
                                                   n[5],
                                                   n[6],
                                                   n[7],
                                                   n[8],
                                                   n[9],
                                                   n[10],
                                                   n[11],
                                                   n[12],
                                                   n[13],
                                                   n[14],
                                                   n[15],
                                                   pointer<int32_t>(tap_sums)};
                          if (*std::min_element(n.begin(), n.end()) < 0 || x.stride_h < 1 || x.stride_w < 1 ||
                              x.dilation_h < 1 || x.dilation_w < 1 || x.kernel_h * x.kernel_w * x.words != h.words ||
                              x.words > x.pixel_words || x.channels > x.words * qk::kWordBits || ldo < h.n)
                              throw std::invalid_argument("run_conv: numbers that contradict each other or the weight");
                          present("conv2d: x", bits, x.batch * x.height * x.width * x.pixel_words);
                          py::gil_scoped_release release;
                          qk::BinaryEpilogue e = plan.epilogue(p.view(), out);
                          e.ldo = ldo;
                          e.x_scale = &x_scale;
                          qk::binary_conv(kernels, x, p.view(), e, static_cast<qk::BinaryOut>(plan.out), threads);
                      });

    // linear with binarized activations: what does not change between calls is held here, as in LinearPlan.
    struct LinearBinary {
        const PackedBinary* packed;
        py::object keep;
        const qk::BinaryKernels* isa;
        qk::SignScale mode;
        float scale;
        qk::DType x_type;
        BinaryPlan plan;
    };
    py::class_<LinearBinary>(m, "LinearBinary", "linear(x, binary weight) with binarized activations, ready to run.")
        .def(py::init([](py::object packed, int isa, int mode, float scale, int x_type, const BinaryPlan& plan) {
            if (x_type < 0 || x_type > 2) throw std::invalid_argument("LinearBinary: a dtype number is out of range");
            const auto& p = packed.cast<const PackedBinary&>();
            return LinearBinary{
                &p, packed, &checked_binary_isa(isa), checked_mode(mode), scale, static_cast<qk::DType>(x_type), plan};
        }))
        // x (m, k) floats; returns the number of a row with a value that is not finite, or -1
        .def("run",
             [](const LinearBinary& l, Address x, int64_t rows, int64_t ldx, Address bias, Address out, int threads) {
                 const qk::BinaryView& w = l.packed->view();
                 present("linear: x", x, rows * w.header->k);
                 present("linear: the result", out, rows * w.header->n);
                 py::gil_scoped_release release;
                 qk::BinaryEpilogue e = l.plan.epilogue(w, out);
                 e.bias = pointer<float>(bias);
                 return qk::binary_gemm_float(*l.isa, pointer<void>(x), l.x_type, rows, ldx, l.mode, l.scale, w, e,
                                              static_cast<qk::BinaryOut>(l.plan.out), l.packed->turn(), threads);
             });
}
