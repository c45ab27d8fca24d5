#include "simd/avx512vpopcntdq.h"

#include "binary_table.h"

const qk::BinaryKernels& qk::kernels_binary_avx512vpopcntdq() {
    static const BinaryKernels table = make_binary_kernels<6>();
    return table;
}
