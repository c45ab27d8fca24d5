// One lane, plain C++: the same names as the vector headers. The kernel that everything else is compared with, and
// the one that runs on any machine. Internal linkage.
#pragma once

#include <cmath>
#include <cstring>

#include "../../common/types.h"

namespace {
namespace simd {

using qk::bf16;
using qk::f16;

inline constexpr int LANES = 1;
using f32v = float;
using i32v = int32_t;
struct i64v {
    int64_t v;
};

// ---- int8 products -------------------------------------------------------------------------------------------------
inline constexpr int ACC_N = 1;
inline constexpr int NV = 8;
inline constexpr int MR = 1, MR_PACKED = 1;
using acc_t = int32_t;
struct bvec {  // the bytes of a k step of one channel
    uint8_t v[4];
};
using wvec = bvec;
using xvec = bvec;

inline bvec zero_bytes() { return {}; }
inline bvec load_b(const uint8_t* p) { return {p[0], p[1], p[2], p[3]}; }
inline void store_b(int8_t* p, bvec b) { std::memcpy(p, b.v, 4); }
template <class F>
inline bvec each_byte(F f) {
    return {static_cast<uint8_t>(f(0)), static_cast<uint8_t>(f(1)), static_cast<uint8_t>(f(2)),
            static_cast<uint8_t>(f(3))};
}
inline bvec field(bvec b, int shift, uint8_t mask) {
    return each_byte([&](int i) { return b.v[i] >> shift & mask; });
}
inline bvec shift_left(bvec b, int shift) {
    return each_byte([&](int i) { return b.v[i] << shift; });
}
inline bvec or_b(bvec a, bvec b) {
    return each_byte([&](int i) { return a.v[i] | b.v[i]; });
}
inline bvec sub_b(bvec a, bvec b) {
    return each_byte([&](int i) { return a.v[i] - b.v[i]; });
}
inline bvec bit_plane(const uint8_t* plane, int channel, uint8_t value) {  // value where a bit is 1, else 0
    return each_byte([&](int i) { return plane[channel / 2] >> (channel % 2 * 4 + i) & 1 ? value : 0; });
}
inline bvec repeat4(const uint8_t* p) { return {*p, *p, *p, *p}; }
using table16 = const uint8_t*;
inline table16 load_table16(const uint8_t* p) { return p; }
inline bvec lookup16(table16 table, bvec index) {  // index below 16
    return each_byte([&](int i) { return table[index.v[i]]; });
}
inline wvec operand(bvec b) { return b; }
inline xvec load_x(const uint8_t* p) { return load_b(p); }
inline xvec set_x(uint8_t x) { return {x, x, x, x}; }
inline acc_t dot4(acc_t acc, xvec x, wvec w) {  // unsigned: the offset form may wrap modulo 2^32
    uint32_t sum = static_cast<uint32_t>(acc);
    for (int i = 0; i < 4; ++i) sum += static_cast<uint32_t>(int32_t{x.v[i]} * int32_t{static_cast<int8_t>(w.v[i])});
    return static_cast<int32_t>(sum);
}
inline acc_t acc_zero() { return 0; }
inline acc_t own_register(acc_t acc) { return acc; }
inline int32_t acc_lanes(acc_t acc) { return acc; }
inline acc_t acc_load(const int32_t* p) { return *p; }
inline void acc_store(int32_t* p, acc_t acc) { *p = acc; }

// ---- float32 -------------------------------------------------------------------------------------------------------
inline uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline f32v set1(float x) { return x; }
inline f32v add(f32v a, f32v b) { return a + b; }
inline f32v sub(f32v a, f32v b) { return a - b; }
inline f32v mul(f32v a, f32v b) { return a * b; }
inline f32v fma(f32v a, f32v b, f32v c) { return std::fma(a, b, c); }
inline f32v reciprocal(f32v a) { return 1.0f / a; }
inline f32v min(f32v a, f32v b) { return a < b ? a : b; }
inline f32v max(f32v a, f32v b) { return a > b ? a : b; }
inline f32v abs(f32v a) { return std::fabs(a); }
inline f32v sqrt(f32v a) { return std::sqrt(a); }
inline f32v rint(f32v a) { return std::nearbyintf(a); }
inline f32v select_negative(f32v sign_of, f32v if_negative, f32v otherwise) {
    return bits_of(sign_of) >> 31 ? if_negative : otherwise;
}
inline f32v pow2(f32v n) { return float_of(static_cast<uint32_t>(static_cast<int32_t>(n) + 127) << 23); }

inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t{h & 0x8000u} << 16, exponent = (h >> 10) & 31, mantissa = h & 0x3ffu;
    if (exponent == 31) return float_of(sign | 0x7f800000u | (mantissa << 13));
    if (exponent == 0) {
        const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
        return sign ? -magnitude : magnitude;
    }
    return float_of(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
inline uint16_t float_to_half(float x) {  // round to nearest even
    const uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds past 65504
    if (magnitude < 0x38800000u)  // subnormal: let the float adder round at 2^-24
        return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f)));
    const uint32_t odd = (magnitude >> 13) & 1;
    return static_cast<uint16_t>(sign | ((magnitude + 0xfffu + odd - (112u << 23)) >> 13));
}

inline f32v load(const float* p) { return *p; }
inline f32v load(const bf16* p) { return float_of(uint32_t{p->bits} << 16); }
inline f32v load(const f16* p) { return half_to_float(p->bits); }
inline void store(float* p, f32v v) { *p = v; }
inline void store(bf16* p, f32v v) {
    const uint32_t u = bits_of(v);
    p->bits = v != v ? 0x7fc0 : static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
inline void store(f16* p, f32v v) { p->bits = float_to_half(v); }
template <class T>
inline f32v load(const T* p, int) {
    return load(p);
}
template <class T>
inline void store(T* p, f32v v, int) {
    store(p, v);
}

// ---- int32 ---------------------------------------------------------------------------------------------------------
inline i32v seti(int32_t x) { return x; }
inline i32v load(const int32_t* p) { return *p; }
inline i32v load(const int32_t* p, int) { return *p; }
inline void store(int32_t* p, i32v v) { *p = v; }
inline void store(int32_t* p, i32v v, int) { *p = v; }
inline i32v addi(i32v a, i32v b) { return static_cast<int32_t>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b)); }
inline i32v subi(i32v a, i32v b) { return static_cast<int32_t>(static_cast<uint32_t>(a) - static_cast<uint32_t>(b)); }
inline i32v muli(i32v a, i32v b) { return static_cast<int32_t>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b)); }
inline i32v maxu(i32v a, i32v b) { return static_cast<uint32_t>(a) > static_cast<uint32_t>(b) ? a : b; }
inline i32v abs_bits(f32v a) { return static_cast<int32_t>(bits_of(a) & 0x7fffffffu); }
inline uint32_t reduce_maxu(i32v a) { return static_cast<uint32_t>(a); }
inline int32_t reduce_add(i32v a) { return a; }
inline f32v to_float(i32v a) { return static_cast<float>(a); }
// high * factor + low, exact in double, rounded once to float32
inline f32v to_float_pair(i32v high, i32v low, float factor) {
    return static_cast<float>(static_cast<double>(high) * factor + low);
}
inline f32v lookup256(const float* table, const uint8_t* codes) { return table[*codes]; }
inline i32v to_int(f32v a) {  // what is below int32 becomes its minimum, as the vector instructions have it
    return a < -2147483648.0f ? INT32_MIN : static_cast<int32_t>(std::nearbyintf(a));
}
inline void store_bytes(uint8_t* p, i32v v) { *p = static_cast<uint8_t>(v); }
inline void store_bytes(uint8_t* p, i32v v, int) { *p = static_cast<uint8_t>(v); }
inline void store_codes4(uint8_t* p, i32v a, i32v b, i32v c, i32v d, int16_t zero, bool, int16_t lo, int16_t hi,
                         uint8_t flip) {
    const int32_t in[4] = {a, b, c, d};
    for (int i = 0; i < 4; ++i) {
        const int64_t v = int64_t{in[i]} + zero;
        p[i] = static_cast<uint8_t>(v < lo ? lo : v > hi ? hi : v) ^ flip;
    }
}

// ---- int32 halves of products: what fixed-point rounding needs where shifts allow it
// ----------------------------------
inline i32v srav(i32v a, i32v n) { return a >> n; }
inline bool all_at_least(i32v a, int32_t n) { return a >= n; }
inline i32v high_product(i32v acc, i32v m) { return static_cast<i32v>(int64_t{acc} * m >> 32); }
inline i32v high_doubled(i32v acc, i32v m) { return static_cast<i32v>((int64_t{acc} * m + (int64_t{1} << 30)) >> 31); }
inline i32v rounding_shift(i32v x, i32v n) {  // x / 2^n, ties away from zero
    const int64_t half = (int64_t{1} << n) >> 1;
    return static_cast<i32v>((x + half - (x < 0 && n > 0)) >> n);
}
inline i32v pow2i(i32v n) { return static_cast<i32v>(1u << n); }

// ---- bytes ---------------------------------------------------------------------------------------------------------
inline constexpr int BYTES = 1;
inline uint8_t load_bytes(const uint8_t* p) { return *p; }
inline void store_raw(uint8_t* p, uint8_t v) { *p = v; }
inline uint8_t set_bytes(uint8_t x) { return x; }
inline uint8_t xor_bytes(uint8_t a, uint8_t b) { return a ^ b; }
inline i32v sum_bytes(i32v acc, uint8_t v) { return acc + v; }

// ---- words of bits, for the binary core
// ------------------------------------------------------------------------------
inline constexpr int WORDS = 1;  // 64-bit lanes
using wordv = uint64_t;
inline wordv zero_words() { return 0; }
inline wordv load_words(const uint64_t* p) { return *p; }
inline wordv broadcast_word(const uint64_t* p) { return *p; }
inline wordv add_words(wordv a, wordv b) { return a + b; }
inline wordv sub_words(wordv a, wordv b) { return a - b; }
inline wordv and_words(wordv a, wordv b) { return a & b; }
inline wordv and_not(wordv a, wordv b) { return a & ~b; }
inline wordv xor3(wordv a, wordv b, wordv c) { return a ^ b ^ c; }
inline wordv xor_and(wordv a, wordv b, wordv mask) { return (a ^ b) & mask; }
inline wordv carry(wordv o0, wordv o1, wordv o2) { return (o0 & ~o1) | (o1 & ~o2); }  // o1 ? ~o2 : o0
inline wordv count_bits(wordv v) {
    v -= v >> 1 & 0x5555555555555555u;
    v = (v & 0x3333333333333333u) + (v >> 2 & 0x3333333333333333u);
    v = (v + (v >> 4)) & 0x0f0f0f0f0f0f0f0fu;
    return v * 0x0101010101010101u >> 56;
}
template <int FACTOR>  // p[even] = start - FACTOR * even, p[odd] likewise; start: one number, or one a channel
inline void store_counts(int32_t* p, wordv even, wordv odd, int32_t start) {
    p[0] = static_cast<int32_t>(start - FACTOR * static_cast<int64_t>(even));
    p[1] = static_cast<int32_t>(start - FACTOR * static_cast<int64_t>(odd));
}
template <int FACTOR>
inline void store_counts(int32_t* p, wordv even, wordv odd, const int32_t* start) {
    p[0] = static_cast<int32_t>(start[0] - FACTOR * static_cast<int64_t>(even));
    p[1] = static_cast<int32_t>(start[1] - FACTOR * static_cast<int64_t>(odd));
}
inline uint32_t not_negative(f32v a) { return a >= 0.0f; }   // bit i: lane i >= 0; false for NaN
inline uint32_t not_less(i32v a, i32v b) { return a >= b; }  // bit i: a[i] >= b[i]
inline i32v xori(i32v a, i32v b) { return a ^ b; }
inline f32v select_greater(f32v a, f32v b, f32v if_greater, f32v otherwise) { return a > b ? if_greater : otherwise; }

inline void prefetch(const char*) {}

// ---- convolutions ---------------------------------------------------------------------------------------------------
constexpr int transpose_block(size_t) { return 1; }
template <class T>
inline void transpose_square(const T*, int64_t, T*, int64_t) {}
inline xvec load_quads(const uint8_t* p) { return load_x(p); }
inline void arrange64(const uint8_t* x, int n, uint8_t flip, uint8_t* out) {
    for (int i = 0; i < 64; ++i) out[i] = i < n ? x[i] ^ flip : 0;
}
inline void interleave64(const uint8_t* a, const uint8_t* b, const uint8_t* c, const uint8_t* d, uint8_t* out) {
    for (int i = 0; i < 64; ++i) {
        out[4 * i] = a[i];
        out[4 * i + 1] = b[i];
        out[4 * i + 2] = c[i];
        out[4 * i + 3] = d[i];
    }
}

}  // namespace simd
}  // namespace
