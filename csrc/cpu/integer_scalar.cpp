#include "simd/bytes_scalar.h"

#include "requant_scalar.h"

#include "integer_kernel.h"

const qk::IntegerKernels& qk::integer_kernels_scalar() {
    static const IntegerKernels table = make_integer_kernels();
    return table;
}
