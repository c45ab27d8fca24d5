// int8 activations against 4-bit weights with group-wise scales: y = sum over groups g of scale[n, g] * acc_g, one
// fused multiply-add a group in their order, acc_g exact (qkernels.reference.grouped_sum, bit for bit), and an
// epilogue.
#pragma once

#include "decode_table.h"
#include "epilogue.h"
#include "gemm_int4_layout.h"
#include "quantize.h"

namespace qk::cuda {

struct Int4Weight {
    Int4Layout layout;
    const char* base = nullptr;
    bool has_input_scale = false;
    Decoder decoder = Decoder::integers;
    Table16 table;  // int8 entries, in the low bytes

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

int64_t scratch_bytes(const Int4Weight& w, int64_t m);

// x: where, how many and what the quantization is; no zero point. The epilogue brings out, ldo, out_type, bias,
// activation.
void linear_int4(const Int4Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream);

}  // namespace qk::cuda
