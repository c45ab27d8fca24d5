#include "tensor_map.h"

#include <stdexcept>
#include <string>

#include "device.h"

#ifdef QK_EMULATE
#include "wgmma.h"
#else
#include <cuda.h>
#endif

namespace qk::cuda {

namespace {

// The rules of cuTensorMapEncodeTiled for this kind of map: an error of the driver would not say which was broken.
void validate(const ByteTensor& t) {
    auto require = [](bool ok, const char* what) {
        if (!ok) throw std::invalid_argument(std::string("tensor map: ") + what);
    };
    require(t.rank >= 2 && t.rank <= ByteTensor::kMost, "the number of dimensions is out of range");
    require(reinterpret_cast<uintptr_t>(t.base) % 16 == 0, "the address is not a multiple of 16");
    require(t.box[0] == 128, "the box is not as wide as the swizzle");
    for (int i = 0; i < t.rank; ++i) {
        require(t.sizes[i] >= 1 && t.sizes[i] <= uint64_t{1} << 32, "a size is out of range");
        require(t.box[i] >= 1 && t.box[i] <= 256, "a size of the box is out of range");
        if (i == 0) continue;
        require(t.strides[i - 1] % 16 == 0, "a stride is not a multiple of 16");
        require(t.strides[i - 1] < uint64_t{1} << 40, "a stride is out of range");
    }
}

}  // namespace

#ifdef QK_EMULATE

TensorMap tensor_map(const ByteTensor& tensor) {
    validate(tensor);
    return emulator::encode(tensor);
}

#else

namespace {

// The driver's function, found at the first use: the library is not linked with the driver.
using Encoder = decltype(&cuTensorMapEncodeTiled);  // its type alone: nothing refers to the symbol
Encoder encoder() {
    static const Encoder found = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult state = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
        check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &state),
              "the driver's cuTensorMapEncodeTiled");
#else
        check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &state),
              "the driver's cuTensorMapEncodeTiled");
#endif
        if (state != cudaDriverEntryPointSuccess || function == nullptr)
            throw std::runtime_error("the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12.0");
        return reinterpret_cast<Encoder>(function);
    }();
    return found;
}

}  // namespace

TensorMap tensor_map(const ByteTensor& t) {
    validate(t);
    CUtensorMap map;
    static_assert(sizeof(CUtensorMap) == sizeof(TensorMap) && alignof(CUtensorMap) <= alignof(TensorMap));
    cuuint64_t sizes[ByteTensor::kMost], strides[ByteTensor::kMost - 1] = {};
    cuuint32_t box[ByteTensor::kMost], steps[ByteTensor::kMost];
    for (int i = 0; i < t.rank; ++i) {
        sizes[i] = t.sizes[i];
        box[i] = t.box[i];
        steps[i] = 1;
        if (i > 0) strides[i - 1] = t.strides[i - 1];
    }
    const CUresult status =
        encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_UINT8, static_cast<cuuint32_t>(t.rank), const_cast<void*>(t.base),
                  sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS)
        throw std::runtime_error("cuTensorMapEncodeTiled: error " + std::to_string(static_cast<int>(status)));
    TensorMap out;
    __builtin_memcpy(&out, &map, sizeof(out));
    return out;
}

#endif

}  // namespace qk::cuda
