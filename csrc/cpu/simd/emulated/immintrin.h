// AVX-512 for machines without it: the intrinsics that our kernels use, in AVX2 and plain loops, so that those kernels
// can be run and tested anywhere (QKERNELS_EMULATE_AVX512 in CMakeLists.txt). It takes the place of the compiler's
// header, whose AVX-512 functions do not compile without their flags. Each function is Intel's documented operation
// and nothing more; the names are Intel's. Slow, needs -O1 or more.
#pragma once

// The compiler's header would define the same names: take its parts up to AVX2 only.
#define _IMMINTRIN_H_INCLUDED
#include <smmintrin.h>
//
#include <avxintrin.h>
//
#include <avx2intrin.h>
#include <f16cintrin.h>
#include <fmaintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#define QK_EMULATED static inline
#define QK_IMMEDIATE static inline __attribute__((always_inline))  // what passes constants on to instructions

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef double __m512d __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef short __m512bh __attribute__((vector_size(64), may_alias));
typedef uint8_t __mmask8;
typedef uint16_t __mmask16;
typedef uint32_t __mmask32;
typedef uint64_t __mmask64;

namespace emulated {

template <class T, int BYTES = 64>
struct LanesOf {
    typedef T type __attribute__((vector_size(BYTES)));
};
template <class T, int BYTES = 64>
using lanes = typename LanesOf<T, BYTES>::type;

// Register of f(0), f(1) ...
template <class T, class F>
QK_IMMEDIATE __m512i each(F f) {
    lanes<T> r;
    for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i) r[i] = static_cast<T>(f(i));
    return (__m512i)r;
}
// Mask of f(0), f(1) ...
template <class MASK, class F>
QK_IMMEDIATE MASK which(F f) {
    MASK m = 0;
    for (int i = 0; i < static_cast<int>(8 * sizeof(MASK)); ++i) m |= static_cast<MASK>(static_cast<MASK>(f(i)) << i);
    return m;
}
template <class MASK>
QK_IMMEDIATE bool bit(MASK m, int i) {
    return m >> i & 1;
}
template <class MASK, class T>
QK_EMULATED __m512i blend(MASK m, __m512i a, __m512i b) {  // b where the mask has ones
    const auto x = (lanes<T>)a, y = (lanes<T>)b;
    return each<T>([&](int i) { return bit(m, i) ? y[i] : x[i]; });
}
template <class T, class MASK>
QK_EMULATED __m512i load_where(MASK m, const void* p) {  // 0, and nothing read, where the mask has zeros
    const T* from = static_cast<const T*>(p);
    return each<T>([&](int i) { return bit(m, i) ? from[i] : T(0); });
}
template <class T, class MASK>
QK_EMULATED void store_where(void* p, MASK m, __m512i v) {
    const auto x = (lanes<T>)v;
    for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i)
        if (bit(m, i))
            std::memcpy(static_cast<char*>(p) + i * sizeof(T), reinterpret_cast<const char*>(&x) + i * sizeof(T),
                        sizeof(T));
}
template <class HALF, class V>
QK_IMMEDIATE HALF half(const V& v, int i) {
    HALF h;
    std::memcpy(&h, reinterpret_cast<const char*>(&v) + i * sizeof h, sizeof h);
    return h;
}
template <class V, class HALF>
QK_IMMEDIATE V join(HALF low, HALF high) {
    V v;
    std::memcpy(&v, &low, sizeof low);
    std::memcpy(reinterpret_cast<char*>(&v) + sizeof low, &high, sizeof high);
    return v;
}

}  // namespace emulated

// Operations within 128 bits or less are AVX2's on each half.
#define QK_HALVES_I(name)                                                                        \
    QK_EMULATED __m512i _mm512_##name(__m512i a, __m512i b) {                                    \
        using emulated::half;                                                                    \
        return emulated::join<__m512i>(_mm256_##name(half<__m256i>(a, 0), half<__m256i>(b, 0)),  \
                                       _mm256_##name(half<__m256i>(a, 1), half<__m256i>(b, 1))); \
    }
#define QK_HALVES_SHIFT(name)                                                                                         \
    QK_IMMEDIATE __m512i _mm512_##name(__m512i a, int n) {                                                            \
        using emulated::half;                                                                                         \
        return emulated::join<__m512i>(_mm256_##name(half<__m256i>(a, 0), n), _mm256_##name(half<__m256i>(a, 1), n)); \
    }
#define QK_HALVES_PS(name)                                                                    \
    QK_EMULATED __m512 _mm512_##name(__m512 a, __m512 b) {                                    \
        using emulated::half;                                                                 \
        return emulated::join<__m512>(_mm256_##name(half<__m256>(a, 0), half<__m256>(b, 0)),  \
                                      _mm256_##name(half<__m256>(a, 1), half<__m256>(b, 1))); \
    }
QK_HALVES_I(add_epi16)
QK_HALVES_I(add_epi32)
QK_HALVES_I(add_epi64)
QK_HALVES_I(adds_epi16)
QK_HALVES_I(sub_epi8)
QK_HALVES_I(sub_epi32)
QK_HALVES_I(sub_epi64)
QK_HALVES_I(subs_epi8)
QK_HALVES_I(mul_epi32)
QK_HALVES_I(mullo_epi32)
QK_HALVES_I(max_epi8)
QK_HALVES_I(max_epu8)
QK_HALVES_I(max_epu32)
QK_HALVES_I(min_epi8)
QK_HALVES_I(min_epu8)
QK_HALVES_I(packs_epi16)
QK_HALVES_I(packs_epi32)
QK_HALVES_I(packus_epi16)
QK_HALVES_I(shuffle_epi8)
QK_HALVES_I(unpacklo_epi8)
QK_HALVES_I(unpackhi_epi8)
QK_HALVES_I(unpacklo_epi16)
QK_HALVES_I(unpackhi_epi16)
QK_HALVES_I(sllv_epi32)
QK_HALVES_I(sllv_epi64)
QK_HALVES_I(srlv_epi32)
QK_HALVES_I(srav_epi32)
QK_HALVES_SHIFT(slli_epi16)
QK_HALVES_SHIFT(slli_epi32)
QK_HALVES_SHIFT(slli_epi64)
QK_HALVES_SHIFT(srli_epi16)
QK_HALVES_SHIFT(srli_epi32)
QK_HALVES_SHIFT(srli_epi64)
QK_HALVES_SHIFT(srai_epi32)
QK_HALVES_PS(add_ps)
QK_HALVES_PS(sub_ps)
QK_HALVES_PS(mul_ps)
QK_HALVES_PS(min_ps)
QK_HALVES_PS(max_ps)
#undef QK_HALVES_I
#undef QK_HALVES_SHIFT
#undef QK_HALVES_PS

// ---- constants, casts, memory -----------------------------------------------------------------------------------
QK_EMULATED __m512i _mm512_setzero_si512() { return __m512i{}; }
QK_EMULATED __m512 _mm512_setzero_ps() { return __m512{}; }
QK_EMULATED __m512i _mm512_set1_epi8(char x) {
    return emulated::each<char>([&](int) { return x; });
}
QK_EMULATED __m512i _mm512_set1_epi16(short x) {
    return emulated::each<short>([&](int) { return x; });
}
QK_EMULATED __m512i _mm512_set1_epi32(int x) {
    return emulated::each<int>([&](int) { return x; });
}
QK_EMULATED __m512i _mm512_set1_epi64(long long x) { return __m512i{x, x, x, x, x, x, x, x}; }
QK_EMULATED __m512 _mm512_set1_ps(float x) { return x - __m512{}; }
QK_EMULATED __m512d _mm512_set1_pd(double x) { return x - __m512d{}; }
QK_EMULATED __m512i _mm512_setr_epi32(int a, int b, int c, int d, int e, int f, int g, int h, int i, int j, int k,
                                      int l, int m, int n, int o, int p) {
    return (__m512i)emulated::lanes<int>{a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
}
QK_EMULATED __m512i _mm512_setr_epi64(long long a, long long b, long long c, long long d, long long e, long long f,
                                      long long g, long long h) {
    return __m512i{a, b, c, d, e, f, g, h};
}
QK_EMULATED __m512i _mm512_set_epi64(long long h, long long g, long long f, long long e, long long d, long long c,
                                     long long b, long long a) {
    return __m512i{a, b, c, d, e, f, g, h};
}
QK_EMULATED __m512i _mm512_castps_si512(__m512 a) { return (__m512i)a; }
QK_EMULATED __m512 _mm512_castsi512_ps(__m512i a) { return (__m512)a; }
QK_EMULATED __m256i _mm512_castsi512_si256(__m512i a) { return emulated::half<__m256i>(a, 0); }
QK_EMULATED __m512 _mm512_castps256_ps512(__m256 a) { return emulated::join<__m512>(a, a); }  // high half undefined
QK_EMULATED __m256i _mm512_extracti64x4_epi64(__m512i a, int i) { return emulated::half<__m256i>(a, i); }
QK_EMULATED __m512i _mm512_inserti64x4(__m512i a, __m256i b, int i) {
    return i ? emulated::join<__m512i>(emulated::half<__m256i>(a, 0), b)
             : emulated::join<__m512i>(b, emulated::half<__m256i>(a, 1));
}
QK_EMULATED __m512 _mm512_insertf32x8(__m512 a, __m256 b, int i) {
    return (__m512)_mm512_inserti64x4((__m512i)a, (__m256i)b, i);
}
QK_EMULATED __m512i _mm512_broadcast_i64x4(__m256i a) { return emulated::join<__m512i>(a, a); }
QK_EMULATED __m512i _mm512_broadcast_i32x4(__m128i a) { return _mm512_broadcast_i64x4(emulated::join<__m256i>(a, a)); }
QK_EMULATED __mmask64 _cvtu64_mask64(unsigned long long m) { return m; }

QK_EMULATED __m512i _mm512_loadu_si512(const void* p) {
    __m512i v;
    std::memcpy(&v, p, 64);
    return v;
}
QK_EMULATED __m512 _mm512_loadu_ps(const void* p) { return (__m512)_mm512_loadu_si512(p); }
QK_EMULATED void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, 64); }
QK_EMULATED void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, 64); }
QK_EMULATED __m512i _mm512_maskz_loadu_epi8(__mmask64 m, const void* p) { return emulated::load_where<uint8_t>(m, p); }
QK_EMULATED __m512i _mm512_maskz_loadu_epi32(__mmask16 m, const void* p) { return emulated::load_where<int>(m, p); }
QK_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 m, const void* p) {
    return (__m512)emulated::load_where<float>(m, p);
}
QK_EMULATED void _mm512_mask_storeu_epi8(void* p, __mmask64 m, __m512i v) { emulated::store_where<uint8_t>(p, m, v); }
QK_EMULATED void _mm512_mask_storeu_epi32(void* p, __mmask16 m, __m512i v) { emulated::store_where<int>(p, m, v); }
QK_EMULATED void _mm512_mask_storeu_ps(void* p, __mmask16 m, __m512 v) { emulated::store_where<int>(p, m, (__m512i)v); }
QK_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 m, const void* p) {
    return emulated::half<__m256i>(emulated::load_where<short>(__mmask32{m}, p), 0);
}
QK_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 m, __m256i v) {
    emulated::store_where<short>(p, __mmask32{m}, _mm512_broadcast_i64x4(v));
}
QK_EMULATED __m512 _mm512_i32gather_ps(__m512i index, const void* p, int scale) {
    const auto at = (emulated::lanes<int>)index;
    return (__m512)emulated::each<float>([&](int i) {
        float v;
        std::memcpy(&v, static_cast<const char*>(p) + int64_t{at[i]} * scale, 4);
        return v;
    });
}
QK_EMULATED __m512i _mm512_i32gather_epi32(__m512i index, const void* p, int scale) {
    return (__m512i)_mm512_i32gather_ps(index, p, scale);
}

// ---- bits, masks and comparisons ----------------------------------------------------------------------------------
QK_EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
QK_EMULATED __m512i _mm512_andnot_si512(__m512i a, __m512i b) { return ~a & b; }
QK_EMULATED __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
QK_EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
QK_IMMEDIATE __m512i _mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, int table) {
    __m512i r{};
    for (int i = 0; i < 8; ++i)
        if (table >> i & 1) r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}
QK_IMMEDIATE __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    return _mm512_ternarylogic_epi64(a, b, c, table);
}
QK_EMULATED __m512i _mm512_popcnt_epi64(__m512i a) {
    return emulated::each<int64_t>([&](int i) { return __builtin_popcountll(a[i]); });
}
QK_EMULATED __m512i _mm512_sllv_epi16(__m512i a, __m512i n) {
    const auto x = (emulated::lanes<uint16_t>)a, by = (emulated::lanes<uint16_t>)n;
    return emulated::each<uint16_t>([&](int i) { return by[i] < 16 ? x[i] << by[i] : 0; });
}
QK_EMULATED __m512i _mm512_srlv_epi16(__m512i a, __m512i n) {
    const auto x = (emulated::lanes<uint16_t>)a, by = (emulated::lanes<uint16_t>)n;
    return emulated::each<uint16_t>([&](int i) { return by[i] < 16 ? x[i] >> by[i] : 0; });
}
QK_EMULATED __m512i _mm512_srav_epi64(__m512i a, __m512i n) {
    return emulated::each<int64_t>([&](int i) { return a[i] >> (static_cast<uint64_t>(n[i]) < 64 ? n[i] : 63); });
}
QK_EMULATED __m512i _mm512_srai_epi64(__m512i a, int n) { return _mm512_srav_epi64(a, _mm512_set1_epi64(n)); }
QK_EMULATED __m512i _mm512_max_epi64(__m512i a, __m512i b) {
    return emulated::each<int64_t>([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
QK_EMULATED __m512i _mm512_min_epi64(__m512i a, __m512i b) {
    return emulated::each<int64_t>([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
QK_EMULATED __mmask64 _mm512_movepi8_mask(__m512i a) {
    const auto x = (emulated::lanes<int8_t>)a;
    return emulated::which<__mmask64>([&](int i) { return x[i] < 0; });
}
QK_EMULATED __mmask32 _mm512_movepi16_mask(__m512i a) {
    const auto x = (emulated::lanes<short>)a;
    return emulated::which<__mmask32>([&](int i) { return x[i] < 0; });
}
QK_EMULATED __mmask16 _mm512_movepi32_mask(__m512i a) {
    const auto x = (emulated::lanes<int>)a;
    return emulated::which<__mmask16>([&](int i) { return x[i] < 0; });
}
QK_EMULATED __mmask16 _mm512_cmpgt_epi32_mask(__m512i a, __m512i b) {
    const auto x = (emulated::lanes<int>)a, y = (emulated::lanes<int>)b;
    return emulated::which<__mmask16>([&](int i) { return x[i] > y[i]; });
}
QK_EMULATED __mmask16 _mm512_cmplt_epi32_mask(__m512i a, __m512i b) { return _mm512_cmpgt_epi32_mask(b, a); }
QK_EMULATED __mmask16 _mm512_cmpge_epi32_mask(__m512i a, __m512i b) {
    return static_cast<__mmask16>(~_mm512_cmpgt_epi32_mask(b, a));
}
QK_EMULATED __mmask8 _mm512_cmpgt_epi64_mask(__m512i a, __m512i b) {
    return emulated::which<__mmask8>([&](int i) { return a[i] > b[i]; });
}
QK_IMMEDIATE __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
    using emulated::half;
    const int low = _mm256_movemask_ps(_mm256_cmp_ps(half<__m256>(a, 0), half<__m256>(b, 0), predicate));
    const int high = _mm256_movemask_ps(_mm256_cmp_ps(half<__m256>(a, 1), half<__m256>(b, 1), predicate));
    return static_cast<__mmask16>(low | high << 8);
}
QK_EMULATED __m512i _mm512_mask_blend_epi8(__mmask64 m, __m512i a, __m512i b) {
    return emulated::blend<__mmask64, uint8_t>(m, a, b);
}
QK_EMULATED __m512i _mm512_mask_blend_epi16(__mmask32 m, __m512i a, __m512i b) {
    return emulated::blend<__mmask32, short>(m, a, b);
}
QK_EMULATED __m512i _mm512_mask_blend_epi32(__mmask16 m, __m512i a, __m512i b) {
    return emulated::blend<__mmask16, int>(m, a, b);
}
QK_EMULATED __m512 _mm512_mask_blend_ps(__mmask16 m, __m512 a, __m512 b) {
    return (__m512)_mm512_mask_blend_epi32(m, (__m512i)a, (__m512i)b);
}
QK_EMULATED __m512i _mm512_mask_mov_epi32(__m512i from, __mmask16 m, __m512i a) {
    return _mm512_mask_blend_epi32(m, from, a);
}
QK_EMULATED __m512i _mm512_maskz_mov_epi8(__mmask64 m, __m512i a) { return _mm512_mask_blend_epi8(m, __m512i{}, a); }
QK_EMULATED __m512i _mm512_maskz_mov_epi64(__mmask8 m, __m512i a) {
    return emulated::blend<__mmask8, int64_t>(m, __m512i{}, a);
}
QK_EMULATED __m512i _mm512_mask_add_epi32(__m512i from, __mmask16 m, __m512i a, __m512i b) {
    return _mm512_mask_blend_epi32(m, from, _mm512_add_epi32(a, b));
}

// ---- permutes: an index counts modulo what it can name -----------------------------------------------------------
QK_EMULATED __m512i _mm512_permutexvar_epi32(__m512i index, __m512i a) {
    return (__m512i)__builtin_shuffle((emulated::lanes<int>)a, (emulated::lanes<int>)index);
}
QK_EMULATED __m512i _mm512_permutexvar_epi16(__m512i index, __m512i a) {
    return (__m512i)__builtin_shuffle((emulated::lanes<short>)a, (emulated::lanes<short>)index);
}
QK_EMULATED __m512 _mm512_permutexvar_ps(__m512i index, __m512 a) {
    return (__m512)_mm512_permutexvar_epi32(index, (__m512i)a);
}
QK_EMULATED __m512i _mm512_permutex2var_epi8(__m512i a, __m512i index, __m512i b) {
    using v = emulated::lanes<int8_t>;
    return (__m512i)__builtin_shuffle((v)a, (v)b, (v)index);
}
QK_EMULATED __m512i _mm512_permutex2var_epi16(__m512i a, __m512i index, __m512i b) {
    using v = emulated::lanes<short>;
    return (__m512i)__builtin_shuffle((v)a, (v)b, (v)index);
}
QK_EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
    using v = emulated::lanes<int>;
    return (__m512)__builtin_shuffle((v)a, (v)b, (v)index);
}
QK_EMULATED __m512 _mm512_mask_movehdup_ps(__m512 from, __mmask16 m, __m512 a) {
    return (__m512)emulated::each<float>([&](int i) { return emulated::bit(m, i) ? a[i | 1] : from[i]; });
}

// ---- conversions ---------------------------------------------------------------------------------------------------
QK_EMULATED __m512i _mm512_cvtepu8_epi16(__m256i a) {
    return (__m512i) __builtin_convertvector((emulated::lanes<uint8_t, 32>)a, emulated::lanes<short>);
}
QK_EMULATED __m512i _mm512_cvtepu8_epi32(__m128i a) {
    return (__m512i) __builtin_convertvector((emulated::lanes<uint8_t, 16>)a, emulated::lanes<int>);
}
QK_EMULATED __m512i _mm512_cvtepi8_epi32(__m128i a) {
    return (__m512i) __builtin_convertvector((emulated::lanes<int8_t, 16>)a, emulated::lanes<int>);
}
QK_EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return (__m512i) __builtin_convertvector((emulated::lanes<uint16_t, 32>)a, emulated::lanes<int>);
}
QK_EMULATED __m128i _mm512_cvtepi32_epi8(__m512i a) {  // the low bytes
    return (__m128i) __builtin_convertvector((emulated::lanes<int>)a, emulated::lanes<int8_t, 16>);
}
QK_EMULATED __m256i _mm512_cvtepi32_epi16(__m512i a) {
    return (__m256i) __builtin_convertvector((emulated::lanes<int>)a, emulated::lanes<short, 32>);
}
QK_EMULATED void _mm512_mask_cvtepi32_storeu_epi8(void* p, __mmask16 m, __m512i a) {
    _mm512_mask_storeu_epi8(p, m, _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(a)));
}
QK_EMULATED __m512 _mm512_cvtepi32_ps(__m512i a) {
    using emulated::half;
    return emulated::join<__m512>(_mm256_cvtepi32_ps(half<__m256i>(a, 0)), _mm256_cvtepi32_ps(half<__m256i>(a, 1)));
}
QK_EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
    using emulated::half;
    return emulated::join<__m512i>(_mm256_cvtps_epi32(half<__m256>(a, 0)), _mm256_cvtps_epi32(half<__m256>(a, 1)));
}
QK_EMULATED __m512d _mm512_cvtepi32_pd(__m256i a) {
    using emulated::half;
    return emulated::join<__m512d>(_mm256_cvtepi32_pd(half<__m128i>(a, 0)), _mm256_cvtepi32_pd(half<__m128i>(a, 1)));
}
QK_EMULATED __m256 _mm512_cvtpd_ps(__m512d a) {
    using emulated::half;
    return emulated::join<__m256>(_mm256_cvtpd_ps(half<__m256d>(a, 0)), _mm256_cvtpd_ps(half<__m256d>(a, 1)));
}
QK_EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
    using emulated::half;
    return emulated::join<__m512>(_mm256_cvtph_ps(half<__m128i>(a, 0)), _mm256_cvtph_ps(half<__m128i>(a, 1)));
}
QK_IMMEDIATE __m256i _mm512_cvtps_ph(__m512 a, int rounding) {
    using emulated::half;
    return emulated::join<__m256i>(_mm256_cvtps_ph(half<__m256>(a, 0), rounding),
                                   _mm256_cvtps_ph(half<__m256>(a, 1), rounding));
}
QK_IMMEDIATE __m512 _mm512_roundscale_ps(__m512 a, int rounding) {  // to integers: the scale in the high bits is 0
    using emulated::half;
    return emulated::join<__m512>(_mm256_round_ps(half<__m256>(a, 0), rounding),
                                  _mm256_round_ps(half<__m256>(a, 1), rounding));
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------
QK_EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    using emulated::half;
    return emulated::join<__m512>(_mm256_fmadd_ps(half<__m256>(a, 0), half<__m256>(b, 0), half<__m256>(c, 0)),
                                  _mm256_fmadd_ps(half<__m256>(a, 1), half<__m256>(b, 1), half<__m256>(c, 1)));
}
QK_EMULATED __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) {
    using emulated::half;
    return emulated::join<__m512d>(_mm256_fmadd_pd(half<__m256d>(a, 0), half<__m256d>(b, 0), half<__m256d>(c, 0)),
                                   _mm256_fmadd_pd(half<__m256d>(a, 1), half<__m256d>(b, 1), half<__m256d>(c, 1)));
}
QK_EMULATED __m512 _mm512_abs_ps(__m512 a) { return (__m512)((__m512i)a & _mm512_set1_epi32(0x7fffffff)); }
QK_EMULATED __m512 _mm512_sqrt_ps(__m512 a) {
    using emulated::half;
    return emulated::join<__m512>(_mm256_sqrt_ps(half<__m256>(a, 0)), _mm256_sqrt_ps(half<__m256>(a, 1)));
}
QK_EMULATED __m512 _mm512_rcp14_ps(__m512 a) {  // as coarse as the processor's: 14 bits
    return (__m512)((__m512i)(1.0f / a) & _mm512_set1_epi32(-(1 << 9)));
}
QK_EMULATED int _mm512_reduce_add_epi32(__m512i a) {
    const auto x = (emulated::lanes<uint32_t>)a;
    uint32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x[i];
    return static_cast<int>(sum);
}
QK_EMULATED unsigned _mm512_reduce_max_epu32(__m512i a) {
    const auto x = (emulated::lanes<uint32_t>)a;
    uint32_t most = 0;
    for (int i = 0; i < 16; ++i) most = x[i] > most ? x[i] : most;
    return most;
}
QK_EMULATED __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i a, __m512i b) {  // acc + four products of u8 and s8, wraps
    auto sum = (emulated::lanes<uint32_t>)acc;
    for (int j = 0; j < 4; ++j) {
        const auto x = (emulated::lanes<uint32_t>)a >> 8 * j & 255;
        const auto y = (emulated::lanes<int>)((emulated::lanes<uint32_t>)b << (24 - 8 * j)) >> 24;
        sum += x * (emulated::lanes<uint32_t>)y;
    }
    return (__m512i)sum;
}
QK_EMULATED __m512i _mm512_dpwssd_epi32(__m512i acc, __m512i a, __m512i b) {  // acc + two products of s16, wraps
    auto sum = (emulated::lanes<uint32_t>)acc;
    for (int j = 0; j < 2; ++j) {
        const auto x = (emulated::lanes<int>)((emulated::lanes<uint32_t>)a << (16 - 16 * j)) >> 16;
        const auto y = (emulated::lanes<int>)((emulated::lanes<uint32_t>)b << (16 - 16 * j)) >> 16;
        sum += (emulated::lanes<uint32_t>)x * (emulated::lanes<uint32_t>)y;
    }
    return (__m512i)sum;
}

namespace emulated {
// Subnormal numbers become 0 of their sign: what bfloat16 instructions do to operands and results.
QK_EMULATED __m512 flush(__m512 a) {
    const auto x = (lanes<int>)a;
    return (__m512)((x & 0x7f800000) == 0 ? x & static_cast<int>(0x80000000u) : x);
}
}  // namespace emulated
// acc + odd products, then + even products, each fused: SDM volume 2, VDPBF16PS
QK_EMULATED __m512 _mm512_dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
    using emulated::flush;
    const auto x = (emulated::lanes<uint32_t>)a, y = (emulated::lanes<uint32_t>)b;
    const __m512 odd =
        flush(_mm512_fmadd_ps(flush((__m512)(x & 0xffff0000u)), flush((__m512)(y & 0xffff0000u)), flush(acc)));
    return flush(_mm512_fmadd_ps(flush((__m512)(x << 16)), flush((__m512)(y << 16)), odd));
}
// bfloat16 of a above those of b, half to even; SDM volume 2, VCVTNE2PS2BF16
QK_EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {
    return (__m512bh)emulated::each<uint16_t>([&](int i) {
        const float v = i < 16 ? b[i] : a[i - 16];
        uint32_t x;
        std::memcpy(&x, &v, 4);
        if ((x & 0x7f800000) == 0) return x >> 16 & 0x8000;
        if (v != v) return x >> 16 | 0x40;
        return (x + 0x7fff + (x >> 16 & 1)) >> 16;
    });
}
// Tiles: what a thread has loaded. SDM volume 2, LDTILECFG and TDPBF16PS
namespace emulated {
struct Tiles {
    uint8_t palette = 0;
    int rows[8] = {}, row_bytes[8] = {};
    uint8_t data[8][16][64] = {};
};
inline Tiles& tiles() {
    thread_local Tiles t;
    return t;
}
QK_EMULATED float flush(float v) { return v > -1.17549435e-38f && v < 1.17549435e-38f ? std::copysign(0.0f, v) : v; }
QK_EMULATED float pair_half(const uint8_t* pair, int i) {
    uint16_t half;
    std::memcpy(&half, pair + 2 * i, 2);
    const uint32_t bits = uint32_t{half} << 16;
    float v;
    std::memcpy(&v, &bits, 4);
    return flush(v);
}
}  // namespace emulated
QK_EMULATED void _tile_loadconfig(const void* config) {
    emulated::Tiles& t = emulated::tiles() = {};
    const auto* c = static_cast<const uint8_t*>(config);
    t.palette = c[0];
    for (int i = 0; i < 8; ++i) {
        uint16_t bytes;
        std::memcpy(&bytes, c + 16 + 2 * i, 2);
        t.row_bytes[i] = bytes;
        t.rows[i] = c[48 + i];
    }
}
QK_EMULATED void _tile_release() { emulated::tiles() = {}; }
QK_EMULATED void _tile_zero(int i) { std::memset(emulated::tiles().data[i], 0, sizeof emulated::tiles().data[i]); }
QK_EMULATED void _tile_loadd(int i, const void* p, int64_t stride) {
    emulated::Tiles& t = emulated::tiles();
    _tile_zero(i);
    for (int r = 0; r < t.rows[i]; ++r)
        std::memcpy(t.data[i][r], static_cast<const char*>(p) + r * stride, t.row_bytes[i]);
}
QK_EMULATED void _tile_stored(int i, void* p, int64_t stride) {
    emulated::Tiles& t = emulated::tiles();
    for (int r = 0; r < t.rows[i]; ++r) std::memcpy(static_cast<char*>(p) + r * stride, t.data[i][r], t.row_bytes[i]);
}
QK_EMULATED void _tile_dpbf16ps(int c, int a, int b) {
    using emulated::flush;
    using emulated::pair_half;
    emulated::Tiles& t = emulated::tiles();
    for (int m = 0; m < t.rows[c]; ++m)
        for (int n = 0; n < t.row_bytes[c] / 4; ++n) {
            float sum, half[2] = {0, 0};
            for (int k = 0; k < t.row_bytes[a] / 4; ++k)
                for (int i = 0; i < 2; ++i)
                    half[i] = flush(
                        std::fma(pair_half(t.data[a][m] + 4 * k, i), pair_half(t.data[b][k] + 4 * n, i), half[i]));
            std::memcpy(&sum, t.data[c][m] + 4 * n, 4);
            sum = flush(flush(sum) + flush(half[0] + half[1]));
            std::memcpy(t.data[c][m] + 4 * n, &sum, 4);
        }
}
#undef QK_EMULATED
#undef QK_IMMEDIATE
