#include "simd/scalar.h"

#include "simd/products_scalar.h"

#include "gemm_float_kernel.h"

const qk::FloatKernels& qk::float_kernels_scalar() {
    static const FloatKernels table = make_float_kernels("scalar");
    return table;
}
