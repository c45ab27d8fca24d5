// From accumulators to the output: zero points, scale or fixed-point requantization, bias, activation, store;
// epilogue_kernel.h computes it.
//
//   int32     acc' = (acc << acc_shift) - x_zero * x_offset[n] - w_zero[n] * x_sum[m]
//   float     act(((float(acc') * w_scale[n]) * x_scale[m]) + bias[n])          each operation rounds once
//   int8      clamp(requant(acc' + bias_i32[n]) + out_zero, lo, hi)             common/fixed_point.h
//   bits      of the float result >= 0, or of acc' against threshold[n]: bit n % 8 of byte n / 8, those past n 0
// Cores whose sums are floats already call store(m, float4): act((sum * x_scale[m]) + bias[n]).
#pragma once

#include "../common/types.h"

namespace qk::cuda {

inline constexpr int kVector = 4;

enum class Pack : int { none = 0, sign = 1, threshold = 2 };

struct Epilogue {
    void* out = nullptr;  // (m, n) of out_type, pitch ldo
    int64_t ldo = 0;
    int64_t n = 0;  // channels that exist
    DType out_type = DType::f32;
    const float* w_scale = nullptr;  // [n] or null: 1
    const float* x_scale = nullptr;  // [m] or null: 1
    const float* bias = nullptr;     // [n] or null
    Activation activation = Activation::none;
    int32_t x_zero = 0;
    const int32_t* x_offset = nullptr;  // [n], where x_zero is not 0
    const int32_t* w_zero = nullptr;    // [n] or null, with
    const int32_t* x_sum = nullptr;     // [m]
    // out_type i8, u8
    const int32_t *multiplier = nullptr, *shift = nullptr, *bias_i32 = nullptr;  // [n] each; bias_i32 or null
    const float* requant_scale = nullptr;                                        // [n], for Rounding::float_
    Rounding rounding = Rounding::single;
    int32_t out_zero = 0, lo = -128, hi = 127;
    // Bits: out is (m, ceil(n / 8)) bytes of pitch ldo.
    Pack pack = Pack::none;
    const int32_t *threshold = nullptr, *flip = nullptr;  // [n]: acc' >= threshold, or <= where flip is not 0
    int32_t acc_shift = 0;
    bool vector = false;  // rows of `out` start where kVector elements are aligned; set by prepare()

    void prepare() {
        const size_t bytes = kVector * (out_type == DType::f32 || out_type == DType::i32
                                            ? 4
                                            : (out_type == DType::i8 || out_type == DType::u8 ? 1 : 2));
        vector = ldo % kVector == 0 && reinterpret_cast<uintptr_t>(out) % bytes == 0;
    }
};

}  // namespace qk::cuda
