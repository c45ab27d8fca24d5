// Tiles of bfloat16 pairs, AMX-BF16: tdpbf16ps adds to C (rows of A x 16 channels, float32) the product of A (rows x 32
// k) and B (16 steps of two k x 16 channels). It multiplies exactly, sums the even k of a tile and the odd ones apart,
// then adds both to C; subnormals are 0. After simd/products_avx512bf16.h.
#pragma once

namespace {
namespace products {

inline constexpr int TILE_ROWS = 16, TILE_STEPS = 16, TILE_BYTES = 1024;

// What ldtilecfg reads. Registers below `first_b` hold sums and rows of activations, those from it on weights.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    constexpr TileConfig() = default;
    constexpr TileConfig(int rows_of_a, int first_b) {
        for (int t = 0; t < 8; ++t) {
            row_bytes[t] = 64;
            rows[t] = static_cast<uint8_t>(t < first_b ? rows_of_a : TILE_STEPS);
        }
    }
};
struct TileConfigs {
    TileConfig of[TILE_ROWS + 1];
    constexpr explicit TileConfigs(int first_b) : of{} {
        for (int r = 1; r <= TILE_ROWS; ++r) of[r] = TileConfig(r, first_b);
    }
};

// The intrinsics of tiles do not tell the compiler that they read and write memory.
[[gnu::always_inline]] inline void memory_order() { __asm__ volatile("" ::: "memory"); }

}  // namespace products
}  // namespace
