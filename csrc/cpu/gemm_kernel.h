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

// A decoder turns one k step of a panel into operands of dot4: common/gemm_layout.h has the planes, and the numbers D.
// Indices of a table differ from codes in their last step, a byte shuffle in the place of a subtraction.
template <int D>
struct Decoder {
    static constexpr bool kLookup = D > qk::kMaxBits;
    static constexpr int kBits = kLookup ? D - qk::kMaxBits : D;
    static constexpr int kBytes = qk::step_bytes(kBits);
    static simd::bvec load(const uint8_t* step, int channel, simd::bvec offset, [[maybe_unused]] simd::table16 table) {
        using namespace simd;
        bvec code = zero_bytes();
        if constexpr (kBits & 4) code = field(load_b(step + channel % 32 * 4), channel / 32 * 4, 15);
        if constexpr (kBits & 2) {
            const bvec two = field(load_b(step + (kBits & 4) * 32 + channel % 16 * 4), channel / 16 * 2, 3);
            code = kBits & 4 ? or_b(code, shift_left(two, 4)) : two;
        }
        if constexpr (kBits & 1) {
            constexpr uint8_t value = kBits == 1 ? 2 : 1 << (kBits - 1);
            code = or_b(code, bit_plane(step + (kBits & 6) * 32, channel, value));
        }
        if constexpr (kLookup) return lookup16(table, code);
        return sub_b(code, offset);
    }
};
template <>
struct Decoder<8> {  // stored as it is multiplied
    static constexpr bool kLookup = false;
    static constexpr int kBytes = qk::kStepBytes;
    static simd::bvec load(const uint8_t* step, int channel, simd::bvec, simd::table16) {
        return simd::load_b(step + channel * qk::kStepK);
    }
};

// What a decoder needs beside the codes, in registers: an offset for each channel, or one table for all.
template <int D>
[[gnu::always_inline]] inline simd::bvec offset_of(const uint8_t* constants) {
    return D < 8 ? simd::repeat4(constants) : simd::zero_bytes();
}
template <int D>
[[gnu::always_inline]] inline simd::table16 table_of(const uint8_t* constants) {
    if constexpr (Decoder<D>::kLookup) return simd::load_table16(constants);
    return simd::table16{};
}

template <int D, int ROWS>
void micro(const qk::MicroArgs& args) {
    using namespace simd;
    const qk::MicroArgs a = args;
    const char* ahead = a.ahead;
    const table16 table = table_of<D>(a.offset);
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        acc_t acc[ROWS][NV];
        bvec offset[NV];
        unroll<NV>([&](auto v)
                       __attribute__((always_inline)) { offset[v] = offset_of<D>(a.offset + column + v * ACC_N); });
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
                w[v] = operand(Decoder<D>::load(step, column + v * ACC_N, offset[v], table));
            });
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                const xvec four = load_x(x[r] + at);
                unroll<NV>([&](auto v) __attribute__((always_inline)) { acc[r][v] = dot4(acc[r][v], four, w[v]); });
            });
            step += Decoder<D>::kBytes;
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
template <int D, int ROWS>
void micro_group(const qk::GroupArgs& args) {
    using namespace simd;
    const qk::GroupArgs a = args;
    constexpr bool PACKED = D != 8;
    constexpr int ALL = PACKED ? ROWS + 1 : ROWS;
    const table16 table = table_of<D>(a.offset);
    const xvec zeros = set_x(a.zero);
    const char* ahead = a.ahead;
    const uint8_t* x[ROWS];
    unroll<ROWS>([&](auto r) __attribute__((always_inline)) { x[r] = a.rows[r]; });
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        const uint8_t* step = a.codes;
        const float* scale = a.scale + column;
        const int32_t* init = a.init + column;
        const uint8_t* offsets = a.offset + column;  // not moved to the next group where it is a table
        acc_t acc[ALL][NV];
        bvec offset[NV];
        int64_t at = 0;
        auto start = [&]() __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                offset[v] = offset_of<D>(offsets + v * ACC_N);
                unroll<ALL>([&](auto r) __attribute__((always_inline)) {
                    acc[r][v] = own_register(PACKED ? acc_zero() : acc_load(init + v * ACC_N));
                });
            });
        };
        auto advance = [&]() __attribute__((always_inline)) {
            wvec w[NV];
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                w[v] = operand(Decoder<D>::load(step, column + v * ACC_N, offset[v], table));
            });
            unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                const xvec four = load_x(x[r] + at);
                unroll<NV>([&](auto v) __attribute__((always_inline)) { acc[r][v] = dot4(acc[r][v], four, w[v]); });
            });
            if constexpr (PACKED) {
                unroll<NV>([&](auto v)
                               __attribute__((always_inline)) { acc[ROWS][v] = dot4(acc[ROWS][v], zeros, w[v]); });
            }
            step += Decoder<D>::kBytes;
            at += qk::kStepK;
        };
        auto finish = [&]() __attribute__((always_inline)) {
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                const f32v s = load(scale + v * ACC_N);
                unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                    float* to = a.tile + r * qk::kPanelN + column + v * ACC_N;
                    i32v sum = acc_lanes(acc[r][v]);
                    if constexpr (PACKED) sum = subi(sum, acc_lanes(acc[ROWS][v]));
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

template <int D>
void decode(const uint8_t* codes, int64_t steps, const uint8_t* offset, int8_t* out) {
    using namespace simd;
    bvec o[NV];
    const table16 table = table_of<D>(offset);
    for (int column = 0; column < qk::kPanelN; column += NV * ACC_N) {
        unroll<NV>([&](auto v) __attribute__((always_inline)) { o[v] = offset_of<D>(offset + column + v * ACC_N); });
        for (int64_t s = 0; s < steps; ++s)
            unroll<NV>([&](auto v) __attribute__((always_inline)) {
                const int channel = column + v * ACC_N;
                store_b(out + s * qk::kStepBytes + channel * qk::kStepK,
                        Decoder<D>::load(codes + s * Decoder<D>::kBytes, channel, o[v], table));
            });
    }
}

// Rows of tiles: all that the registers hold beside what a decoder needs of them.
template <int D, int ROWS = simd::MR>
void fill_micro(qk::MicroFn* table, qk::GroupFn* groups) {
    if constexpr (D == 8 || ROWS <= simd::MR_PACKED) table[ROWS] = micro<D, ROWS>;
    if constexpr (D == 8 || ROWS < simd::MR_PACKED || simd::MR == 1) groups[ROWS] = micro_group<D, ROWS>;
    if constexpr (ROWS > 1) fill_micro<D, ROWS - 1>(table, groups);
}

}  // namespace
