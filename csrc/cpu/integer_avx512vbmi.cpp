#include "simd/bytes_avx512.h"

#include "requant_vector.h"

#include "integer_kernel.h"

const qk::IntegerKernels& qk::integer_kernels_avx512vbmi() {
    static const IntegerKernels table = make_integer_kernels(&integer_kernels_avx2());
    return table;
}
