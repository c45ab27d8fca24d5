// What decoding one token needs between its linear layers: norms, SwiGLU, and attention over a cache of keys and
// values. All float32. Norms and SwiGLU stay on the calling thread: they take microseconds, less than starting a second
// one would.
#pragma once

#include "kernels.h"

namespace qk {

// One token's attention. Heads lie one after the other: `heads` queries, `kv_heads` keys, as many values.
struct DecodeAttention {
    const float* qkv;   // [heads + 2 kv_heads][head]
    const float* turn;  // [heads + kv_heads][head / 2][2]: cosine and sine
    float* store;       // keys, then values: 2 kv_heads planes, `pitch` floats apart, of positions of `head` floats
    int64_t pitch, heads, kv_heads, head, position;
    float* out;     // [heads][head]
    float* turned;  // scratch [heads][head]
};

struct DecodeKernels {
    // x += residual where there is one, then out = x / sqrt(mean(x^2) + eps) * weight, per row of k
    void (*rms_norm)(float* x, const float* residual, const float* weight, int64_t rows, int64_t k, float eps,
                     float* out);
    // out[r][i] = silu(x[r][i]) * x[r][n + i]
    void (*swiglu)(const float* x, int64_t rows, int64_t n, float* out);
    // The token's keys and values into the store, its queries turned.
    void (*enter_token)(const DecodeAttention& a);
    // One query head, after that; weights: scratch [position + 1, rounded up to 16].
    void (*attend)(const DecodeAttention& a, int64_t head, float* weights);
};

const DecodeKernels& decode_kernels_scalar();
const DecodeKernels& decode_kernels_avx2();
const DecodeKernels& decode_kernels_avx512vnni();
const DecodeKernels& decode_kernels(Isa isa);

// `a` without its scratch.
void decode_attention(const DecodeKernels& isa, DecodeAttention a, int threads);

}  // namespace qk
