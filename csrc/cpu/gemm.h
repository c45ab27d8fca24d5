// Integer GEMM driver and the ops that stand on it: matmul_int, linear with integer activations, linear_requant.
#pragma once

#include <algorithm>

#include "../common/gemm_layout.h"
#include "kernels.h"

namespace qk {

// Where activations come from.
enum class InputMode : int { dynamic_token = 0, dynamic_tensor = 1, static_tensor = 2, channel = 3 };

struct InputQuant {
    InputMode mode = InputMode::dynamic_token;
    bool is_signed = true;   // signed codes are stored as code + 128
    float scale = 1.0f;      // static_tensor
    int32_t zero_point = 0;  // static_tensor
    int bits = 8;            // 2 to 8
    bool power = false;      // codes q stand for scale * q^2 with the sign of q (kernels.h); token or tensor

    int lo() const { return is_signed ? -(1 << (bits - 1)) : 0; }
    int hi() const { return is_signed ? (1 << (bits - 1)) - 1 : (1 << bits) - 1; }
    int largest() const { return power ? hi() * hi() : hi(); }  // that a scale is multiplied with
    bool split() const { return power && largest() > (is_signed ? 127 : 255); }
    int factor() const { return is_signed ? 128 : 256; }  // of h, where a code is split
};

// What a weight is prepacked from. scale and zero_point have an element for row n and part p at n * row_step + p *
// part_step (0 where there is one for all); zero_point, input_scale, columns and row_bits may be null.
struct PrepackSource {
    GemmShape shape;
    int bits;                 // width of all codes, or
    const uint8_t* row_bits;  // of each row's; rows in the order of `columns` are sorted by width
    const int32_t* columns;   // [n] output channel of each row of the block
    const int8_t* codes;      // (n, k)
    const float* scale;
    const int16_t* zero_point;
    int64_t row_step, part_step;
    const float* input_scale;  // (k)
    const int8_t* lookup;      // [16], where shape.lookup: codes are indices of it
};
int64_t packed_bytes(const PrepackSource& source);
void prepack(const PrepackSource& source, void* out);

// acc = (x - x_zero) (w - w_zero)^T in exact int32, handed tile by tile to `store`. x: int8 or uint8 codes. Not for
// grouped weights.
void gemm_codes(const Kernels& isa, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                const GemmView& w, Epilogue epilogue, EpilogueFn store, int threads);

// The same from floating-point x, quantized on the way; `store` is store_sum for grouped weights and for q.split().
// Returns the first row with a non-finite value, or -1.
int64_t gemm_quantized(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, const InputQuant& q,
                       const GemmView& w, Epilogue epilogue, EpilogueFn store, int threads);

}  // namespace qk
