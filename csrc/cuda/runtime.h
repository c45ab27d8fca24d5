// What the CUDA runtime says about devices, for callers without its headers.
#pragma once

#include <cstdint>
#include <string>

#include "stream.h"

namespace qk::cuda {

struct Device {
    std::string name;
    int major = 0, minor = 0, multiprocessors = 0;
    int64_t shared_bytes = 0, l2_bytes = 0, memory_bytes = 0;  // shared: the most that a block can have
};

// Number of devices; 0 without a driver, and `why` then says what is missing.
int device_count(std::string* why);
Device device(int index);
// Makes a device current for this thread until the end of the scope.
class DeviceGuard {
  public:
    explicit DeviceGuard(int index);
    ~DeviceGuard();
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;

  private:
    int before_ = -1;
};
const Device& current_device();  // of the current one; looked up once for each

}  // namespace qk::cuda
