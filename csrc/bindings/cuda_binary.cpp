// The binary core on CUDA devices.
#include "../cuda/binary.h"
#include "cuda_common.h"

namespace {

using qk::cuda::Epilogue;
using qk::cuda::Pack;
using qk::cuda::PackSigns;

struct Weight {
    qk::cuda::BinaryWeight view;
    int device;
    py::object owner;
};

PackSigns signs_of(Address x, int x_type, int64_t rows, int64_t ldx, int mode, float scale) {
    require(x_type >= 0 && x_type <= 2 && mode >= 0 && mode <= 2, "signs: a mode or dtype is out of range");
    require(rows >= 0 && rows < (int64_t{1} << 31), "signs: the number of rows is out of range");
    PackSigns p;
    p.x = pointer<void>(x);
    p.type = static_cast<qk::DType>(x_type);
    p.m = rows;
    p.ldx = ldx;
    p.mode = static_cast<qk::cuda::SignScale>(mode);
    p.scale = scale;
    return p;
}

}  // namespace

void bind_cuda_binary(py::module_& m) {
    m.def("binary_layout", [](int64_t n, int64_t k, bool ternary) {
        const auto l = qk::cuda::binary_layout(n, k, ternary);
        return named({{"n_pad", l.n_pad},
                      {"plane_bytes", l.plane_bytes},
                      {"row_bytes", l.row_bytes},
                      {"codes", l.codes},
                      {"scale", l.scale},
                      {"offset", l.offset},
                      {"two", l.two},
                      {"total_bytes", l.total_bytes}});
    });
    m.def("binary_byte", &qk::cuda::binary_byte, "Byte of bit k of channel n of a plane: binary.h.");

    // Rows of bits of `width` bytes, and scales [rows] or 0.
    m.def("pack_signs", [](int device, Address stream, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx,
                           int mode, float scale, Address bits, int64_t width, Address scales) {
        PackSigns p = signs_of(x, x_type, rows, ldx, mode, scale);
        require(k >= 0 && width >= qk::ceil_div(k, 8), "pack_signs: a size is out of range");
        present("pack_signs: x", x, rows * k);
        present("pack_signs: the result", bits, rows * width);
        p.k = k;
        p.bits = pointer<uint8_t>(bits);
        p.row_bytes = width;
        p.scales = pointer<float>(scales);
        py::gil_scoped_release release;
        const qk::cuda::DeviceGuard guard(device);
        qk::cuda::pack_signs(p, stream_of(stream));
    });

    py::class_<Weight>(m, "BinaryWeight", "Prepacked planes of bits on a device: binary.h.")
        .def(
            py::init([](int device, Address data, int64_t bytes, py::object owner, int64_t n, int64_t k, bool ternary) {
                require_shape("BinaryWeight", n, k, k < int64_t{1} << 30);
                const auto layout = qk::cuda::binary_layout(n, k, ternary);
                require_block("BinaryWeight", data, bytes, layout.total_bytes);
                return Weight{{layout, pointer<char>(data)}, device, std::move(owner)};
            }))
        .def("scratch_bytes",
             [](const Weight& w, int64_t rows) {
                 const qk::cuda::DeviceGuard guard(w.device);
                 return qk::cuda::scratch_bytes(w.view, rows);
             })
        .def("linear",
             [](const Weight& w, Address stream, Address x, int x_type, int64_t rows, int64_t ldx, int mode,
                float scale, Address bias, int activation, int out_type, Address out, Address scratch, int64_t bytes) {
                 const PackSigns p = signs_of(x, x_type, rows, ldx, mode, scale);
                 present("linear: x", x, rows * w.view.layout.k);
                 present("linear: the result", out, rows * w.view.layout.n);
                 const Epilogue e = float_results(w.view.layout.n, bias, activation, out_type, out);
                 py::gil_scoped_release release;
                 const qk::cuda::DeviceGuard guard(w.device);
                 require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "linear: the scratch memory is too small");
                 qk::cuda::linear_signs(w.view, p, e, pointer<void>(scratch), stream_of(stream));
             })
        // out_type: 0 to 2 floats, 5 int32, times alpha and x_scale [rows] or 0 where floats or signs; pack: Pack.
        .def("bits", [](const Weight& w, Address stream, Address x, int64_t rows, int64_t ldx, int out_type, int pack,
                        Address x_scale, Address bias, int activation, Address threshold, Address flip, Address out,
                        Address scratch, int64_t bytes) {
            const auto& l = w.view.layout;
            require(((out_type >= 0 && out_type <= 2) || out_type == 5) && pack >= 0 && pack <= 2 && activation >= 0 &&
                        activation <= 4,
                    "linear_binary: a dtype, activation or kind is out of range");
            require(rows >= 0 && rows < (int64_t{1} << 31), "linear_binary: the number of rows is out of range");
            require(pack != 2 || l.n == 0 || (threshold != 0 && flip != 0), "linear_binary: an array is missing");
            present("linear_binary: x_bits", x, rows * qk::ceil_div(l.k, 8));
            present("linear_binary: the result", out, rows * l.n);
            Epilogue e;
            e.out = pointer<void>(out);
            e.pack = static_cast<Pack>(pack);
            e.ldo = e.pack == Pack::none ? l.n : qk::ceil_div(l.n, 8);
            e.out_type = static_cast<qk::DType>(out_type);
            if (out_type != 5) e.w_scale = w.view.at<float>(l.scale);
            e.x_scale = pointer<float>(x_scale);
            e.bias = pointer<float>(bias);
            e.activation = static_cast<qk::Activation>(activation);
            e.threshold = pointer<int32_t>(threshold);
            e.flip = pointer<int32_t>(flip);
            py::gil_scoped_release release;
            const qk::cuda::DeviceGuard guard(w.device);
            require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "linear_binary: the scratch memory is too small");
            qk::cuda::linear_bits(w.view, pointer<uint8_t>(x), rows, ldx, e, pointer<void>(scratch), stream_of(stream));
        });
}
