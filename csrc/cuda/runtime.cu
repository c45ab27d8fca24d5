#include "runtime.h"

#include <array>
#include <memory>
#include <mutex>

#include "device.h"

namespace qk::cuda {

#ifdef QK_EMULATE

int device_count(std::string*) { return 1; }
Device device(int) { return {"emulator", 9, 0, 4, 227 << 10, 50 << 20, int64_t{80} << 30}; }
DeviceGuard::DeviceGuard(int) {}
DeviceGuard::~DeviceGuard() = default;
const Device& current_device() {
    static const Device one = device(0);
    return one;
}

#else

int device_count(std::string* why) {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess) return count;
    cudaGetLastError();  // not an error of the next call
    int version = 0;     // of the driver: 0 where there is none, which the error calls too old
    const bool none = cudaDriverGetVersion(&version) == cudaSuccess && version == 0;
    if (why != nullptr) *why = none ? "no driver is installed" : cudaGetErrorString(status);
    return 0;
}

Device device(int index) {
    Device d;
    cudaDeviceProp p;
    check(cudaGetDeviceProperties(&p, index), "the properties of a CUDA device");
    d.name = p.name;
    d.major = p.major;
    d.minor = p.minor;
    d.multiprocessors = p.multiProcessorCount;
    d.shared_bytes = static_cast<int64_t>(p.sharedMemPerBlockOptin);
    d.l2_bytes = p.l2CacheSize;
    d.memory_bytes = static_cast<int64_t>(p.totalGlobalMem);
    return d;
}

DeviceGuard::DeviceGuard(int index) {
    int now = 0;
    check(cudaGetDevice(&now), "the current CUDA device");
    if (now == index) return;
    check(cudaSetDevice(index), "setting the CUDA device");
    before_ = now;
}

DeviceGuard::~DeviceGuard() {
    if (before_ >= 0) cudaSetDevice(before_);
}

const Device& current_device() {
    constexpr int kMost = 64;
    static std::array<std::unique_ptr<const Device>, kMost> known;
    static std::mutex lock;
    int index = 0;
    check(cudaGetDevice(&index), "the current CUDA device");
    if (index >= kMost) throw std::runtime_error("a CUDA device beyond number 63");
    const std::lock_guard<std::mutex> hold(lock);
    if (!known[index]) known[index] = std::make_unique<const Device>(device(index));
    return *known[index];
}

#endif

}  // namespace qk::cuda
