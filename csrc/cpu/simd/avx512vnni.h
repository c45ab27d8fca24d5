// AVX-512 F/BW/DQ/VL + VNNI primitives. Included by one translation unit; everything has internal linkage.
#pragma once

#include <immintrin.h>

#include "../../common/types.h"

// A register of its own for a value that gcc would otherwise see as one with others.
#if defined(__AVX512F__)
#define QK_OWN(value) __asm__("" : "+v"(value))
#else
#define QK_OWN(value)  // emulated: see simd/emulated
#endif

namespace {
namespace simd {

using qk::bf16;
using qk::f16;

inline constexpr int LANES = 16;
using f32v = __m512;
using i32v = __m512i;
using i64v = __m512i;

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

// ---- int8 products: lanes are output channels -------------------------------------------------------------------
inline constexpr int ACC_N = 16;     // output channels of one accumulator register
inline constexpr int NV = 4;         // accumulators of a row: a whole 64-wide panel
inline constexpr int MR_PACKED = 4;  // rows that leave room for a decoder: 16 + 4 + 4 offsets and constants
inline constexpr int MR = 6;         // 6 x 4 accumulators + 4 weights + 1 activation = 29 of 32 registers
using acc_t = __m512i;
using wvec = __m512i;
using xvec = __m512i;
using bvec = __m512i;  // the bytes of a k step of ACC_N channels

inline bvec zero_bytes() { return _mm512_setzero_si512(); }
inline bvec load_b(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_b(int8_t* p, bvec b) { _mm512_storeu_si512(p, b); }
inline bvec field(bvec b, int shift, uint8_t mask) {
    const bvec low = shift ? _mm512_srlv_epi16(b, _mm512_set1_epi16(static_cast<int16_t>(shift))) : b;
    return _mm512_and_si512(low, _mm512_set1_epi8(static_cast<char>(mask)));
}
inline bvec shift_left(bvec b, int shift) {  // of small fields: nothing reaches the next byte
    return _mm512_sllv_epi16(b, _mm512_set1_epi16(static_cast<int16_t>(shift)));
}
inline bvec or_b(bvec a, bvec b) { return _mm512_or_si512(a, b); }
inline bvec sub_b(bvec a, bvec b) { return _mm512_sub_epi8(a, b); }
inline bvec bit_plane(const uint8_t* plane, int channel, uint8_t value) {  // value where a bit is 1, else 0
    uint64_t bits;
    __builtin_memcpy(&bits, plane + channel / 2, 8);
    return _mm512_maskz_mov_epi8(_cvtu64_mask64(bits), _mm512_set1_epi8(static_cast<char>(value)));
}
inline bvec repeat4(const uint8_t* p) {  // byte of each channel, for its four k
    const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m512i pick =
        _mm512_set_epi64(0x0f0f0f0f0e0e0e0e, 0x0d0d0d0d0c0c0c0c, 0x0b0b0b0b0a0a0a0a, 0x0909090908080808,
                         0x0707070706060606, 0x0505050504040404, 0x0303030302020202, 0x0101010100000000);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(all), pick);
}
using table16 = __m512i;  // 16 bytes in each 128-bit lane
inline table16 load_table16(const uint8_t* p) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline bvec lookup16(table16 table, bvec index) { return _mm512_shuffle_epi8(table, index); }  // index below 16
inline wvec operand(bvec b) { return b; }
inline xvec load_x(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
inline acc_t dot4(acc_t acc, xvec x, wvec w) { return _mm512_dpbusd_epi32(acc, x, w); }
inline xvec set_x(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline acc_t acc_zero() { return _mm512_setzero_si512(); }
inline acc_t acc_load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline __m512i acc_lanes(acc_t acc) { return acc; }
inline acc_t own_register(acc_t acc) {  // equal starts look like one value to gcc, which then spills the copies
    QK_OWN(acc);
    return acc;
}
inline void acc_store(int32_t* p, acc_t acc) { _mm512_storeu_si512(p, acc); }

// ---- float32 -----------------------------------------------------------------------------------------------------
inline f32v set1(float x) { return _mm512_set1_ps(x); }
inline f32v add(f32v a, f32v b) { return _mm512_add_ps(a, b); }
inline f32v sub(f32v a, f32v b) { return _mm512_sub_ps(a, b); }
inline f32v mul(f32v a, f32v b) { return _mm512_mul_ps(a, b); }
inline f32v fma(f32v a, f32v b, f32v c) { return _mm512_fmadd_ps(a, b, c); }
// 1 / a within 2^-23 or so, for a >= 1: an estimate and one Newton step; a division takes sixteen cycles
inline f32v reciprocal(f32v a) {
    const f32v r = _mm512_rcp14_ps(a);
    return mul(r, sub(set1(2.0f), mul(a, r)));
}
inline f32v min(f32v a, f32v b) { return _mm512_min_ps(a, b); }
inline f32v max(f32v a, f32v b) { return _mm512_max_ps(a, b); }
inline f32v abs(f32v a) { return _mm512_abs_ps(a); }
inline f32v sqrt(f32v a) { return _mm512_sqrt_ps(a); }
inline f32v rint(f32v a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline f32v select_negative(f32v sign_of, f32v if_negative, f32v otherwise) {
    return _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign_of)), otherwise, if_negative);
}
// 2^n for integral n in [-126, 127]
inline f32v pow2(f32v n) {
    const i32v e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}

inline f32v load(const float* p) { return _mm512_loadu_ps(p); }
inline f32v load(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline f32v load(const bf16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline f32v load(const bf16* p, int n) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)), 16));
}
inline f32v load(const f16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline f32v load(const f16* p, int n) { return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)); }

inline void store(float* p, f32v v) { _mm512_storeu_ps(p, v); }
inline void store(float* p, f32v v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline __m256i to_bf16(f32v v) {  // round to nearest even; NaN stays NaN. vcvtneps2bf16 would flush subnormals
    const i32v bits = _mm512_castps_si512(v);
    const i32v odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    i32v r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc00000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
inline void store(bf16* p, f32v v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(v)); }
inline void store(bf16* p, f32v v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_bf16(v)); }
inline __m256i to_f16(f32v v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(f16* p, f32v v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_f16(v)); }
inline void store(f16* p, f32v v, int n) { _mm256_mask_storeu_epi16(p, first(n), to_f16(v)); }

// ---- int32 -------------------------------------------------------------------------------------------------------
inline i32v seti(int32_t x) { return _mm512_set1_epi32(x); }
inline i32v load(const int32_t* p) { return _mm512_loadu_si512(p); }
inline i32v load(const int32_t* p, int n) { return _mm512_maskz_loadu_epi32(first(n), p); }
inline void store(int32_t* p, i32v v) { _mm512_storeu_si512(p, v); }
inline void store(int32_t* p, i32v v, int n) { _mm512_mask_storeu_epi32(p, first(n), v); }
inline i32v addi(i32v a, i32v b) { return _mm512_add_epi32(a, b); }
inline i32v subi(i32v a, i32v b) { return _mm512_sub_epi32(a, b); }
inline i32v muli(i32v a, i32v b) { return _mm512_mullo_epi32(a, b); }
inline i32v xori(i32v a, i32v b) { return _mm512_xor_si512(a, b); }
inline i32v maxu(i32v a, i32v b) { return _mm512_max_epu32(a, b); }
inline i32v abs_bits(f32v a) { return _mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff)); }
inline uint32_t reduce_maxu(i32v a) { return _mm512_reduce_max_epu32(a); }
inline int32_t reduce_add(i32v a) { return _mm512_reduce_add_epi32(a); }
inline f32v to_float(i32v a) { return _mm512_cvtepi32_ps(a); }
// high * factor + low, exact in double, rounded once to float32
inline f32v to_float_pair(i32v high, i32v low, float factor) {
    const __m512d f = _mm512_set1_pd(factor);
    auto half = [&](__m256i h, __m256i l) {
        return _mm512_cvtpd_ps(_mm512_fmadd_pd(_mm512_cvtepi32_pd(h), f, _mm512_cvtepi32_pd(l)));
    };
    const __m256 a = half(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
    const __m256 b = half(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1));
    return _mm512_insertf32x8(_mm512_castps256_ps512(a), b, 1);
}
inline f32v lookup256(const float* table, const uint8_t* codes) {  // table[codes[lane]]
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
    return _mm512_i32gather_ps(_mm512_cvtepu8_epi32(bytes), table, 4);
}
// half to even; above int32 undefined (callers take the minimum with something first), below it INT32_MIN
inline i32v to_int(f32v a) { return _mm512_cvtps_epi32(a); }
inline void store_bytes(uint8_t* p, i32v v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
}
inline void store_bytes(uint8_t* p, i32v v, int n) { _mm512_mask_cvtepi32_storeu_epi8(p, first(n), v); }
// 4 * LANES integers + zero, saturated to int8 or uint8, each byte xor flip. Every step saturates, so the result is
// right for any integers, and three packs and a permute replace four vpmovdb.
inline void store_codes4(uint8_t* p, i32v a, i32v b, i32v c, i32v d, int16_t zero, bool is_signed, int16_t lo,
                         int16_t hi, uint8_t flip) {
    const __m512i z = _mm512_set1_epi16(zero);
    const __m512i ab = _mm512_adds_epi16(_mm512_packs_epi32(a, b), z);
    const __m512i cd = _mm512_adds_epi16(_mm512_packs_epi32(c, d), z);
    __m512i codes = is_signed ? _mm512_packs_epi16(ab, cd) : _mm512_packus_epi16(ab, cd);
    const __m512i least = _mm512_set1_epi8(static_cast<char>(lo)), most = _mm512_set1_epi8(static_cast<char>(hi));
    codes = is_signed ? _mm512_min_epi8(_mm512_max_epi8(codes, least), most)
                      : _mm512_min_epu8(_mm512_max_epu8(codes, least), most);
    codes = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(flip)));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_si512(p, _mm512_permutexvar_epi32(order, codes));
}

// ---- 64-bit halves of an int32 register, for fixed-point products --------------------------------------------------
inline i64v even(i32v a) { return _mm512_srai_epi64(_mm512_slli_epi64(a, 32), 32); }
inline i64v odd(i32v a) { return _mm512_srai_epi64(a, 32); }
inline i32v merge(i64v even_lanes, i64v odd_lanes) {
    return _mm512_mask_blend_epi32(0xaaaa, even_lanes, _mm512_slli_epi64(odd_lanes, 32));
}
inline i64v set64(int64_t x) { return _mm512_set1_epi64(x); }
inline i64v add64(i64v a, i64v b) { return _mm512_add_epi64(a, b); }
inline i64v sub64(i64v a, i64v b) { return _mm512_sub_epi64(a, b); }
inline i64v and64(i64v a, i64v b) { return _mm512_and_si512(a, b); }
inline i64v mul32(i64v a, i64v b) { return _mm512_mul_epi32(a, b); }  // both fit int32
inline i64v min64(i64v a, i64v b) { return _mm512_min_epi64(a, b); }
inline i64v max64(i64v a, i64v b) { return _mm512_max_epi64(a, b); }
inline i64v sll64(i64v a, i64v n) { return _mm512_sllv_epi64(a, n); }  // 0 where n > 63
inline i64v sra64(i64v a, i64v n) { return _mm512_srav_epi64(a, n); }
inline i64v negative_mask(i64v a) { return _mm512_srai_epi64(a, 63); }
inline i64v greater_one(i64v a, i64v b) {  // 1 where a > b, else 0
    return _mm512_maskz_mov_epi64(_mm512_cmpgt_epi64_mask(a, b), _mm512_set1_epi64(1));
}

// ---- int32 halves of products: what fixed-point rounding needs where shifts allow it
// ----------------------------------
inline i32v srav(i32v a, i32v n) { return _mm512_srav_epi32(a, n); }
inline bool all_at_least(i32v a, int32_t n) { return _mm512_cmplt_epi32_mask(a, seti(n)) == 0; }
inline i32v high_halves(i64v even_lanes, i64v odd_lanes) {
    const __m512 even = _mm512_castsi512_ps(even_lanes), odd = _mm512_castsi512_ps(odd_lanes);
    return _mm512_castps_si512(_mm512_mask_movehdup_ps(odd, 0x5555, even));
}
// acc * m >> 32
inline i32v high_product(i32v acc, i32v m) {
    return high_halves(_mm512_mul_epi32(acc, m),
                       _mm512_mul_epi32(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(m, 32)));
}
// acc * m + 2^30 >> 31
inline i32v high_doubled(i32v acc, i32v m) {
    const i64v e = _mm512_mul_epi32(acc, m), half = set64(int64_t{1} << 31);
    const i64v o = _mm512_mul_epi32(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(m, 32));
    return high_halves(add64(add64(e, e), half), add64(add64(o, o), half));
}
inline i32v pow2i(i32v n) { return _mm512_sllv_epi32(seti(1), n); }
// x / 2^n, ties away from zero
inline i32v rounding_shift(i32v x, i32v n) {
    const i32v mask = _mm512_sub_epi32(pow2i(n), seti(1));
    const i32v threshold = _mm512_sub_epi32(_mm512_srli_epi32(mask, 1), _mm512_srai_epi32(x, 31));
    const __mmask16 up = _mm512_cmpgt_epi32_mask(_mm512_and_si512(x, mask), threshold);
    const i32v y = srav(x, n);
    return _mm512_mask_add_epi32(y, up, y, seti(1));
}

// ---- bytes -------------------------------------------------------------------------------------------------------
inline constexpr int BYTES = 64;
inline __m512i load_bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline void store_raw(uint8_t* p, __m512i v) { _mm512_storeu_si512(p, v); }
inline __m512i set_bytes(uint8_t x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline __m512i xor_bytes(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
inline i32v sum_bytes(i32v acc, __m512i v) { return _mm512_dpbusd_epi32(acc, v, _mm512_set1_epi8(1)); }

// Assembly: gcc takes a function that only prefetches for one without effect and drops the call.
inline void prefetch(const char* p) { __asm__ volatile("prefetcht1 %0" : : "m"(*p)); }

// ---- convolutions: transposes of square blocks --------------------------------------------------------------------
constexpr int transpose_block(size_t bytes) { return static_cast<int>(16 / bytes); }
inline void transpose_square(const uint8_t* src, int64_t ld_src, uint8_t* dst, int64_t ld_dst) {
    __m128i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i * ld_src));
    for (int round = 0; round < 2; ++round) {  // four perfect shuffles of the list of rows are a transpose
        for (int i = 0; i < 8; ++i) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
        for (int i = 0; i < 8; ++i) {
            a[2 * i] = _mm_unpacklo_epi8(b[i], b[i + 8]);
            a[2 * i + 1] = _mm_unpackhi_epi8(b[i], b[i + 8]);
        }
    }
    for (int i = 0; i < 16; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i * ld_dst), a[i]);
}
inline void transpose_square(const uint16_t* src, int64_t ld_src, uint16_t* dst, int64_t ld_dst) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i * ld_src));
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        a[2 * i] = _mm_unpacklo_epi16(b[i], b[i + 4]);
        a[2 * i + 1] = _mm_unpackhi_epi16(b[i], b[i + 4]);
    }
    for (int i = 0; i < 4; ++i) {
        b[2 * i] = _mm_unpacklo_epi16(a[i], a[i + 4]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[i], a[i + 4]);
    }
    for (int i = 0; i < 8; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i * ld_dst), b[i]);
}
inline void transpose_square(const uint32_t* src, int64_t ld_src, uint32_t* dst, int64_t ld_dst) {
    __m128i a[4], b[4];
    for (int i = 0; i < 4; ++i) a[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i * ld_src));
    for (int i = 0; i < 2; ++i) {
        b[2 * i] = _mm_unpacklo_epi32(a[i], a[i + 2]);
        b[2 * i + 1] = _mm_unpackhi_epi32(a[i], a[i + 2]);
    }
    for (int i = 0; i < 2; ++i) {
        a[2 * i] = _mm_unpacklo_epi32(b[i], b[i + 2]);
        a[2 * i + 1] = _mm_unpackhi_epi32(b[i], b[i + 2]);
    }
    for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i * ld_dst), a[i]);
}

// ---- depthwise: four values of each of 64 channels side by side ---------------------------------------------------
inline xvec load_quads(const uint8_t* p) { return _mm512_loadu_si512(p); }
// Unpacking works within 128-bit lanes, so pixels keep channel group 4 * l + j (of four channels) in lane j, place l.
inline void arrange64(const uint8_t* x, int n, uint8_t flip, uint8_t* out) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __mmask64 real = n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0};
    const __m512i v = _mm512_xor_si512(_mm512_maskz_loadu_epi8(real, x), _mm512_set1_epi8(static_cast<char>(flip)));
    _mm512_storeu_si512(out, _mm512_permutexvar_epi32(order, v));
}
inline void interleave64(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* out) {
    const __m512i va = _mm512_loadu_si512(a), vb = _mm512_loadu_si512(b);
    const __m512i vc = _mm512_loadu_si512(c), vd = _mm512_loadu_si512(d);
    const __m512i ab0 = _mm512_unpacklo_epi8(va, vb), ab1 = _mm512_unpackhi_epi8(va, vb);
    const __m512i cd0 = _mm512_unpacklo_epi8(vc, vd), cd1 = _mm512_unpackhi_epi8(vc, vd);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi16(ab0, cd0));
    _mm512_storeu_si512(out + 64, _mm512_unpackhi_epi16(ab0, cd0));
    _mm512_storeu_si512(out + 128, _mm512_unpacklo_epi16(ab1, cd1));
    _mm512_storeu_si512(out + 192, _mm512_unpackhi_epi16(ab1, cd1));
}

}  // namespace simd
}  // namespace
