// Float GEMM driver: weights of up to 8 bits against float activations.
#pragma once

#include "gemm_float_kernels.h"

namespace qk {

// What a weight is prepacked from. scale and offset have an element for row n and segment g at n * row_step + g *
// part_step (0 where there is one for all); offset and input_scale may be null.
struct FloatSource {
    FloatShape shape;
    const uint8_t* index;  // (n, k), below 2^bits
    const float* table;    // (tables, 2^bits)
    bool ramp;             // the table is that of int8 codes
    const float* scale;
    const float* offset;
    int64_t row_step, part_step;
    const float* input_scale;  // (k)
};
int64_t packed_float_bytes(const FloatSource& source);
void prepack_float(const FloatSource& source, void* out);

// y = x W^T through `store`, a store_sum of the ISA's Kernels. x: m rows of x_type, ldx elements apart.
void gemm_float(const FloatKernels& products, const void* x, DType x_type, int64_t m, int64_t ldx, const FloatView& w,
                const Epilogue& epilogue, EpilogueFn store, int threads);

}  // namespace qk
