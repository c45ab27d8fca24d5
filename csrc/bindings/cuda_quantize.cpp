// Activation quantization on CUDA devices.
#include "../cuda/quantize.h"

#include "cuda_common.h"

void bind_cuda_quantize(py::module_& m) {
    using qk::cuda::Quantize;
    // x (m, k) -> codes (m, k_pad), pitch ldo; scales float [m] or 0; sums int32 [m] or 0; tensor_bits uint32 [1]
    m.def("quantize", [](int device, Address stream, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx,
                         int mode, int lo, int hi, int largest, int zero, float scale, Address inv_k, Address codes,
                         int64_t k_pad, int64_t ldo, Address scales, Address sums, Address tensor_bits) {
        require(x_type >= 0 && x_type <= 2 && mode >= 0 && mode <= 3, "quantize: a mode or dtype is out of range");
        require(rows >= 0 && k >= 0 && k_pad >= k && ldo >= k_pad && rows < (int64_t{1} << 31),
                "quantize: a size is out of range");
        require(mode != 1 || tensor_bits != 0, "quantize: tensor_bits is missing");
        present("quantize: x", x, rows * k);
        present("quantize: codes", codes, rows * k_pad);
        Quantize q;
        q.x = pointer<void>(x);
        q.x_type = static_cast<qk::DType>(x_type);
        q.m = rows;
        q.k = k;
        q.ldx = ldx;
        q.mode = static_cast<qk::cuda::InputMode>(mode);
        q.lo = lo;
        q.hi = hi;
        q.largest = largest;
        q.zero = zero;
        q.scale = scale;
        q.inv_k = pointer<float>(inv_k);
        q.codes = pointer<uint8_t>(codes);
        q.k_pad = k_pad;
        q.ldo = ldo;
        q.scales = pointer<float>(scales);
        q.sums = pointer<int32_t>(sums);
        q.tensor_bits = pointer<uint32_t>(tensor_bits);
        py::gil_scoped_release release;
        const qk::cuda::DeviceGuard guard(device);
        qk::cuda::quantize(q, stream_of(stream));
    });
}
