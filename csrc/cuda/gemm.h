// Integer GEMM: acc[m][n] = sum over k of x[m][k] * w[n][k], int8 or uint8 activations, int8 weights in the layout of
// gemm_layout.h, and an epilogue.
#pragma once

#include "epilogue.h"
#include "gemm_layout.h"
#include "split_k.h"
#include "stream.h"
#include "tensor_map.h"

namespace qk::cuda {

struct GemmInt8 {
    const uint8_t* w = nullptr;  // codes of the layout
    int64_t n = 0, n_pad = 0, k_pad = 0;
    const uint8_t* x = nullptr;  // (m, k_pad) codes, pitch ldx; rows 16-byte aligned, 0 beyond K
    int64_t m = 0, ldx = 0;
    const TensorMap* w_map = nullptr;  // of w, for gemm_int8_wgmma; on the host
    bool is_signed = true;
    Epilogue epilogue;
    SplitK split;  // set by the plan
};

enum class GemmKernel : int { skinny = 0, tile = 1, wgmma = 2 };
enum class GemmChoice : int { any = 0, mma = 1, wgmma = 2, wgmma_single = 3, wgmma_pair = 4 };

// How a shape runs: which kernel and tile, and how many blocks share a K.
struct GemmPlan {
    GemmKernel kernel;
    int channels, tokens;  // of a tile
    int splits;
    int64_t tiles;
    int64_t blocks;   // of a launch that goes over tiles: wgmma
    int cluster = 1;  // blocks that share activations: wgmma
    int64_t part_bytes() const { return splits > 1 ? tiles * splits * channels * tokens * 4 : 0; }
    int64_t counter_bytes() const { return splits > 1 ? tiles * 4 : 0; }
};
// The one place where a kernel is chosen. has_wgmma: the device is sm_90, whose machine code gemm_int8_sm90a.cu is.
GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k_pad, int multiprocessors, bool has_wgmma);
// For tests: plans are made for skinny or tile (mma), or for wgmma where it takes the shape, with clusters as planned,
// of one block (single) or of two (pair); any: as if never called.
void force_gemm(GemmChoice choice);

// workspace: plan.part_bytes() + plan.counter_bytes(), 16-byte aligned, its counters (the last part) 0. overlap: the
// launch before is a kernel of ours that lets the next start (quantize), on a device of compute capability 9.
void gemm_int8(const GemmInt8& g, const GemmPlan& plan, void* workspace, bool overlap, Stream stream);

// The kernel of gemm_int8_sm90a.cu, and the map of a prepacked weight's codes that it takes.
void gemm_int8_wgmma(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream);
TensorMap int8_tensor_map(const void* codes, int64_t n_pad, int64_t k_pad);

// Rows of codes as the GEMM wants them: x (m, k), pitch ldx, to codes (m, k_pad), pitch k_pad, 0 beyond k (codes may
// be null); sums [m] of a row's codes (or null).
void pad_codes(const uint8_t* x, bool is_signed, int64_t m, int64_t k, int64_t ldx, uint8_t* codes, int64_t k_pad,
               int32_t* sums, Stream stream);

}  // namespace qk::cuda
