// Compute layout of an int8 weight (N, K) for the tensor cores: made by prepack (qkernels/cuda.py), never saved.
//
//   codes     int8, tiles of 16 channels x 64 k, 1024 bytes each, k innermost: [n_pad / 16][k_pad / 64][1024]
//   scale     float [n_pad]
//   offset    int32 [n_pad]   sum over k of w[n, k], less K * zero_point[n]: what a zero point of x is multiplied with
//   zero      int32 [n_pad]   zero points of w, only where has_zero_point
//   inv_input float [k]       1 / input_scale, only where has_input_scale
// Each part starts at a multiple of 256 bytes; what is beyond N or K is 0.
//
// A tile is row-major: 64 bytes of k a channel. It is an operand of every core as it lies:
//   mma.sync  Channels are rows of m16n8k32 (ptx.h). Lane 4g + t loads 16 bytes at 16 * (4g + t), channel g, and 512
//             further, channel g + 8: k 16t .. 16t + 15 of the 64, of which the first 8 are for one instruction, the
//             last 8 for a second. The activations' k are dealt alike, so that the four registers that a lane needs of
//             them are 16 neighbouring bytes of a row. Both operands are read by 16-byte loads, from device or shared
//             memory, without ldmatrix and without a swizzle: eight lanes read 128 bytes in a row.
//   wgmma     Eight lines of 128 bytes, the atom of a 128-byte swizzle: even channels are the lines' first halves, odd
//             ones the second (wgmma.h).
#pragma once

#include "../common/types.h"

namespace qk::cuda {

inline constexpr int kTileN = 16, kTileK = 64, kTileBytes = kTileN * kTileK;

// Byte of w[n, k] in the codes.
QK_HD inline constexpr int64_t int8_offset(int64_t n, int64_t k, int64_t k_pad) {
    const int64_t tile = n / kTileN * (k_pad / kTileK) + k / kTileK;
    return tile * kTileBytes + n % kTileN * kTileK + k % kTileK;
}

struct Int8Layout {
    int64_t n, k, n_pad, k_pad;
    int64_t codes, scale, offset, zero, inv_input, total_bytes;
};

inline Int8Layout int8_layout(int64_t n, int64_t k, bool has_zero_point, bool has_input_scale) {
    Int8Layout l{};
    l.n = n;
    l.k = k;
    l.n_pad = round_up(n, kTileN);
    l.k_pad = round_up(k, kTileK);
    Places place(256);
    l.codes = place(l.n_pad * l.k_pad);
    l.scale = place(4 * l.n_pad);
    l.offset = place(4 * l.n_pad);
    l.zero = place(has_zero_point ? 4 * l.n_pad : 0);
    l.inv_input = place(has_input_scale ? 4 * k : 0);
    l.total_bytes = place.total();
    return l;
}

}  // namespace qk::cuda
