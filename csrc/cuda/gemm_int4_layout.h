// Compute layout of a weight (N, K) of 4-bit codes with group-wise scales for the integer core: made by prepack
// (qkernels/cuda_int4.py), never saved.
//
//   codes      4 bits each, tiles of 16 channels x 64 k, 512 bytes: [n_pad / 16][k_pad / 64][512]
//   scale      float [n_pad / 16][groups][16], channels g and g + 8 side by side (scale_index of gemm_float_layout.h)
//   inv_input  float [k], only where has_input_scale
// Each part starts at a multiple of 256 bytes; what is beyond N or K is 0.
//
// Lane 4g + t has 16 bytes of a tile: word 2h + q is registers 2q (channel g) and 2q + 1 (channel g + 8) of the A
// operand of m16n8k32 number h, which multiplies k 32h .. 32h + 31; lane t has 8t .. 8t + 7 of those, four in a
// register: B is 8 neighbouring bytes of a row. Groups of 32 end between the instructions.
//   integers   two's complement, channel g in the low nibble of byte k % 4, channel g + 8 in the high one: masks give
//   16 *
//              code as int8
//   table      index of register j, byte b, as gemm_float_layout.h has element 4 j + b
#pragma once

#include "gemm_float_layout.h"

namespace qk::cuda {

// Word of the codes of channel n and k; the bits of it that a code has (integers: 4 bits of two's complement).
QK_HD inline constexpr int64_t int4_word(int64_t n, int64_t k, int64_t k_pad) {
    const int64_t tile = n / kFloatN * (k_pad / kFloatK) + k / kFloatK;
    return tile * (kFloatBytes / 4) + (n % 8 * 4 + k % 32 / 8) * 4 + k % kFloatK / 32 * 2 + k % 8 / 4;
}
QK_HD inline constexpr uint32_t int4_bits(Decoder d, int64_t n, int64_t k, uint32_t code) {
    const int high = static_cast<int>(n % kFloatN / 8), byte = static_cast<int>(k % 4);
    if (d == Decoder::integers) return code << (byte * 8 + high * 4);
    return float_bits_of(d, (high * 4 + byte) / 2, byte % 2, code);
}

struct Int4Layout {
    int64_t n, k, group, n_pad, k_pad, groups;
    int64_t codes, scale, inv_input, total_bytes;
};

inline Int4Layout int4_layout(int64_t n, int64_t k, int64_t group, bool has_input_scale) {
    Int4Layout l{};
    l.n = n;
    l.k = k;
    l.group = group;
    l.n_pad = round_up(n, kFloatN);
    l.k_pad = round_up(k, kFloatK);
    l.groups = ceil_div(k, group);
    int64_t at = 0;
    auto place = [&at](int64_t bytes) {
        const int64_t here = at;
        at = round_up(at + bytes, 256);
        return here;
    };
    l.codes = place(l.n_pad * l.k_pad / 2);
    l.scale = place(l.n_pad * l.groups * 4);
    l.inv_input = place(has_input_scale ? 4 * k : 0);
    l.total_bytes = at;
    return l;
}

}  // namespace qk::cuda
