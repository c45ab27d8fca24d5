#include "simd/avx2.h"

#include "requant_vector.h"

#include "isa_table.h"

#include "conv_table.h"

const qk::Kernels& qk::kernels_avx2() {
    static const Kernels table = make_kernels("avx2");
    return table;
}

const qk::ConvKernels& qk::conv_kernels_avx2() {
    static const ConvKernels table = make_conv_kernels();
    return table;
}
