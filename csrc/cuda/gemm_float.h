// Weight-only GEMM: sum over k of x[m][k] * W[n][k], activations float16 or bfloat16 (GEMV: float32, too), weights of
// up to 4 bits in the layout of gemm_float_layout.h, float32 sums, and an epilogue.
#pragma once

#include "decode_table.h"
#include "epilogue.h"
#include "gemm_float_layout.h"
#include "split_k.h"
#include "stream.h"

namespace qk::cuda {

struct GemmFloat {
    FloatLayout layout;
    Decoder decoder = Decoder::integers;
    Table16 table, table_rest;      // entries as 16-bit numbers; table_rest: low halves of float32 ones (high in table)
    const char* w = nullptr;        // codes
    const char* scale = nullptr;    // of layout.scale_bytes each
    const float* offset = nullptr;  // or null
    const char* x = nullptr;        // (m, k_pad) of x_type, 0 where a position has no element; rows 16-byte aligned
    DType x_type = DType::bf16;
    int64_t m = 0, ldx = 0;        // ldx: bytes
    const float* x_sum = nullptr;  // [unit][m_pad]: sums over a unit's positions, where there are offsets
    int64_t m_pad = 0;             // a multiple of 4
    Epilogue epilogue;
    SplitK split;  // set by the plan
};

// How a shape runs.
struct FloatPlan {
    int tokens, channels;  // of a tile; kGemvChannels: gemv_float.cu, on tensor cores with 8 tokens
    int splits;
    int64_t tiles;
    int64_t part_bytes() const { return splits > 1 ? tiles * splits * channels * tokens * 4 : 0; }
    int64_t counter_bytes() const { return splits > 1 ? tiles * 4 : 0; }
};

inline constexpr int kGemvTokens = 4, kGemvChannels = 32;

// Thresholds, in this one place: up to 8 tokens the GEMV on tensor cores, any number of float32 ones that on CUDA
// cores; then the least tile of 16, 32 or 64 tokens that holds them, or tiles of 64; 128 channels, or 256 where those
// fill the device.
FloatPlan plan_float(int64_t m, const FloatLayout& w, DType x_type, int multiprocessors);

// For tests and measurements: CUDA cores for up to 4 tokens, or tiles (8 tokens, too), in every plan from now on.
enum class FloatChoice { any, cuda_cores, tiles };
void force_float(FloatChoice choice);

// overlap: the kernel before, which lets it, may still run (device.h); it may have written x, x_sum and the counters.
// workspace: plan.part_bytes() + plan.counter_bytes(), 16-byte aligned, its counters (the last part) 0.
void gemm_float(GemmFloat g, const FloatPlan& plan, void* workspace, bool overlap, Stream stream);

void gemv_float(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream);  // gemv_float.cu

}  // namespace qk::cuda
