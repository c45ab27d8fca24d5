// From a tile of int32 accumulators, still in L1, to the output: scale or fixed-point requantization, bias,
// activation, store. Patches that change accumulators (here: zero points of weights) run on the tile before it.
#pragma once

#include "../common/int8_layout.h"
#include "activation.h"
#include "kernels.h"

namespace {

inline void patch_zero_point(const qk::Epilogue& e, int32_t* tile, int64_t m0, int rows, int64_t n0) {
    using namespace simd;
    for (int r = 0; r < rows; ++r) {
        const i32v sum = seti(e.x_sum[m0 + r]);
        int32_t* row = tile + r * qk::kPanelN;
        for (int c = 0; c < qk::kPanelN; c += LANES)
            store(row + c, subi(load(row + c), muli(load(e.w_zero + n0 + c), sum)));
    }
}

// Calls body(column, count) for whole vectors, then once for the rest with count < LANES.
template <class Body, class Tail>
inline void for_lanes(int cols, Body body, Tail tail) {
    int c = 0;
    for (; c + simd::LANES <= cols; c += simd::LANES) body(c);
    if (c < cols) tail(c, cols - c);
}

inline void store_i32(const qk::Epilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    for (int r = 0; r < rows; ++r) {
        const int32_t* row = tile + r * qk::kPanelN;
        int32_t* out = static_cast<int32_t*>(e.out) + (m0 + r) * e.ldo + n0;
        for_lanes(
            cols, [&](int c) { store(out + c, load(row + c)); },
            [&](int c, int n) { store(out + c, load(row + c), n); });
    }
}

template <class Out>
void store_float(const qk::Epilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    const float* scale = e.w_scale + n0;
    const float* bias = e.bias ? e.bias + n0 : nullptr;
    const qk::Activation activation = e.activation;  // a copy: stores could change e for all the compiler knows
    for (int r = 0; r < rows; ++r) {
        const int32_t* row = tile + r * qk::kPanelN;
        Out* out = static_cast<Out*>(e.out) + (m0 + r) * e.ldo + n0;
        const f32v x_scale = set1(e.x_scale ? e.x_scale[(m0 + r) * e.x_scale_step] : 1.0f);
        for_lanes(
            cols,
            [&](int c) {
                f32v y = mul(mul(to_float(load(row + c)), load(scale + c)), x_scale);
                if (bias) y = add(y, load(bias + c));
                store(out + c, activate(y, activation));
            },
            [&](int c, int n) {
                f32v y = mul(mul(to_float(load(row + c, n)), load(scale + c, n)), x_scale);
                if (bias) y = add(y, load(bias + c, n));
                store(out + c, activate(y, activation), n);
            });
    }
}

template <qk::Rounding R>
void store_byte(const qk::Epilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    for (int r = 0; r < rows; ++r) {
        const int32_t* row = tile + r * qk::kPanelN;
        uint8_t* out = static_cast<uint8_t*>(e.out) + (m0 + r) * e.ldo + n0;
        auto lanes = [&](int c, int n) {
            const int64_t at = n0 + c;
            i32v acc = load(row + c, n);
            if (e.bias_i32) acc = addi(acc, load(e.bias_i32 + at, n));
            RequantLanes q{seti(0), seti(0), set1(0.0f), e.out_zero, e.lo, e.hi};
            if constexpr (R == qk::Rounding::float_) {
                q.scale = load(e.requant_scale + at, n);
            } else {
                q.multiplier = load(e.multiplier + at, n);
                q.shift = load(e.shift + at, n);
            }
            return requant<R>(acc, q);
        };
        for_lanes(
            cols, [&](int c) { store_bytes(out + c, lanes(c, LANES)); },
            [&](int c, int n) { store_bytes(out + c, lanes(c, n), n); });
    }
}

}  // namespace
