// float32 to and from what tensors hold.
#pragma once

#include "device.h"

#ifdef QK_EMULATE
#include "../common/half.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace qk::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(f16 x) {
#ifdef QK_EMULATE
    return half_to_float(x.bits);
#else
    return __half2float(__ushort_as_half(x.bits));
#endif
}

template <class T>
__device__ __forceinline__ T from_float(float x);  // rounds half to even
template <>
__device__ __forceinline__ float from_float<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
#ifdef QK_EMULATE
    return {float_to_bfloat(x)};
#else
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#endif
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
#ifdef QK_EMULATE
    return {float_to_half(x)};
#else
    return {__half_as_ushort(__float2half_rn(x))};
#endif
}

}  // namespace qk::cuda
