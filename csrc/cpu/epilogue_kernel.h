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

// 4 * LANES columns from `c` on, where every shift allows it (scales below 1/4 for `single`, below 1 for `double_`):
// the low half of the 64-bit product does not reach the result, so high halves are shifted as int32, and three
// saturating packs replace four narrowing stores, with the limits on bytes. False: not done.
template <qk::Rounding R, bool BIAS>
bool store_byte_quad(const qk::Epilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0, int c) {
    using namespace simd;
    constexpr bool kFloat = R == qk::Rounding::float_;
    const int64_t ldo = e.ldo, at = n0 + c;
    const int16_t zero = static_cast<int16_t>(e.out_zero);
    const bool is_signed = e.hi <= 127;  // codes of 0..127 are the same either way
    const auto lo = static_cast<int16_t>(e.lo), hi = static_cast<int16_t>(e.hi);
    const f32v most = set1(1073741824.0f);  // beyond it the conversion is not defined; packs saturate the rest
    f32v scale[4];
    i32v bias[4], m[4], shift[4], half[4];
    for (int v = 0; v < 4; ++v) {
        const int64_t column = at + v * LANES;
        bias[v] = BIAS ? load(e.bias_i32 + column) : seti(0);
        if constexpr (kFloat) {
            scale[v] = load(e.requant_scale + column);
        } else {
            m[v] = load(e.multiplier + column);
            shift[v] = load(e.shift + column);
            if (!all_at_least(shift[v], R == qk::Rounding::single ? 2 : 0)) return false;
            if constexpr (R == qk::Rounding::single) {
                shift[v] = subi(shift[v], seti(1));  // t - 32, t = 31 + shift
                half[v] = pow2i(subi(shift[v], seti(1)));
            }
        }
    }
    auto code = [&](const int32_t* from, int v) {
        const i32v acc = BIAS ? addi(load(from + v * LANES), bias[v]) : load(from + v * LANES);
        if constexpr (kFloat) return to_int(min(mul(to_float(acc), scale[v]), most));
        if constexpr (R == qk::Rounding::single) return srav(addi(high_product(acc, m[v]), half[v]), shift[v]);
        return rounding_shift(high_doubled(acc, m[v]), shift[v]);
    };
    uint8_t* out = static_cast<uint8_t*>(e.out) + m0 * ldo + at;
    const int32_t* column = tile + c;
    for (int r = 0; r < rows; ++r, out += ldo, column += qk::kPanelN)
        store_codes4(out, code(column, 0), code(column, 1), code(column, 2), code(column, 3), zero, is_signed, lo, hi,
                     0);
    return true;
}

// Columns outside, rows inside: multipliers, shifts and their 64-bit halves are loaded once for all rows.
template <qk::Rounding R>
void store_byte(const qk::Epilogue& e, const void* data, int64_t m0, int rows, int64_t n0, int cols) {
    using namespace simd;
    const auto* tile = static_cast<const int32_t*>(data);
    const int64_t ldo = e.ldo;
    int c = 0;
    if constexpr (LANES > 1) {
        auto* quad = e.bias_i32 ? store_byte_quad<R, true> : store_byte_quad<R, false>;
        while (c + 4 * LANES <= cols && quad(e, tile, m0, rows, n0, c)) c += 4 * LANES;
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
