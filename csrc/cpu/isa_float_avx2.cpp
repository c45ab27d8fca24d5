#include "simd/avx2.h"

#include "simd/products_avx2.h"

#include "gemm_float_kernel.h"

const qk::FloatKernels& qk::float_kernels_avx2() {
    static const FloatKernels table = make_float_kernels("avx2");
    return table;
}
