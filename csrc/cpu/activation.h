// Activations of the epilogue on float32 lanes. ReLU and ReLU6 are exact; GELU (erf form) and SiLU stay within
// 1e-6 absolute + 2e-6 relative of the float64 definition (tests/test_activation.py).
#pragma once

#include "../common/types.h"

namespace {

// exp(x) for x <= 0 and above -80; below that the result is taken as exp(-80), about 1.8e-35, so that what it is
// multiplied by next does not end among the subnormals, which cost an assist each.
inline simd::f32v exp_nonpositive(simd::f32v x) {
    using namespace simd;
    x = max(x, set1(-80.0f));
    const f32v n = rint(mul(x, set1(1.44269504f)));
    f32v r = sub(x, mul(n, set1(0.693359375f)));  // ln 2 in two parts: n * 0.693359375 is exact
    r = sub(r, mul(n, set1(-2.12194440e-4f)));
    f32v p = set1(1.9875691500e-4f);  // minimax on [-ln2/2, ln2/2] (Cephes expf)
    p = add(mul(p, r), set1(1.3981999507e-3f));
    p = add(mul(p, r), set1(8.3334519073e-3f));
    p = add(mul(p, r), set1(4.1665795894e-2f));
    p = add(mul(p, r), set1(1.6666665459e-1f));
    p = add(mul(p, r), set1(5.0000001201e-1f));
    p = add(add(mul(mul(p, r), r), r), set1(1.0f));
    return mul(p, pow2(n));
}

// gelu(x) = x * Phi(x); Phi(-|x|) = erfc(|x| / sqrt 2) / 2 by Abramowitz & Stegun 7.1.26
inline simd::f32v gelu(simd::f32v x) {
    using namespace simd;
    const f32v z = mul(abs(x), set1(0.70710678f));
    const f32v t = reciprocal(add(set1(1.0f), mul(z, set1(0.3275911f))));
    f32v p = set1(1.061405429f);
    p = add(mul(p, t), set1(-1.453152027f));
    p = add(mul(p, t), set1(1.421413741f));
    p = add(mul(p, t), set1(-0.284496736f));
    p = add(mul(p, t), set1(0.254829592f));
    const f32v tail = mul(mul(mul(p, t), exp_nonpositive(sub(set1(0.0f), mul(z, z)))), set1(0.5f));
    return mul(x, select_negative(x, tail, sub(set1(1.0f), tail)));
}

// silu(x) = x / (1 + exp(-x)), written with exp(-|x|) so that nothing overflows
inline simd::f32v silu(simd::f32v x) {
    using namespace simd;
    const f32v e = exp_nonpositive(sub(set1(0.0f), abs(x)));
    const f32v numerator = select_negative(x, e, set1(1.0f));
    return mul(mul(x, numerator), reciprocal(add(set1(1.0f), e)));
}

inline simd::f32v activate(simd::f32v x, qk::Activation kind) {
    using namespace simd;
    switch (kind) {  // max(0, x) in this order keeps a NaN, as torch does: the second operand wins
        case qk::Activation::none: return x;
        case qk::Activation::relu: return max(set1(0.0f), x);
        case qk::Activation::relu6: return min(set1(6.0f), max(set1(0.0f), x));
        case qk::Activation::gelu: return gelu(x);
        case qk::Activation::silu: return silu(x);
    }
    return x;
}

}  // namespace
