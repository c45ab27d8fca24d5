// Prepacked convolution weights and what runs on them.
#include "../cpu/conv.h"

#include <array>

#include "common.h"

namespace {

class PackedConv : public Packed<qk::ConvView> {
  public:
    PackedConv(Address data, int64_t bytes, py::object owner)
        : Packed(data, bytes, std::move(owner), "convolution weight", "prepack", 64) {}
};

qk::ConvKind checked_kind(int kind) {
    if (kind < 0 || kind > 3) throw std::invalid_argument("conv: kind is 0 to 3");
    return static_cast<qk::ConvKind>(kind);
}

// Everything of a call but addresses, checked once.
struct ConvPlan {
    const PackedConv* packed;
    py::object keep, requant;
    qk::Isa isa;
    qk::ConvCall call;
    int64_t in_elements, out_elements;
};

constexpr int kI32 = 5, kBytes = 3;

// numbers: batch, height, width, out_height, out_width, stride h and w, dilation h and w, padding top and left.
// strides: of x in elements, (batch, channel, row, pixel).
ConvPlan make_plan(py::object packed, int isa, std::array<int64_t, 11> numbers, int x_type,
                   std::array<int64_t, 4> strides, int mode, int bits, bool is_signed, float scale, int zero_point,
                   int out_type, bool out_nchw, int activation, py::object requant) {
    const auto& p = packed.cast<const PackedConv&>();
    const qk::Kernels& kernels = checked_isa(isa);
    const qk::ConvHeader& h = *p.view().header;
    ConvPlan plan{&p, packed, requant, static_cast<qk::Isa>(isa), {}, 0, 0};
    qk::ConvShape& s = plan.call.shape;
    int64_t* fields[] = {&s.batch,    &s.height,     &s.width,      &s.out_height, &s.out_width, &s.stride_h,
                         &s.stride_w, &s.dilation_h, &s.dilation_w, &s.pad_top,    &s.pad_left};
    for (int i = 0; i < 11; ++i) {
        const int64_t least = i >= 5 && i < 9 ? 1 : 0;
        if (numbers[i] < least || numbers[i] > (int64_t{1} << 31))
            throw std::invalid_argument("conv: a size is out of range");
        *fields[i] = numbers[i];
    }
    const bool codes = x_type == 3 || x_type == 4, bytes = out_type == kBytes;
    if (x_type < 0 || x_type > 4 || mode < 1 || mode > 3 || (out_type > 3 && out_type != kI32) || out_type < 0 ||
        activation < 0 || activation > 4 || bits < 2 || bits > 8 || (codes && bits != 8) || bytes == requant.is_none())
        throw std::invalid_argument("conv: a mode, dtype or activation number is out of range");
    if (codes ? (mode != 2 || is_signed != (x_type == 3) || out_type < 3) : out_type > 2)
        throw std::invalid_argument("conv: codes give int32 or codes, floats give floats");
    const qk::InputQuant quant{static_cast<qk::InputMode>(mode), is_signed, scale, zero_point, bits};
    const int lo = quant.lo(), hi = quant.hi();
    if (zero_point < lo || zero_point > hi || (zero_point != 0 && mode != 2) ||
        !(scale >= 0x1p-126f && scale <= 0x1p126f))
        throw std::invalid_argument("conv: scale or zero_point is out of range");
    // What a row of the output reads must lie where ConvRows writes; the rest is a matter of numbers, not of memory.
    if (strides[1] != 1 && strides[3] != 1 && h.channels() > 1 && s.width > 1)
        throw std::invalid_argument("conv: neither channels nor pixels of x lie side by side");
    if (h.is(qk::ConvKind::rows) && s.dilation_w != 1 && h.kernel_w != 1)
        throw std::invalid_argument("conv: this weight was prepacked for dilation 1");
    const qk::GemmHeader& block = *p.view().block(0).header;
    if (block.grouped && out_type > 2) throw std::invalid_argument("conv: group-wise scales have no integer result");
    int64_t extreme = 0;
    for (int64_t g = 0; g < h.blocks(); ++g) extreme = std::max(extreme, code_extreme(p.view().block(g)));
    if ((block.grouped ? block.segment : h.k()) * std::max(hi - zero_point, zero_point - lo) * extreme > INT32_MAX)
        throw std::invalid_argument("conv: K = " + std::to_string(h.k()) + " could overflow the accumulator");

    qk::ConvCall& c = plan.call;
    c.x.type = static_cast<qk::DType>(x_type);
    c.x.stride_b = strides[0];
    c.x.stride_c = strides[1];
    c.x.stride_h = strides[2];
    c.x.stride_w = strides[3];
    c.quant = quant;
    c.out_nchw = out_nchw;
    if (bytes) {
        const auto& r = requant.cast<const RequantArrays&>();
        c.epilogue = r.epilogue();
        c.store = kernels.store_byte[r.rounding];
        c.epilogue.out_bytes = 1;
    } else if (out_type == kI32) {
        c.store = kernels.store_i32;
    } else {
        c.store = (block.grouped ? kernels.store_sum : kernels.store_float)[out_type];
        c.epilogue.out_bytes = out_type == 0 ? 4 : 2;
        c.epilogue.activation = static_cast<qk::Activation>(activation);
    }
    plan.in_elements = s.batch * s.height * s.width * h.channels();
    plan.out_elements = s.batch * s.out_height * s.out_width * h.n;
    return plan;
}

}  // namespace

void bind_conv(py::module_& m) {
    m.def("conv_header", [](int kind, int64_t n, int64_t per_group, int64_t kh, int64_t kw, int64_t groups,
                            int64_t block_bytes, Address out, int64_t out_bytes) {
        if (out_bytes < static_cast<int64_t>(sizeof(qk::ConvHeader)))
            throw std::invalid_argument("conv_header: the output buffer is too small");
        *pointer<qk::ConvHeader>(out) = {
            qk::kConvMagic, static_cast<int64_t>(checked_kind(kind)), n, per_group, kh, kw, groups, block_bytes, {}};
    });
    m.attr("CONV_HEADER_BYTES") = sizeof(qk::ConvHeader);

    py::class_<PackedConv>(m, "PackedConv", "A checked view of a prepacked convolution weight.")
        .def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly("shape",  // (O, C, kh, kw, groups)
                               [](const PackedConv& p) {
                                   const qk::ConvHeader& h = *p.view().header;
                                   return py::make_tuple(h.n, h.channels(), h.kernel_h, h.kernel_w, h.groups);
                               })
        .def_property_readonly("kind", [](const PackedConv& p) { return p.view().header->kind; });

    py::class_<ConvPlan>(m, "ConvPlan", "conv2d of one weight, shape and set of options, ready to run.")
        .def(py::init(&make_plan))
        // Returns the number of a row (image * height + y) with a non-finite value, or -1.
        .def("run", [](const ConvPlan& plan, Address x, Address input_scale, Address bias, Address out, int threads) {
            present("conv2d: x", x, plan.in_elements);
            present("conv2d: the result", out, plan.out_elements);
            if (plan.call.quant.mode == qk::InputMode::channel) present("conv2d: input_scale", input_scale, 1);
            py::gil_scoped_release release;
            qk::ConvCall call = plan.call;
            call.x.data = pointer<void>(x);
            call.input_scale = pointer<float>(input_scale);
            call.epilogue.out = pointer<void>(out);
            if (call.epilogue.out_bytes == 1 || call.store == qk::kernels(plan.isa).store_i32) {
                call.epilogue.bias_i32 = pointer<int32_t>(bias);
            } else {
                call.epilogue.bias = pointer<float>(bias);
            }
            return qk::conv2d(plan.isa, plan.packed->view(), call, threads);
        });
}
