// What the bindings of the CUDA kernels use. Addresses are of device memory; Python has checked devices, dtypes and
// shapes, and what could reach outside of a buffer is checked again. `stream` is torch's stream.cuda_stream.
#pragma once

#include "../common/types.h"
#include "../cuda/epilogue.h"
#include "../cuda/quantize.h"
#include "../cuda/runtime.h"
#include "../cuda/stream.h"
#include "address.h"

inline qk::cuda::Stream stream_of(Address a) { return pointer<CUstream_st>(a); }

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

// How rows of activations become codes.
inline qk::cuda::Quantize quantization(Address x, int x_type, int64_t m, int64_t ldx, int mode, int lo, int hi,
                                       int largest, int zero, float scale) {
    require(x_type >= 0 && x_type <= 2 && mode >= 0 && mode <= 3, "quantization: a mode or dtype is out of range");
    require(m >= 0 && m < (int64_t{1} << 31), "quantization: the number of rows is out of range");
    require(lo >= -128 && hi <= 255 && lo <= hi && hi - lo <= 255, "quantization: the codes leave a byte");
    qk::cuda::Quantize q;
    q.x = pointer<void>(x);
    q.x_type = static_cast<qk::DType>(x_type);
    q.m = m;
    q.ldx = ldx;
    q.mode = static_cast<qk::cuda::InputMode>(mode);
    q.lo = lo;
    q.hi = hi;
    q.largest = largest;
    q.zero = zero;
    q.scale = scale;
    return q;
}

// (m, n) floats, contiguous, through scales, a bias [n] or 0 and an activation.
inline qk::cuda::Epilogue float_results(int64_t n, Address bias, int activation, int out_type, Address out) {
    require(out_type >= 0 && out_type <= 2 && activation >= 0 && activation <= 4,
            "linear: a dtype or activation is out of range");
    qk::cuda::Epilogue e;
    e.out = pointer<void>(out);
    e.ldo = n;
    e.out_type = static_cast<qk::DType>(out_type);
    e.bias = pointer<float>(bias);
    e.activation = static_cast<qk::Activation>(activation);
    return e;
}

void bind_cuda_gemm(py::module_& m);    // cuda_gemm.cpp
void bind_cuda_float(py::module_& m);   // cuda_float.cpp
void bind_cuda_binary(py::module_& m);  // cuda_binary.cpp
void bind_cuda_int4(py::module_& m);    // cuda_int4.cpp
