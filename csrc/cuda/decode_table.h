// The table of a decoder, as kernels get it.
#pragma once

#include "../common/types.h"

namespace qk::cuda {

// 16 entries of 16-bit numbers as bytes, four entries a word: the entries' low bytes and their high bytes.
struct Table16 {
    uint32_t low[4] = {}, high[4] = {};

    void set(int entry, uint16_t bits) {
        low[entry / 4] |= (bits & 255u) << (entry % 4 * 8);
        high[entry / 4] |= (bits >> 8) << (entry % 4 * 8);
    }
};

}  // namespace qk::cuda
