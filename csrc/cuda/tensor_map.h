// Tensor maps: what the bulk copies of sm_90 (wgmma.h) know of a tensor in device memory. Opaque 128 bytes, made on the
// host and passed to a kernel by value, as const __grid_constant__ TensorMap.
#pragma once

#include <cstdint>

namespace qk::cuda {

struct alignas(128) TensorMap {
    uint64_t words[16];
};

// A tensor of bytes with up to four dimensions, innermost first; strides[i], in bytes, is of dimension i + 1. A box of
// it is copied at a time, its innermost dimension 128 bytes, with the 128-byte swizzle; what is outside of the tensor
// arrives as 0. Throws std::invalid_argument for what the hardware does not take.
struct ByteTensor {
    static constexpr int kMost = 4;
    const void* base;
    int rank;
    uint64_t sizes[kMost];
    uint64_t strides[kMost - 1];
    uint32_t box[kMost];
};
TensorMap tensor_map(const ByteTensor& tensor);

}  // namespace qk::cuda
