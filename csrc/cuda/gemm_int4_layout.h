// Compute layout of a weight (N, K) of 4-bit codes for the integer core: made by prepack (qkernels/cuda_int4.py), never
// saved.
//
//   codes      4 bits each, tiles of 16 channels x 64 positions, 512 bytes: [n_pad / 16][k_pad / 64][512]
//   scale      float or float16 [n_pad / 16][groups][16]
//   zero       int8, like scale: zero points, only where has_zero_point
//   offset     int32, like scale: sum over the group's k of w[n, k], less as many zero points: what a zero point of x
//   is
//              multiplied with
//   inv_input  float [k], only where has_input_scale
// Each part starts at a multiple of 256 bytes; what is beyond N or K is 0.
//
// Positions. A group takes a multiple of 32 positions; where that is more than it has elements, the rest is 0 on both
// sides. Without groups (group 0) all of K is one, of k_pad positions.
//
// Lane 4g + t has 16 bytes of a tile: word 2h + q is registers 2q (channel g) and 2q + 1 (channel g + 8) of the A
// operand of m16n8k32 number h, which multiplies positions 32h .. 32h + 31 (a step); lane t has 8t .. 8t + 7 of those,
// four in a register: B is 8 neighbouring bytes of a row. Groups end between steps.
//   integers   two's complement, channel g in the low nibble of byte k % 4, channel g + 8 in the high one: masks give
//              16 * code as int8
//   table      index of register j, byte b, as gemm_float_layout.h has element 4 j + b
#pragma once

#include "gemm_float_layout.h"

namespace qk::cuda {

inline constexpr int kStep = 32;             // positions of an instruction
inline constexpr int64_t kInt4Most = 65536;  // positions of a group: 16 * code * uint8 summed over it stays in int32

// Word of the codes of channel n at a position; the bits of it that a code has (integers: 4 bits of two's complement).
QK_HD inline constexpr int64_t int4_word(int64_t n, int64_t k, int64_t k_pad) {
    const int64_t tile = n / kFloatN * (k_pad / kFloatK) + k / kFloatK;
    return tile * (kFloatBytes / 4) + (n % 8 * 4 + k % 32 / 8) * 4 + k % kFloatK / 32 * 2 + k % 8 / 4;
}
QK_HD inline constexpr uint32_t int4_bits(Decoder d, int64_t n, int64_t k, uint32_t code) {
    const int high = static_cast<int>(n % kFloatN / 8), byte = static_cast<int>(k % 4);
    if (d == Decoder::integers) return code << (byte * 8 + high * 4);
    return float_bits_of(d, (high * 4 + byte) / 2, byte % 2, code);
}

// Rows whose groups of `group` elements take `positions` each; group 0: elements are where they were.
struct PaddedGroups {
    uint32_t group = 0, positions = 0;

    // What is at a position of a row of k elements, or -1. 32 bits: a 64-bit division is a subroutine.
    QK_HD constexpr int64_t element(uint32_t position, int64_t k) const {
        int64_t at = position;
        if (group != 0) {
            const uint32_t g = position / positions, j = position - g * positions;
            if (j >= group) return -1;
            at = static_cast<int64_t>(g) * group + j;
        }
        return at < k ? at : -1;
    }
};

struct Int4Layout {
    int64_t n, k, group;  // group 0: none
    int64_t n_pad, k_pad, groups;
    int64_t group_steps;  // in a group
    PaddedGroups padded;  // for activations: group 0 where positions are elements
    int scale_bytes;
    int64_t codes, scale, zero, offset, inv_input, total_bytes;
};

// group >= k is no group.
inline Int4Layout int4_layout(int64_t n, int64_t k, int64_t group, bool half_scales, bool has_zero_point,
                              bool has_input_scale) {
    Int4Layout l{};
    l.n = n;
    l.k = k;
    l.group = group >= k ? 0 : group;
    l.n_pad = round_up(n, kFloatN);
    l.groups = l.group == 0 ? 1 : ceil_div(k, l.group);
    const int64_t positions = l.group == 0 ? round_up(k, kFloatK) : round_up(l.group, kStep);
    l.k_pad = round_up(l.groups * positions, kFloatK);
    l.group_steps = positions == 0 ? 1 : positions / kStep;
    if (l.group != 0 && l.group != positions)
        l.padded = {static_cast<uint32_t>(l.group), static_cast<uint32_t>(positions)};
    l.scale_bytes = half_scales ? 2 : 4;
    Places place(256);
    const int64_t constants = l.n_pad * l.groups;
    l.codes = place(l.n_pad * l.k_pad / 2);
    l.scale = place(constants * l.scale_bytes);
    l.zero = place(has_zero_point ? constants : 0);
    l.offset = place(constants * 4);
    l.inv_input = place(has_input_scale ? 4 * k : 0);
    l.total_bytes = place.total();
    return l;
}

}  // namespace qk::cuda
