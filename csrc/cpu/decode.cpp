// Scratch and choice around the leaves of decode_kernel.h.
#include "decode.h"

#include "scratch.h"

namespace qk {

const DecodeKernels& decode_kernels(Isa isa) {
    return isa == Isa::scalar ? decode_kernels_scalar() : decode_kernels_avx2();
}

void decode_attention(const DecodeKernels& isa, DecodeAttention a) {
    const int64_t positions = round_up(a.position + 1, 16), queries = a.heads * a.head;
    Scratch& scratch = Scratch::get(Scratch::padded<float>(positions) + Scratch::padded<float>(queries));
    a.weights = scratch.take<float>(positions);
    a.turned = scratch.take<float>(queries);
    isa.attention(a);
}

}  // namespace qk
