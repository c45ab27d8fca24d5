// AVX2 + FMA + F16C primitives, the same names as every other simd header. Internal linkage.
#pragma once

#include <immintrin.h>

#include "../../common/types.h"

namespace {
namespace simd {

using qk::bf16;
using qk::f16;

inline constexpr int LANES = 8;
using f32v = __m256;
using i32v = __m256i;
using i64v = __m256i;

inline __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// ---- int8 products: vpmaddubsw saturates, so both sides widen to 16 bits and vpmaddwd is exact -------------------
inline constexpr int ACC_N = 8;
inline constexpr int NV = 1;
inline constexpr int MR_PACKED = 3;  // rows that leave room for a decoder
inline constexpr int MR = 4;         // 4 x 2 accumulators + 2 weights + 1 activation of 16 registers
struct acc_t {                       // two partial sums a channel, added when stored
    __m256i low, high;
};
struct wvec {
    __m256i low, high;  // 4 channels x 4 k each, int16
};
using xvec = __m256i;
using bvec = __m256i;  // the bytes of a k step of ACC_N channels

inline bvec zero_bytes() { return _mm256_setzero_si256(); }
inline bvec load_b(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_b(int8_t* p, bvec b) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), b); }
inline bvec field(bvec b, int shift, uint8_t mask) {
    return _mm256_and_si256(_mm256_srl_epi16(b, _mm_cvtsi32_si128(shift)), _mm256_set1_epi8(static_cast<char>(mask)));
}
inline bvec shift_left(bvec b, int shift) {  // of small fields: nothing reaches the next byte
    return _mm256_sll_epi16(b, _mm_cvtsi32_si128(shift));
}
inline bvec or_b(bvec a, bvec b) { return _mm256_or_si256(a, b); }
inline bvec sub_b(bvec a, bvec b) { return _mm256_sub_epi8(a, b); }
inline bvec bit_plane(const uint8_t* plane, int channel, uint8_t value) {  // value where a bit is 1, else 0
    int32_t bits;
    __builtin_memcpy(&bits, plane + channel / 2, 4);
    const __m256i pick = _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    const __m256i one = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201));
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), pick), one);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, one), _mm256_set1_epi8(static_cast<char>(value)));
}
inline bvec repeat4(const uint8_t* p) {  // byte of each channel, for its four k
    const __m256i pick =
        _mm256_set_epi64x(0x0707070706060606, 0x0505050504040404, 0x0303030302020202, 0x0101010100000000);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), pick);
}
using table16 = __m256i;  // 16 bytes in each 128-bit lane
inline table16 load_table16(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline bvec lookup16(table16 table, bvec index) { return _mm256_shuffle_epi8(table, index); }  // index below 16
inline wvec operand(bvec b) {
    return {_mm256_cvtepi8_epi16(_mm256_castsi256_si128(b)), _mm256_cvtepi8_epi16(_mm256_extracti128_si256(b, 1))};
}
inline xvec load_x(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
}
inline acc_t dot4(acc_t acc, xvec x, wvec w) {
    return {_mm256_add_epi32(acc.low, _mm256_madd_epi16(x, w.low)),
            _mm256_add_epi32(acc.high, _mm256_madd_epi16(x, w.high))};
}
inline xvec set_x(uint8_t x) { return _mm256_set1_epi16(x); }
inline acc_t acc_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline __m256i acc_lanes(acc_t acc) { return _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc.low, acc.high), 0xd8); }
inline acc_t own_register(acc_t acc) { return acc; }
inline acc_t acc_load(const int32_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtepu32_epi64(_mm_loadu_si128(q)), _mm256_cvtepu32_epi64(_mm_loadu_si128(q + 1))};
}
inline void acc_store(int32_t* p, acc_t acc) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), acc_lanes(acc)); }

// ---- float32 -----------------------------------------------------------------------------------------------------
inline f32v set1(float x) { return _mm256_set1_ps(x); }
inline f32v add(f32v a, f32v b) { return _mm256_add_ps(a, b); }
inline f32v sub(f32v a, f32v b) { return _mm256_sub_ps(a, b); }
inline f32v mul(f32v a, f32v b) { return _mm256_mul_ps(a, b); }
inline f32v fma(f32v a, f32v b, f32v c) { return _mm256_fmadd_ps(a, b, c); }
inline f32v reciprocal(f32v a) {
    const f32v r = _mm256_rcp_ps(a);
    return mul(r, sub(set1(2.0f), mul(a, r)));
}
inline f32v min(f32v a, f32v b) { return _mm256_min_ps(a, b); }
inline f32v max(f32v a, f32v b) { return _mm256_max_ps(a, b); }
inline f32v abs(f32v a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline f32v sqrt(f32v a) { return _mm256_sqrt_ps(a); }
inline f32v rint(f32v a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline f32v select_negative(f32v sign_of, f32v if_negative, f32v otherwise) {
    return _mm256_blendv_ps(otherwise, if_negative, sign_of);
}
inline f32v pow2(f32v n) {
    const i32v e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}

inline f32v load(const float* p) { return _mm256_loadu_ps(p); }
inline f32v load(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
inline f32v load(const bf16* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline f32v load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
template <class Half>
inline f32v load_half(const Half* p, int n) {  // AVX2 has no 16-bit mask: copy the tail
    Half tail[LANES] = {};
    __builtin_memcpy(tail, p, sizeof(Half) * n);
    return load(tail);
}
inline f32v load(const bf16* p, int n) { return load_half(p, n); }
inline f32v load(const f16* p, int n) { return load_half(p, n); }

inline void store(float* p, f32v v) { _mm256_storeu_ps(p, v); }
inline void store(float* p, f32v v, int n) { _mm256_maskstore_ps(p, first(n), v); }
inline __m128i to_bf16(f32v v) {
    const i32v bits = _mm256_castps_si256(v);
    const i32v odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    i32v r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_srli_epi32(_mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc00000), nan), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0xd8);
    return _mm256_castsi256_si128(packed);
}
inline __m128i to_f16(f32v v) { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline void store(bf16* p, f32v v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(v)); }
inline void store(f16* p, f32v v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_f16(v)); }
template <class Half>
inline void store_half(Half* p, f32v v, int n) {
    Half tail[LANES];
    store(tail, v);
    __builtin_memcpy(p, tail, sizeof(Half) * n);
}
inline void store(bf16* p, f32v v, int n) { store_half(p, v, n); }
inline void store(f16* p, f32v v, int n) { store_half(p, v, n); }

// ---- int32 -------------------------------------------------------------------------------------------------------
inline i32v seti(int32_t x) { return _mm256_set1_epi32(x); }
inline i32v load(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline i32v load(const int32_t* p, int n) { return _mm256_maskload_epi32(p, first(n)); }
inline void store(int32_t* p, i32v v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store(int32_t* p, i32v v, int n) { _mm256_maskstore_epi32(p, first(n), v); }
inline i32v addi(i32v a, i32v b) { return _mm256_add_epi32(a, b); }
inline i32v subi(i32v a, i32v b) { return _mm256_sub_epi32(a, b); }
inline i32v muli(i32v a, i32v b) { return _mm256_mullo_epi32(a, b); }
inline i32v maxu(i32v a, i32v b) { return _mm256_max_epu32(a, b); }
inline i32v abs_bits(f32v a) { return _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(0x7fffffff)); }
inline uint32_t reduce_maxu(i32v a) {
    alignas(32) uint32_t v[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(v), a);
    uint32_t m = v[0];
    for (int i = 1; i < 8; ++i) m = v[i] > m ? v[i] : m;
    return m;
}
inline int32_t reduce_add(i32v a) {
    alignas(32) int32_t v[8];
    _mm256_store_si256(reinterpret_cast<__m256i*>(v), a);
    int32_t s = 0;
    for (int i = 0; i < 8; ++i) s += v[i];
    return s;
}
inline f32v to_float(i32v a) { return _mm256_cvtepi32_ps(a); }
// high * factor + low, exact in double, rounded once to float32
inline f32v to_float_pair(i32v high, i32v low, float factor) {
    const __m256d f = _mm256_set1_pd(factor);
    auto half = [&](__m128i h, __m128i l) {
        return _mm256_cvtpd_ps(_mm256_fmadd_pd(_mm256_cvtepi32_pd(h), f, _mm256_cvtepi32_pd(l)));
    };
    return _mm256_set_m128(half(_mm256_extracti128_si256(high, 1), _mm256_extracti128_si256(low, 1)),
                           half(_mm256_castsi256_si128(high), _mm256_castsi256_si128(low)));
}
inline f32v lookup256(const float* table, const uint8_t* codes) {  // table[codes[lane]]
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes));
    return _mm256_i32gather_ps(table, _mm256_cvtepu8_epi32(bytes), 4);
}
inline i32v to_int(f32v a) { return _mm256_cvtps_epi32(a); }
inline __m128i low_bytes(i32v v) {  // the low byte of each lane, in the first 8 bytes
    const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i b = _mm256_shuffle_epi8(v, pick);
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(b), _mm256_extracti128_si256(b, 1));
}
inline void store_bytes(uint8_t* p, i32v v) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), low_bytes(v)); }
inline void store_bytes(uint8_t* p, i32v v, int n) {
    uint8_t tail[8];
    store_bytes(tail, v);
    __builtin_memcpy(p, tail, n);
}
inline void store_codes4(uint8_t* p, i32v a, i32v b, i32v c, i32v d, int16_t zero, bool is_signed, int16_t lo,
                         int16_t hi, uint8_t flip) {
    const __m256i z = _mm256_set1_epi16(zero);
    const __m256i ab = _mm256_adds_epi16(_mm256_packs_epi32(a, b), z);
    const __m256i cd = _mm256_adds_epi16(_mm256_packs_epi32(c, d), z);
    __m256i codes = is_signed ? _mm256_packs_epi16(ab, cd) : _mm256_packus_epi16(ab, cd);
    const __m256i least = _mm256_set1_epi8(static_cast<char>(lo)), most = _mm256_set1_epi8(static_cast<char>(hi));
    codes = is_signed ? _mm256_min_epi8(_mm256_max_epi8(codes, least), most)
                      : _mm256_min_epu8(_mm256_max_epu8(codes, least), most);
    codes = _mm256_xor_si256(codes, _mm256_set1_epi8(static_cast<char>(flip)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permutevar8x32_epi32(codes, order));
}

// ---- 64-bit halves; AVX2 has no 64-bit arithmetic shift, so shift the value offset by 2^63 -------------------------
inline i64v set64(int64_t x) { return _mm256_set1_epi64x(x); }
inline i64v add64(i64v a, i64v b) { return _mm256_add_epi64(a, b); }
inline i64v sub64(i64v a, i64v b) { return _mm256_sub_epi64(a, b); }
inline i64v and64(i64v a, i64v b) { return _mm256_and_si256(a, b); }
inline i64v sra64(i64v a, i64v n) {
    const __m256i top = _mm256_set1_epi64x(INT64_MIN);
    return _mm256_sub_epi64(_mm256_srlv_epi64(_mm256_xor_si256(a, top), n), _mm256_srlv_epi64(top, n));
}
inline i64v even(i32v a) { return sra64(_mm256_slli_epi64(a, 32), set64(32)); }
inline i64v odd(i32v a) { return sra64(a, set64(32)); }
inline i32v merge(i64v even_lanes, i64v odd_lanes) {
    return _mm256_blend_epi32(even_lanes, _mm256_slli_epi64(odd_lanes, 32), 0xaa);
}
inline i64v mul32(i64v a, i64v b) { return _mm256_mul_epi32(a, b); }
inline i64v min64(i64v a, i64v b) { return _mm256_blendv_epi8(a, b, _mm256_cmpgt_epi64(a, b)); }
inline i64v max64(i64v a, i64v b) { return _mm256_blendv_epi8(b, a, _mm256_cmpgt_epi64(a, b)); }
inline i64v sll64(i64v a, i64v n) { return _mm256_sllv_epi64(a, n); }
inline i64v negative_mask(i64v a) { return _mm256_cmpgt_epi64(_mm256_setzero_si256(), a); }
inline i64v greater_one(i64v a, i64v b) { return _mm256_and_si256(_mm256_cmpgt_epi64(a, b), _mm256_set1_epi64x(1)); }

// ---- int32 halves of products: what fixed-point rounding needs where shifts allow it
// ----------------------------------
inline i32v srav(i32v a, i32v n) { return _mm256_srav_epi32(a, n); }
inline bool all_at_least(i32v a, int32_t n) {
    return _mm256_testz_si256(_mm256_cmpgt_epi32(seti(n), a), seti(-1)) != 0;
}
inline i32v high_halves(i64v even_lanes, i64v odd_lanes) {
    return _mm256_blend_epi32(_mm256_srli_epi64(even_lanes, 32), odd_lanes, 0xaa);
}
// acc * m >> 32
inline i32v high_product(i32v acc, i32v m) {
    return high_halves(_mm256_mul_epi32(acc, m),
                       _mm256_mul_epi32(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(m, 32)));
}
// acc * m + 2^30 >> 31
inline i32v high_doubled(i32v acc, i32v m) {
    const i64v e = _mm256_mul_epi32(acc, m), half = set64(int64_t{1} << 31);
    const i64v o = _mm256_mul_epi32(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(m, 32));
    return high_halves(add64(add64(e, e), half), add64(add64(o, o), half));
}
inline i32v pow2i(i32v n) { return _mm256_sllv_epi32(seti(1), n); }
// x / 2^n, ties away from zero
inline i32v rounding_shift(i32v x, i32v n) {
    const i32v mask = _mm256_sub_epi32(pow2i(n), seti(1));
    const i32v threshold = _mm256_sub_epi32(_mm256_srli_epi32(mask, 1), _mm256_srai_epi32(x, 31));
    return _mm256_sub_epi32(srav(x, n), _mm256_cmpgt_epi32(_mm256_and_si256(x, mask), threshold));
}

// ---- bytes -------------------------------------------------------------------------------------------------------
inline constexpr int BYTES = 32;
inline __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline void store_raw(uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline __m256i set_bytes(uint8_t x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline __m256i xor_bytes(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
inline i32v sum_bytes(i32v acc, __m256i v) {  // 255 + 255 cannot saturate vpmaddubsw against ones
    const __m256i pairs = _mm256_maddubs_epi16(v, _mm256_set1_epi8(1));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// ---- words of bits, for the binary core --------------------------------------------------------------------------
inline constexpr int WORDS = 4;
using wordv = __m256i;
inline wordv zero_words() { return _mm256_setzero_si256(); }
inline wordv load_words(const uint64_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline wordv broadcast_word(const uint64_t* p) { return _mm256_set1_epi64x(static_cast<int64_t>(*p)); }
inline wordv add_words(wordv a, wordv b) { return _mm256_add_epi64(a, b); }
inline wordv sub_words(wordv a, wordv b) { return _mm256_sub_epi64(a, b); }
inline wordv and_words(wordv a, wordv b) { return _mm256_and_si256(a, b); }
inline wordv and_not(wordv a, wordv b) { return _mm256_andnot_si256(b, a); }
inline wordv xor3(wordv a, wordv b, wordv c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
inline wordv xor_and(wordv a, wordv b, wordv mask) { return _mm256_and_si256(_mm256_xor_si256(a, b), mask); }
inline wordv carry(wordv o0, wordv o1, wordv o2) {  // o1 ? ~o2 : o0
    return _mm256_or_si256(_mm256_andnot_si256(o1, o0), _mm256_andnot_si256(o2, o1));
}
inline wordv count_bits(wordv v) {  // of each nibble by a table, then the sum of eight bytes
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                           0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    const __m256i a = _mm256_shuffle_epi8(table, _mm256_and_si256(v, low));
    const __m256i b = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low));
    return _mm256_sad_epu8(_mm256_add_epi8(a, b), _mm256_setzero_si256());
}
template <int FACTOR>
inline i32v merged_counts(wordv even, wordv odd) {  // the low halves, in order, times FACTOR
    const i32v m = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
    return FACTOR == 2 ? _mm256_add_epi32(m, m) : m;
}
template <int FACTOR>
inline void store_counts(int32_t* p, wordv even, wordv odd, int32_t start) {
    store(p, subi(seti(start), merged_counts<FACTOR>(even, odd)));
}
template <int FACTOR>
inline void store_counts(int32_t* p, wordv even, wordv odd, const int32_t* start) {
    store(p, subi(load(start), merged_counts<FACTOR>(even, odd)));
}
inline uint32_t not_negative(f32v a) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a, _mm256_setzero_ps(), _CMP_GE_OQ)));
}
inline uint32_t not_less(i32v a, i32v b) {
    return 255u ^ static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(b, a))));
}
inline i32v xori(i32v a, i32v b) { return _mm256_xor_si256(a, b); }
inline f32v select_greater(f32v a, f32v b, f32v if_greater, f32v otherwise) {
    return _mm256_blendv_ps(otherwise, if_greater, _mm256_cmp_ps(a, b, _CMP_GT_OQ));
}

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
struct quads_t {
    __m256i low, high;
};
inline quads_t load_quads(const uint8_t* p) {
    const auto* q = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128(q)), _mm256_cvtepu8_epi16(_mm_loadu_si128(q + 1))};
}
inline acc_t dot4(acc_t acc, quads_t x, wvec w) {
    return {_mm256_add_epi32(acc.low, _mm256_madd_epi16(x.low, w.low)),
            _mm256_add_epi32(acc.high, _mm256_madd_epi16(x.high, w.high))};
}
// Unpacking works within 128-bit lanes, so of 32 channels pixels keep group 2 * l + j (of four channels) in lane j,
// place l.
inline void arrange64(const uint8_t* x, int n, uint8_t flip, uint8_t* out) {
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7), f = _mm256_set1_epi8(static_cast<char>(flip));
    uint8_t tail[64];
    if (n < 64) {
        __builtin_memset(tail, 0, sizeof tail);
        __builtin_memcpy(tail, x, n);
        x = tail;
    }
    for (int i = 0; i < 64; i += 32) {
        const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                            _mm256_permutevar8x32_epi32(_mm256_xor_si256(v, f), order));
    }
}
inline void interleave64(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* out) {
    auto load = [](const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); };
    for (int i = 0; i < 64; i += 32) {
        const __m256i va = load(a + i), vb = load(b + i), vc = load(c + i), vd = load(d + i);
        const __m256i ab0 = _mm256_unpacklo_epi8(va, vb), ab1 = _mm256_unpackhi_epi8(va, vb);
        const __m256i cd0 = _mm256_unpacklo_epi8(vc, vd), cd1 = _mm256_unpackhi_epi8(vc, vd);
        auto* to = reinterpret_cast<__m256i*>(out + i * 4);
        _mm256_storeu_si256(to, _mm256_unpacklo_epi16(ab0, cd0));
        _mm256_storeu_si256(to + 1, _mm256_unpackhi_epi16(ab0, cd0));
        _mm256_storeu_si256(to + 2, _mm256_unpacklo_epi16(ab1, cd1));
        _mm256_storeu_si256(to + 3, _mm256_unpackhi_epi16(ab1, cd1));
    }
}

}  // namespace simd
}  // namespace
