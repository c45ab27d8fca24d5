// From a tile of int32 accumulators, still in L1, to the output: scale or fixed-point requantization, bias,
// activation, store. Patches that change accumulators (here: zero points of weights) run on the tile before it.
#pragma once

#include <type_traits>

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

inline void store_i32(const qk::Epilogue& e, const void* data, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    const auto* tile = static_cast<const int32_t*>(data);
    for (int r = 0; r < rows; ++r) {
        const int32_t* row = tile + r * qk::kPanelN;
        int32_t* out = static_cast<int32_t*>(e.out) + (m0 + r) * e.ldo + n0;
        for_lanes(
            cols, [&](int c) { store(out + c, load(row + c)); },
            [&](int c, int n) { store(out + c, load(row + c), n); });
    }
}

// What a channel's scale makes of an accumulator; sums of scaled groups are floats that need none.
inline simd::f32v scaled(const int32_t* acc, simd::f32v scale) {
    return simd::mul(simd::to_float(simd::load(acc)), scale);
}
inline simd::f32v scaled(const float* sum, simd::f32v) { return simd::load(sum); }

// Whole tiles: scales and biases of the 64 channels stay in registers over all rows.
template <class Acc, class Out, bool BIAS, bool ACTIVATE>
void store_float_tile(const qk::Epilogue& e, const Acc* tile, int64_t m0, int rows, int64_t n0) {
    using namespace simd;
    const qk::Activation activation = e.activation;  // copies: stores could change e for all the compiler knows
    const float* x_scale = e.x_scale;
    const int64_t x_step = e.x_scale_step, ldo = e.ldo;
    Out* out = static_cast<Out*>(e.out) + m0 * ldo + n0;
    constexpr bool kSum = std::is_same_v<Acc, float>;
    for (int c = 0; c < qk::kPanelN; c += 4 * LANES) {
        f32v scale[4], bias[4];
        for (int v = 0; v < 4; ++v) {
            scale[v] = kSum ? set1(1.0f) : load(e.w_scale + n0 + c + v * LANES);
            if (BIAS) bias[v] = load(e.bias + n0 + c + v * LANES);
        }
        for (int r = 0; r < rows; ++r) {
            const f32v xs = set1(x_scale ? x_scale[(m0 + r) * x_step] : 1.0f);
            const Acc* row = tile + r * qk::kPanelN + c;
            Out* to = out + r * ldo + c;
            for (int v = 0; v < 4; ++v) {
                f32v y = mul(scaled(row + v * LANES, scale[v]), xs);
                if (BIAS) y = add(y, bias[v]);
                store(to + v * LANES, ACTIVATE ? activate(y, activation) : y);
            }
        }
    }
}

template <class Acc, class Out>
void store_float(const qk::Epilogue& e, const void* data, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    const auto* tile = static_cast<const Acc*>(data);
    const bool plain = e.activation == qk::Activation::none;
    if (cols == qk::kPanelN) {
        auto* whole =
            e.bias ? (plain ? store_float_tile<Acc, Out, true, false> : store_float_tile<Acc, Out, true, true>)
                   : (plain ? store_float_tile<Acc, Out, false, false> : store_float_tile<Acc, Out, false, true>);
        return whole(e, tile, m0, rows, n0);
    }
    for (int r = 0; r < rows; ++r) {
        const Acc* row = tile + r * qk::kPanelN;
        Out* out = static_cast<Out*>(e.out) + (m0 + r) * e.ldo + n0;
        const f32v x_scale = set1(e.x_scale ? e.x_scale[(m0 + r) * e.x_scale_step] : 1.0f);
        for (int c = 0; c < cols; c += LANES) {  // a tile is whole, whatever cols is
            const int n = cols - c < LANES ? cols - c : LANES;
            const f32v scale = std::is_same_v<Acc, float> ? set1(1.0f) : load(e.w_scale + n0 + c, n);
            f32v y = mul(scaled(row + c, scale), x_scale);
            if (e.bias) y = add(y, load(e.bias + n0 + c, n));
            store(out + c, activate(y, e.activation), n);
        }
    }
}

// Rounding float_ of 4 * LANES columns from `c` on: three packs instead of four narrowing stores, the limits on bytes.
template <bool BIAS, bool SIGNED>
void store_byte_quad(const qk::Epilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0, int c) {
    using namespace simd;
    const int64_t ldo = e.ldo, at = n0 + c;
    const int16_t zero = static_cast<int16_t>(e.out_zero);
    const auto lo = static_cast<int16_t>(e.lo), hi = static_cast<int16_t>(e.hi);
    const f32v most = set1(1073741824.0f);  // beyond it the conversion is not defined; packs saturate the rest
    f32v scale[4];
    i32v bias[4];
    for (int v = 0; v < 4; ++v) {
        scale[v] = load(e.requant_scale + at + v * LANES);
        bias[v] = BIAS ? load(e.bias_i32 + at + v * LANES) : seti(0);
    }
    auto code = [&](const int32_t* acc, int v) {
        const i32v sum = BIAS ? addi(load(acc + v * LANES), bias[v]) : load(acc + v * LANES);
        return to_int(min(mul(to_float(sum), scale[v]), most));
    };
    uint8_t* out = static_cast<uint8_t*>(e.out) + m0 * ldo + at;
    const int32_t* column = tile + c;
    for (int r = 0; r < rows; ++r, out += ldo, column += qk::kPanelN)
        store_codes4(out, code(column, 0), code(column, 1), code(column, 2), code(column, 3), zero, SIGNED, lo, hi, 0);
}

// Columns outside, rows inside: multipliers, shifts and their 64-bit halves are loaded once for all rows.
template <qk::Rounding R>
void store_byte(const qk::Epilogue& e, const void* data, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    const auto* tile = static_cast<const int32_t*>(data);
    const int64_t ldo = e.ldo;
    int c = 0;
    if constexpr (R == qk::Rounding::float_ && LANES > 1) {
        const bool is_signed = e.hi <= 127;  // codes of 0..127 are the same either way
        auto* quad = e.bias_i32 ? (is_signed ? store_byte_quad<true, true> : store_byte_quad<true, false>)
                                : (is_signed ? store_byte_quad<false, true> : store_byte_quad<false, false>);
        for (; c + 4 * LANES <= cols; c += 4 * LANES) quad(e, tile, m0, rows, n0, c);
    }
    for (; c < cols; c += LANES) {
        const int n = cols - c < LANES ? cols - c : LANES;
        const int64_t at = n0 + c;
        RequantLanes q{seti(0), seti(0), set1(0.0f), e.out_zero, e.lo, e.hi};
        if constexpr (R == qk::Rounding::float_) {
            q.scale = load(e.requant_scale + at, n);
        } else {
            q.multiplier = load(e.multiplier + at, n);
            q.shift = load(e.shift + at, n);
        }
        const i32v bias = e.bias_i32 ? load(e.bias_i32 + at, n) : seti(0);
        uint8_t* out = static_cast<uint8_t*>(e.out) + m0 * ldo + at;
        const int32_t* column = tile + c;
        if (n == LANES) {
            for (int r = 0; r < rows; ++r, out += ldo, column += qk::kPanelN)
                store_bytes(out, requant<R>(addi(load(column), bias), q));
        } else {
            for (int r = 0; r < rows; ++r, out += ldo, column += qk::kPanelN)
                store_bytes(out, requant<R>(addi(load(column, n), bias), q), n);
        }
    }
}

}  // namespace
