// Products of float32, AVX2 and FMA: lanes are eight output channels. After simd/avx2.h.
#pragma once

#include "../../common/float_layout.h"

namespace {
namespace products {

using namespace simd;

using element = float;
using weight = __m256;
using index = __m256i;  // a code in the low bits of each lane, anything above
inline constexpr int SUB = 2;
inline constexpr int NW_MANY = 2, NW_ONE = 8;  // registers of weights: of many rows, of one row
inline constexpr int MR = 6;                   // 6 x 2 accumulators + 2 weights + 1 activation of 16 registers
inline constexpr int BLOCK_STEPS = 128;        // 16 KB a column, in L1
inline constexpr int MR_PACKED = 1;            // rows that leave room for a decoder

inline f32v own(f32v acc) {  // equal starts look like one value to gcc, which then spills the copies
    __asm__("" : "+x"(acc));
    return acc;
}
inline f32v multiply_add(f32v acc, f32v x, weight w) { return fma(x, w, acc); }
inline f32v broadcast(const element* row, int sub) { return set1(row[sub]); }
// A decoded step: [2][16] float.
inline weight load_weight(const element* step, int channel, int sub) { return load(step + sub * 16 + channel); }
inline void store_weight(element* step, int channel, int sub, weight w) { store(step + sub * 16 + channel, w); }

inline index right(index a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
template <int P>
index plane(const uint8_t* words, int channel, int sub) {
    const int at = 16 * sub + channel / 16 * 4, d = channel % 16;
    if constexpr (P == 4) return right(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + 4 * d)), at);
    if constexpr (P == 2) return right(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)), at + d / 8 * 2);
    const __m256i four = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m256i quarter = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    return _mm256_srlv_epi32(four, _mm256_add_epi32(quarter, _mm256_set1_epi32(at + d / 4)));
}
inline index pairs(const uint8_t* step, int channel) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(step + 2 * channel)));
}
inline index bytes(const uint8_t* step, int channel, int sub) { return right(pairs(step, channel), 8 * sub); }
inline index shift_left(index a, int n) { return _mm256_slli_epi32(a, n); }
// low where the mask has ones, else high
inline index join(int mask, index low, index high) {
    const __m256i m = _mm256_set1_epi32(mask);
    return _mm256_or_si256(_mm256_and_si256(m, low), _mm256_andnot_si256(m, high));
}
inline weight ramp(const uint8_t* step, int channel, int sub) {  // 8-bit two's complement codes as numbers
    const __m256i high = _mm256_sll_epi32(pairs(step, channel), _mm_cvtsi32_si128(24 - 8 * sub));
    return to_float(_mm256_srai_epi32(high, 24));
}

// From tables of their own, `stride` apart, of the channels from `channel` on.
inline weight gather(const void* tables, int stride, int channel, index code, int mask) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i table =
        _mm256_mullo_epi32(_mm256_add_epi32(lane, _mm256_set1_epi32(channel)), _mm256_set1_epi32(stride));
    const __m256i at = _mm256_add_epi32(table, _mm256_and_si256(code, _mm256_set1_epi32(mask)));
    return _mm256_i32gather_ps(static_cast<const float*>(tables), at, 4);
}

template <int BITS>
struct Table {
    const float* all;
    __m256 t0, t1;
    explicit Table(const void* table) : all(static_cast<const float*>(table)) {
        t0 = load(all);
        if constexpr (BITS == 4) t1 = load(all + 8);
    }
    weight operator()(index i) const {
        if constexpr (BITS <= 3) return _mm256_permutevar8x32_ps(t0, i);
        if constexpr (BITS == 4) {
            const __m256 bit3 = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
            return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t0, i), _mm256_permutevar8x32_ps(t1, i), bit3);
        }
        return _mm256_i32gather_ps(all, _mm256_and_si256(i, _mm256_set1_epi32((1 << BITS) - 1)), 4);
    }
};

// 4-bit codes of a table that bfloat16 holds: two byte shuffles look up the halves of 32 codes, which interleaved are
// bfloat16 pairs, and a shift or a mask makes one of a pair float32. 28 operations for 64 codes where vpermps takes 48.
#define QK_SHORT_TABLES
struct FromShort {
    static constexpr bool kWhole = true;
    static constexpr int kBytes = qk::float_step_bytes(4);
    __m256i low, high;  // bytes of the 16 entries
    FromShort(const void* table, int64_t) {
        const auto* t = static_cast<const __m128i*>(table);
        const __m128i a = _mm_loadu_si128(t), b = _mm_loadu_si128(t + 1), byte = _mm_set1_epi16(255);
        low = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_and_si128(a, byte), _mm_and_si128(b, byte)));
        high = _mm256_broadcastsi128_si256(_mm_packus_epi16(_mm_srli_epi16(a, 8), _mm_srli_epi16(b, 8)));
    }
    // body(place, pairs): eight registers of pairs, k 0 below k 1. Place 4 h + 2 j + u: of v = j and j + 2 (channels 16
    // v
    // ...), in turns, the channels 8 h + 2 u + {0, 1, 4, 5}.
    template <class Body>
    [[gnu::always_inline]] inline void each(const uint8_t* step, Body body) const {
        const __m256i nibble = _mm256_set1_epi8(15);
        const __m256i order =
            _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
        for (int h = 0; h < 2; ++h) {
            const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step) + h);
            const __m256i both = _mm256_shuffle_epi8(raw, order);
            for (int j = 0; j < 2; ++j) {
                const __m256i code = _mm256_and_si256(j ? _mm256_srli_epi16(both, 4) : both, nibble);
                const __m256i l = _mm256_shuffle_epi8(low, code), u = _mm256_shuffle_epi8(high, code);
                body(4 * h + 2 * j, _mm256_unpacklo_epi8(l, u));
                body(4 * h + 2 * j + 1, _mm256_unpackhi_epi8(l, u));
            }
        }
    }
    static __m256 first(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
    static __m256 second(__m256i pairs) {
        return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000))));
    }
    [[gnu::always_inline]] inline void multiply(const uint8_t* step, const float* x, f32v* acc) const {
        const f32v x0 = set1(x[0]), x1 = set1(x[1]);
        each(step, [&](int at, __m256i pairs) __attribute__((always_inline)) {
            acc[at] = fma(x0, first(pairs), acc[at]);
            acc[at] = fma(x1, second(pairs), acc[at]);
        });
    }
    // Registers of places 2 p and 2 p + 1 to those of channels 16 v + 8 h and 16 (v + 2) + 8 h, p = 2 h + v.
    [[gnu::always_inline]] static inline void sort(const f32v* places, f32v* channels) {
        for (int p = 0; p < 4; ++p) {
            channels[p % 2 * 2 + p / 2] = _mm256_shuffle_ps(places[2 * p], places[2 * p + 1], 0x88);
            channels[p % 2 * 2 + p / 2 + 4] = _mm256_shuffle_ps(places[2 * p], places[2 * p + 1], 0xdd);
        }
    }
    [[gnu::always_inline]] static inline void arrange(f32v* acc) {
        f32v sorted[8];
        sort(acc, sorted);
        for (int i = 0; i < 8; ++i) acc[i] = sorted[i];
    }
    // Column v of 16 channels goes to out + v * pitch.
    [[gnu::always_inline]] inline void decode(const uint8_t* step, float* out, int64_t pitch) const {
        __m256i places[8];
        each(step, [&](int at, __m256i pairs) __attribute__((always_inline)) { places[at] = pairs; });
        for (int p = 0; p < 4; ++p) {
            float* to = out + p % 2 * pitch + p / 2 * 8;
            const __m256i a = places[2 * p], b = places[2 * p + 1];
            store(to, _mm256_shuffle_ps(first(a), first(b), 0x88));
            store(to + 2 * pitch, _mm256_shuffle_ps(first(a), first(b), 0xdd));
            store(to + 16, _mm256_shuffle_ps(second(a), second(b), 0x88));
            store(to + 2 * pitch + 16, _mm256_shuffle_ps(second(a), second(b), 0xdd));
        }
    }
};

}  // namespace products
}  // namespace
