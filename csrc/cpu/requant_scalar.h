// common/fixed_point.h behind the interface of requant_vector.h.
#pragma once

#include "../common/fixed_point.h"
#include "../common/types.h"

namespace {

struct RequantLanes {
    int32_t multiplier, shift;
    float scale;
    int32_t zero, lo, hi;
};

template <qk::Rounding R>
inline int32_t requant(int32_t acc, const RequantLanes& q) {
    int64_t v;
    if constexpr (R == qk::Rounding::single) {
        v = qk::requant_single(acc, q.multiplier, q.shift);
    } else if constexpr (R == qk::Rounding::double_) {
        v = qk::requant_double(acc, q.multiplier, q.shift);
    } else {
        v = qk::requant_float(acc, q.scale);
    }
    return static_cast<int32_t>(qk::clamp64(v + q.zero, q.lo, q.hi));
}

}  // namespace
