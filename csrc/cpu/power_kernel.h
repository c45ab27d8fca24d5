// Power codes (PowerQuant, thesis eq. 3.13, a = 1/2): activations to codes or to what they decode to, the sums of split
// codes to floats, and codes back to numbers. IEEE square roots round correctly, so every instruction set agrees.
#pragma once

#include "kernels.h"

namespace {

template <class T, bool PER_K>
uint32_t quantize_power_row(const T* x, int64_t k, const qk::PowerRow& q, uint8_t* out, uint8_t* low) {
    using namespace simd;
    const bool is_signed = q.is_signed;  // copies: stores through bytes could change q for all the compiler knows
    const uint8_t flip = q.flip;
    const qk::PowerForm form = q.form;
    const float* inv_k = q.inv_k;
    const f32v inv = set1(q.inv), most = set1(q.largest), none = set1(0.0f);
    const int16_t lo = is_signed ? -128 : 0, hi = is_signed ? 127 : 255;
    i32v m = seti(0);
    auto value = [&](f32v v) {  // of the form, as an integer
        m = maxu(m, abs_bits(v));
        const f32v root = rint(min(sqrt(mul(is_signed ? abs(v) : max(v, none), inv)), most));
        const f32v y = form == qk::PowerForm::codes ? root : mul(root, root);
        return to_int(is_signed ? select_negative(v, sub(none, y), y) : y);
    };
    auto store4 = [&](uint8_t* to, i32v a, i32v b, i32v c, i32v d) {
        store_codes4(to, a, b, c, d, 0, is_signed, lo, hi, flip);
    };
    const i32v half = seti(is_signed ? 64 : 0), shift = seti(is_signed ? 7 : 8), base = seti(is_signed ? 128 : 256);
    auto store_all = [&](uint8_t* to, uint8_t* to_low, i32v a, i32v b, i32v c, i32v d) {
        if (form != qk::PowerForm::split) return store4(to, a, b, c, d);
        auto high = [&](i32v v) { return srav(addi(v, half), shift); };
        const i32v ha = high(a), hb = high(b), hc = high(c), hd = high(d);
        auto rest = [&](i32v v, i32v h) { return subi(v, muli(h, base)); };
        store4(to, ha, hb, hc, hd);
        store4(to_low, rest(a, ha), rest(b, hb), rest(c, hc), rest(d, hd));
    };
    auto at = [&](int64_t i) { return PER_K ? mul(load(x + i), load(inv_k + i)) : load(x + i); };
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
        const i32v a = value(at(i)), b = value(at(i + LANES));
        const i32v c = value(at(i + 2 * LANES)), d = value(at(i + 3 * LANES));
        store_all(out + i, low + i, a, b, c, d);
    }
    for (; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        const i32v a = value(PER_K ? mul(load(x + i, n), load(inv_k + i, n)) : load(x + i, n));
        uint8_t codes[4 * LANES], rests[4 * LANES];
        store_all(codes, rests, a, a, a, a);
        __builtin_memcpy(out + i, codes, n);
        if (form == qk::PowerForm::split) __builtin_memcpy(low + i, rests, n);
    }
    return reduce_maxu(m);
}

template <class T>
uint32_t quantize_power(const void* data, int64_t k, const qk::PowerRow& q, uint8_t* out, uint8_t* low) {
    const T* x = static_cast<const T*>(data);
    return q.inv_k ? quantize_power_row<T, true>(x, k, q, out, low) : quantize_power_row<T, false>(x, k, q, out, low);
}

inline void pair_i32(const void* tile, int rows, float factor, const float* scale, float* to) {
    using namespace simd;
    const auto* from = static_cast<const int32_t*>(tile);
    for (int r = 0; r < rows; ++r, from += 2 * qk::kPanelN, to += qk::kPanelN)
        for (int c = 0; c < qk::kPanelN; c += LANES)
            store(to + c, mul(to_float_pair(load(from + c), load(from + qk::kPanelN + c), factor), load(scale + c)));
}

inline void pair_sum(const void* tile, int rows, float factor, const float*, float* to) {
    using namespace simd;
    const auto* from = static_cast<const float*>(tile);
    for (int r = 0; r < rows; ++r, from += 2 * qk::kPanelN, to += qk::kPanelN)
        for (int c = 0; c < qk::kPanelN; c += LANES)
            store(to + c, fma(set1(factor), load(from + c), load(from + qk::kPanelN + c)));
}

template <class Out>
void dequantize(const uint8_t* codes, int64_t k, const float* table, float scale, void* out) {
    using namespace simd;
    Out* y = static_cast<Out*>(out);
    const f32v s = set1(scale);
    int64_t i = 0;
    for (; i + LANES <= k; i += LANES) store(y + i, mul(lookup256(table, codes + i), s));
    if (i < k) {
        uint8_t rest[LANES] = {};
        __builtin_memcpy(rest, codes + i, k - i);
        store(y + i, mul(lookup256(table, rest), s), static_cast<int>(k - i));
    }
}

}  // namespace
