// Products of float32, one lane. After simd/scalar.h.
#pragma once

#include "../../common/float_layout.h"

namespace {
namespace products {

using namespace simd;

using element = float;
using weight = float;
inline constexpr int SUB = 2;
inline constexpr int NW_MANY = 8, NW_ONE = 8;  // registers of weights: of many rows, of one row
inline constexpr int MR = 1;
inline constexpr int BLOCK_STEPS = 64;
inline constexpr int MR_PACKED = 1;

inline f32v own(f32v acc) { return acc; }
inline f32v multiply_add(f32v acc, f32v x, weight w) { return acc + x * w; }
inline f32v broadcast(const element* row, int sub) { return row[sub]; }
inline weight load_weight(const element* step, int channel, int sub) { return step[sub * 8 + channel]; }
inline void store_weight(element* step, int channel, int sub, weight w) { step[sub * 8 + channel] = w; }
inline weight ramp(const uint8_t* step, int channel, int sub) { return static_cast<int8_t>(step[2 * channel + sub]); }

using index = unsigned;  // a code in the low bits, anything above
template <int P>
index plane(const uint8_t* words, int channel, int sub) {
    const qk::PlanePlace at = qk::plane_place(P, channel, sub);
    uint32_t word;
    std::memcpy(&word, words + 4 * at.word, 4);
    return word >> at.bit;
}
inline index bytes(const uint8_t* step, int channel, int sub) { return step[2 * channel + sub]; }
inline index shift_left(index a, int n) { return a << n; }
inline index join(int mask, index low, index high) { return (low & mask) | (high & ~mask); }

inline weight gather(const void* tables, int stride, int channel, index code, int mask) {
    return static_cast<const float*>(tables)[channel * stride + (code & mask)];
}

template <int BITS>
struct Table {
    const float* all;
    explicit Table(const void* table) : all(static_cast<const float*>(table)) {}
    weight operator()(index code) const { return all[code & ((1 << BITS) - 1)]; }
};

}  // namespace products
}  // namespace
