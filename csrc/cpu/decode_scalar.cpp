#include "simd/scalar.h"

namespace {
namespace simd {

inline void sum_lanes4(float* out, f32v a, f32v b, f32v c, f32v d) { out[0] = a, out[1] = b, out[2] = c, out[3] = d; }

}  // namespace simd
}  // namespace

#include "decode_kernel.h"

const qk::DecodeKernels& qk::decode_kernels_scalar() {
    static const DecodeKernels table = make_decode_kernels();
    return table;
}
