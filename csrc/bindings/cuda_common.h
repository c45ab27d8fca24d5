// What the bindings of the CUDA kernels use. Addresses are of device memory; Python has checked devices, dtypes and
// shapes, and what could reach outside of a buffer is checked again. `stream` is torch's stream.cuda_stream.
#pragma once

#include "../common/types.h"
#include "../cuda/runtime.h"
#include "../cuda/stream.h"
#include "address.h"

inline qk::cuda::Stream stream_of(Address a) { return pointer<CUstream_st>(a); }

inline void require(bool ok, const char* what) {
    if (!ok) throw std::invalid_argument(what);
}

void bind_cuda_gemm(py::module_& m);    // cuda_gemm.cpp
void bind_cuda_float(py::module_& m);   // cuda_float.cpp
void bind_cuda_binary(py::module_& m);  // cuda_binary.cpp
void bind_cuda_int4(py::module_& m);    // cuda_int4.cpp
