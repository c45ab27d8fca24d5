// Activation quantization of one row: codes = clip(rint(x * inv) + zero, lo, hi) in float32, half to even.
// The row's largest |x| comes along as an integer maximum of the bit patterns: float order for finite values, and
// infinities and NaN above all of them, so a row is checked for non-finite input at no cost.
#pragma once

#include "kernels.h"

namespace {

template <class T>
uint32_t amax(const void* data, int64_t k) {
    using namespace simd;
    const T* x = static_cast<const T*>(data);
    i32v m0 = seti(0), m1 = m0, m2 = m0, m3 = m0;   // four chains hide the latency of the maximum
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
        m0 = maxu(m0, abs_bits(load(x + i)));
        m1 = maxu(m1, abs_bits(load(x + i + LANES)));
        m2 = maxu(m2, abs_bits(load(x + i + 2 * LANES)));
        m3 = maxu(m3, abs_bits(load(x + i + 3 * LANES)));
    }
    for (; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        m0 = maxu(m0, abs_bits(load(x + i, n)));
    }
    return reduce_maxu(maxu(maxu(m0, m1), maxu(m2, m3)));
}

template <class T>
uint32_t quantize(const void* data, int64_t k, const qk::QuantizeRow& q, uint8_t* out, int32_t* sum) {
    using namespace simd;
    const T* x = static_cast<const T*>(data);
    const f32v inv = set1(q.inv);
    const f32v lo = set1(static_cast<float>(q.lo - q.zero)), hi = set1(static_cast<float>(q.hi - q.zero));
    const i32v zero = seti(q.zero);
    const bool is_signed = q.lo < 0;
    i32v m0 = seti(0), m1 = m0, total = m0;
    auto code = [&](f32v v, int64_t at, int n, i32v& m) {
        m = maxu(m, abs_bits(v));
        const f32v s = q.inv_k ? (n == LANES ? load(q.inv_k + at) : load(q.inv_k + at, n)) : inv;
        return addi(to_int(min(max(mul(v, s), lo), hi)), zero);
    };
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
        const i32v a = code(load(x + i), i, LANES, m0);
        const i32v b = code(load(x + i + LANES), i + LANES, LANES, m1);
        const i32v c = code(load(x + i + 2 * LANES), i + 2 * LANES, LANES, m0);
        const i32v d = code(load(x + i + 3 * LANES), i + 3 * LANES, LANES, m1);
        store_bytes4(out + i, a, b, c, d, is_signed);
        if (q.need_sum) total = addi(total, addi(addi(a, b), addi(c, d)));
    }
    int32_t tail = 0;
    for (; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        store_bytes(out + i, code(load(x + i, n), i, n, m0), n);
        if (q.need_sum)
            for (int j = 0; j < n; ++j) tail += is_signed ? static_cast<int8_t>(out[i + j]) : out[i + j];
    }
    if (q.need_sum) *sum = reduce_add(total) + tail;
    return reduce_maxu(maxu(m0, m1));
}

inline int32_t copy_codes(const uint8_t* x, int64_t k, uint8_t flip, uint8_t* out) {
    using namespace simd;
    const auto mask = set_bytes(flip);
    i32v total = seti(0);
    int64_t i = 0;
    for (; i + BYTES <= k; i += BYTES) {
        const auto v = xor_bytes(load_bytes(x + i), mask);
        store_raw(out + i, v);
        total = sum_bytes(total, v);
    }
    int32_t tail = 0;
    for (; i < k; ++i) {
        out[i] = x[i] ^ flip;
        tail += out[i];
    }
    return reduce_add(total) + tail;
}

}  // namespace
