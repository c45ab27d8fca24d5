// Compute layout of a weight (N, K) of up to 4 bits for the float core: made by prepack (qkernels/cuda_float.py), never
// saved.
//
//   codes      4 bits each, tiles of 16 channels x 64 positions, 512 bytes: [n_pad / 16][k_pad / 64][512]
//   scale      float or float16 [n_pad / 16][groups][16], channels in the order of scale_index
//   offset     float, like scale, only where has_offset
//   inv_input  float [k], 1 / input_scale, only where has_input_scale
// Each part starts at a multiple of 256 bytes.
//
// Positions. K is laid out so that groups of scales start where an instruction does: a group of up to 16 takes 16
// positions, other groups a multiple of 32 (of 64 from 33 on); what a group does not fill is 0 on both sides. Without
// groups, and with group sizes that are such multiples, position k is k.
//
// A tile holds the A operands of four m16n8k16 (ptx.h) as lanes want them: 16 bytes of lane 4g + t at 16 (4g + t), word
// s for instruction s, register r, element i a nibble of it. As with int8, positions are dealt to lanes so that B is
// read by 16-byte loads of row-major activations, without ldmatrix: of each 32 positions lane t has 8t .. 8t + 7, the
// first four in one instruction, the others in the next:
//
//   position of the tile   0 1 | 2 3 | 4 5 | 6 7 | 8 9 ...         32 33 | ...
//   lane t                 0   | 0   | 0   | 0   | 1 ...           0
//   instruction            0   | 0   | 1   | 1   | 0 ...           2
//   register of B          0   | 1   | 0   | 1   | 0 ...           0        (A: 2 x this, + 1 for channels g + 8)
//
// Nibbles. A decoder makes two elements a register at once (decode.h):
//   integers     code + 8, element i of register r in nibble r + 4i: masks give pairs of 16-bit numbers
//   table        the index's three low bits of element i of register r in nibble j = 2r + i; its bit 3 in bit 3 of
//   nibble
//                2j + 1, or 2 (j - 4) from j = 4 on, where a byte permutation turns it into a mask of a byte
#pragma once

#include "../common/types.h"

namespace qk::cuda {

inline constexpr int kFloatN = 16, kFloatK = 64, kFloatBytes = kFloatN * kFloatK / 2;

enum class Decoder : int { integers = 0, table = 1 };

// The positions of a group of `group` numbers.
QK_HD inline constexpr int64_t group_positions(int64_t group) {
    return group <= 16 ? 16 : (group <= 32 ? 32 : round_up(group, kFloatK));
}

// Position of element k of a row with groups of `group` (0: none).
QK_HD inline constexpr int64_t position_of(int64_t k, int64_t group) {
    if (group == 0) return k;
    const int64_t padded = group_positions(group), g = k / group, j = k % group;
    if (padded > 16) return g * padded + j;
    return g / 2 * 32 + j / 4 * 8 + g % 2 * 4 + j % 4;  // one instruction: every other four positions
}

// What is at a position: an element of a row of k, or -1.
QK_HD inline constexpr int64_t element_at(int64_t position, int64_t group, int64_t k) {
    int64_t g = 0, j = position;
    if (group != 0) {
        const int64_t padded = group_positions(group);
        if (padded > 16) {
            g = position / padded;
            j = position % padded;
        } else {
            g = position / 32 * 2 + position % 8 / 4;
            j = position % 32 / 8 * 4 + position % 4;
        }
        if (j >= group) return -1;
    }
    return g * group + j < k ? g * group + j : -1;
}

// Where the code of channel n at a position lies: nibble `8 * word + 2 r + i` (table) of the codes.
struct FloatPlace {
    int64_t word;  // of 32 bits
    int reg, element;
};
QK_HD inline constexpr FloatPlace float_place(int64_t n, int64_t position, int64_t k_pad) {
    const int64_t tile = n / kFloatN * (k_pad / kFloatK) + position / kFloatK;
    const int64_t g = n % 8, high = n % kFloatN / 8, at = position % kFloatK, t = at % 32 / 8;
    const int64_t step = at / 32 * 2 + at % 8 / 4;
    return {tile * (kFloatBytes / 4) + (4 * g + t) * 4 + step, static_cast<int>(at % 4 / 2 * 2 + high),
            static_cast<int>(at % 2)};
}

// Bits of its word that a code of value c has (integers: code + 8; table: index).
QK_HD inline constexpr uint32_t float_bits_of(Decoder d, int reg, int element, uint32_t c) {
    if (d == Decoder::integers) return c << (4 * (reg + 4 * element));
    const int j = 2 * reg + element, high = j < 4 ? 2 * j + 1 : 2 * (j - 4);
    return (c & 7) << (4 * j) | (c >> 3 & 1) << (4 * high + 3);
}

// Index of channel n's scale of group g.
QK_HD inline constexpr int64_t scale_index(int64_t n, int64_t g, int64_t groups) {
    return (n / kFloatN * groups + g) * kFloatN + n % 8 * 2 + n % kFloatN / 8;
}

struct FloatLayout {
    int64_t n, k, group;  // group 0: no groups
    int64_t n_pad, k_pad, groups;
    int units;            // of 64 positions that scales are applied to: 1, 2 or 4; 0: none, the scale is the channel's
    int64_t group_units;  // in a group
    int scale_bytes;      // of one scale
    int64_t codes, scale, offset, inv_input, total_bytes;
};

// group >= k is no group. Without groups an offset makes one group of a row.
inline FloatLayout float_layout(int64_t n, int64_t k, int64_t group, bool half_scales, bool has_offset,
                                bool has_input_scale) {
    FloatLayout l{};
    l.n = n;
    l.k = k;
    l.group = group >= k ? 0 : group;
    l.n_pad = round_up(n, kFloatN);
    l.groups = l.group == 0 ? 1 : ceil_div(k, l.group);
    const int64_t positions = l.group == 0 ? k : l.groups * group_positions(l.group);
    l.k_pad = round_up(positions, kFloatK);
    l.units = 0;
    l.group_units = 1;
    if (l.group != 0) {
        const int64_t p = group_positions(l.group), unit = p < kFloatK ? p : kFloatK;
        l.units = static_cast<int>(kFloatK / unit);
        l.group_units = p / unit;
    } else if (has_offset) {
        l.units = 1;
        l.group_units = l.k_pad / kFloatK > 0 ? l.k_pad / kFloatK : 1;
    }
    l.scale_bytes = half_scales ? 2 : 4;
    Places place(256);
    l.codes = place(l.n_pad * l.k_pad / 2);
    l.scale = place(l.n_pad * l.groups * l.scale_bytes);
    l.offset = place(has_offset ? l.n_pad * l.groups * 4 : 0);
    l.inv_input = place(has_input_scale ? 4 * k : 0);
    l.total_bytes = place.total();
    return l;
}

}  // namespace qk::cuda
