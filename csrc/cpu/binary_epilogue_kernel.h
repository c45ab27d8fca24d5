// From a tile of int32 accumulators, still in L1, to the output of a binary layer: floats, signs packed to bits for the
// next layer, or integers. And the other end: floats to sign bits.
#pragma once

#include <cstring>
#include <type_traits>

#include "activation.h"
#include "binary_kernel.h"

namespace {

// body(column, count, whole) for every vector of a row; whole is a constant that is true where count == LANES.
template <class Body>
inline void for_vectors(int cols, Body body) {
    int c = 0;
    for (; c + simd::LANES <= cols; c += simd::LANES) body(c, simd::LANES, std::true_type{});
    if (c < cols) body(c, cols - c, std::false_type{});
}

template <bool WHOLE, class T>
inline auto load_some(const T* p, int n) {
    if constexpr (WHOLE)
        return simd::load(p);
    else
        return simd::load(p, n);
}

// ((float(acc) * alpha) * x_scale) + bias, then the activation, for the lanes of channels n0 + c
template <bool WHOLE>
inline simd::f32v real_value(const qk::BinaryEpilogue& e, const int32_t* acc, simd::f32v x_scale, int64_t n,
                             int count) {
    using namespace simd;
    f32v y = mul(mul(to_float(load_some<WHOLE>(acc, count)), load_some<WHOLE>(e.alpha + n, count)), x_scale);
    if (e.bias) y = add(y, load_some<WHOLE>(e.bias + n, count));
    if (e.up) {
        const f32v gamma = load_some<WHOLE>(e.gamma + n, count), from = sub(y, gamma);
        const f32v slope =
            select_greater(y, gamma, load_some<WHOLE>(e.up + n, count), load_some<WHOLE>(e.down + n, count));
        return add(mul(slope, from), load_some<WHOLE>(e.zeta + n, count));
    }
    return activate(y, e.activation);
}

inline simd::f32v row_scale(const qk::BinaryEpilogue& e, int64_t m) {
    return simd::set1(e.x_scale ? e.x_scale[m * e.x_scale_step] : 1.0f);
}

template <class Out>
void binary_store_float(const qk::BinaryEpilogue& given, const int32_t* tile, int64_t m0, int rows, int64_t n0,
                        int cols) {
    using namespace simd;
    const qk::BinaryEpilogue e = given;  // a copy: stores could change it for all the compiler knows
    for (int r = 0; r < rows; ++r) {
        const f32v x_scale = row_scale(e, m0 + r);
        const int32_t* acc = tile + r * qk::kBinaryPanel;
        Out* out = static_cast<Out*>(e.out) + (m0 + r) * e.ldo + n0;
        for_vectors(cols, [&](int c, int count, auto whole) {
            const f32v y = real_value<whole>(e, acc + c, x_scale, n0 + c, count);
            if constexpr (whole)
                store(out + c, y);
            else
                store(out + c, y, count);
        });
    }
}

inline void binary_store_i32(const qk::BinaryEpilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0,
                             int cols) {
    for (int r = 0; r < rows; ++r)
        std::memcpy(static_cast<int32_t*>(e.out) + (m0 + r) * e.ldo + n0, tile + r * qk::kBinaryPanel, 4 * cols);
}

// bits(c, count, whole) gives the bits of a vector; 64 of them make the eight bytes of a panel.
template <class Bits>
inline void store_bits(const qk::BinaryEpilogue& e, int64_t m, int64_t n0, int cols, Bits bits) {
    uint64_t word = 0;
    for_vectors(cols, [&](int c, int count, auto whole) {
        const uint64_t lanes = bits(c, count, whole) & ((uint64_t{1} << count) - 1);
        word |= lanes << c;
    });
    std::memcpy(static_cast<char*>(e.out) + m * e.ldo + n0 / 8, &word, (cols + 7) / 8);
}

inline void binary_store_sign(const qk::BinaryEpilogue& given, const int32_t* tile, int64_t m0, int rows, int64_t n0,
                              int cols) {
    using namespace simd;
    const qk::BinaryEpilogue e = given;
    for (int r = 0; r < rows; ++r) {
        const f32v x_scale = row_scale(e, m0 + r);
        const int32_t* acc = tile + r * qk::kBinaryPanel;
        store_bits(e, m0 + r, n0, cols, [&](int c, int count, auto whole) {
            return not_negative(real_value<whole>(e, acc + c, x_scale, n0 + c, count));
        });
    }
}

template <bool WHOLE>
inline uint32_t threshold_bits(const qk::BinaryEpilogue& e, const int32_t* acc, int64_t n, int count) {
    using namespace simd;
    // flipping bits of both sides turns >= into <=: ~a >= ~b where a <= b
    const i32v flip = load_some<WHOLE>(e.flip + n, count);
    return not_less(xori(load_some<WHOLE>(acc, count), flip), xori(load_some<WHOLE>(e.threshold + n, count), flip));
}

inline void binary_store_threshold(const qk::BinaryEpilogue& given, const int32_t* tile, int64_t m0, int rows,
                                   int64_t n0, int cols) {
    const qk::BinaryEpilogue e = given;
    for (int r = 0; r < rows; ++r) {
        const int32_t* acc = tile + r * qk::kBinaryPanel;
        store_bits(e, m0 + r, n0, cols,
                   [&](int c, int count, auto whole) { return threshold_bits<whole>(e, acc + c, n0 + c, count); });
    }
}

inline void binary_store_multiple(const qk::BinaryEpilogue& given, const int32_t* tile, int64_t m0, int rows,
                                  int64_t n0, int cols) {
    const qk::BinaryEpilogue e = given;
    for (int r = 0; r < rows; ++r) {
        const int32_t* acc = tile + r * qk::kBinaryPanel;
        int8_t* out = static_cast<int8_t*>(e.out) + (m0 + r) * e.ldo + n0;
        for_vectors(cols, [&](int c, int count, auto whole) {
            const uint32_t bits = threshold_bits<whole>(e, acc + c, n0 + c, count);
            const int32_t* times = e.times + n0 + c;
            for (int i = 0; i < count; ++i) out[c + i] = static_cast<int8_t>(bits >> i & 1 ? times[i] : -times[i]);
        });
    }
}

// ---- floats to sign bits -------------------------------------------------------------------------------------------

// With SUM, a sum that is not finite says what the largest |x| says without.
template <class T, bool SUM>
uint32_t pack_row(const T* x, int64_t k, uint64_t* out, float* sum) {
    using namespace simd;
    constexpr int kVectors = 64 / LANES;
    f32v total[kVectors];
    i32v most[2] = {seti(0), seti(0)};
    each<kVectors>([&](auto v) [[gnu::always_inline]] { total[v] = set1(0.0f); });
    int64_t i = 0;
    for (; i + 64 <= k; i += 64) {
        uint64_t word = 0;
        each<kVectors>([&](auto v) [[gnu::always_inline]] {
            const f32v a = load(x + i + v * LANES);
            word |= static_cast<uint64_t>(not_negative(a)) << (v * LANES);
            if constexpr (SUM)
                total[v] = add(total[v], abs(a));
            else
                most[v % 2] = maxu(most[v % 2], abs_bits(a));
        });
        if (out) std::memcpy(out + i / 64, &word, 8);
    }
    float sums[64];
    if constexpr (SUM) each<kVectors>([&](auto v) [[gnu::always_inline]] { store(sums + v * LANES, total[v]); });
    if (i < k) {
        uint64_t word = 0;
        for (int64_t c = i; c < k; c += LANES) {
            const int n = k - c < LANES ? static_cast<int>(k - c) : LANES;
            const f32v a = load(x + c, n);  // lanes beyond n are 0
            word |= (not_negative(a) & ((uint64_t{1} << n) - 1)) << (c - i);
            if constexpr (SUM)
                store(sums + (c - i), add(load(sums + (c - i)), abs(a)));
            else
                most[0] = maxu(most[0], abs_bits(a));
        }
        if (out) std::memcpy(out + i / 64, &word, 8);
    }
    if constexpr (SUM) {
        for (int half = 32; half >= 1; half /= 2)
            for (int j = 0; j < half; ++j) sums[j] += sums[j + half];
        *sum = sums[0];
        return 0;
    }
    return reduce_maxu(maxu(most[0], most[1]));
}

template <class T>
uint32_t pack_signs(const void* x, int64_t k, uint64_t* out, float* sum) {
    const T* row = static_cast<const T*>(x);
    return sum ? pack_row<T, true>(row, k, out, sum) : pack_row<T, false>(row, k, out, nullptr);
}

}  // namespace
