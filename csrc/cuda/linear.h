// linear, matmul_int and linear_requant on the int8 core: the steps of a call, and the scratch memory that they share.
#pragma once

#include "gemm.h"
#include "quantize.h"
#include "runtime.h"

namespace qk::cuda {

// A prepacked weight on a device: the parts of gemm_layout.h.
struct Int8Weight {
    Int8Layout layout;
    const char* base = nullptr;
    bool has_zero_point = false, has_input_scale = false;
    TensorMap map = {};  // of the codes, by prepare(), on devices that have_wgmma()

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

// Whether a device runs the machine code of sm_90a, which is for compute capability 9.0 alone.
bool has_wgmma(const Device& device);
// What calls need of a weight beside its memory, made once on its device.
void prepare(Int8Weight& w);

// Memory that a call of m tokens needs beside its result; 256-byte aligned, contents of no matter.
int64_t scratch_bytes(const Int8Weight& w, int64_t m);

// x: where, how many and what the quantization is (its codes, scales, sums and counters lie in the scratch). The
// epilogue brings out, ldo, out_type, bias and activation.
void linear_int8(const Int8Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream);

// Codes x (m, k), pitch ldx, and an epilogue for i32, or i8 and u8.
void linear_codes(const Int8Weight& w, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                  const Epilogue& epilogue, void* scratch, Stream stream);

// out (m, n), contiguous, of int32 acc (m, n) with pitch ld_acc: an epilogue for i8, u8.
void requantize(const int32_t* acc, int64_t m, int64_t n, int64_t ld_acc, const Epilogue& epilogue, Stream stream);

}  // namespace qk::cuda
