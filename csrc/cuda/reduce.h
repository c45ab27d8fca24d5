// Reductions over a block. Every thread gets the result; `scratch` is 32 words of shared memory, free again after
// the next barrier.
#pragma once

#include "device.h"

namespace qk::cuda {

template <class T, class Combine>
__device__ __forceinline__ T warp_reduce(T value, Combine combine) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) value = combine(value, __shfl_xor_sync(0xffffffffu, value, bits));
    return value;
}

template <class T, class Combine>
__device__ __forceinline__ T block_reduce(T value, T* scratch, T neutral, Combine combine) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    value = warp_reduce(value, combine);
    __syncthreads();  // scratch may be read still
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    return warp_reduce(lane < warps ? scratch[lane] : neutral, combine);
}

}  // namespace qk::cuda
