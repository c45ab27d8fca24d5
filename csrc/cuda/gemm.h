// Integer GEMM: acc[m][n] = sum over k of x[m][k] * w[n][k], int8 or uint8 activations, int8 weights in the layout of
// gemm_layout.h, and an epilogue.
#pragma once

#include "epilogue.h"
#include "gemm_layout.h"
#include "split_k.h"
#include "stream.h"

namespace qk::cuda {

struct GemmInt8 {
    const uint8_t* w = nullptr;  // codes of the layout
    int64_t n = 0, n_pad = 0, k_pad = 0;
    const uint8_t* x = nullptr;  // (m, k_pad) codes, pitch ldx; rows 16-byte aligned, 0 beyond K
    int64_t m = 0, ldx = 0;
    bool is_signed = true;
    Epilogue epilogue;
    SplitK split;  // set by the plan
};

// How a shape runs: which tile, and how many blocks share a K.
struct GemmPlan {
    int channels, tokens;  // of a tile; 16: the kernel for few tokens
    int splits;
    int64_t tiles;
    int64_t part_bytes() const { return splits > 1 ? tiles * splits * channels * tokens * 4 : 0; }
    int64_t counter_bytes() const { return splits > 1 ? tiles * 4 : 0; }
};
GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k_pad, int multiprocessors);

// workspace: plan.part_bytes() + plan.counter_bytes(), 16-byte aligned, its counters (the last part) 0. overlap: the
// launch before is a kernel of ours that lets the next start (quantize), on a device of compute capability 9.
void gemm_int8(const GemmInt8& g, const GemmPlan& plan, void* workspace, bool overlap, Stream stream);

// Rows of codes as the GEMM wants them: x (m, k), pitch ldx, to codes (m, k_pad), pitch k_pad, 0 beyond k (codes may
// be null); sums [m] of a row's codes (or null).
void pad_codes(const uint8_t* x, bool is_signed, int64_t m, int64_t k, int64_t ldx, uint8_t* codes, int64_t k_pad,
               int32_t* sums, Stream stream);

}  // namespace qk::cuda
