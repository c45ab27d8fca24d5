// What the bindings of the CUDA kernels use. Addresses are of device memory; Python has checked devices, dtypes and
// shapes, and what could reach outside of a buffer is checked again. `stream` is torch's stream.cuda_stream.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <utility>

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

// Sizes and offsets of a layout by name, as qkernels.cuda.block_of takes them.
inline py::dict named(std::initializer_list<std::pair<const char*, int64_t>> numbers) {
    py::dict out;
    for (const auto& [name, number] : numbers) out[name] = number;
    return out;
}

// The shape of a weight, before its layout is computed, and the block that must have that layout.
inline void require_shape(const char* kind, int64_t n, int64_t k, bool more = true) {
    if (!more || n < 0 || k < 0 || n >= int64_t{1} << 31 || k >= int64_t{1} << 31)
        throw std::invalid_argument(std::string(kind) + ": a size is out of range");
}
inline void require_block(const char* kind, Address data, int64_t bytes, int64_t expected) {
    if (data % 16 != 0 || bytes != expected)
        throw std::invalid_argument(std::string(kind) + ": not a prepacked weight of this shape");
}

// An enumeration's value by its name; names in the order of the values.
template <class Choice>
Choice choice_of(const char* where, const std::string& name, std::initializer_list<const char*> names) {
    int value = 0;
    std::string accepted;
    for (const char* n : names) {
        if (name == n) return static_cast<Choice>(value);
        accepted += (value++ == 0 ? "" : ", ") + std::string(n);
    }
    throw std::invalid_argument(std::string(where) + ": accepted: " + accepted);
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
