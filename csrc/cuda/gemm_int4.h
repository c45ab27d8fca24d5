// int8 activations against 4-bit weights: y = sum over groups g of scale[n, g] * acc_g, one fused multiply-add a group
// in their order, acc_g exact with both zero points (qkernels.reference.grouped_sum, bit for bit), and an epilogue.
// Without groups one product takes the place of the sum.
#pragma once

#include "decode_table.h"
#include "epilogue.h"
#include "gemm_int4_layout.h"
#include "quantize.h"

namespace qk::cuda {

struct Int4Weight {
    Int4Layout layout;
    const char* base = nullptr;
    bool has_zero_point = false, has_input_scale = false;
    Decoder decoder = Decoder::integers;
    Table16 table;  // int8 entries, in the low bytes

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

enum class Int4Kernel : int { skinny = 0, tile = 1 };

// Groups whose sums the skinny kernel keeps in shared memory at once, and where what they need lies there.
struct Int4Round {
    int groups;  // an even number: a round starts with a tile of 64 positions
    int sums, scale, zero, offset, x_sum, bytes;
};

// How a shape runs.
struct Int4Plan {
    Int4Kernel kernel;
    int channels, tokens;  // of a tile
    int64_t tiles;
    Int4Round round;  // skinny
};
// The one place where a kernel is chosen. has_sums, has_x_zero: the weight has zero points, the activations have one.
Int4Plan plan_int4(int64_t m, const Int4Layout& w, bool has_sums, bool has_x_zero, int multiprocessors);

struct GemmInt4 {
    Int4Layout layout;
    Decoder decoder = Decoder::integers;
    Table16 table;
    const uint8_t* w = nullptr;
    const char* scale = nullptr;
    const int8_t* zero = nullptr;     // or null
    const int32_t* offset = nullptr;  // used where x_zero is not 0
    const uint8_t* x = nullptr;       // (m, k_pad)
    const int32_t* x_sum = nullptr;   // [groups][m_pad], with zero
    int64_t m = 0, m_pad = 0;         // m_pad: a multiple of 4
    int32_t x_zero = 0;
    bool is_signed = true;
    // What sums start from: 0, or, where a sum has one term that is the reference's product, -0, which changes no term.
    float start = 0.0f;
    Int4Round round = {};
    Epilogue epilogue;
};

// overlap: as of gemm_int8.
void gemm_int4_skinny(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream);
void gemm_int4_tile(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream);

int64_t scratch_bytes(const Int4Weight& w, int64_t m);

// x: where, how many and what the quantization is. The epilogue brings out, ldo, out_type, bias, activation.
void linear_int4(const Int4Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream);

}  // namespace qk::cuda
