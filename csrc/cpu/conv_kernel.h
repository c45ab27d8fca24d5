// Leaf functions of convolutions: the register tile over several segments of k, and transposes between NCHW and NHWC.
#pragma once

#include "conv_kernels.h"
#include "gemm_kernel.h"

namespace {

template <class Decoder, int ROWS>
void segment_tile(const qk::SegmentArgs& args) {
    using namespace simd;
    const int64_t segments = args.segments, steps = args.steps;
    const int lines = args.lines;
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        acc_t acc[ROWS][NV];
        unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
            unroll<NV>([&](auto v) [[gnu::always_inline]] { acc[r][v] = acc_load(args.init + column + v * ACC_N); });
        });
        const int8_t* step = args.panel;
        const char* ahead = args.ahead;
        for (int64_t s = 0; s < segments; ++s) {
            const uint8_t* x[ROWS];
            unroll<ROWS>([&](auto r) [[gnu::always_inline]] { x[r] = args.rows[r * segments + s]; });
            int64_t at = 0;
            auto advance = [&]() [[gnu::always_inline]] {
                wvec w[NV];
                unroll<NV>([&](auto v) [[gnu::always_inline]] { w[v] = Decoder::load(step, column + v * ACC_N); });
                unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
                    const xvec four = load_x(x[r] + at);
                    unroll<NV>([&](auto v) [[gnu::always_inline]] { acc[r][v] = dot4(acc[r][v], four, w[v]); });
                });
                step += Decoder::kBytes;
                at += qk::kStepK;
            };
            int64_t k = steps;
            for (; k >= 4; k -= 4) {
                for (int i = 0; i < lines; ++i, ahead += 64) prefetch(ahead);
                unroll<4>([&](auto) [[gnu::always_inline]] { advance(); });
            }
            for (; k > 0; --k) advance();
        }
        unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
            unroll<NV>([&](auto v) [[gnu::always_inline]] {
                acc_store(args.tile + r * qk::kPanelN + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

template <class Decoder, int ROWS = simd::MR>
void fill_segments(qk::SegmentFn* table) {
    table[ROWS] = segment_tile<Decoder, ROWS>;
    if constexpr (ROWS > 1) fill_segments<Decoder, ROWS - 1>(table);
}

// Square blocks through registers where the ISA has them, the edges element by element.
template <class T>
void transpose(const void* source, int64_t ld_src, int64_t rows, int64_t cols, void* target, int64_t ld_dst) {
    const T* src = static_cast<const T*>(source);
    T* dst = static_cast<T*>(target);
    constexpr int B = simd::transpose_block(sizeof(T));
    const int64_t whole_rows = rows / B * B, whole_cols = cols / B * B;
    auto single = [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
        for (int64_t c = c0; c < c1; ++c)
            for (int64_t r = r0; r < r1; ++r) dst[c * ld_dst + r] = src[r * ld_src + c];
    };
    if constexpr (B > 1) {
        for (int64_t r = 0; r < whole_rows; r += B)
            for (int64_t c = 0; c < whole_cols; c += B)
                simd::transpose_square(src + r * ld_src + c, ld_src, dst + c * ld_dst + r, ld_dst);
        single(0, whole_rows, whole_cols, cols);
        single(whole_rows, rows, 0, cols);
    } else {
        single(0, rows, 0, cols);
    }
}

}  // namespace
