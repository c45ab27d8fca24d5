#include "simd/scalar.h"

#include "requant_scalar.h"

#include "isa_table.h"

#include "conv_table.h"

const qk::Kernels& qk::kernels_scalar() {
    static const Kernels table = make_kernels("scalar");
    return table;
}

const qk::ConvKernels& qk::conv_kernels_scalar() {
    static const ConvKernels table = make_conv_kernels();
    return table;
}
