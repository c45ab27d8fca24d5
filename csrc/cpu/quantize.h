// Activation quantization over whole matrices.
#pragma once

#include "gemm.h"
#include "kernels.h"

namespace qk {

// Bit pattern below which a row's or tensor's amax counts as zero and its scale is 1: 2^-100.
inline constexpr uint32_t kTinyAmax = (127u - 100u) << 23;
inline constexpr uint32_t kNotFinite = 0x7f800000u;

// The scale that a dynamic maximum gives: amax / largest code, 1 where nothing is there to scale.
float dynamic_scale(uint32_t amax_bits, int largest);  // largest: what the scale is multiplied with

// The one scale of a call where rows do not have their own: static, per tensor, or 1 (per channel).
float fixed_scale(const InputQuant& q, uint32_t tensor_bits);

// codes (m, ldo) bytes, each xor flip; scales: one a row for InputMode::dynamic_token, else not written. inv_k:
// 1 / input_scale of the weight, or null. `tensor_bits` is the maximum over the whole tensor for
// InputMode::dynamic_tensor. Returns the first row with a non-finite value, or -1.
int64_t quantize_rows(const Kernels& isa, const void* x, DType x_type, int64_t k, int64_t ldx, int64_t row_begin,
                      int64_t row_end, const InputQuant& q, const float* inv_k, uint32_t tensor_bits, uint8_t flip,
                      uint8_t* codes, int64_t ldo, float* scales);
// The same for q.power, in one of its forms; `low` as `codes`, for PowerForm::split.
int64_t quantize_power_rows(const Kernels& isa, const void* x, DType x_type, int64_t k, int64_t ldx, int64_t row_begin,
                            int64_t row_end, const InputQuant& q, const float* inv_k, uint32_t tensor_bits,
                            PowerForm form, uint8_t flip, uint8_t* codes, uint8_t* low, int64_t ldo, float* scales);
// Largest bit pattern of |x * inv_k| over a whole matrix, for InputMode::dynamic_tensor.
uint32_t amax_tensor(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                     const float* inv_k, int threads);

// The public op: codes and scales for a matrix. Returns the first non-finite row, or -1.
int64_t quantize_activations(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                             const InputQuant& q, const float* inv_k, uint8_t* codes, float* scales, int threads);

// out[m][i] = table[codes[m][i]] * scales[m * scale_step], contiguous, of type out_type; table [256].
void dequantize(const Kernels& isa, const uint8_t* codes, int64_t m, int64_t k, int64_t ldx, const float* table,
                const float* scales, int64_t scale_step, DType out_type, void* out, int threads);

}  // namespace qk
