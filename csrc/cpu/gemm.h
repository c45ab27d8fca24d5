// Integer GEMM driver and the ops that stand on it: matmul_int, linear with integer activations, linear_requant.
#pragma once

#include "../common/int8_layout.h"
#include "kernels.h"

namespace qk {

// Where activations come from.
enum class InputMode : int { dynamic_token = 0, dynamic_tensor = 1, static_tensor = 2, channel = 3 };

struct InputQuant {
    InputMode mode = InputMode::dynamic_token;
    bool is_signed = true;   // signed codes are stored as code + 128
    float scale = 1.0f;      // static_tensor
    int32_t zero_point = 0;  // static_tensor
};

// Writes the block described in common/int8_layout.h. scale_step and zero_step are 0 for per-tensor arrays, else 1;
// zero_point and input_scale may be null.
void int8_prepack(const int8_t* codes, int64_t n, int64_t k, const float* scale, int64_t scale_step,
                  const int16_t* zero_point, int64_t zero_step, const float* input_scale, void* out);

// acc = (x - x_zero) (w - w_zero)^T in exact int32, handed tile by tile to `store`. x: int8 or uint8 codes.
void int8_gemm_codes(const Kernels& isa, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                     const Int8View& w, Epilogue epilogue, EpilogueFn store, int threads);

// The same from floating-point x, quantized on the way. Returns the first row with a non-finite value, or -1.
int64_t int8_gemm_float(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, const InputQuant& q,
                        const Int8View& w, Epilogue epilogue, EpilogueFn store, int threads);

}  // namespace qk
