// What one instruction set contributes to convolutions, beside the table of the integer core (kernels.h).
#pragma once

#include "kernels.h"

namespace qk {

inline constexpr int kBlockC = 64;  // channels of a depthwise block

// dst[c * ld_dst + r] = src[r * ld_src + c] for elements of 1, 2 or 4 bytes
using TransposeFn = void (*)(const void* src, int64_t ld_src, int64_t rows, int64_t cols, void* dst, int64_t ld_dst);
// `count` pixels of `channels` codes, xor flip, in the order that `interleave` wants: blocks of 64, the last filled up.
using ArrangeFn = void (*)(const uint8_t* x, int64_t pixel, int64_t count, int64_t channels, uint8_t flip, uint8_t* out,
                           int64_t out_pixel);
// out[x][64][4]: four values of a column side by side for each of 64 channels; values[i] + x * pixel, x < count.
using InterleaveFn = void (*)(const uint8_t* const* values, int64_t pixel, int64_t count, uint8_t* out,
                              int64_t out_step);

// tile[o][..] = init + sum over j, q of columns[o * step + j * tap][q] * w[j][q], o < rows of the table.
struct DepthwiseArgs {
    const uint8_t* columns;  // [quads][64][4] each
    int64_t step, tap;       // bytes between outputs, and between the columns of a kernel
    int64_t taps, quads;
    const uint8_t* weights;  // [taps][quads][64][4]
    const int32_t* init;     // [64]
    int32_t* tile;           // [rows][64]
};
using DepthwiseFn = void (*)(const DepthwiseArgs& args);

// Tiles of the first 16 * quarters channels of a block or panel: where fewer than 64 are real, more rows fit into
// registers.
inline constexpr int kQuarters = 4, kMaxRows = 16;

struct ConvKernels {
    int rows[kQuarters + 1];                             // [quarters] rows of the largest tile of that width
    MicroFn narrow[kQuarters][kMaxRows + 1];             // [quarters][rows], 8-bit codes; a whole panel has its own
    DepthwiseFn depthwise[kQuarters + 1][kMaxRows + 1];  // [quarters][rows]
    TransposeFn transpose[3];                            // 1, 2, 4 bytes
    ArrangeFn arrange;
    InterleaveFn interleave;
};

const ConvKernels& conv_kernels_scalar();
const ConvKernels& conv_kernels_avx2();
const ConvKernels& conv_kernels_avx512vnni();
const ConvKernels& conv_kernels(Isa isa);  // conv.cpp

}  // namespace qk
