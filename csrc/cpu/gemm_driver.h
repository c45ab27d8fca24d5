// One panel of output channels over a range of rows: what the loops of gemm.cpp and of convolutions have in common.
#pragma once

#include "../common/gemm_layout.h"
#include "kernels.h"

namespace qk {

inline constexpr int64_t kBlockK = 8192;   // k of a panel that stays in L2 while rows pass over it: 512 KB of int8
inline constexpr int64_t kTileRows = 192;  // rows whose partial sums are kept while k advances in blocks

struct Problem {
    const Kernels& isa;
    GemmView w;
    int64_t m;
    // Rows of activation codes, u8: contiguous over the padded k, or a pointer to each of their segments.
    const uint8_t* a = nullptr;
    int64_t lda = 0;
    const uint8_t* const* pointers = nullptr;  // pointers[row * segments + s]; null: a is used
    const int32_t* init = nullptr;             // [n_pad] where accumulators start (weights that are not grouped)
    uint8_t zero = 128;                        // the stored code of 0
    Epilogue epilogue = {};
    EpilogueFn store = nullptr;  // of a tile of int32; of floats (store_sum) for grouped weights
    bool patch = false;
    // Split power codes: rows 2r and 2r + 1 of `a` are h and l of row r, and `store` gets floats: a pair of sums as one
    // number. Rows elsewhere count pairs.
    bool pairs = false;
    float factor = 1.0f;  // of h

    int64_t tile_rows() const { return pairs ? kTileRows / 2 : kTileRows; }
};

// Rows [begin, end) of panel `panel`. With k beyond kBlockK, or pairs, at most tile_rows().
void run_panel(const Problem& p, int64_t panel, int64_t begin, int64_t end);

// Where accumulators start when stored codes are u = real code + zero: -zero * sum(w), modulo 2^32. buffer: [n_pad].
const int32_t* starts(const GemmView& w, int32_t zero, int32_t* buffer);

}  // namespace qk
