// What a kernel file includes: the language of kernels, from nvcc, or from the host emulator of the tests
// (QK_EMULATE, emulator/emulator.h). One source serves both, under four rules:
//   - shared memory is dynamic: shared_memory() gives it, the launch its size (at most 99 KB run everywhere);
//   - kernels start through launch();
//   - instructions that C++ lacks come from ptx.h;
//   - everything is in namespace qk::cuda.
// Files are compiled with -fmad=false: a product and a sum round twice, as the reference does, unless fmaf says not.
#pragma once

#include "../common/types.h"
#include "stream.h"

#ifdef QK_EMULATE
#include "emulator/emulator.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace qk::cuda {

// The block's dynamic shared memory, aligned to 1024 bytes (what a 128-byte swizzle of bulk copies needs).
__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(1024) char memory[];
    return memory;
}

inline void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <class... Parameters, class... Arguments>
void launch_kernel(Start start, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                   Stream stream, Arguments&&... arguments) {
    if (shared_bytes > (48 << 10))
        check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   static_cast<int>(shared_bytes)),
              "the shared memory of a kernel");
    cudaLaunchAttribute attributes[2] = {};
    unsigned count = 0;
    if (start.overlap) {
        attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[count++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (start.cluster > 1) {
        attributes[count].id = cudaLaunchAttributeClusterDimension;
        attributes[count++].val.clusterDim = {start.cluster, 1, 1};
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = count;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "a kernel's launch");
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
    launch_kernel({}, kernel, grid, block, shared_bytes, stream, arguments...);
}

inline void fill_bytes(void* data, int value, size_t bytes, Stream stream) {
    check(cudaMemsetAsync(data, value, bytes, stream), "a memset");
}

}  // namespace qk::cuda
#endif
