#include "simd/avx512vnni.h"

#include "simd/products_avx512.h"

#include "gemm_float_kernel.h"

const qk::FloatKernels& qk::float_kernels_avx512vnni() {
    static const FloatKernels table = make_float_kernels("avx512vnni");
    return table;
}
