// Weight-only linear: the steps of a call, and the scratch memory that they share.
#pragma once

#include "gemm_float.h"

namespace qk::cuda {

// A prepacked weight on a device: the parts of gemm_float_layout.h, and its table for each type of activations.
struct FloatWeight {
    FloatLayout layout;
    const char* base = nullptr;
    bool has_offset = false, has_input_scale = false;
    Decoder decoder = Decoder::integers;
    Table16 half, brain, high, low;  // of entries rounded to float16 and bfloat16; the halves of float32 ones

    void set_table(const float (&entries)[16]);
    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

struct FloatInput {
    const void* x = nullptr;  // (m, k) of type, pitch ldx (elements)
    DType type = DType::bf16;
    DType compute = DType::bf16;  // what x, times 1 / input_scale in float32, is rounded to: what is multiplied
    int64_t m = 0, ldx = 0;
};

// Memory that a call of m tokens needs beside its result; 256-byte aligned, contents of no matter.
int64_t scratch_bytes(const FloatWeight& w, int64_t m, DType compute);

// The epilogue brings out, ldo, out_type, bias and activation.
void linear_float(const FloatWeight& w, const FloatInput& x, const Epilogue& epilogue, void* scratch, Stream stream);

}  // namespace qk::cuda
