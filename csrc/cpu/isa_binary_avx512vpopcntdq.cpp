#include "simd/avx512vpopcntdq.h"

#include "binary_table.h"

const qk::BinaryKernels& qk::binary_kernels_avx512vpopcntdq() {
    static const BinaryKernels table = make_binary_kernels<6>();
    return table;
}
