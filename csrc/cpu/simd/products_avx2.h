// Products of float32, AVX2 and FMA: lanes are eight output channels. After simd/avx2.h.
#pragma once

namespace {
namespace products {

using namespace simd;

using element = float;
using weight = __m256;
using index = __m256i;  // a code in the low bits of each lane, anything above
inline constexpr int SUB = 2;
inline constexpr int NW = 2;
inline constexpr int MR = 6;         // 6 x 2 accumulators + 2 weights + 1 activation of 16 registers
inline constexpr int MR_PACKED = 2;  // rows that leave room for a decoder

inline f32v own(f32v acc) {  // equal starts look like one value to gcc, which then spills the copies
    __asm__("" : "+x"(acc));
    return acc;
}
inline f32v multiply_add(f32v acc, f32v x, weight w) { return fma(x, w, acc); }
inline f32v broadcast(const element* row, int sub) { return set1(row[sub]); }
// A decoded step: [2][64] float.
inline weight load_weight(const element* step, int channel, int sub) { return load(step + sub * 64 + channel); }
inline void store_weight(element* step, int channel, int sub, weight w) { store(step + sub * 64 + channel, w); }

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

}  // namespace products
}  // namespace
