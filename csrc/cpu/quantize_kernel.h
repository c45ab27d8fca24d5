// Activation quantization of one row: codes = clip(rint(x * inv) + zero) in float32, half to even.
// The row's largest |x| comes along as an integer maximum of the bit patterns: float order for finite values, and
// infinities and NaN above all of them, so a row is checked for non-finite input at no cost.
#pragma once

#include "kernels.h"

namespace {

template <class T, bool PER_K>
uint32_t amax_row(const T* x, int64_t k, const float* inv_k) {
    using namespace simd;
    auto at = [&](int64_t i) { return abs_bits(PER_K ? mul(load(x + i), load(inv_k + i)) : load(x + i)); };
    i32v m0 = seti(0), m1 = m0, m2 = m0, m3 = m0;  // four chains hide the latency of the maximum
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
        m0 = maxu(m0, at(i));
        m1 = maxu(m1, at(i + LANES));
        m2 = maxu(m2, at(i + 2 * LANES));
        m3 = maxu(m3, at(i + 3 * LANES));
    }
    for (; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        m0 = maxu(m0, abs_bits(PER_K ? mul(load(x + i, n), load(inv_k + i, n)) : load(x + i, n)));
    }
    return reduce_maxu(maxu(maxu(m0, m1), maxu(m2, m3)));
}

template <class T>
uint32_t amax(const void* data, int64_t k, const float* inv_k) {
    const T* x = static_cast<const T*>(data);
    return inv_k ? amax_row<T, true>(x, k, inv_k) : amax_row<T, false>(x, k, nullptr);
}

// PER_K: inv_k is there. CHECK: also track the largest |x| (a dynamic row knows it already); codes above the type's
// range are possible only then, so the clamp of what would overflow the conversion to int32 goes with it.
template <class T, bool CHECK, bool PER_K>
uint32_t quantize_row(const T* x, int64_t k, const qk::QuantizeRow& q, uint8_t* out) {
    using namespace simd;
    // Copies: stores through out, a byte pointer, could change q for all that the compiler knows.
    const int16_t zero = q.zero;
    const bool is_signed = q.is_signed;
    const uint8_t flip = q.flip;
    const int16_t lo = q.lo, hi = q.hi;
    const float* inv_k = q.inv_k;
    const f32v inv = set1(q.inv), most = set1(1073741824.0f);
    i32v m0 = seti(0), m1 = m0;
    auto code = [&](f32v v, f32v s, i32v& m) {
        f32v y = mul(PER_K ? mul(v, s) : v, inv);
        if constexpr (CHECK) {
            m = maxu(m, abs_bits(v));
            y = min(y, most);
        }
        return to_int(y);
    };
    auto scale = [&](int64_t i) { return PER_K ? load(inv_k + i) : inv; };  // used only with PER_K
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
        const i32v a = code(load(x + i), scale(i), m0);
        const i32v b = code(load(x + i + LANES), scale(i + LANES), m1);
        const i32v c = code(load(x + i + 2 * LANES), scale(i + 2 * LANES), m0);
        const i32v d = code(load(x + i + 3 * LANES), scale(i + 3 * LANES), m1);
        store_codes4(out + i, a, b, c, d, zero, is_signed, lo, hi, flip);
    }
    for (; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        const i32v a = code(load(x + i, n), PER_K ? load(inv_k + i, n) : inv, m0);
        uint8_t codes[4 * LANES];
        store_codes4(codes, a, a, a, a, zero, is_signed, lo, hi, flip);
        __builtin_memcpy(out + i, codes, n);
    }
    return CHECK ? reduce_maxu(maxu(m0, m1)) : 0;
}

template <class T>
uint32_t quantize(const void* data, int64_t k, const qk::QuantizeRow& q, uint8_t* out) {
    const T* x = static_cast<const T*>(data);
    if (q.inv_k != nullptr) {
        return q.check ? quantize_row<T, true, true>(x, k, q, out) : quantize_row<T, false, true>(x, k, q, out);
    }
    return q.check ? quantize_row<T, true, false>(x, k, q, out) : quantize_row<T, false, false>(x, k, q, out);
}

inline void flip_codes(const uint8_t* x, int64_t k, uint8_t flip, uint8_t* out) {
    using namespace simd;
    const auto mask = set_bytes(flip);
    int64_t i = 0;
    for (; i + BYTES <= k; i += BYTES) store_raw(out + i, xor_bytes(load_bytes(x + i), mask));
    for (; i < k; ++i) out[i] = x[i] ^ flip;
}

inline int32_t sum_codes(const uint8_t* x, int64_t k) {
    using namespace simd;
    i32v total = seti(0);
    int64_t i = 0;
    for (; i + BYTES <= k; i += BYTES) total = sum_bytes(total, load_bytes(x + i));
    int32_t tail = 0;
    for (; i < k; ++i) tail += x[i];
    return reduce_add(total) + tail;
}

}  // namespace
