// What this machine can do at best, measured: the numbers that every benchmark row is held against.
#pragma once

#include <cstdint>

namespace qk {

enum class Peak : int {
    int8_avx512vnni = 0,
    int8_avx2 = 1,
    bf16_avx512 = 2,
    fp32_avx512 = 3,
    fp32_avx2 = 4,
    binary_avx512 = 5,
    bf16_amx = 6,
    kCount = 7
};

bool peak_supported(Peak kind);
// Billions of multiply-accumulates a second over `threads` threads, each running `milliseconds` of independent
// register-only instructions of that kind; 0 where the machine lacks the instruction.
double measure_peak(Peak kind, int threads, double milliseconds);
// GB/s of reading a buffer of `bytes` (64-byte loads where there are any), split over threads; best of `repeats`.
double measure_read_bandwidth(int64_t bytes, int threads, int repeats);
// Microseconds that an empty parallel region takes (median of `repeats`).
double measure_fork_join(int threads, int repeats);
// Clock of the calling core in GHz, from a chain of dependent additions (about 0.25 ms).
double core_ghz();

}  // namespace qk
