// The float core on CUDA devices.
#include "../cuda/linear_float.h"
#include "cuda_common.h"

namespace {

using qk::cuda::Epilogue;

struct Weight {
    qk::cuda::FloatWeight view;
    int device;
    py::object owner;
};

}  // namespace

void bind_cuda_float(py::module_& m) {
    m.def("float_layout", [](int64_t n, int64_t k, int64_t group, bool half_scales, bool has_offset, bool has_input) {
        const auto l = qk::cuda::float_layout(n, k, group, half_scales, has_offset, has_input);
        return named({{"n_pad", l.n_pad},
                      {"k_pad", l.k_pad},
                      {"group", l.group},
                      {"groups", l.groups},
                      {"codes", l.codes},
                      {"scale", l.scale},
                      {"offset", l.offset},
                      {"inv_input", l.inv_input},
                      {"total_bytes", l.total_bytes}});
    });
    m.def("position_of", &qk::cuda::position_of, "gemm_float_layout.h");
    m.def("element_at", &qk::cuda::element_at, "gemm_float_layout.h");
    m.def("scale_index", &qk::cuda::scale_index, "gemm_float_layout.h");
    // (word, the bits of it that a code has)
    m.def("float_place", [](int64_t n, int64_t position, int64_t k_pad, int decoder, uint32_t code) {
        const auto p = qk::cuda::float_place(n, position, k_pad);
        const auto d = static_cast<qk::cuda::Decoder>(decoder);
        return py::make_tuple(p.word, p.reg, p.element, qk::cuda::float_bits_of(d, p.reg, p.element, code));
    });
    m.def("force_float", [](const std::string& name) {  // for tests and measurements: gemm_float.h
        qk::cuda::force_float(choice_of<qk::cuda::FloatChoice>("force_float", name, {"any", "cuda_cores", "tiles"}));
    });
    // (tokens and channels of a tile, blocks that share a K, tiles)
    m.def("plan_float", [](int64_t rows, int64_t n, int64_t k, int64_t group, int compute, int multiprocessors) {
        const auto l = qk::cuda::float_layout(n, k, group, false, false, false);
        const auto p = qk::cuda::plan_float(rows, l, static_cast<qk::DType>(compute), multiprocessors);
        return py::make_tuple(p.tokens, p.channels, p.splits, p.tiles);
    });

    py::class_<Weight>(m, "FloatWeight", "A prepacked weight of up to 4 bits on a device: gemm_float_layout.h.")
        .def(py::init([](int device, Address data, int64_t bytes, py::object owner, int64_t n, int64_t k, int64_t group,
                         bool half_scales, bool has_offset, bool has_input_scale, int decoder,
                         const std::vector<float>& table) {
            require_shape("FloatWeight", n, k, group >= 0);
            require((decoder == 0 || decoder == 1) && table.size() == 16, "FloatWeight: not a decoder");
            Weight w{{}, device, std::move(owner)};
            w.view.layout = qk::cuda::float_layout(n, k, group, half_scales, has_offset, has_input_scale);
            require_block("FloatWeight", data, bytes, w.view.layout.total_bytes);
            w.view.base = pointer<char>(data);
            w.view.has_offset = has_offset;
            w.view.has_input_scale = has_input_scale;
            w.view.decoder = static_cast<qk::cuda::Decoder>(decoder);
            float entries[16];
            std::copy(table.begin(), table.end(), entries);
            w.view.set_table(entries);
            return w;
        }))
        .def_property_readonly("shape",
                               [](const Weight& w) { return py::make_tuple(w.view.layout.n, w.view.layout.k); })
        .def("scratch_bytes",
             [](const Weight& w, int64_t rows, int compute) {
                 const qk::cuda::DeviceGuard guard(w.device);
                 return qk::cuda::scratch_bytes(w.view, rows, static_cast<qk::DType>(compute));
             })
        .def("linear",
             [](const Weight& w, Address stream, Address x, int x_type, int64_t rows, int64_t ldx, int compute,
                Address bias, int activation, int out_type, Address out, Address scratch, int64_t bytes) {
                 require(x_type >= 0 && x_type <= 2 && compute >= 0 && compute <= 2, "linear: a dtype is out of range");
                 require(rows >= 0 && rows < (int64_t{1} << 31), "linear: the number of rows is out of range");
                 present("linear: x", x, rows * w.view.layout.k);
                 present("linear: the result", out, rows * w.view.layout.n);
                 const Epilogue e = float_results(w.view.layout.n, bias, activation, out_type, out);
                 qk::cuda::FloatInput input;
                 input.x = pointer<void>(x);
                 input.type = static_cast<qk::DType>(x_type);
                 input.compute = static_cast<qk::DType>(compute);
                 input.m = rows;
                 input.ldx = ldx;
                 py::gil_scoped_release release;
                 const qk::cuda::DeviceGuard guard(w.device);
                 require(qk::cuda::scratch_bytes(w.view, rows, input.compute) <= bytes,
                         "linear: the scratch memory is too small");
                 qk::cuda::linear_float(w.view, input, e, pointer<void>(scratch), stream_of(stream));
             });
}
