#include "simd/avx512vnni.h"

#include "requant_vector.h"

#include "isa_table.h"

#include "conv_table.h"

const qk::Kernels& qk::kernels_avx512vnni() {
    static const Kernels table = make_kernels("avx512vnni");
    return table;
}

const qk::ConvKernels& qk::conv_kernels_avx512vnni() {
    static const ConvKernels table = make_conv_kernels();
    return table;
}
