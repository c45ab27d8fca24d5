// Leaves of decoding, templates over simd/<isa>.h. Included by one translation unit per ISA.
//
// Attention reads each key and value once a query head, from L2 at the lengths that a step at batch 1 sees: scores of
// four positions at a time (one load of the query, four of keys, one shuffle tree for four sums), the softmax over all
// of them, then values into as many as eight registers of sums.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "activation.h"
#include "decode.h"

namespace {

// body(at, n) for each register of k floats, n < LANES in the last one at most: then with load(p, n), store(p, v, n).
template <class Whole, class Tail>
inline void for_registers(int64_t k, Whole whole, Tail tail) {
    int64_t i = 0;
    for (; i + simd::LANES <= k; i += simd::LANES) whole(i);
    if (i < k) tail(i, static_cast<int>(k - i));
}

inline float sum_lanes(simd::f32v a) {
    float four[4];
    simd::sum_lanes4(four, a, a, a, a);
    return four[0];
}

inline float sum_of_squares(const float* x, int64_t k) {
    using namespace simd;
    f32v sum[4] = {set1(0), set1(0), set1(0), set1(0)};
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES)
        for (int j = 0; j < 4; ++j) {
            const f32v v = load(x + i + j * LANES);
            sum[j] = fma(v, v, sum[j]);
        }
    for_registers(
        k - i, [&](int64_t at) { sum[0] = fma(load(x + i + at), load(x + i + at), sum[0]); },
        [&](int64_t at, int n) { sum[1] = fma(load(x + i + at, n), load(x + i + at, n), sum[1]); });
    return sum_lanes(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
}

inline void rms_norm(float* x, const float* residual, const float* weight, int64_t rows, int64_t k, float eps,
                     float* out) {
    using namespace simd;
    for (int64_t r = 0; r < rows; ++r, x += k, out += k) {
        if (residual != nullptr) {
            for_registers(
                k, [&](int64_t i) { store(x + i, add(load(x + i), load(residual + i))); },
                [&](int64_t i, int n) { store(x + i, add(load(x + i, n), load(residual + i, n)), n); });
            residual += k;
        }
        const f32v scale = set1(1.0f / std::sqrt(sum_of_squares(x, k) / static_cast<float>(k) + eps));
        for_registers(
            k, [&](int64_t i) { store(out + i, mul(mul(load(x + i), scale), load(weight + i))); },
            [&](int64_t i, int n) { store(out + i, mul(mul(load(x + i, n), scale), load(weight + i, n)), n); });
    }
}

inline void swiglu(const float* x, int64_t rows, int64_t n, float* out) {
    using namespace simd;
    for (int64_t r = 0; r < rows; ++r, x += 2 * n, out += n)
        for_registers(
            n, [&](int64_t i) { store(out + i, mul(silu(load(x + i)), load(x + n + i))); },
            [&](int64_t i, int m) { store(out + i, mul(silu(load(x + i, m)), load(x + n + i, m)), m); });
}

// A head's neighbours as complex numbers, times turn.
inline void turn_pairs(const float* __restrict__ x, const float* __restrict__ turn, int64_t head,
                       float* __restrict__ out) {
    for (int64_t i = 0; i < head; i += 2) {
        out[i] = x[i] * turn[i] - x[i + 1] * turn[i + 1];
        out[i + 1] = x[i] * turn[i + 1] + x[i + 1] * turn[i];
    }
}

inline float dot(const float* a, const float* b, int64_t n) {
    using namespace simd;
    f32v sum = set1(0);
    for_registers(
        n, [&](int64_t i) { sum = fma(load(a + i), load(b + i), sum); },
        [&](int64_t i, int m) { sum = fma(load(a + i, m), load(b + i, m), sum); });
    return sum_lanes(sum);
}

// scores[p] = q . keys[p]
inline void scores(const float* q, const float* keys, int64_t head, int64_t positions, float* out) {
    using namespace simd;
    int64_t p = 0;
    for (; p + 4 <= positions; p += 4) {
        const float* k = keys + p * head;
        f32v a = set1(0), b = a, c = a, d = a;
        for_registers(
            head,
            [&](int64_t i) {
                const f32v v = load(q + i);
                a = fma(v, load(k + i), a), b = fma(v, load(k + head + i), b);
                c = fma(v, load(k + 2 * head + i), c), d = fma(v, load(k + 3 * head + i), d);
            },
            [&](int64_t i, int n) {
                const f32v v = load(q + i, n);
                a = fma(v, load(k + i, n), a), b = fma(v, load(k + head + i, n), b);
                c = fma(v, load(k + 2 * head + i, n), c), d = fma(v, load(k + 3 * head + i, n), d);
            });
        sum_lanes4(out + p, a, b, c, d);
    }
    for (; p < positions; ++p) out[p] = dot(q, keys + p * head, head);
}

// x[p] = exp((x[p] - max x) * scale) in place, room for a whole last register; returns 1 / their sum, NaN where an x is
// not finite.
inline float exponentials(float* x, int64_t n, float scale) {
    using namespace simd;
    float largest = x[0];
    for (int64_t i = 1; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    const int64_t whole = qk::round_up(n, LANES);
    // Past the end: exp(-80), which changes no sum of at least 1.
    for (int64_t i = n; i < whole; ++i) x[i] = -std::numeric_limits<float>::max();
    f32v sum = set1(0), bad = set1(0);
    for (int64_t i = 0; i < whole; i += LANES) {
        const f32v v = load(x + i), e = exp_nonpositive(mul(sub(v, set1(largest)), set1(scale)));
        bad = fma(v, set1(0), bad), sum = add(sum, e);
        store(x + i, e);
    }
    return 1.0f / sum_lanes(add(sum, bad));
}

// out[R registers] = scale * sum of weights[p] * values[p]
template <int R>
inline void weigh(const float* weights, const float* values, int64_t head, int64_t positions, float scale, float* out) {
    using namespace simd;
    f32v sum[R];
    for (int i = 0; i < R; ++i) sum[i] = set1(0);
    for (int64_t p = 0; p < positions; ++p, values += head)
        for (int i = 0; i < R; ++i) sum[i] = fma(set1(weights[p]), load(values + i * LANES), sum[i]);
    for (int i = 0; i < R; ++i) store(out + i * LANES, mul(sum[i], set1(scale)));
}

inline void weigh_values(const float* weights, const float* values, int64_t head, int64_t positions, float scale,
                         float* out) {
    using namespace simd;
    int64_t i = 0;
    for (; i + 8 * LANES <= head; i += 8 * LANES) weigh<8>(weights, values + i, head, positions, scale, out + i);
    for (; i + LANES <= head; i += LANES) weigh<1>(weights, values + i, head, positions, scale, out + i);
    if (i == head) return;
    const int n = static_cast<int>(head - i);
    f32v sum = set1(0);
    for (int64_t p = 0; p < positions; ++p) sum = fma(set1(weights[p]), load(values + p * head + i, n), sum);
    store(out + i, mul(sum, set1(scale)), n);
}

inline void enter_token(const qk::DecodeAttention& a) {
    const int64_t head = a.head;
    for (int64_t h = 0; h < a.heads; ++h) turn_pairs(a.qkv + h * head, a.turn + h * head, head, a.turned + h * head);
    const float *new_keys = a.qkv + a.heads * head, *new_values = new_keys + a.kv_heads * head;
    for (int64_t g = 0; g < a.kv_heads; ++g) {
        float *keys = a.store + g * a.pitch, *values = keys + a.kv_heads * a.pitch;
        turn_pairs(new_keys + g * head, a.turn + (a.heads + g) * head, head, keys + a.position * head);
        std::memcpy(values + a.position * head, new_values + g * head, sizeof(float) * static_cast<size_t>(head));
    }
}

inline void attend(const qk::DecodeAttention& a, int64_t h, float* weights) {
    const int64_t positions = a.position + 1, head = a.head;
    const float *keys = a.store + h / (a.heads / a.kv_heads) * a.pitch, *values = keys + a.kv_heads * a.pitch;
    scores(a.turned + h * head, keys, head, positions, weights);
    const float over_sum = exponentials(weights, positions, 1.0f / std::sqrt(static_cast<float>(head)));
    weigh_values(weights, values, head, positions, over_sum, a.out + h * head);
}

inline qk::DecodeKernels make_decode_kernels() { return {rms_norm, swiglu, enter_token, attend}; }

}  // namespace
