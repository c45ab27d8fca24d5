// Depthwise convolution of codes: lanes are channels, so a dot-product instruction adds four values of the same
// channel.
//
// Columns of the image (kh values, padded to whole quads) are interleaved once, [64 channels][4 values], and serve
// every kernel column and every output that reads them: at stride 1 each one kw times. What is left per output is kw *
// quads dot products of each lane group; 3x3 takes 12 instead of the 9/4 * 4 that no layout reaches without the
// shuffles.
#pragma once

#include "conv_kernels.h"
#include "gemm_kernel.h"

namespace {

template <int ROWS>
void depthwise_tile(const qk::DepthwiseArgs& args) {
    using namespace simd;
    const int64_t step = args.step, next = args.tap - (args.quads - 1) * 4 * qk::kBlockC, quads = args.quads;
    for (int column = 0; column < qk::kBlockC; column += NV * ACC_N) {
        acc_t acc[ROWS][NV];
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<NV>([&](auto v)
                           __attribute__((always_inline)) { acc[r][v] = acc_load(args.init + column + v * ACC_N); });
        });
        const uint8_t *weights = args.weights + column * 4, *x = args.columns + column * 4;
        int64_t left = quads;
        for (int64_t all = args.taps * quads; all > 0; --all) {  // one loop, as in gemm_kernel.h
            wvec w[NV];
            unroll<NV>([&](auto v)
                           __attribute__((always_inline)) { w[v] = operand(load_b(weights + v * ACC_N * 4)); });
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                unroll<NV>([&](auto v) __attribute__((always_inline)) {
                    acc[r][v] = dot4(acc[r][v], load_quads(x + r * step + v * ACC_N * 4), w[v]);
                });
            });
            weights += 4 * qk::kBlockC;
            const bool last = --left == 0;
            x += last ? next : 4 * qk::kBlockC;
            left = last ? quads : left;
        }
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                acc_store(args.tile + r * qk::kBlockC + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

template <int ROWS = simd::MR>
void fill_depthwise(qk::DepthwiseFn* table) {
    table[ROWS] = depthwise_tile<ROWS>;
    if constexpr (ROWS > 1) fill_depthwise<ROWS - 1>(table);
}

inline void arrange(const uint8_t* x, int64_t channels, uint8_t flip, uint8_t* out) {
    int64_t c = 0;
    for (; c + qk::kBlockC <= channels; c += qk::kBlockC) simd::arrange64(x + c, flip, out + c);
    if (c < channels) {
        uint8_t rest[qk::kBlockC] = {};
        __builtin_memcpy(rest, x + c, channels - c);
        simd::arrange64(rest, flip, out + c);
    }
}

inline void interleave(const uint8_t* const* values, int64_t pixel, int64_t count, uint8_t* out, int64_t out_step) {
    const uint8_t *a = values[0], *b = values[1], *c = values[2], *d = values[3];
    for (int64_t x = 0; x < count; ++x, a += pixel, b += pixel, c += pixel, d += pixel, out += out_step)
        simd::interleave64(a, b, c, d, out);
}

}  // namespace
