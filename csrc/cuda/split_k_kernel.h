// The sums of split_k.h.
#pragma once

#include "device.h"
#include "split_k.h"

namespace qk::cuda {

// Whether this block is the last of the tile's; all of its threads must call it. flag: a word of shared memory.
__device__ __forceinline__ bool arrives_last(const SplitK& split, int64_t tile, int32_t* flag) {
    __threadfence();  // the parts before the count
    __syncthreads();
    if (threadIdx.x == 0) {
        *flag = atomicAdd(split.counters + tile, 1) == split.splits - 1;
        if (*flag) split.counters[tile] = 0;
    }
    __syncthreads();
    const bool last = *flag != 0;
    if (last) __threadfence();
    return last;
}

// acc[i] of all parts, Four int4 or float4. Thread t of `threads` owns values [i][t] of a tile: coalesced. False: not
// the last.
template <class Four, int COUNT>
__device__ __forceinline__ bool sum_parts(const SplitK& split, int64_t tile, int part, int thread, int threads,
                                          Four (&acc)[COUNT], int32_t* flag) {
    Four* mine = static_cast<Four*>(split.parts) + ((tile * split.splits + part) * COUNT) * threads + thread;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) mine[static_cast<int64_t>(i) * threads] = acc[i];
    if (!arrives_last(split, tile, flag)) return false;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) acc[i] = {0, 0, 0, 0};
#pragma unroll 1
    for (int p = 0; p < split.splits; ++p) {
        const Four* from =
            static_cast<const Four*>(split.parts) + ((tile * split.splits + p) * COUNT) * threads + thread;
#pragma unroll
        for (int i = 0; i < COUNT; ++i) {
            const Four v = __ldcg(from + static_cast<int64_t>(i) * threads);
            acc[i].x += v.x;
            acc[i].y += v.y;
            acc[i].z += v.z;
            acc[i].w += v.w;
        }
    }
    return true;
}

}  // namespace qk::cuda
