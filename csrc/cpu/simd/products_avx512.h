// Products of float32, AVX-512: lanes are 16 output channels, two multiply-adds a k step. After simd/avx512vnni.h.
#pragma once

namespace {
namespace products {

using namespace simd;

using element = float;
using weight = __m512;
using index = __m512i;                         // a code in the low bits of each lane, anything above
inline constexpr int SUB = 2;                  // multiply-adds that a k step of two takes
inline constexpr int NW_MANY = 4, NW_ONE = 4;  // registers of weights: of many rows, of one row
inline constexpr int MR = 6;                   // 6 x 4 accumulators + 4 weights + 1 activation
inline constexpr int BLOCK_STEPS = 512;        // 256 KB, in L2
inline constexpr int MR_PACKED = 4;            // rows that leave room for a decoder

inline f32v own(f32v acc) {  // equal starts look like one value to gcc, which then spills the copies
    QK_OWN(acc);
    return acc;
}
inline f32v multiply_add(f32v acc, f32v x, weight w) { return fma(x, w, acc); }
inline f32v broadcast(const element* row, int sub) { return set1(row[sub]); }
// A decoded step: [2][64] float.
inline weight load_weight(const element* step, int channel, int sub) { return load(step + sub * 64 + channel); }
inline void store_weight(element* step, int channel, int sub, weight w) { store(step + sub * 64 + channel, w); }

template <int P>
index plane(const uint8_t* words, int channel, int sub) {
    const int at = 16 * sub + channel / 16 * 4;
    if constexpr (P == 4) return _mm512_srli_epi32(_mm512_loadu_si512(words), at);
    if constexpr (P == 2) {
        const __m512i two = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
        const __m512i half = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2);
        return _mm512_srlv_epi32(two, _mm512_add_epi32(half, _mm512_set1_epi32(at)));
    }
    const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const __m512i quarter = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    return _mm512_srlv_epi32(four, _mm512_add_epi32(quarter, _mm512_set1_epi32(at)));
}
inline index bytes(const uint8_t* step, int channel, int sub) {
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + 2 * channel));
    return _mm512_srli_epi32(_mm512_cvtepu16_epi32(pairs), 8 * sub);
}
inline index shift_left(index a, int n) { return _mm512_slli_epi32(a, n); }
// low where the mask has ones, else high
inline index join(int mask, index low, index high) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(mask), low, high, 0xca);
}
inline weight ramp(const uint8_t* step, int channel, int sub) {  // 8-bit two's complement codes as numbers
    const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + 2 * channel));
    return to_float(_mm512_srai_epi32(_mm512_slli_epi32(_mm512_cvtepu16_epi32(pairs), 24 - 8 * sub), 24));
}

// From tables of their own, `stride` apart, of the channels from `channel` on.
inline __m512i table_starts(int stride, int channel) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_mullo_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(channel)), _mm512_set1_epi32(stride));
}
inline weight gather(const void* tables, int stride, int channel, index code, int mask) {
    const __m512i at = _mm512_and_si512(code, _mm512_set1_epi32(mask));
    return _mm512_i32gather_ps(_mm512_add_epi32(table_starts(stride, channel), at), tables, 4);
}

template <int BITS>
struct Table {
    const float* all;
    __m512 t0, t1;
    explicit Table(const void* table) : all(static_cast<const float*>(table)) {
        t0 = load(all);
        if constexpr (BITS == 5) t1 = load(all + 16);
    }
    weight operator()(index i) const {
        if constexpr (BITS <= 4) return _mm512_permutexvar_ps(i, t0);
        if constexpr (BITS == 5) return _mm512_permutex2var_ps(t0, i, t1);
        return _mm512_i32gather_ps(_mm512_and_si512(i, _mm512_set1_epi32((1 << BITS) - 1)), all, 4);
    }
};

}  // namespace products
}  // namespace
