// Depthwise convolution of codes: lanes are channels, so a dot-product instruction adds four values of the same
// channel.
//
// Columns of the image (kh values, padded to whole quads) are interleaved once, [64 channels][4 values], and serve
// every kernel column and every output that reads them: at stride 1 each one kw times. What is left per output is kw *
// quads dot products of each lane group; 3x3 takes 12 instead of the 9/4 * 4 that no layout reaches without the
// shuffles.
#pragma once

#include "conv_kernel.h"
#include "gemm_kernel.h"

namespace {

template <int QUARTERS, int ROWS>
void depthwise_tile(const qk::DepthwiseArgs& args) {
    using namespace simd;
    constexpr int V = vectors(QUARTERS);
    const int64_t step = args.step, next = args.tap - (args.quads - 1) * 4 * qk::kBlockC, quads = args.quads;
    for (int column = 0; column < QUARTERS * 16; column += V * ACC_N) {
        acc_t acc[ROWS][V];
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<V>([&](auto v)
                          __attribute__((always_inline)) { acc[r][v] = acc_load(args.init + column + v * ACC_N); });
        });
        const uint8_t *weights = args.weights + column * 4, *x = args.columns + column * 4;
        int64_t left = quads;
        for (int64_t all = args.taps * quads; all > 0; --all) {  // one loop, as in gemm_kernel.h
            wvec w[V];
            unroll<V>([&](auto v) __attribute__((always_inline)) { w[v] = operand(load_b(weights + v * ACC_N * 4)); });
            const uint8_t* row = x;
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                unroll<V>([&](auto v) __attribute__((always_inline)) {
                    acc[r][v] = dot4(acc[r][v], load_quads(row + v * ACC_N * 4), w[v]);
                });
                row += step;
            });
            weights += 4 * qk::kBlockC;
            const bool last = --left == 0;
            x += last ? next : 4 * qk::kBlockC;
            left = last ? quads : left;
        }
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<V>([&](auto v) __attribute__((always_inline)) {
                acc_store(args.tile + r * qk::kBlockC + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

template <int QUARTERS, int ROWS = rows_of(QUARTERS)>
void fill_depthwise(qk::DepthwiseFn* table) {
    table[ROWS] = depthwise_tile<QUARTERS, ROWS>;
    if constexpr (ROWS > 1) fill_depthwise<QUARTERS, ROWS - 1>(table);
}

inline void arrange(const uint8_t* x, int64_t pixel, int64_t count, int64_t channels, uint8_t flip, uint8_t* out,
                    int64_t out_pixel) {
    const int64_t whole = channels / qk::kBlockC * qk::kBlockC;
    const int rest = static_cast<int>(channels - whole);
    for (int64_t p = 0; p < count; ++p, x += pixel, out += out_pixel) {
        for (int64_t c = 0; c < whole; c += qk::kBlockC) simd::arrange64(x + c, qk::kBlockC, flip, out + c);
        if (rest > 0) simd::arrange64(x + whole, rest, flip, out + whole);
    }
}

inline void interleave(const uint8_t* const* values, int64_t pixel, int64_t count, uint8_t* out, int64_t out_step) {
    const uint8_t *a = values[0], *b = values[1], *c = values[2], *d = values[3];
    for (int64_t x = 0; x < count; ++x, a += pixel, b += pixel, c += pixel, d += pixel, out += out_step)
        simd::interleave64(a, b, c, d, out);
}

}  // namespace
