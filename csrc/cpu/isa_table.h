// The table of one ISA, from its primitives. Included last by every isa_*.cpp.
#pragma once

#include "epilogue_kernel.h"
#include "gemm_kernel.h"
#include "kernels.h"
#include "quantize_kernel.h"

namespace {

inline qk::Kernels make_kernels(const char* name) {
    static_assert(simd::MR <= qk::kMaxMr);
    qk::Kernels t{};
    t.name = name;
    t.mr = simd::MR;
    fill_micro<Int8Decoder>(t.micro);
    t.patch_zero_point = patch_zero_point;
    t.store_i32 = store_i32;
    t.store_float[0] = store_float<float>;
    t.store_float[1] = store_float<qk::bf16>;
    t.store_float[2] = store_float<qk::f16>;
    t.store_byte[0] = store_byte<qk::Rounding::single>;
    t.store_byte[1] = store_byte<qk::Rounding::double_>;
    t.store_byte[2] = store_byte<qk::Rounding::float_>;
    t.amax[0] = amax<float>;
    t.amax[1] = amax<qk::bf16>;
    t.amax[2] = amax<qk::f16>;
    t.quantize[0] = quantize<float>;
    t.quantize[1] = quantize<qk::bf16>;
    t.quantize[2] = quantize<qk::f16>;
    t.flip_codes = flip_codes;
    t.sum_codes = sum_codes;
    return t;
}

}  // namespace
