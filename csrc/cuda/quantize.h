// Activations to int8 or uint8 codes on the device: qkernels/reference/quantize.py, bit for bit.
#pragma once

#include "gemm_int4_layout.h"
#include "stream.h"

namespace qk::cuda {

enum class InputMode : int { dynamic_token = 0, dynamic_tensor = 1, static_tensor = 2, channel = 3 };

// codes[m][i] = clip(rint(x[m][i] * inv_k[i] * (1 / scale)) + zero, lo, hi) for i < k, 0 up to k_pad; where groups are
// padded, at the position of i, and 0 at those of none.
//
// A kernel cannot refuse without stopping the stream: a row with a value that is not finite gets the scale NaN (with
// one dynamic scale for all, every row does), so that what is computed from it is NaN.
struct Quantize {
    const void* x = nullptr;  // (m, k) of x_type, pitch ldx
    DType x_type = DType::f32;
    int64_t m = 0, k = 0, ldx = 0;
    InputMode mode = InputMode::dynamic_token;
    int32_t lo = -127, hi = 127, zero = 0;
    int32_t largest = 127;         // what a dynamic scale is multiplied with to give amax
    float scale = 1.0f;            // static_tensor
    const float* inv_k = nullptr;  // [k] or null
    uint8_t* codes = nullptr;      // (m, k_pad) of pitch ldo, a multiple of 16; rows 16-byte aligned
    int64_t k_pad = 0, ldo = 0;
    float* scales = nullptr;          // [m], of each row also where one scale is for all; or null
    int32_t* sums = nullptr;          // [m]: sum of the row's codes; or null
    uint32_t* tensor_bits = nullptr;  // [1], scratch of dynamic_tensor
    PaddedGroups padded;
    int32_t* group_sums = nullptr;  // [groups][m_pad]: sums of the codes at each `group_positions`; or null
    int64_t groups = 0, group_positions = 0, m_pad = 0;
    int32_t* clear = nullptr;  // [clear_count] becomes 0: counters of the kernel that follows (split_k.h)
    int64_t clear_count = 0;
};

void quantize(const Quantize& q, Stream stream);

}  // namespace qk::cuda
