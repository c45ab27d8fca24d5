// int8 activations against 4-bit weights, on CUDA devices.
#include "../cuda/gemm_int4.h"
#include "cuda_common.h"

namespace {

struct Weight {
    qk::cuda::Int4Weight view;
    int device;
    py::object owner;
};

}  // namespace

void bind_cuda_int4(py::module_& m) {
    m.def("int4_layout",
          [](int64_t n, int64_t k, int64_t group, bool half_scales, bool has_zero_point, bool has_input_scale) {
              const auto l = qk::cuda::int4_layout(n, k, group, half_scales, has_zero_point, has_input_scale);
              return named({{"n_pad", l.n_pad},
                            {"k_pad", l.k_pad},
                            {"group", l.group},
                            {"groups", l.groups},
                            {"codes", l.codes},
                            {"scale", l.scale},
                            {"zero", l.zero},
                            {"offset", l.offset},
                            {"inv_input", l.inv_input},
                            {"total_bytes", l.total_bytes}});
          });
    m.def("int4_element", [](int64_t position, int64_t k, int64_t group) {
        return qk::cuda::int4_layout(1, k, group, false, false, false)
            .padded.element(static_cast<uint32_t>(position), k);
    });
    // (kernel, channels and tokens of a tile, tiles, groups a round, bytes of shared memory of a round)
    m.def("plan_int4",
          [](int64_t rows, int64_t n, int64_t k, int64_t group, bool has_sums, bool has_x_zero, int multiprocessors) {
              const auto l = qk::cuda::int4_layout(n, k, group, false, has_sums, false);
              const auto p = qk::cuda::plan_int4(rows, l, has_sums, has_x_zero, multiprocessors);
              return py::make_tuple(p.kernel == qk::cuda::Int4Kernel::skinny ? "skinny" : "tile", p.channels, p.tokens,
                                    p.tiles, p.round.groups, p.round.bytes);
          });
    // (word, the bits of it that a code has)
    m.def("int4_place", [](int64_t n, int64_t k, int64_t k_pad, int decoder, uint32_t code) {
        return py::make_tuple(qk::cuda::int4_word(n, k, k_pad),
                              qk::cuda::int4_bits(static_cast<qk::cuda::Decoder>(decoder), n, k, code));
    });

    py::class_<Weight>(m, "Int4Weight", "A prepacked weight of 4-bit codes on a device: gemm_int4_layout.h.")
        .def(py::init([](int device, Address data, int64_t bytes, py::object owner, int64_t n, int64_t k, int64_t group,
                         bool half_scales, bool has_zero_point, bool has_input_scale, int decoder,
                         const std::vector<int>& table) {
            require_shape("Int4Weight", n, k,
                          group >= 0 && (group == 0 || group >= k ? k : group) <= qk::cuda::kInt4Most);
            require((decoder == 0 || decoder == 1) && table.size() == 16, "Int4Weight: not a decoder");
            Weight w{{}, device, std::move(owner)};
            w.view.layout = qk::cuda::int4_layout(n, k, group, half_scales, has_zero_point, has_input_scale);
            require_block("Int4Weight", data, bytes, w.view.layout.total_bytes);
            w.view.base = pointer<char>(data);
            w.view.has_zero_point = has_zero_point;
            w.view.has_input_scale = has_input_scale;
            w.view.decoder = static_cast<qk::cuda::Decoder>(decoder);
            for (int i = 0; i < 16; ++i) w.view.table.set(i, static_cast<uint8_t>(table[i]));
            return w;
        }))
        .def("scratch_bytes", [](const Weight& w, int64_t rows) { return qk::cuda::scratch_bytes(w.view, rows); })
        .def("linear", [](const Weight& w, Address stream, Address x, int x_type, int64_t rows, int64_t ldx, int mode,
                          int lo, int hi, int largest, int zero, float scale, Address bias, int activation,
                          int out_type, Address out, Address scratch, int64_t bytes) {
            const auto q = quantization(x, x_type, rows, ldx, mode, lo, hi, largest, zero, scale);
            require(mode != 3 || w.view.has_input_scale, "linear: the weight has no input_scale");
            present("linear: x", x, rows * w.view.layout.k);
            present("linear: the result", out, rows * w.view.layout.n);
            const auto e = float_results(w.view.layout.n, bias, activation, out_type, out);
            require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "linear: the scratch memory is too small");
            py::gil_scoped_release release;
            const qk::cuda::DeviceGuard guard(w.device);
            qk::cuda::linear_int4(w.view, q, e, pointer<void>(scratch), stream_of(stream));
        });
}
