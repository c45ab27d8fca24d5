// Bytes in 256-bit registers: what integer_kernel.h needs beyond simd/avx2.h. A quad holds the int32 of a register of
// bytes in the order that unpacking within 128 bits gives and packing within 128 bits undoes. Internal linkage.
#pragma once

#include "avx2.h"

namespace {
namespace simd {

using bytev = __m256i;
inline constexpr int QUAD = BYTES / LANES;
struct quad {
    i32v v[QUAD];
};

inline bytev load_bytes(const uint8_t* p, int64_t n) {  // no byte mask in AVX2: copy the tail
    uint8_t tail[BYTES] = {};
    __builtin_memcpy(tail, p, n);
    return load_bytes(tail);
}
inline void store_raw(uint8_t* p, bytev v, int64_t n) {
    uint8_t tail[BYTES];
    store_raw(tail, v);
    __builtin_memcpy(p, tail, n);
}
inline bytev sub_bytes(bytev a, bytev b) { return _mm256_sub_epi8(a, b); }
template <bool SIGNED>
inline bytev max_bytes(bytev a, bytev b) {
    return SIGNED ? _mm256_max_epi8(a, b) : _mm256_max_epu8(a, b);
}
inline bytev clamp_signed(bytev x, bytev lo, bytev hi) { return _mm256_min_epi8(_mm256_max_epi8(x, lo), hi); }

using shiftv = __m128i;
inline shiftv shift_by(int n) { return _mm_cvtsi32_si128(n); }
inline i32v sra(i32v a, shiftv n) { return _mm256_sra_epi32(a, n); }

inline i32v srlv(i32v a, i32v n) { return _mm256_srlv_epi32(a, n); }
inline i32v andi(i32v a, i32v b) { return _mm256_and_si256(a, b); }
inline i32v widen(const uint8_t* p) {  // LANES bytes
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
inline void add_squares(i32v& low, i32v& high, bytev v) {  // of unsigned bytes; two chains
    const __m256i none = _mm256_setzero_si256();
    const __m256i l = _mm256_unpacklo_epi8(v, none), h = _mm256_unpackhi_epi8(v, none);
    low = addi(low, _mm256_madd_epi16(l, l));
    high = addi(high, _mm256_madd_epi16(h, h));
}

using pairv = __m256i;
inline pairv pair(int16_t a, int16_t b) {
    return _mm256_set1_epi32(static_cast<int32_t>(static_cast<uint16_t>(a) | uint32_t{static_cast<uint16_t>(b)} << 16));
}
// a * ma + b * mb + start of unsigned bytes
inline quad pair_dot(bytev a, bytev b, pairv m, i32v start) {
    const __m256i low = _mm256_unpacklo_epi8(a, b), high = _mm256_unpackhi_epi8(a, b), byte = _mm256_set1_epi16(0xff);
    const __m256i al = _mm256_and_si256(low, byte), bl = _mm256_srli_epi16(low, 8);
    const __m256i ah = _mm256_and_si256(high, byte), bh = _mm256_srli_epi16(high, 8);
    return {{_mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(al, bl), m), start),
             _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(al, bl), m), start),
             _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpacklo_epi16(ah, bh), m), start),
             _mm256_add_epi32(_mm256_madd_epi16(_mm256_unpackhi_epi16(ah, bh), m), start)}};
}
inline bytev narrow(quad q) {  // saturating to int8
    return _mm256_packs_epi16(_mm256_packs_epi32(q.v[0], q.v[1]), _mm256_packs_epi32(q.v[2], q.v[3]));
}
// + zero, saturating to int8; the int32 in natural order
inline bytev narrow(quad q, int zero) {
    const __m256i z = _mm256_set1_epi16(static_cast<int16_t>(zero));
    const __m256i low = _mm256_adds_epi16(_mm256_packs_epi32(q.v[0], q.v[1]), z);
    const __m256i high = _mm256_adds_epi16(_mm256_packs_epi32(q.v[2], q.v[3]), z);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
}

struct sum16 {
    __m256i low, high;
};
inline sum16 sum16_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline sum16 add16(sum16 s, bytev v) {
    const __m256i none = _mm256_setzero_si256();
    return {_mm256_add_epi16(s.low, _mm256_unpacklo_epi8(v, none)),
            _mm256_add_epi16(s.high, _mm256_unpackhi_epi8(v, none))};
}
inline quad quad_zero() { return {{seti(0), seti(0), seti(0), seti(0)}}; }
inline quad add_wide(quad q, sum16 s) {
    const __m256i none = _mm256_setzero_si256();
    return {{addi(q.v[0], _mm256_unpacklo_epi16(s.low, none)), addi(q.v[1], _mm256_unpackhi_epi16(s.low, none)),
             addi(q.v[2], _mm256_unpacklo_epi16(s.high, none)), addi(q.v[3], _mm256_unpackhi_epi16(s.high, none))}};
}

// Every lane at least n

// table[x] by sixteen shuffles. A shuffle gives 0 where its index has the top bit, which x - 16 i has unless
// 0 <= x - 16 i < 128 (the second half subtracts with saturation, so there it stays set); the exclusive or of what is
// left comes out as the entry when row i holds the difference below.
class Lookup {
  public:
    static constexpr bool kFast = false;  // a few instructions for a register of bytes
    explicit Lookup(const uint8_t* table) {
        alignas(16) uint8_t rows[16][16];
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 16; ++j) {
                auto t = [&](int row) { return row < 0 ? 0 : table[row * 16 + j]; };
                rows[i][j] = i < 8    ? t(i) ^ t(i - 1)
                             : i == 8 ? t(8) ^ t(7) ^ t(0)
                                      : t(i) ^ t(i - 1) ^ t(i - 8) ^ t(i - 9);
            }
        for (int i = 0; i < 16; ++i)
            row_[i] = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(rows[i])));
    }
    bytev operator()(bytev x) const {
        const __m256i step = _mm256_set1_epi8(16);
        __m256i y = _mm256_shuffle_epi8(row_[0], x);
        for (int i = 1; i < 16; ++i) {
            x = i <= 8 ? _mm256_sub_epi8(x, step) : _mm256_subs_epi8(x, step);
            y = _mm256_xor_si256(y, _mm256_shuffle_epi8(row_[i], x));
        }
        return y;
    }

  private:
    __m256i row_[16];
};

}  // namespace simd
}  // namespace
