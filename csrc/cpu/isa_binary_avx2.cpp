#include "simd/avx2.h"

#include "binary_table.h"

const qk::BinaryKernels& qk::kernels_binary_avx2() {
    static const BinaryKernels table = make_binary_kernels<1>();
    return table;
}
