// What one instruction set contributes to convolutions, beside the table of the integer core (kernels.h).
#pragma once

#include "kernels.h"

namespace qk {

inline constexpr int kBlockC = 64;  // channels of a depthwise block

// dst[c * ld_dst + r] = src[r * ld_src + c] for elements of 1, 2 or 4 bytes
using TransposeFn = void (*)(const void* src, int64_t ld_src, int64_t rows, int64_t cols, void* dst, int64_t ld_dst);
// One pixel of `channels` codes, xor flip, in the order that `interleave` wants: blocks of 64, the last filled up.
using ArrangeFn = void (*)(const uint8_t* x, int64_t channels, uint8_t flip, uint8_t* out);
// out[x][64][4]: four values of a column side by side for each of 64 channels; values[i] + x * pixel, x < count.
using InterleaveFn = void (*)(const uint8_t* const* values, int64_t pixel, int64_t count, uint8_t* out,
                              int64_t out_step);

// tile[o][0..64) = init + sum over j, q of columns[o * step + j * tap][q] * w[j][q], o < rows of the table.
struct DepthwiseArgs {
    const uint8_t* columns;  // [quads][64][4] each
    int64_t step, tap;       // bytes between outputs, and between the columns of a kernel
    int64_t taps, quads;
    const uint8_t* weights;  // [taps][quads][64][4]
    const int32_t* init;     // [64]
    int32_t* tile;           // [rows][64]
};
using DepthwiseFn = void (*)(const DepthwiseArgs& args);

struct ConvKernels {
    int mr;                             // rows of the largest depthwise tile
    DepthwiseFn depthwise[kMaxMr + 1];  // [r] computes r rows
    TransposeFn transpose[3];           // 1, 2, 4 bytes
    ArrangeFn arrange;
    InterleaveFn interleave;
};

const ConvKernels& conv_kernels_scalar();
const ConvKernels& conv_kernels_avx2();
const ConvKernels& conv_kernels_avx512vnni();
const ConvKernels& conv_kernels(Isa isa);  // conv.cpp

}  // namespace qk
