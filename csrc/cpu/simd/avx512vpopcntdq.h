// AVX-512 VPOPCNTDQ: what the binary core needs beside the primitives of avx512vnni.h. Internal linkage.
#pragma once

#include "avx512vnni.h"

namespace {
namespace simd {

inline constexpr int WORDS = 8;
using wordv = __m512i;
inline wordv zero_words() { return _mm512_setzero_si512(); }
inline wordv load_words(const uint64_t* p) { return _mm512_loadu_si512(p); }
inline wordv broadcast_word(const uint64_t* p) { return _mm512_set1_epi64(static_cast<int64_t>(*p)); }
inline wordv add_words(wordv a, wordv b) { return _mm512_add_epi64(a, b); }
inline wordv sub_words(wordv a, wordv b) { return _mm512_sub_epi64(a, b); }
inline wordv and_words(wordv a, wordv b) { return _mm512_and_si512(a, b); }
inline wordv and_not(wordv a, wordv b) { return _mm512_andnot_si512(b, a); }
inline wordv xor3(wordv a, wordv b, wordv c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
inline wordv xor_and(wordv a, wordv b, wordv mask) { return _mm512_ternarylogic_epi64(a, b, mask, 0x28); }
inline wordv carry(wordv o0, wordv o1, wordv o2) {  // o1 ? ~o2 : o0
    return _mm512_ternarylogic_epi64(o0, o1, o2, 0x74);
}
inline wordv count_bits(wordv v) { return _mm512_popcnt_epi64(v); }
template <int FACTOR>
inline i32v merged_counts(wordv even, wordv odd) {  // the low halves, in order, times FACTOR
    const i32v m = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
    return FACTOR == 2 ? _mm512_add_epi32(m, m) : m;
}
template <int FACTOR>
inline void store_counts(int32_t* p, wordv even, wordv odd, int32_t start) {
    store(p, subi(seti(start), merged_counts<FACTOR>(even, odd)));
}
template <int FACTOR>
inline void store_counts(int32_t* p, wordv even, wordv odd, const int32_t* start) {
    store(p, subi(load(start), merged_counts<FACTOR>(even, odd)));
}
inline uint32_t not_negative(f32v a) { return _mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_GE_OQ); }
inline uint32_t not_less(i32v a, i32v b) { return _mm512_cmpge_epi32_mask(a, b); }
inline f32v select_greater(f32v a, f32v b, f32v if_greater, f32v otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), otherwise, if_greater);
}

}  // namespace simd
}  // namespace
