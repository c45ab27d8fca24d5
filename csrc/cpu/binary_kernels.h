// Leaf functions of the binary core, one table per instruction set; the driver (binary.cpp) is compiled once and calls
// them through pointers, once a tile or row.
#pragma once

#include "../common/binary_layout.h"
#include "kernels.h"

namespace qk {

inline constexpr int kBinaryMaxMr = 6;  // upper bound of rows in a register tile over all ISAs

// One register tile: up to kBinaryMaxMr rows of activations by one panel of 64 output channels.
//
// A row of activations is a sequence of segments of `words` words each: one segment of all of K for a matrix product,
// kh * kw segments of ceil(C / 64) words for a convolution, each pointing at a pixel. The weight's panel holds the
// segments one after the other. rows[s * count + r] is segment s of row r, masks likewise: bits that are 1 where an
// activation is not zero. Word pairs are taken within a segment, so an odd `words` costs a fifth of a word more.
struct BinaryTile {
    const uint64_t* const* rows;
    const uint64_t* const* masks;  // null: no activation is zero
    int64_t segments, words;
    const uint64_t* panel;
    const int32_t* start;      // [64] where accumulators start, by channel; null: 0
    const int32_t* row_start;  // [count] the same by row, instead of `start`; used where masks are
    int columns;               // channels wanted; what is computed is rounded up, and the tile has room for 64
    int32_t* tile;             // [count][64]: start - 2 * popcount((x ^ w) & masks)
};
using BinaryMicroFn = void (*)(const BinaryTile& t);

// What becomes of a tile of accumulators.
struct BinaryEpilogue {
    void* out = nullptr;
    int64_t ldo = 0;  // elements, or bytes of packed bits, between rows of out
    // float: ((float(acc) * alpha[n]) * x_scale[m]) + bias[n], each step rounded to float32, then activation or prelu
    const float* alpha = nullptr;
    const float* x_scale = nullptr;  // null: 1
    int64_t x_scale_step = 0;        // 0: one for all rows, 1: one a row
    const float* bias = nullptr;
    Activation activation = Activation::none;
    // x > gamma ? up * (x - gamma) + zeta : down * (x - gamma) + zeta, per channel; null up: none (thesis eq. 3.34)
    const float *up = nullptr, *down = nullptr, *gamma = nullptr, *zeta = nullptr;
    // integers: bit = (acc >= threshold[n]) ^ (flip[n] != 0), or times[n] * (bit ? 1 : -1) as int8
    const int32_t* threshold = nullptr;
    const int32_t* flip = nullptr;   // 0 or -1
    const int32_t* times = nullptr;  // -127..127
};
// Consumes tile[rows][64], whose first element is out[m0][n0]; cols <= 64 are real.
using BinaryStoreFn = void (*)(const BinaryEpilogue& e, const int32_t* tile, int64_t m0, int rows, int64_t n0,
                               int cols);

// out: bits of x[k] >= 0, 8 * ceil(k / 64) bytes, zero beyond k; null: only look. sum: null, or where the sum of |x|
// goes, taken in 64 interleaved partial sums (reference/binary.py says how). Without sum, returns the largest bit
// pattern of |x|, which is >= 0x7f800000 exactly where something is not finite; with sum, that is not finite then.
using PackSignsFn = uint32_t (*)(const void* x, int64_t k, uint64_t* out, float* sum);

enum class BinaryOut : int { f32 = 0, bf16 = 1, f16 = 2, i32 = 3, sign = 4, threshold = 5, multiple = 6, kCount = 7 };

struct BinaryKernels {
    int mr;
    // [activations masked][weight masked][rows]
    BinaryMicroFn micro[2][2][kBinaryMaxMr + 1];
    BinaryStoreFn store[static_cast<int>(BinaryOut::kCount)];
    PackSignsFn pack_signs[3];  // by DType f32, bf16, f16
};

const BinaryKernels& kernels_binary_scalar();
const BinaryKernels& kernels_binary_avx2();
const BinaryKernels& kernels_binary_avx512vpopcntdq();

const BinaryKernels& binary_kernels(Isa isa);  // binary.cpp

}  // namespace qk
