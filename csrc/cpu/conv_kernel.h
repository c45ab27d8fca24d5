// Transposes between NCHW and NHWC.
#pragma once

#include "conv_kernels.h"

namespace {

// Square blocks through registers where the ISA has them, the edges element by element.
template <class T>
void transpose(const void* source, int64_t ld_src, int64_t rows, int64_t cols, void* target, int64_t ld_dst) {
    const T* src = static_cast<const T*>(source);
    T* dst = static_cast<T*>(target);
    constexpr int B = simd::transpose_block(sizeof(T));
    const int64_t whole_rows = rows / B * B, whole_cols = cols / B * B;
    auto single = [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
        for (int64_t c = c0; c < c1; ++c)
            for (int64_t r = r0; r < r1; ++r) dst[c * ld_dst + r] = src[r * ld_src + c];
    };
    if constexpr (B > 1) {
        for (int64_t r = 0; r < whole_rows; r += B)
            for (int64_t c = 0; c < whole_cols; c += B)
                simd::transpose_square(src + r * ld_src + c, ld_src, dst + c * ld_dst + r, ld_dst);
        single(0, whole_rows, whole_cols, cols);
        single(whole_rows, rows, 0, cols);
    } else {
        single(0, rows, 0, cols);
    }
}

}  // namespace
