// Bytes in 512-bit registers: what integer_kernel.h needs beyond simd/avx512vnni.h. A quad holds the int32 of a
// register of bytes in the order that unpacking within 128 bits gives and packing within 128 bits undoes. With VBMI a
// table of 256 bytes is four registers and two permutes. Internal linkage.
#pragma once

#include "avx512vnni.h"

namespace {
namespace simd {

using bytev = __m512i;
inline constexpr int QUAD = BYTES / LANES;
struct quad {
    i32v v[QUAD];
};

inline __mmask64 first_bytes(int64_t n) { return n >= 64 ? ~__mmask64{0} : (__mmask64{1} << n) - 1; }
inline bytev load_bytes(const uint8_t* p, int64_t n) { return _mm512_maskz_loadu_epi8(first_bytes(n), p); }
inline void store_raw(uint8_t* p, bytev v, int64_t n) { _mm512_mask_storeu_epi8(p, first_bytes(n), v); }
inline bytev sub_bytes(bytev a, bytev b) { return _mm512_sub_epi8(a, b); }
template <bool SIGNED>
inline bytev max_bytes(bytev a, bytev b) {
    return SIGNED ? _mm512_max_epi8(a, b) : _mm512_max_epu8(a, b);
}
inline bytev clamp_signed(bytev x, bytev lo, bytev hi) { return _mm512_min_epi8(_mm512_max_epi8(x, lo), hi); }

using shiftv = __m512i;  // a shift by an xmm count takes two micro-operations, by a vector of counts one
inline shiftv shift_by(int n) { return _mm512_set1_epi32(n); }
inline i32v sra(i32v a, shiftv n) { return _mm512_srav_epi32(a, n); }

inline i32v srlv(i32v a, i32v n) { return _mm512_srlv_epi32(a, n); }
inline i32v andi(i32v a, i32v b) { return _mm512_and_si512(a, b); }
inline i32v widen(const uint8_t* p) {  // LANES bytes
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline void add_squares(i32v& low, i32v& high, bytev v) {  // of unsigned bytes; two chains
    const __m512i none = _mm512_setzero_si512();
    const __m512i l = _mm512_unpacklo_epi8(v, none), h = _mm512_unpackhi_epi8(v, none);
    low = _mm512_dpwssd_epi32(low, l, l);
    high = _mm512_dpwssd_epi32(high, h, h);
}

using pairv = __m512i;
inline pairv pair(int16_t a, int16_t b) {
    return _mm512_set1_epi32(static_cast<int32_t>(static_cast<uint16_t>(a) | uint32_t{static_cast<uint16_t>(b)} << 16));
}
// a * ma + b * mb + start of unsigned bytes; vpdpwssd is vpmaddwd and an addition
inline quad pair_dot(bytev a, bytev b, pairv m, i32v start) {
    const __m512i low = _mm512_unpacklo_epi8(a, b), high = _mm512_unpackhi_epi8(a, b), byte = _mm512_set1_epi16(0xff);
    const __m512i al = _mm512_and_si512(low, byte), bl = _mm512_srli_epi16(low, 8);
    const __m512i ah = _mm512_and_si512(high, byte), bh = _mm512_srli_epi16(high, 8);
    return {{_mm512_dpwssd_epi32(start, _mm512_unpacklo_epi16(al, bl), m),
             _mm512_dpwssd_epi32(start, _mm512_unpackhi_epi16(al, bl), m),
             _mm512_dpwssd_epi32(start, _mm512_unpacklo_epi16(ah, bh), m),
             _mm512_dpwssd_epi32(start, _mm512_unpackhi_epi16(ah, bh), m)}};
}
inline bytev narrow(quad q) {  // saturating to int8
    return _mm512_packs_epi16(_mm512_packs_epi32(q.v[0], q.v[1]), _mm512_packs_epi32(q.v[2], q.v[3]));
}
// + zero, saturating to int8; the int32 in natural order
inline bytev narrow(quad q, int zero) {
    const __m512i z = _mm512_set1_epi16(static_cast<int16_t>(zero));
    const __m512i low = _mm512_adds_epi16(_mm512_packs_epi32(q.v[0], q.v[1]), z);
    const __m512i high = _mm512_adds_epi16(_mm512_packs_epi32(q.v[2], q.v[3]), z);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

struct sum16 {
    __m512i low, high;
};
inline sum16 sum16_zero() { return {_mm512_setzero_si512(), _mm512_setzero_si512()}; }
inline sum16 add16(sum16 s, bytev v) {
    const __m512i none = _mm512_setzero_si512();
    return {_mm512_add_epi16(s.low, _mm512_unpacklo_epi8(v, none)),
            _mm512_add_epi16(s.high, _mm512_unpackhi_epi8(v, none))};
}
inline quad quad_zero() { return {{seti(0), seti(0), seti(0), seti(0)}}; }
inline quad add_wide(quad q, sum16 s) {
    const __m512i none = _mm512_setzero_si512();
    return {{addi(q.v[0], _mm512_unpacklo_epi16(s.low, none)), addi(q.v[1], _mm512_unpackhi_epi16(s.low, none)),
             addi(q.v[2], _mm512_unpacklo_epi16(s.high, none)), addi(q.v[3], _mm512_unpackhi_epi16(s.high, none))}};
}

// Every lane at least n

#if defined(__AVX512VBMI__)
class Lookup {
  public:
    static constexpr bool kFast = true;
    explicit Lookup(const uint8_t* table) {
        for (int i = 0; i < 4; ++i) quarter_[i] = _mm512_loadu_si512(table + 64 * i);
    }
    bytev operator()(bytev x) const {
        const __m512i low = _mm512_permutex2var_epi8(quarter_[0], x, quarter_[1]);
        const __m512i high = _mm512_permutex2var_epi8(quarter_[2], x, quarter_[3]);
        return _mm512_mask_blend_epi8(_mm512_movepi8_mask(x), low, high);
    }

  private:
    __m512i quarter_[4];
};
#else
// table[x] by sixteen shuffles: see bytes_avx2.h
class Lookup {
  public:
    static constexpr bool kFast = false;
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
            row_[i] = _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(rows[i])));
    }
    bytev operator()(bytev x) const {
        const __m512i step = _mm512_set1_epi8(16);
        __m512i y = _mm512_shuffle_epi8(row_[0], x);
        for (int i = 1; i < 16; ++i) {
            x = i <= 8 ? _mm512_sub_epi8(x, step) : _mm512_subs_epi8(x, step);
            y = _mm512_xor_si512(y, _mm512_shuffle_epi8(row_[i], x));
        }
        return y;
    }

  private:
    __m512i row_[16];
};
#endif

}  // namespace simd
}  // namespace
