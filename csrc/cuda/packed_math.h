// Instructions on registers of several small numbers that decoders need, in PTX and, for the emulator, in C++.
#pragma once

#include "device.h"

#ifdef QK_EMULATE
#include "../common/half.h"
#endif

namespace qk::cuda {

// Byte i of the result is byte s & 7 of the eight bytes (low, high), s nibble i of the selector; where s & 8, the sign
// of that byte in all of its bits.
__device__ __forceinline__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t selector) {
#ifdef QK_EMULATE
    return __byte_perm(low, high, selector);
#else
    uint32_t out;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(low), "r"(high), "r"(selector));
    return out;
#endif
}

// (a & mask) | bits: one instruction. Written in C++ with two constants it becomes two, as one can be immediate.
__device__ __forceinline__ uint32_t and_or(uint32_t a, uint32_t mask, uint32_t bits) {
#ifdef QK_EMULATE
    return (a & mask) | bits;
#else
    uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(mask), "r"(bits));  // (f0 & cc) | aa
    return out;
#endif
}

#ifdef QK_EMULATE
namespace emulator {
// a * b + c of two numbers, exact in float64 for what decoders do.
template <class To, class From>
uint32_t fma_pairs(uint32_t a, uint32_t b, uint32_t c, From from, To to) {
    uint32_t out = 0;
    for (int i = 0; i < 32; i += 16) {
        auto part = [&](uint32_t v) { return static_cast<double>(from(static_cast<uint16_t>(v >> i))); };
        out |= static_cast<uint32_t>(to(static_cast<float>(part(a) * part(b) + part(c)))) << i;
    }
    return out;
}
}  // namespace emulator
#endif

// a * b + c of pairs, rounded once.
__device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef QK_EMULATE
    return emulator::fma_pairs(a, b, c, half_to_float, float_to_half);
#else
    uint32_t out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#endif
}
__device__ __forceinline__ uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
#ifdef QK_EMULATE
    return emulator::fma_pairs(a, b, c, bfloat_to_float, float_to_bfloat);
#else
    uint32_t out;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
#endif
}

}  // namespace qk::cuda
