// Requantization of int32 accumulators to 8 bits, one value at a time: the definition that every SIMD version is
// held to. real scale = multiplier * 2^-(31 + shift), multiplier in [2^30, 2^31) or 0, -31 <= shift <= 31.
//
//   single  (acc * m + 2^(t-1)) >> t, t = 31 + shift, in int64: one rounding, ties up.
//   double  gemmlowp's pair: saturating rounding doubling high multiply, then a rounding shift, ties away from zero;
//           a negative shift is a saturating left shift of the accumulator first. The first step is written there as
//           a nudge by 2^30 or 1 - 2^30 and a division that truncates: for both signs that is (a * m + 2^30) >> 31.
//   float   rint(float32(acc) * float32(scale)), half to even.
// The zero point is added in 64 bits, then the sum is clamped.
#pragma once

#include <cmath>
#include <cstdint>

#include "types.h"

namespace qk {

QK_HD inline int64_t clamp64(int64_t v, int64_t lo, int64_t hi) { return v < lo ? lo : (v > hi ? hi : v); }

QK_HD inline int64_t requant_single(int32_t acc, int32_t multiplier, int32_t shift) {
    const int t = 31 + shift;
    const int64_t half = t > 0 ? int64_t{1} << (t - 1) : 0;
    return (int64_t{acc} * multiplier + half) >> t;
}

QK_HD inline int64_t requant_double(int32_t acc, int32_t multiplier, int32_t shift) {
    int64_t a = acc;
    if (shift < 0) a = clamp64(a * (int64_t{1} << -shift), -2147483648LL, 2147483647LL);
    const int64_t high = (a * multiplier + (int64_t{1} << 30)) >> 31;
    if (shift <= 0) return high;
    const int64_t mask = (int64_t{1} << shift) - 1;
    const int64_t threshold = (mask >> 1) + (high < 0 ? 1 : 0);
    return (high >> shift) + ((high & mask) > threshold ? 1 : 0);
}

QK_HD inline int64_t requant_float(int32_t acc, float scale) {
    const float y = nearbyintf(static_cast<float>(acc) * scale);
    // Any code range lies far inside +-2^30; clamping first keeps the conversion defined.
    const float bounded = y < -1073741824.0f ? -1073741824.0f : (y > 1073741824.0f ? 1073741824.0f : y);
    return static_cast<int64_t>(bounded);
}

}  // namespace qk
