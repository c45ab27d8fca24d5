#include "simd/bytes_avx2.h"

#include "requant_vector.h"

#include "integer_kernel.h"

const qk::IntegerKernels& qk::integer_kernels_avx2() {
    static const IntegerKernels table = make_integer_kernels();
    return table;
}
