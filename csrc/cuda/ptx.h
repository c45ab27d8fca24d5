// The instructions that CUDA C++ has no name for, one function each. Under QK_EMULATE the same names are plain C++
// (emulator/ptx.h), written from the fragment layouts of the PTX ISA that the comments here repeat.
//
// Lane l of a warp: g = l / 4, t = l % 4. "row, column" are of the matrix that the instruction multiplies.
#pragma once

#include <type_traits>

#include "device.h"

#ifdef QK_EMULATE
#include "emulator/ptx.h"
#else

namespace qk::cuda {

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// ---- tensor cores: d += a * b, a (m, k) row-major, b (k, n) column-major ------------------------------------------
//   d, 16 x 8     d[0], d[1] at row g, columns 2t, 2t + 1; d[2], d[3] at row g + 8
//   a, 16 x k     a[0] row g, a[1] row g + 8, low half of k; a[2] row g, a[3] row g + 8, high half. A register holds
//                 the k of t: 4t .. 4t + 3 of 16 (int8), 2t, 2t + 1 of 8 (16 bits), 32t .. of 128 (1 bit)
//   b, k x 8      b[0] column g, low half of k; b[1] column g, high half; the k of t as in a

// m16n8k32, int8 x int8 -> int32
__device__ __forceinline__ void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// m16n8k32, int8 x uint8 -> int32
__device__ __forceinline__ void mma_s8u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// m16n8k16, float16 x float16 -> float32
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// m16n8k16, bfloat16 x bfloat16 -> float32
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// m16n8k256, bits: d += popcount(a & b)
__device__ __forceinline__ void mma_b1_and(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- shared memory to fragments ------------------------------------------------------------------------------------
// Matrix i, 8 rows of 16 bytes, has its rows where lanes 8i .. 8i + 7 point (16-byte aligned); lane l receives bytes
// 4t .. 4t + 3 of row g in r[i]. trans: of 16-bit elements, those at rows 2t, 2t + 1 of column g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
// Lanes 0 .. 15 point at the rows.
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// ---- copies
// ---------------------------------------------------------------------------------------------------------- 16 bytes
// from device to shared memory, past L1; the first `bytes` (0 to 16) are read, the others become 0.
__device__ __forceinline__ void cp_async_16(void* to, const void* from, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the newest N groups of this thread have arrived; other threads see it after a barrier.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 16 bytes that are read once: not kept in L1. Not "nc": ptxas moves such loads past wait_for_previous().
__device__ __forceinline__ uint4 load_stream(const void* p) {
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
}

// a, by an instruction that ptxas does not see through. Operands of an instruction that come from several vectors need
// moves into neighbouring registers: so they are made once, and not again before every use.
__device__ __forceinline__ uint32_t opaque_move(uint32_t a) {
    uint32_t d;
    asm volatile("prmt.b32 %0, %1, %2, 0x3210;" : "=r"(d) : "r"(a), "r"(threadIdx.x));
    return d;
}

// Of kernels that overlap (launch_kernel): everything that the kernel before wrote is there after the wait; the kernel
// after this one may start once every block has let it. A kernel writes nothing before its wait.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// `count` threads, a multiple of 32, at barrier `id` (1 to 15).
__device__ __forceinline__ void named_barrier(int id, int count) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
}

}  // namespace qk::cuda
#endif

namespace qk::cuda {

// m16n8k16 of T, float16 or bfloat16.
template <class T>
__device__ __forceinline__ void mma_float(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    if constexpr (std::is_same_v<T, f16>)
        mma_f16(d, a, b);
    else
        mma_bf16(d, a, b);
}

}  // namespace qk::cuda
