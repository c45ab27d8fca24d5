// What the kernels of the 4-bit integer core share: decoding to int8 in registers, products, constants of groups.
#pragma once

#include "convert.h"
#include "epilogue_kernel.h"
#include "gemm_int4.h"
#include "packed_math.h"
#include "ptx.h"

namespace qk::cuda {

// Eight codes to the four bytes of channel g and those of channel g + 8.
template <Decoder D>
__device__ __forceinline__ void decode_bytes(const Table16& table, uint32_t word, uint32_t& low, uint32_t& high) {
    if constexpr (D == Decoder::integers) {  // 16 * code
        low = (word << 4) & 0xf0f0f0f0u;
        high = word & 0xf0f0f0f0u;
    } else {
        const uint32_t indices = word & 0x77777777u, rest = indices >> 16, shifted = word << 4;
        const uint32_t a = permute_bytes(word, word, 0xba98u), b = permute_bytes(shifted, shifted, 0xba98u);
        low = (permute_bytes(table.low[0], table.low[1], indices) & ~a) |
              (permute_bytes(table.low[2], table.low[3], indices) & a);
        high = (permute_bytes(table.low[0], table.low[1], rest) & ~b) |
               (permute_bytes(table.low[2], table.low[3], rest) & b);
    }
}

// The operand of step `half` of a tile's two.
template <Decoder D>
__device__ __forceinline__ void decode_step(const Table16& table, const uint4& words, int half, uint32_t (&a)[4]) {
    decode_bytes<D>(table, half == 0 ? words.x : words.z, a[0], a[1]);
    decode_bytes<D>(table, half == 0 ? words.y : words.w, a[2], a[3]);
}

template <bool SIGNED>
__device__ __forceinline__ void multiply(int32_t (&acc)[4], const uint32_t (&a)[4], const uint2& x) {
    const uint32_t b[2] = {x.x, x.y};
    if constexpr (SIGNED)
        mma_s8(acc, a, b);
    else
        mma_s8u8(acc, a, b);
}

// The sum of products that an accumulator holds: exact.
template <Decoder D>
__device__ __forceinline__ int32_t sum_of(int32_t acc) {
    return D == Decoder::integers ? acc >> 4 : acc;
}

// What zero points take from a group's sum. Modulo 2^32 throughout: the result fits int32, its parts need not.
__device__ __forceinline__ int32_t corrected(int32_t sum, uint32_t x_zero, int32_t offset, int32_t zero,
                                             int32_t x_sum) {
    return static_cast<int32_t>(static_cast<uint32_t>(sum) - x_zero * static_cast<uint32_t>(offset) -
                                static_cast<uint32_t>(zero) * static_cast<uint32_t>(x_sum));
}

// launch(decoder, sign of the activations), both as types whose ::value a template takes.
template <class Launch>
void for_types(const GemmInt4& g, Launch launch) {
    auto of = [&](auto decoder) {
        if (g.is_signed) return launch(decoder, std::true_type{});
        launch(decoder, std::false_type{});
    };
    if (g.decoder == Decoder::integers) return of(std::integral_constant<Decoder, Decoder::integers>{});
    of(std::integral_constant<Decoder, Decoder::table>{});
}

// Scale of channel i of a row of 16.
__device__ __forceinline__ float scale_at(const char* row, int i, int bytes) {
    if (bytes == 4) return reinterpret_cast<const float*>(row)[i];
    return to_float(reinterpret_cast<const f16*>(row)[i]);
}
// Of channels 4i .. 4i + 3 of rows.
__device__ __forceinline__ float4 scale_four(const char* rows, int i, int bytes) {
    if (bytes == 4) return reinterpret_cast<const float4*>(rows)[i];
    const uint2 v = reinterpret_cast<const uint2*>(rows)[i];
    auto half = [](uint32_t bits) { return to_float(f16{static_cast<uint16_t>(bits)}); };
    return {half(v.x), half(v.x >> 16), half(v.y), half(v.y >> 16)};
}

}  // namespace qk::cuda
