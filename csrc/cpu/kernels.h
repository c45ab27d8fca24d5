// What one instruction set contributes: a table of leaf functions. The drivers (gemm.cpp, quantize.cpp) are compiled
// once for the baseline and call these through pointers, once per tile or row, so no driver is written twice.
#pragma once

#include "../common/gemm_layout.h"

namespace qk {

// Weakest first; each includes what is before it. A family that gains nothing from a level runs the one below.
enum class Isa : int { scalar = 0, avx2 = 1, avx512vnni = 2, avx512vpopcntdq = 3, avx512bf16 = 4, amxbf16 = 5 };
inline constexpr int kIsaCount = 6;
inline constexpr const char* kIsaNames[kIsaCount] = {"scalar",          "avx2",       "avx512vnni",
                                                     "avx512vpopcntdq", "avx512bf16", "amxbf16"};
inline constexpr int kMaxMr = 8;  // upper bound of rows in a register tile over all ISAs

// tile[r][0..64) = start + sum over k of x[r][k] * w[0..64)[k], r < MR: a register tile over one panel.
struct MicroArgs {
    const uint8_t* const* rows = nullptr;  // rows[r * row_step + s]: activation codes of row r in segment s, as u8
    int64_t row_step = 1, segments = 1;
    int64_t steps = 0;                // k steps of a segment
    const uint8_t* codes = nullptr;   // of the panel: int8, or packed in the width that the kernel decodes
    const uint8_t* offset = nullptr;  // [64] what packed codes are lessened by; or the table of indices, int8 [16]
    const int32_t* init = nullptr;    // [64] start of every row, or null: the tile's own content (a later block of k)
    int32_t* tile = nullptr;          // [rows][64]
    const char* ahead = nullptr;      // `lines` cache lines in every four k steps are requested from here on: what
    int lines = 0;                    // comes next
};
using MicroFn = void (*)(const MicroArgs& args);

// tile[r][0..64) += scale[g] * float(acc_g), one fused multiply-add a group g in their order; acc_g the sum of the
// group's products, exact. One segment of `steps` k steps; the last group may be short.
struct GroupArgs {
    const uint8_t* const* rows = nullptr;  // [rows]
    int64_t steps = 0, group_steps = 0;
    const uint8_t* codes = nullptr;
    const uint8_t* offset = nullptr;  // [groups][64], packed codes; or the table
    const float* scale = nullptr;     // [groups][64]
    const int32_t* init = nullptr;    // [groups][64] starts; packed codes: unused, `zero` takes their place
    uint8_t zero = 0;                 // what the stored code of 0 is: zero * sum(w) is taken off
    float* tile = nullptr;            // [rows][64]
    const char* ahead = nullptr;      // as in MicroArgs
    int lines = 0;
};
using GroupFn = void (*)(const GroupArgs& args);

// int8 operands [steps][64][4] of a packed panel; offset [64], or the table.
using DecodeFn = void (*)(const uint8_t* codes, int64_t steps, const uint8_t* offset, int8_t* out);

// Everything an epilogue may need; a tile never knows which of it is used.
struct Epilogue {
    void* out = nullptr;
    int64_t ldo = 0;    // elements between rows of out
    int out_bytes = 4;  // of an element
    // float out: ((float(acc) * w_scale[n]) * x_scale[m]) + bias[n], each step rounded to float32, then activation
    const float* w_scale = nullptr;
    const float* x_scale = nullptr;  // null: 1 (SPIQ: the scale is inside the weight)
    int64_t x_scale_step = 0;        // 0: one for all rows, 1: one a row
    const float* bias = nullptr;
    Activation activation = Activation::none;
    // int8 / uint8 out: requant(acc + bias_i32[n]) + out_zero, clamped to [lo, hi]
    const int32_t* bias_i32 = nullptr;
    const int32_t* multiplier = nullptr;   // [n]
    const int32_t* shift = nullptr;        // [n]
    const float* requant_scale = nullptr;  // [n], rounding float_
    int32_t out_zero = 0, lo = -128, hi = 127;
    // rank-one patch of asymmetric weights: acc -= w_zero[n] * x_sum[m]
    const int32_t* w_zero = nullptr;
    const int32_t* x_sum = nullptr;
};

// Consumes tile[rows][64] of int32 (store_sum: of float), whose first element is out[m0][n0]; cols <= 64 are real.
using EpilogueFn = void (*)(const Epilogue& e, const void* tile, int64_t m0, int rows, int64_t n0, int cols);
// tile[r][n] -= w_zero[n0 + n] * x_sum[m0 + r]
using PatchFn = void (*)(const Epilogue& e, int32_t* tile, int64_t m0, int rows, int64_t n0);

// How one row of floats becomes codes: out[k] = clip(rint(x[k] * inv_k[k] * inv) + zero, lo, hi) ^ flip.
struct QuantizeRow {
    float inv = 1.0f;
    const float* inv_k = nullptr;  // 1 / input_scale of the weight, multiplied first; null: 1
    int16_t zero = 0;
    bool is_signed = true;
    int16_t lo = -128, hi = 127;  // within int8, or uint8 if not signed
    uint8_t flip = 0;             // 0x80 stores int8 codes as code + 128, as the integer core wants them
    bool check = true;            // report the largest |x|; without it, |x * inv_k * inv| must be below 2^30
};
// Largest bit pattern of |x * inv_k|: float order, and >= 0x7f800000 exactly where something is not finite.
using AmaxFn = uint32_t (*)(const void* x, int64_t k, const float* inv_k);
// Writes k codes; returns the largest bit pattern of |x|, or 0 where q.check is false.
using QuantizeFn = uint32_t (*)(const void* x, int64_t k, const QuantizeRow& q, uint8_t* out);
using FlipCodesFn = void (*)(const uint8_t* x, int64_t k, uint8_t flip, uint8_t* out);
using SumCodesFn = int32_t (*)(const uint8_t* x, int64_t k);

// How one row of floats becomes power codes q = min(rint(sqrt(|x * inv_k[k] * inv|)), largest) with the sign of x, or 0
// for negative x if not signed.
enum class PowerForm : int {
    codes = 0,    // q
    decoded = 1,  // q^2 with the sign, where that fits a byte
    split = 2,    // q^2 with the sign = 128 h + l, -64 <= l <= 63; unsigned 256 h + l: h to out, l to low
};
struct PowerRow {
    float inv = 1.0f;
    const float* inv_k = nullptr;  // as in QuantizeRow
    bool is_signed = true;
    int16_t largest = 127;
    uint8_t flip = 0;
    PowerForm form = PowerForm::codes;
};
// Writes k bytes; returns the largest bit pattern of |x * inv_k|.
using QuantizePowerFn = uint32_t (*)(const void* x, int64_t k, const PowerRow& q, uint8_t* out, uint8_t* low);
// Rows 2r and 2r + 1 of a tile are the sums of h and of l: row r becomes what factor * h + l stands for. pair_i32: the
// exact integer to float32, times scale[64]; pair_sum: one fused multiply-add of floats. tile [2 * rows][64] -> out
// [rows][64].
using PairFn = void (*)(const void* tile, int rows, float factor, const float* scale, float* out);
// out[i] = table[codes[i]] * scale, table [256]
using DequantizeFn = void (*)(const uint8_t* codes, int64_t k, const float* table, float scale, void* out);

struct Kernels {
    const char* name;
    int mr;                                // rows of the largest register tile
    MicroFn micro[kDecoders][kMaxMr + 1];  // [decoder][r] computes r rows; null: decode the panel, then 8
    GroupFn group[kDecoders][kMaxMr + 1];  // the same for group-wise scales
    DecodeFn decode[kDecoders];            // all but 8
    PatchFn patch_zero_point;
    EpilogueFn store_i32;
    EpilogueFn store_float[3];  // by DType f32, bf16, f16
    EpilogueFn store_sum[3];    // by DType, from a tile of floats that group scales are part of
    EpilogueFn store_byte[3];   // by Rounding
    AmaxFn amax[3];             // by DType
    QuantizeFn quantize[3];
    FlipCodesFn flip_codes;
    SumCodesFn sum_codes;
    QuantizePowerFn quantize_power[3];  // by DType
    PairFn pair_i32, pair_sum;
    DequantizeFn dequantize[3];  // by DType
};

const Kernels& kernels_scalar();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512vnni();

// dispatch.cpp
const Kernels& kernels(Isa isa);
bool supported(Isa isa);  // CPUID and the operating system's saved state
#if defined(QKERNELS_EMULATE_AVX512)
inline constexpr bool kEmulated = true;  // AVX-512 kernels are built from AVX2 (simd/emulated)
#else
inline constexpr bool kEmulated = false;
#endif
Isa best_isa();

}  // namespace qk
