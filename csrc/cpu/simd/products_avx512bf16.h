// Products of bfloat16 pairs, AVX-512 BF16: 32-bit lanes are 16 output channels, two k each, so vdpbf16ps takes a whole
// k step. It multiplies exactly, adds in float32 and takes subnormals for 0. After simd/avx512vnni.h.
#pragma once

namespace {
namespace products {

using namespace simd;

using element = bf16;
using weight = __m512i;
using index = __m512i;  // a code in the low bits of each 16-bit lane, anything above
inline constexpr int SUB = 1;
inline constexpr int NW_MANY = 4, NW_ONE = 4;  // registers of weights: of many rows, of one row
inline constexpr int MR = 6;
inline constexpr int BLOCK_STEPS = 1024;  // 256 KB, in L2
inline constexpr int MR_PACKED = 4;

inline f32v own(f32v acc) {  // equal starts look like one value to gcc, which then spills the copies
    QK_OWN(acc);
    return acc;
}
inline f32v multiply_add(f32v acc, __m512i x, weight w) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
}
inline __m512i broadcast(const element* row, int) {
    int32_t two;
    __builtin_memcpy(&two, row, 4);
    return _mm512_set1_epi32(two);
}
// A decoded step: [64][2] bf16.
inline weight load_weight(const element* step, int channel, int) { return _mm512_loadu_si512(step + 2 * channel); }
inline void store_weight(element* step, int channel, int, weight w) { _mm512_storeu_si512(step + 2 * channel, w); }

template <int P>
index plane(const uint8_t* words, int channel, int) {
    const int at = channel / 16 * 4;
    if constexpr (P == 4) return at ? _mm512_srli_epi16(_mm512_loadu_si512(words), at) : _mm512_loadu_si512(words);
    if constexpr (P == 2) {
        const __m512i two = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
        const __m512i half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
        return _mm512_srlv_epi16(two, _mm512_add_epi16(half, _mm512_set1_epi16(static_cast<int16_t>(at))));
    }
    const __m512i four = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    const int64_t one = 0x0001000100010001;
    const __m512i quarter = _mm512_setr_epi64(0, 0, one, one, 2 * one, 2 * one, 3 * one, 3 * one);
    return _mm512_srlv_epi16(four, _mm512_add_epi16(quarter, _mm512_set1_epi16(static_cast<int16_t>(at))));
}
inline index bytes(const uint8_t* step, int channel, int) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(step + 2 * channel)));
}
inline index shift_left(index a, int n) { return _mm512_slli_epi16(a, n); }
// low where the mask has ones, else high
inline index join(int mask, index low, index high) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi16(static_cast<int16_t>(mask)), low, high, 0xca);
}
inline weight ramp(const uint8_t* step, int channel, int) {  // 8-bit two's complement codes as numbers, exact
    const auto* codes = reinterpret_cast<const __m128i*>(step + 2 * channel);
    const __m512 low = to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes)));
    const __m512 high = to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes + 1)));
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// From tables of their own, `stride` apart, of the channels from `channel` on: 32 bits at an entry's place, of which
// the low half is the entry (a block does not end with its tables).
inline weight gather(const void* tables, int stride, int channel, index code, int mask) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                  m = _mm512_set1_epi32(mask);
    const __m512i table =
        _mm512_mullo_epi32(_mm512_add_epi32(lane, _mm512_set1_epi32(channel)), _mm512_set1_epi32(stride));
    const __m512i low = _mm512_and_si512(code, m), high = _mm512_and_si512(_mm512_srli_epi32(code, 16), m);
    const __m512i first = _mm512_i32gather_epi32(_mm512_add_epi32(table, low), tables, 2);
    const __m512i second = _mm512_i32gather_epi32(_mm512_add_epi32(table, high), tables, 2);
    return _mm512_or_si512(_mm512_and_si512(first, _mm512_set1_epi32(0xffff)), _mm512_slli_epi32(second, 16));
}

// vpermw takes the five low bits of a lane for an index into 32 entries, vpermi2w six into 64.
template <int BITS>
struct Table {
    static constexpr int REGS = BITS <= 5 ? 1 : 1 << (BITS - 5);
    __m512i t[REGS];
    explicit Table(const void* table) {
        for (int i = 0; i < REGS; ++i) t[i] = _mm512_loadu_si512(static_cast<const char*>(table) + 64 * i);
    }
    weight operator()(index i) const {
        if constexpr (BITS <= 5) {
            return _mm512_permutexvar_epi16(i, t[0]);
        } else if constexpr (BITS == 6) {
            return _mm512_permutex2var_epi16(t[0], i, t[1]);
        } else {
            const __mmask32 bit6 = _mm512_movepi16_mask(_mm512_slli_epi16(i, 9));
            auto half = [&](int r) __attribute__((always_inline)) {
                return _mm512_mask_blend_epi16(bit6, _mm512_permutex2var_epi16(t[r], i, t[r + 1]),
                                               _mm512_permutex2var_epi16(t[r + 2], i, t[r + 3]));
            };
            if constexpr (BITS == 7) return half(0);
            return _mm512_mask_blend_epi16(_mm512_movepi16_mask(_mm512_slli_epi16(i, 8)), half(0), half(REGS / 2));
        }
    }
};

}  // namespace products
}  // namespace
