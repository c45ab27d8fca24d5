#include "simd/avx512vnni.h"

namespace {
namespace simd {

inline __m256 halves(f32v a) {  // their sum
    const __m512i bits = _mm512_castps_si512(a);
    return _mm256_add_ps(_mm256_castsi256_ps(_mm512_castsi512_si256(bits)),
                         _mm256_castsi256_ps(_mm512_extracti64x4_epi64(bits, 1)));
}
inline void sum_lanes4(float* out, f32v a, f32v b, f32v c, f32v d) {
    const __m256 ab = _mm256_hadd_ps(halves(a), halves(b)), cd = _mm256_hadd_ps(halves(c), halves(d));
    const __m256 pairs = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

}  // namespace simd
}  // namespace

#include "decode_kernel.h"

const qk::DecodeKernels& qk::decode_kernels_avx512vnni() {
    static const DecodeKernels table = make_decode_kernels();
    return table;
}
