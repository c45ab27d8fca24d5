// Integer GEMM core: tile[r][n] = start[n] + sum over k of x[r][k] * w[n][k], x as u8, w through a decoder.
//
// Tile: MR rows by one 64-channel panel. Lanes are output channels, so each of the NV weight registers of a k step
// meets MR broadcast activations and no sum ever crosses lanes. On AVX-512 6 x 64 keeps 24 accumulators, four
// weights and a broadcast in registers: 24 dot products per 10 loads, so the two dot-product pipes bound it.
// Packed codes are decoded in registers where few rows share them; a panel that many rows pass over is decoded to int8
// once. Included by one translation unit per ISA, after its simd header.
#pragma once

#include "kernels.h"
#include "unroll.h"

namespace {

// A decoder turns one k step of a panel into operands of dot4: common/gemm_layout.h has the planes.
template <int BITS>
struct Decoder {
    static constexpr int kBytes = qk::step_bytes(BITS);
    static simd::bvec load(const uint8_t* step, int channel, simd::bvec offset) {
        using namespace simd;
        bvec code = zero_bytes();
        if constexpr (BITS & 4) code = field(load_b(step + channel % 32 * 4), channel / 32 * 4, 15);
        if constexpr (BITS & 2) {
            const bvec two = field(load_b(step + (BITS & 4) * 32 + channel % 16 * 4), channel / 16 * 2, 3);
            code = BITS & 4 ? or_b(code, shift_left(two, 4)) : two;
        }
        if constexpr (BITS & 1) {
            constexpr uint8_t value = BITS == 1 ? 2 : 1 << (BITS - 1);
            code = or_b(code, bit_plane(step + (BITS & 6) * 32, channel, value));
        }
        return sub_b(code, offset);
    }
};
template <>
struct Decoder<8> {  // stored as it is multiplied
    static constexpr int kBytes = qk::kStepBytes;
    static simd::bvec load(const uint8_t* step, int channel, simd::bvec) {
        return simd::load_b(step + channel * qk::kStepK);
    }
};

template <int BITS, int ROWS>
void micro(const qk::MicroArgs& args) {
    using namespace simd;
    const qk::MicroArgs a = args;
    const char* ahead = a.ahead;
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        acc_t acc[ROWS][NV];
        bvec offset[NV];
        unroll<NV>([&](auto v) __attribute__((always_inline)) {
            offset[v] = BITS < 8 ? repeat4(a.offset + column + v * ACC_N) : zero_bytes();
        });
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                acc[r][v] = acc_load((a.init ? a.init : a.tile + r * qk::kPanelN) + column + v * ACC_N);
            });
        });
        const uint8_t *step = a.codes, *x[ROWS];
        int64_t at = 0;
        auto advance = [&]() __attribute__((always_inline)) {
            wvec w[NV];
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                w[v] = operand(Decoder<BITS>::load(step, column + v * ACC_N, offset[v]));
            });
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                const xvec four = load_x(x[r] + at);
                unroll<NV>([&](auto v) __attribute__((always_inline)) { acc[r][v] = dot4(acc[r][v], four, w[v]); });
            });
            step += Decoder<BITS>::kBytes;
            at += qk::kStepK;
        };
        // One loop over all segments: gcc keeps accumulators in registers through one loop, not through a nest.
        const uint8_t* const* next = a.rows;
        auto enter = [&]() __attribute__((always_inline)) {
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) { x[r] = next[r * a.row_step]; });
            ++next;
            at = 0;
        };
        auto sweep = [&](auto width) __attribute__((always_inline)) {
            const int64_t chunks = a.steps / width;
            int64_t left = chunks;
            for (int64_t all = chunks * a.segments; all > 0; --all) {
                // The next panel trickles in: a burst would fill the line buffers that loads need.
                for (int i = 0; i < a.lines && width == 4; ++i, ahead += 64) prefetch(ahead);
                unroll<width>([&](auto) __attribute__((always_inline)) { advance(); });
                if (--left == 0 && all > 1) {
                    enter();
                    left = chunks;
                }
            }
        };
        enter();
        if (a.steps % 4 == 0) {
            sweep(std::integral_constant<int, 4>{});
        } else {
            sweep(std::integral_constant<int, 1>{});
        }
        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                acc_store(a.tile + r * qk::kPanelN + column + v * ACC_N, acc[r][v]);
            });
        });
    }
}

// Group-wise scales: at the end of each group its exact sum is scaled and added to a tile of floats in L1.
// Accumulators start at -zero * sum(w) of the group. Decoded panels bring that (init); packed ones do not store it,
// since M = 1 is bound by the bytes of a weight: one more row of the tile, all `zero`, computes it.
template <int BITS, int ROWS>
void micro_group(const qk::GroupArgs& args) {
    using namespace simd;
    const qk::GroupArgs a = args;
    constexpr int ALL = BITS < 8 ? ROWS + 1 : ROWS;
    const xvec zeros = set_x(a.zero);
    const char* ahead = a.ahead;
    const uint8_t* x[ROWS];
    unroll<ROWS>([&](auto r) __attribute__((always_inline)) { x[r] = a.rows[r]; });
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        const uint8_t* step = a.codes;
        const float* scale = a.scale + column;
        const int32_t* init = a.init + column;
        const uint8_t* offsets = a.offset + column;
        acc_t acc[ALL][NV];
        bvec offset[NV];
        int64_t at = 0;
        auto start = [&]() __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                offset[v] = BITS < 8 ? repeat4(offsets + v * ACC_N) : zero_bytes();
                unroll<ALL>([&](auto r) __attribute__((always_inline)) {
                    acc[r][v] = own_register(BITS < 8 ? acc_zero() : acc_load(init + v * ACC_N));
                });
            });
        };
        auto advance = [&]() __attribute__((always_inline)) {
            wvec w[NV];
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                w[v] = operand(Decoder<BITS>::load(step, column + v * ACC_N, offset[v]));
            });
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                const xvec four = load_x(x[r] + at);
                unroll<NV>([&](auto v) __attribute__((always_inline)) { acc[r][v] = dot4(acc[r][v], four, w[v]); });
            });
            if constexpr (BITS < 8) {
                unroll<NV>([&](auto v)
                               __attribute__((always_inline)) { acc[ROWS][v] = dot4(acc[ROWS][v], zeros, w[v]); });
            }
            step += Decoder<BITS>::kBytes;
            at += qk::kStepK;
        };
        auto finish = [&]() __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                const f32v s = load(scale + v * ACC_N);
                unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                    float* to = a.tile + r * qk::kPanelN + column + v * ACC_N;
                    i32v sum = acc_lanes(acc[r][v]);
                    if constexpr (BITS < 8) sum = subi(sum, acc_lanes(acc[ROWS][v]));
                    store(to, fma(to_float(sum), s, load(to)));
                });
            });
            scale += qk::kPanelN;
            init += qk::kPanelN;
            offsets += qk::kPanelN;
        };
        auto sweep = [&](auto width) __attribute__((always_inline)) {
            const int64_t chunks = a.group_steps / width;
            int64_t left = chunks;
            start();
            for (int64_t all = a.steps / width; all > 0; --all) {
                for (int i = 0; i < a.lines && width == 4; ++i, ahead += 64) prefetch(ahead);
                unroll<width>([&](auto) __attribute__((always_inline)) { advance(); });
                if (--left == 0 || all == 1) {
                    finish();
                    if (all > 1) start();
                    left = chunks;
                }
            }
        };
        if (a.group_steps % 4 == 0 && a.steps % 4 == 0) {
            sweep(std::integral_constant<int, 4>{});
        } else {
            sweep(std::integral_constant<int, 1>{});
        }
    }
}

template <int BITS>
void decode(const uint8_t* codes, int64_t steps, const uint8_t* offset, int8_t* out) {
    using namespace simd;
    bvec o[NV];
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        unroll<NV>([&](auto v) __attribute__((always_inline)) { o[v] = repeat4(offset + column + v * ACC_N); });
        for (int64_t s = 0; s < steps; ++s)
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                const int channel = column + v * ACC_N;
                store_b(out + s * qk::kStepBytes + channel * qk::kStepK,
                        Decoder<BITS>::load(codes + s * Decoder<BITS>::kBytes, channel, o[v]));
            });
    }
}

// Rows of tiles: all that the registers hold beside what a decoder needs of them.
template <int BITS, int ROWS = simd::MR>
void fill_micro(qk::MicroFn* table, qk::GroupFn* groups) {
    if constexpr (BITS == 8 || ROWS <= simd::MR_PACKED) table[ROWS] = micro<BITS, ROWS>;
    if constexpr (BITS == 8 || ROWS < simd::MR_PACKED || simd::MR == 1) groups[ROWS] = micro_group<BITS, ROWS>;
    if constexpr (ROWS > 1) fill_micro<BITS, ROWS - 1>(table, groups);
}

}  // namespace
