// Activations of the epilogue. ReLU and ReLU6 are exact; GELU (erf form) and SiLU stay within 1e-6 + 2e-6 |y| of the
// float64 definition.
#pragma once

#include "device.h"

namespace qk::cuda {

__device__ __forceinline__ float activate(float x, Activation kind) {
    switch (kind) {  // comparisons in this order keep a NaN, as torch does
        case Activation::none: return x;
        case Activation::relu: return x < 0.0f ? 0.0f : x;
        case Activation::relu6: return x < 0.0f ? 0.0f : (x > 6.0f ? 6.0f : x);
        case Activation::gelu: return 0.5f * x * erfcf(x * -0.70710678f);
        case Activation::silu: return x / (1.0f + expf(-x));
    }
    return x;
}

}  // namespace qk::cuda
