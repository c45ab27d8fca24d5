// The table of one ISA, from its primitives. Included last by every isa_*.cpp.
#pragma once

#include "epilogue_kernel.h"
#include "gemm_kernel.h"
#include "kernels.h"
#include "power_kernel.h"
#include "quantize_kernel.h"

namespace {

inline qk::Kernels make_kernels(const char* name) {
    static_assert(simd::MR <= qk::kMaxMr);
    qk::Kernels t{};
    t.name = name;
    t.mr = simd::MR;
    fill_micro<8>(t.micro[8], t.group[8]);
    fill_micro<4>(t.micro[4], t.group[4]);
    fill_micro<3>(t.micro[3], t.group[3]);
    fill_micro<2>(t.micro[2], t.group[2]);
    fill_micro<1>(t.micro[1], t.group[1]);
    fill_micro<10>(t.micro[10], t.group[10]);
    fill_micro<11>(t.micro[11], t.group[11]);
    fill_micro<12>(t.micro[12], t.group[12]);
    t.decode[1] = decode<1>;
    t.decode[2] = decode<2>;
    t.decode[3] = decode<3>;
    t.decode[4] = decode<4>;
    t.decode[5] = decode<5>;
    t.decode[6] = decode<6>;
    t.decode[7] = decode<7>;
    t.decode[10] = decode<10>;
    t.decode[11] = decode<11>;
    t.decode[12] = decode<12>;
    t.patch_zero_point = patch_zero_point;
    t.store_i32 = store_i32;
    t.store_float[0] = store_float<int32_t, float>;
    t.store_float[1] = store_float<int32_t, qk::bf16>;
    t.store_float[2] = store_float<int32_t, qk::f16>;
    t.store_sum[0] = store_float<float, float>;
    t.store_sum[1] = store_float<float, qk::bf16>;
    t.store_sum[2] = store_float<float, qk::f16>;
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
    t.quantize_power[0] = quantize_power<float>;
    t.quantize_power[1] = quantize_power<qk::bf16>;
    t.quantize_power[2] = quantize_power<qk::f16>;
    t.pair_i32 = pair_i32;
    t.pair_sum = pair_sum;
    t.dequantize[0] = dequantize<float>;
    t.dequantize[1] = dequantize<qk::bf16>;
    t.dequantize[2] = dequantize<qk::f16>;
    return t;
}

}  // namespace
