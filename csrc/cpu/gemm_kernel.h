// Integer GEMM core: tile[r][n] = start[n] + sum over k of x[r][k] * w[n][k], x as u8, w through a decoder.
//
// Tile: MR rows by one 64-channel panel. Lanes are output channels, so each of the NV weight registers of a k step
// meets MR broadcast activations and no sum ever crosses lanes. On AVX-512 6 x 64 keeps 24 accumulators, four
// weights and a broadcast in registers: 24 dot products per 10 loads, so the two dot-product pipes bound it.
// Included by one translation unit per ISA, after its simd header.
#pragma once

#include <utility>

#include "../common/int8_layout.h"
#include "kernels.h"

namespace {

// A decoder turns one k step of a panel into operands of dot4. int8 is stored as it is multiplied.
struct Int8Decoder {
    static constexpr int kBytes = qk::kStepBytes;  // of a panel, per k step
    static simd::wvec load(const int8_t* step, int channel) { return simd::load_w(step + channel * qk::kStepK); }
};

// body(0), body(1) ... body(N - 1) with the index a constant: an array of accumulators stays in registers only if no
// index of it is ever a variable, and gcc unrolls ordinary loops after it has decided that.
template <int... I, class Body>
[[gnu::always_inline]] inline void unroll(std::integer_sequence<int, I...>, [[maybe_unused]] Body body) {
    (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(Body body) {
    unroll(std::make_integer_sequence<int, N>{}, body);
}

template <class Decoder, int ROWS>
void micro(const uint8_t* a, int64_t lda, const int8_t* panel, int64_t k_steps, const int32_t* init, int32_t* tile,
           const char* ahead, int lines) {
    using namespace simd;
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        acc_t acc[ROWS][NV];
        unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
            unroll<NV>([&](auto v) [[gnu::always_inline]] {
                acc[r][v] = acc_load((init ? init : tile + r * qk::kPanelN) + column + v * ACC_N);
            });
        });
        const uint8_t* x = a;
        const int8_t* step = panel;
        auto advance = [&]() [[gnu::always_inline]] {
            wvec w[NV];
            unroll<NV>([&](auto v) [[gnu::always_inline]] { w[v] = Decoder::load(step, column + v * ACC_N); });
            unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
                const xvec four = load_x(x + r * lda);
                unroll<NV>([&](auto v) [[gnu::always_inline]] { acc[r][v] = dot4(acc[r][v], four, w[v]); });
            });
            step += Decoder::kBytes;
            x += qk::kStepK;
        };
        int64_t k = k_steps;
        for (; k >= 4; k -= 4) {  // the next panel trickles in: a burst would fill the line buffers that loads need
            for (int i = 0; i < lines; ++i, ahead += 64) prefetch(ahead);
            unroll<4>([&](auto) [[gnu::always_inline]] { advance(); });
        }
        for (; k > 0; --k) advance();
        unroll<ROWS>([&](auto r) [[gnu::always_inline]] {
            unroll<NV>([&](auto v) [[gnu::always_inline]] {
                acc_store(tile + r * qk::kPanelN + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

template <class Decoder, int ROWS = simd::MR>
void fill_micro(qk::MicroFn* table) {
    table[ROWS] = micro<Decoder, ROWS>;
    if constexpr (ROWS > 1) fill_micro<Decoder, ROWS - 1>(table);
}

}  // namespace
