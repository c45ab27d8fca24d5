// Tiles narrower than a panel, and transposes between NCHW and NHWC.
#pragma once

#include "conv_kernels.h"
#include "gemm_kernel.h"

namespace {

// Registers across 16 * quarters channels in one pass, and the rows that leave room for four k steps of weights.
constexpr int vectors(int quarters) { return simd::ACC_N == 16 ? quarters : simd::NV; }
constexpr int rows_of(int quarters) {
    constexpr int wide[] = {0, 16, 10, 7, simd::MR};
    return simd::ACC_N == 16 ? wide[quarters] : simd::MR;
}

// As micro<8, ROWS> of gemm_kernel.h, over the first 16 * QUARTERS channels. More rows share a step of few weights, so
// a row's pointer, which may have to come from memory, serves several steps at once.
template <int QUARTERS, int ROWS>
void micro_narrow(const qk::MicroArgs& args) {
    using namespace simd;
    const qk::MicroArgs a = args;
    constexpr int V = vectors(QUARTERS);
    for (int column = 0; column < QUARTERS * 16; column += V * ACC_N) {
        acc_t acc[ROWS][V];
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<V>([&](auto v)
                          __attribute__((always_inline)) { acc[r][v] = acc_load(a.init + column + v * ACC_N); });
        });
        const uint8_t* step = a.codes + column * qk::kStepK;
        const uint8_t* const* rows = a.rows;
        int64_t at = 0;
        auto sweep = [&](auto width) __attribute__((always_inline)) {
            constexpr int W = decltype(width)::value;
            const int64_t chunks = a.steps / W;
            int64_t left = chunks;
            for (int64_t all = chunks * a.segments; all > 0; --all) {
                wvec w[W][V];
                unroll<W>([&](auto i) __attribute__((always_inline)) {
                    unroll<V>([&](auto v) __attribute__((always_inline)) {
                        w[i][v] = operand(load_b(step + i * qk::kStepBytes + v * ACC_N * qk::kStepK));
                    });
                });
                unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                    const uint8_t* x = rows[r * a.row_step] + at;
                    unroll<W>([&](auto i) __attribute__((always_inline)) {
                        const xvec four = load_x(x + i * qk::kStepK);
                        unroll<V>([&](auto v)
                                      __attribute__((always_inline)) { acc[r][v] = dot4(acc[r][v], four, w[i][v]); });
                    });
                });
                step += W * qk::kStepBytes;
                at += W * qk::kStepK;
                if (--left == 0) {
                    ++rows;
                    at = 0;
                    left = chunks;
                }
            }
        };
        if (QUARTERS < 3 && a.steps % 4 == 0) {
            sweep(std::integral_constant < int, QUARTERS<3 ? 4 : 1>{});
        } else if (a.steps % 2 == 0) {
            sweep(std::integral_constant<int, 2>{});
        } else {
            sweep(std::integral_constant<int, 1>{});
        }
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<V>([&](auto v) __attribute__((always_inline)) {
                acc_store(a.tile + r * qk::kPanelN + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

template <int QUARTERS, int ROWS = rows_of(QUARTERS)>
void fill_narrow(qk::MicroFn* table) {
    table[ROWS] = micro_narrow<QUARTERS, ROWS>;
    if constexpr (ROWS > 1) fill_narrow<QUARTERS, ROWS - 1>(table);
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
