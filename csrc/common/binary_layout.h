// Compute layout of a binary or ternary weight (N, K): one self-describing block, made by prepack, never saved.
//
//   header  BinaryHeader
//   start   int32 [n_pad]   where an accumulator starts: K, or the number of nonzero weights of the row; 0 beyond N
//   alpha   float [n_pad]   one scale per output channel; 0 beyond N
//   panels  uint64 [n_pad / 64][words][planes][64]   bit k % 64 of word k / 64 of row n at slot(n % 64); plane 0 holds
//                                                    the signs (1: +1), plane 1 of a ternary weight what is not zero
//
// A panel is 64 output channels. One k step is a word of each: eight zmm registers whose 64-bit lanes are output
// channels, so no kernel sums across lanes. Within 16 channels the even ones come first (slot), because counts of 64
// bits become int32 by adding the odd channels, shifted left by 32, to the even ones: the result is in order.
#pragma once

#include "types.h"

namespace qk {

inline constexpr int kBinaryPanel = 64;  // output channels in a panel
inline constexpr int kWordBits = 64;
inline constexpr uint64_t kBinaryMagic = 0x31746962516b7402ull;
inline constexpr int64_t kBinaryMaxK = (int64_t{1} << 30) - 64;  // K - 4 * count stays in int32 on the way

inline constexpr int binary_slot(int channel) {  // of a panel
    return channel / 16 * 16 + channel % 2 * 8 + channel % 16 / 2;
}

struct BinaryHeader {
    uint64_t magic;
    int64_t n, k;          // logical shape
    int64_t n_pad, words;  // words: of 64 bits in a row
    int64_t planes;        // 1 binary, 2 ternary
    int64_t total_bytes;
    int64_t start, alpha, panels;  // byte offsets
    int64_t reserved[6];
};
static_assert(sizeof(BinaryHeader) == 128, "the header is two cache lines");

// Offsets of the parts for a shape; the one place that knows them.
inline BinaryHeader binary_layout(int64_t n, int64_t k, int64_t planes) {
    BinaryHeader h{};
    h.magic = kBinaryMagic;
    h.n = n;
    h.k = k;
    h.n_pad = round_up(n, kBinaryPanel);
    h.words = ceil_div(k, kWordBits);
    h.planes = planes;
    Places place(64, sizeof(BinaryHeader));
    h.start = place(4 * h.n_pad);
    h.alpha = place(4 * h.n_pad);
    h.panels = place(8 * h.n_pad * h.words * planes);
    h.total_bytes = place.total();
    return h;
}

// A checked view of a block, as Int8View is.
struct BinaryView {
    const BinaryHeader* header = nullptr;
    const char* base = nullptr;

    static bool valid(const void* data, int64_t bytes) {
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(BinaryHeader))) return false;
        const auto& h = *static_cast<const BinaryHeader*>(data);
        if (h.magic != kBinaryMagic || h.n < 0 || h.k < 0 || h.n > (int64_t{1} << 28) || h.k > kBinaryMaxK)
            return false;
        if (h.planes != 1 && h.planes != 2) return false;
        const BinaryHeader want = binary_layout(h.n, h.k, h.planes);
        return h.n_pad == want.n_pad && h.words == want.words && h.start == want.start && h.alpha == want.alpha &&
               h.panels == want.panels && h.total_bytes == want.total_bytes && want.total_bytes <= bytes;
    }
    explicit BinaryView(const void* data)
        : header(static_cast<const BinaryHeader*>(data)), base(static_cast<const char*>(data)) {}

    const int32_t* start() const { return reinterpret_cast<const int32_t*>(base + header->start); }
    const float* alpha() const { return reinterpret_cast<const float*>(base + header->alpha); }
    const uint64_t* panel(int64_t index) const {
        return reinterpret_cast<const uint64_t*>(base + header->panels) +
               index * kBinaryPanel * header->words * header->planes;
    }
};

}  // namespace qk
