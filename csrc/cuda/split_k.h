// Sums that several blocks share: each leaves its part in a workspace, and the one that arrives last adds all parts in
// their order, so that a result does not depend on which it was, floats included.
//
// The counters, one a tile, are 0 before the launch and 0 again after it.
#pragma once

#include "../common/types.h"

namespace qk::cuda {

struct SplitK {
    int splits = 1;
    void* parts = nullptr;        // [tiles][splits][values of a tile / 4]; not used where splits is 1
    int32_t* counters = nullptr;  // [tiles]
};

}  // namespace qk::cuda
