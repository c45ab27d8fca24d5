// Scratch and choice around the leaves of decode_kernel.h.
#include "decode.h"

#include "gemm_loops.h"
#include "scratch.h"

namespace qk {

const DecodeKernels& decode_kernels(Isa isa) {
    if (isa >= Isa::avx512vnni) return decode_kernels_avx512vnni();
    return isa == Isa::avx2 ? decode_kernels_avx2() : decode_kernels_scalar();
}

void decode_attention(const DecodeKernels& isa, DecodeAttention a, int threads) {
    const int64_t positions = round_up(a.position + 1, 16);
    a.turned = Scratch::get(Scratch::padded<float>(a.heads * a.head)).take<float>(a.heads * a.head);
    isa.enter_token(a);
    // A key and a value a query head, from a cache: about ten numbers a nanosecond.
    threads = threads_worth(static_cast<double>(positions) * a.heads * a.head * 2 / 10, threads);
    parallel_for(threads, a.heads, [&](int64_t head) {
        isa.attend(a, head, Scratch::get(4 * positions, Scratch::panel).take<float>(positions));
    });
}

}  // namespace qk
