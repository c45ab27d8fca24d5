// common/fixed_point.h, LANES values at a time: products need 64 bits, so even and odd lanes are done apart.
#pragma once

#include "../common/types.h"

namespace {

struct RequantLanes {
    simd::i32v multiplier, shift;
    simd::f32v scale;
    int32_t zero, lo, hi;
};

inline simd::i64v single_half(simd::i64v acc, simd::i64v m, simd::i64v shift, simd::i64v zero) {
    using namespace simd;
    const i64v t = add64(shift, set64(31));
    const i64v half = sll64(set64(1), sub64(t, set64(1)));  // t = 0 shifts by 2^64 - 1, which gives 0
    return add64(sra64(add64(mul32(acc, m), half), t), zero);
}

inline simd::i64v double_half(simd::i64v acc, simd::i64v m, simd::i64v shift, simd::i64v zero) {
    using namespace simd;
    const i64v none = set64(0);
    i64v a = sll64(acc, max64(sub64(none, shift), none));
    a = min64(max64(a, set64(INT32_MIN)), set64(INT32_MAX));
    const i64v high = sra64(add64(mul32(a, m), set64(int64_t{1} << 30)), set64(31));
    const i64v right = max64(shift, none);
    const i64v mask = sub64(sll64(set64(1), right), set64(1));
    const i64v threshold = sub64(sra64(mask, set64(1)), negative_mask(high));  // the mask is -1 where negative
    return add64(add64(sra64(high, right), greater_one(and64(high, mask), threshold)), zero);
}

template <qk::Rounding R>
inline simd::i32v requant(simd::i32v acc, const RequantLanes& q) {
    using namespace simd;
    if constexpr (R == qk::Rounding::float_) {
        // lo - zero and hi - zero are integers that float32 holds, so clamping before rint equals clamping after
        f32v y = mul(to_float(acc), q.scale);
        y = min(max(y, set1(static_cast<float>(q.lo - q.zero))), set1(static_cast<float>(q.hi - q.zero)));
        return addi(to_int(y), seti(q.zero));
    } else {
        const i64v zero = set64(q.zero), lo = set64(q.lo), hi = set64(q.hi);
        auto half = R == qk::Rounding::single ? single_half : double_half;
        const i64v e = half(even(acc), even(q.multiplier), even(q.shift), zero);
        const i64v o = half(odd(acc), odd(q.multiplier), odd(q.shift), zero);
        return merge(min64(max64(e, lo), hi), min64(max64(o, lo), hi));
    }
}

}  // namespace
