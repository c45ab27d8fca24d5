// Decoders of the float core: eight 4-bit codes, a word of gemm_float_layout.h, to the four registers of A that one
// m16n8k16 takes, as float16 or bfloat16. Nothing is written back: registers are the operand.
#pragma once

#include "decode_table.h"
#include "gemm_float_layout.h"
#include "packed_math.h"

namespace qk::cuda {

// Integers -8 .. 7 as code + 8. A code in the mantissa of a number whose last bit counts 1 is that number plus the
// code: subtracting it is exact.
template <class T>
struct IntegerDecoder;

template <>
struct IntegerDecoder<f16> {
    // 0x6400 | u = 1024 + u; 0x6400 | u << 4 = 1024 + 16 u, so that the code's place costs no shift
    static __device__ __forceinline__ void decode(const Table16&, uint32_t word, uint32_t (&a)[4]) {
        constexpr uint32_t kOne = 0x3c003c00u, kSixteenth = 0x2c002c00u, kMagic = 0x64006400u;
        constexpr uint32_t kLow = 0xe408e408u, kHigh = 0xd480d480u;  // -(1024 + 8), -(1024 / 16 + 8)
        const uint32_t next = word >> 8;
        a[0] = fma_f16x2(and_or(word, 0x000f000fu, kMagic), kOne, kLow);
        a[1] = fma_f16x2(and_or(word, 0x00f000f0u, kMagic), kSixteenth, kHigh);
        a[2] = fma_f16x2(and_or(next, 0x000f000fu, kMagic), kOne, kLow);
        a[3] = fma_f16x2(and_or(next, 0x00f000f0u, kMagic), kSixteenth, kHigh);
    }
};

template <>
struct IntegerDecoder<bf16> {
    // 0x4300 | u = 128 + u: seven bits of mantissa leave no room for a code shifted by four
    static __device__ __forceinline__ void decode(const Table16&, uint32_t word, uint32_t (&a)[4]) {
#pragma unroll
        for (int r = 0; r < 4; ++r)
            a[r] = fma_bf16x2(and_or(word >> (4 * r), 0x000f000fu, 0x43004300u), 0x3f803f80u, 0xc308c308u);  // - 136
    }
};

// Any 16 entries: permutations of eight bytes look up four codes at once, in the table's two halves and for the
// entries' two bytes. The same for every 16-bit type.
struct TableDecoder {
    static __device__ __forceinline__ void decode(const Table16& table, uint32_t word, uint32_t (&a)[4]) {
        const uint32_t indices = word & 0x77777777u, shifted = word << 4;
        const uint32_t upper[2] = {permute_bytes(word, word, 0xba98u), permute_bytes(shifted, shifted, 0xba98u)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t s = half == 0 ? indices : indices >> 16;
            const uint32_t low = (permute_bytes(table.low[0], table.low[1], s) & ~upper[half]) |
                                 (permute_bytes(table.low[2], table.low[3], s) & upper[half]);
            const uint32_t high = (permute_bytes(table.high[0], table.high[1], s) & ~upper[half]) |
                                  (permute_bytes(table.high[2], table.high[3], s) & upper[half]);
            a[2 * half] = permute_bytes(low, high, 0x5140u);
            a[2 * half + 1] = permute_bytes(low, high, 0x7362u);
        }
    }
};

template <Decoder D, class T>
__device__ __forceinline__ void decode(const Table16& table, uint32_t word, uint32_t (&a)[4]) {
    if constexpr (D == Decoder::integers)
        IntegerDecoder<T>::decode(table, word, a);
    else
        TableDecoder::decode(table, word, a);
}

}  // namespace qk::cuda
