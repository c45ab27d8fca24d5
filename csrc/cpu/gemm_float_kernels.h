// What one kind of product contributes to the float core: a table of leaf functions, called once a tile or row.
#pragma once

#include "../common/float_layout.h"
#include "kernels.h"

namespace qk {

// Sources of operands: a table of 2^bits entries is its number of bits; beside those:
inline constexpr int kFromPanel = 0;   // decoded already
inline constexpr int kFromRamp = 9;    // 8-bit two's complement codes, converted
inline constexpr int kFromShort = 10;  // 4-bit codes of a table that bfloat16 holds exactly; not on every ISA
inline constexpr int kFromOwn = 10;    // + bits: a table for each channel
inline constexpr int kSources = kFromOwn + kFloatMaxBits + 1;

// tile[r][0..64) += scale[g] * (sum of the group's products) + offset[g] * sums[r][g], group after group.
struct FloatArgs {
    const void* x = nullptr;  // operands of the first row, from the first step on
    int64_t pitch = 0;        // bytes between rows
    int64_t steps = 0, group_steps = 1;
    const uint8_t* codes = nullptr;                  // of the panel, or decoded operands
    const void* table = nullptr;                     // in the products' own type
    int64_t table_stride = 0;                        // elements between the tables of channels, kFromOwn
    const char *scale = nullptr, *offset = nullptr;  // [groups][64]; offset may be null
    bool half_scale = false, half_offset = false;    // they are float16
    const float* sums = nullptr;                     // of the first row and group, where there is an offset
    int64_t sums_pitch = 0;                          // elements between rows
    float* tile = nullptr;                           // [rows][64]
    const char* ahead = nullptr;                     // as in MicroArgs
    int lines = 0;
    int column = 0;  // of a decoded panel, where a register tile is narrower than that
};
using FloatMicroFn = void (*)(const FloatArgs& args);
// The same for up to kTilesRows rows and a whole panel at once, on matrix tiles. Segments of `segment_steps` (the last
// may be short) and offsets as above; tails of a segment up to a whole tile of k are zeros in x.
struct FloatTilesArgs {
    const char* x = nullptr;  // bf16 [tiles of k][rows][32]
    int rows = 0;
    int64_t steps = 0, segment_steps = 1, segments = 1;
    const uint8_t* codes = nullptr;  // of the panel
    const void* table = nullptr;
    int64_t table_stride = 0, table_segment = 0;     // entries between channels; bytes between segments
    const char *scale = nullptr, *offset = nullptr;  // [segments][64]
    bool half_scale = false, half_offset = false;
    const float* sums = nullptr;
    int64_t sums_pitch = 0;
    float* tile = nullptr;    // [rows][64]
    char* scratch = nullptr;  // kTilesScratch bytes
};
using FloatTilesFn = void (*)(const FloatTilesArgs& args);
inline constexpr int kTilesRows = 48, kTileRows = 16, kTileK = 32;
inline constexpr int64_t kTilesScratch = 24 << 10;
// Operands of `steps` steps of a panel, [64 / column][steps]: in a step, of each of the column's channels its two k
// (bfloat16), or of the first k all channels, then of the second (float32).
using FloatDecodeFn = void (*)(const uint8_t* codes, int64_t steps, const void* table, int64_t table_stride, void* out);
// k operands from activations, times inv_k where that is given.
using ConvertFn = void (*)(const void* x, int64_t k, const float* inv_k, void* out);
using SumFn = float (*)(const void* operands, int64_t k);

struct FloatKernels {
    const char* name;
    int mr;                                    // rows of the largest register tile
    int element_bytes;                         // of an operand: 4 float32, 2 bfloat16
    int column;                                // channels of a register tile
    int block_steps;                           // of a decoded panel that stay in a cache
    FloatMicroFn micro[kSources][kMaxMr + 1];  // [source][rows]; null: decode, then kFromPanel
    FloatDecodeFn decode[kSources];
    ConvertFn convert[3];  // by DType of x
    SumFn sum;
    FloatTilesFn tiles[kSources][kTilesRows / kTileRows + 1];  // [source][rows of tiles]; null: there are none

    // Where the operands of a weight come from, and the table (of the first channel of a panel) in that source's type.
    int source(const FloatHeader& h) const {
        if (h.tables_of != 0) return kFromOwn + static_cast<int>(h.bits);
        if (h.short_table && h.bits == 4 && decode[kFromShort] != nullptr) return kFromShort;
        return h.ramp ? kFromRamp : static_cast<int>(h.bits);
    }
    const void* table(const FloatView& w, int source, int64_t panel, int64_t segment) const {
        const int64_t t = w.table(panel * kFloatPanelN, segment);
        return element_bytes == 4 && source != kFromShort ? static_cast<const void*>(w.table32(t)) : w.table16(t);
    }
    int64_t table_stride(const FloatHeader& h) const {
        return (h.tables_of == 2 ? h.segments : 1) * (element_bytes == 4 ? h.entries32() : h.entries16());
    }
};

const FloatKernels& float_kernels_scalar();
const FloatKernels& float_kernels_avx2();
const FloatKernels& float_kernels_avx512vnni();
const FloatKernels& float_kernels_avx512bf16();
const FloatKernels& float_kernels_amxbf16();

// gemm_float.cpp: the products of an ISA; `exact` asks for float32 ones.
const FloatKernels& float_kernels(Isa isa, bool exact);

}  // namespace qk
