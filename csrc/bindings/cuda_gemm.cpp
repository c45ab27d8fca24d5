// The int8 core on CUDA devices.
#include "../cuda/linear.h"
#include "cuda_common.h"

namespace {

using qk::cuda::Epilogue;

constexpr const char* kGemmKernels[] = {"skinny", "tile", "wgmma"};

struct Weight {
    qk::cuda::Int8Weight view;
    int device;
    py::object owner;
};

// multiplier, shift, scale: [n] each, on the device.
Epilogue requantization(Address multiplier, Address shift, Address scale, int rounding, int out_zero, int lo, int hi,
                        Address out) {
    require(rounding >= 0 && rounding <= 2, "requantization: the rounding is out of range");
    require(multiplier != 0 && shift != 0 && scale != 0, "requantization: an array is missing");
    Epilogue e;
    e.out = pointer<void>(out);
    e.out_type = lo < 0 ? qk::DType::i8 : qk::DType::u8;  // the bytes of codes are the same
    e.multiplier = pointer<int32_t>(multiplier);
    e.shift = pointer<int32_t>(shift);
    e.requant_scale = pointer<float>(scale);
    e.rounding = static_cast<qk::Rounding>(rounding);
    e.out_zero = out_zero;
    e.lo = lo;
    e.hi = hi;
    return e;
}

}  // namespace

void bind_cuda_gemm(py::module_& m) {
    m.def("quantize", [](int device, Address stream, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx,
                         int mode, int lo, int hi, int largest, int zero, float scale, Address inv_k, Address codes,
                         int64_t k_pad, Address scales, Address sums, Address tensor_bits) {
        qk::cuda::Quantize q = quantization(x, x_type, rows, ldx, mode, lo, hi, largest, zero, scale);
        require(k >= 0 && k_pad >= k, "quantize: a size is out of range");
        require(mode != 1 || tensor_bits != 0, "quantize: tensor_bits is missing");
        present("quantize: x", x, rows * k);
        present("quantize: codes", codes, rows * k_pad);
        q.k = k;
        q.inv_k = pointer<float>(inv_k);
        q.codes = pointer<uint8_t>(codes);
        q.k_pad = q.ldo = k_pad;
        q.scales = pointer<float>(scales);
        q.sums = pointer<int32_t>(sums);
        q.tensor_bits = pointer<uint32_t>(tensor_bits);
        py::gil_scoped_release release;
        const qk::cuda::DeviceGuard guard(device);
        qk::cuda::quantize(q, stream_of(stream));
    });

    m.def("int8_layout", [](int64_t n, int64_t k, bool has_zero_point, bool has_input_scale) {
        const qk::cuda::Int8Layout l = qk::cuda::int8_layout(n, k, has_zero_point, has_input_scale);
        return named({{"n_pad", l.n_pad},
                      {"k_pad", l.k_pad},
                      {"codes", l.codes},
                      {"scale", l.scale},
                      {"offset", l.offset},
                      {"zero", l.zero},
                      {"inv_input", l.inv_input},
                      {"total_bytes", l.total_bytes}});
    });
    m.def("int8_offset", &qk::cuda::int8_offset, "Byte of w[n, k] in the codes: gemm_layout.h.");
    // (kernel, channels and tokens of a tile, blocks that share a K, tiles, blocks of a cluster)
    m.def("plan_gemm", [](int64_t rows, int64_t n, int64_t k_pad, int multiprocessors, bool has_wgmma) {
        const auto p = qk::cuda::plan_gemm(rows, n, k_pad, multiprocessors, has_wgmma);
        return py::make_tuple(kGemmKernels[static_cast<int>(p.kernel)], p.channels, p.tokens, p.splits, p.tiles,
                              p.cluster);
    });
    m.def("force_gemm", [](const std::string& name) {  // for tests: gemm.h
        qk::cuda::force_gemm(
            choice_of<qk::cuda::GemmChoice>("force_gemm", name, {"any", "mma", "wgmma", "wgmma_single", "wgmma_pair"}));
    });

    py::class_<Weight>(m, "Int8Weight", "A prepacked weight on a device: csrc/cuda/gemm_layout.h.")
        .def(py::init([](int device, Address data, int64_t bytes, py::object owner, int64_t n, int64_t k,
                         bool has_zero_point, bool has_input_scale) {
            require_shape("Int8Weight", n, k);
            const auto layout = qk::cuda::int8_layout(n, k, has_zero_point, has_input_scale);
            require_block("Int8Weight", data, bytes, layout.total_bytes);
            Weight w{{layout, pointer<char>(data), has_zero_point, has_input_scale, {}}, device, std::move(owner)};
            const qk::cuda::DeviceGuard guard(device);
            qk::cuda::prepare(w.view);
            return w;
        }))
        .def_property_readonly("shape",
                               [](const Weight& w) { return py::make_tuple(w.view.layout.n, w.view.layout.k); })
        .def("scratch_bytes",
             [](const Weight& w, int64_t rows) {
                 const qk::cuda::DeviceGuard guard(w.device);
                 return qk::cuda::scratch_bytes(w.view, rows);
             })
        .def("linear",
             [](const Weight& w, Address stream, Address x, int x_type, int64_t rows, int64_t ldx, int mode, int lo,
                int hi, int largest, int zero, float scale, Address bias, int activation, int out_type, Address out,
                Address scratch, int64_t bytes) {
                 const auto q = quantization(x, x_type, rows, ldx, mode, lo, hi, largest, zero, scale);
                 require(mode != 3 || w.view.has_input_scale, "linear: the weight has no input_scale");
                 present("linear: x", x, rows * w.view.layout.k);
                 present("linear: the result", out, rows * w.view.layout.n);
                 const Epilogue e = float_results(w.view.layout.n, bias, activation, out_type, out);
                 py::gil_scoped_release release;
                 const qk::cuda::DeviceGuard guard(w.device);
                 require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "linear: the scratch memory is too small");
                 qk::cuda::linear_int8(w.view, q, e, pointer<void>(scratch), stream_of(stream));
             })
        .def("matmul",
             [](const Weight& w, Address stream, Address x, bool is_signed, int64_t rows, int64_t ldx, int x_zero,
                Address out, Address scratch, int64_t bytes) {
                 present("matmul_int: xq", x, rows * w.view.layout.k);
                 present("matmul_int: the result", out, rows * w.view.layout.n);
                 Epilogue e;
                 e.out = pointer<void>(out);
                 e.ldo = w.view.layout.n;
                 e.out_type = qk::DType::i32;
                 py::gil_scoped_release release;
                 const qk::cuda::DeviceGuard guard(w.device);
                 require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "matmul_int: the scratch memory is too small");
                 qk::cuda::linear_codes(w.view, pointer<uint8_t>(x), is_signed, rows, ldx, x_zero, e,
                                        pointer<void>(scratch), stream_of(stream));
             })
        .def("requant", [](const Weight& w, Address stream, Address x, bool is_signed, int64_t rows, int64_t ldx,
                           int x_zero, Address multiplier, Address shift, Address scale, int rounding, int out_zero,
                           int lo, int hi, Address bias, Address out, Address scratch, int64_t bytes) {
            present("linear_requant: xq", x, rows * w.view.layout.k);
            present("linear_requant: the result", out, rows * w.view.layout.n);
            if (w.view.layout.n == 0) return;
            Epilogue e = requantization(multiplier, shift, scale, rounding, out_zero, lo, hi, out);
            e.ldo = w.view.layout.n;
            e.bias_i32 = pointer<int32_t>(bias);
            py::gil_scoped_release release;
            const qk::cuda::DeviceGuard guard(w.device);
            require(qk::cuda::scratch_bytes(w.view, rows) <= bytes, "linear_requant: the scratch memory is too small");
            qk::cuda::linear_codes(w.view, pointer<uint8_t>(x), is_signed, rows, ldx, x_zero, e, pointer<void>(scratch),
                                   stream_of(stream));
        });

    m.def("requantize",
          [](int device, Address stream, Address acc, int64_t rows, int64_t n, int64_t pitch, Address multiplier,
             Address shift, Address scale, int rounding, int out_zero, int lo, int hi, Address out) {
              present("requantize: acc", acc, rows * n);
              present("requantize: the result", out, rows * n);
              if (rows == 0 || n == 0) return;
              const Epilogue e = requantization(multiplier, shift, scale, rounding, out_zero, lo, hi, out);
              py::gil_scoped_release release;
              const qk::cuda::DeviceGuard guard(device);
              qk::cuda::requantize(pointer<int32_t>(acc), rows, n, pitch, e, stream_of(stream));
          });
}
