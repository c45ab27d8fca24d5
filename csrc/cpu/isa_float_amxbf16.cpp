#include "simd/avx512vnni.h"

#include "simd/products_avx512bf16.h"

#include "simd/products_amxbf16.h"

#include "gemm_float_tiles.h"

const qk::FloatKernels& qk::float_kernels_amxbf16() {
    static const FloatKernels table = add_tiles(float_kernels_avx512bf16(), "amxbf16");
    return table;
}
