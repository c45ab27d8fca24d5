#include "simd/avx2.h"

namespace {
namespace simd {

inline void sum_lanes4(float* out, f32v a, f32v b, f32v c, f32v d) {
    const f32v pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

}  // namespace simd
}  // namespace

#include "decode_kernel.h"

const qk::DecodeKernels& qk::decode_kernels_avx2() {
    static const DecodeKernels table = make_decode_kernels();
    return table;
}
