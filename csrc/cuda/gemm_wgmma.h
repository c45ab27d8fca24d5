// The int8 GEMM of sm_90 (gemm_int8_sm90a.cu): tiles, shared memory and how results lie, as functions that tests can
// call.
//
// A tile is 128 channels x TOKENS tokens, by two warpgroups: channels are the rows of wgmma m64n<TOKENS>k32, the even
// ones of the first warpgroup, the odd ones of the second. A stage has 128 k of both operands:
//   w   8 panels of 16 channels, each two tiles of gemm_layout.h (1024 bytes, 8 lines of 128 bytes), swizzled
//   x   TOKENS rows of 128 bytes, swizzled
#pragma once

#include "../common/types.h"
#include "gemm_layout.h"

namespace qk::cuda {

template <int TOKENS>
struct WgmmaTile {
    static constexpr int kChannels = 128, kDepth = 128;  // k of a stage
    static constexpr int kStages = TOKENS == 256 ? 4 : 6;
    static constexpr int kW = kChannels * kDepth, kX = TOKENS * kDepth, kStage = kW + kX;
    // Results on their way to the output: two buffers of kRows tokens.
    static constexpr int kRows = 32, kPitch = kChannels + 4, kBuffer = kRows * kPitch;
    static constexpr int kResults = kStages * kStage, kBarriers = kResults + 2 * kBuffer * 4;
    static constexpr int kShared = kBarriers + 2 * kStages * 8;
    // Tiles of channels whose blocks run side by side: a wave of 132 is about as wide as high in memory.
    static constexpr int kGroup = TOKENS / 16;
};

// Where a step of 32 k starts in a stage.
QK_HD inline constexpr int wgmma_w_offset(int warpgroup, int step) {
    return step / 2 * kTileBytes + warpgroup * 64 + step % 2 * 32;
}
QK_HD inline constexpr int wgmma_x_offset(int step) { return step * 32; }
inline constexpr int kWgmmaStrideW = 2 * kTileBytes, kWgmmaStrideX = 8 * 128;

// Channel, in the tile, of a row of a warpgroup's operand.
QK_HD inline constexpr int wgmma_channel(int warpgroup, int row) { return row / 8 * 16 + row % 8 * 2 + warpgroup; }

// Where a channel's result lies in its row of shared memory: even channels first. Eight lanes that write neighbouring
// rows of an operand write neighbouring words; with a pitch of 132 words the other four pairs of tokens are 8 banks
// further each. A thread reads its four channels as two pairs.
QK_HD inline constexpr int wgmma_column(int channel) { return channel % 2 * 64 + channel / 2; }

struct TileAt {
    int n, m;  // in tiles, which 31 bits count: results of 2^31 tiles would take 35 TB
};
// Neighbouring blocks share operands in L2: `group` tiles of channels, then the next tokens.
QK_HD inline constexpr TileAt tile_at(int index, int n_tiles, int m_tiles, int group) {
    const int band = index / (group * m_tiles), in_band = index % (group * m_tiles);
    const int left = n_tiles - band * group, width = left < group ? left : group;
    return {band * group + in_band % width, in_band / width};
}

}  // namespace qk::cuda
