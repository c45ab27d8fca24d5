#include "simd/scalar.h"

#include "binary_table.h"

const qk::BinaryKernels& qk::kernels_binary_scalar() {
    static const BinaryKernels table = make_binary_kernels<1>();
    return table;
}
