// The asynchronous instructions of sm_90a: barriers in shared memory, clusters, bulk copies of tensors, products of a
// warpgroup.
// Under QK_EMULATE the same names are plain C++ (emulator/wgmma.h).
#pragma once

#include "ptx.h"
#include "tensor_map.h"

namespace qk::cuda {

// ---- shared memory with the 128-byte swizzle -----------------------------------------------------------------------
// Rows of 128 bytes. Of an address, bits 4 to 6 (which 16 bytes of a row) are xored with bits 7 to 9 (which row of
// eight), by whoever writes and whoever reads: eight rows' 16 bytes of one k are in eight different groups of four
// banks. An atom is eight rows; it starts at a multiple of 1024 bytes.
QK_HD inline constexpr uint32_t swizzle_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// What wgmma knows of an operand in shared memory, k innermost (PTX ISA, "matrix descriptor"), in units of 16 bytes:
//   bits 0 - 13 address of the first byte, before the swizzle; a step of k within the 128 bytes is a sum with it
//   bits 16 - 29 leading offset: not used with a swizzle where k is innermost
//   bits 32 - 45 stride: from eight rows to the next eight
//   bits 49 - 51 offset of the atom, 0: it starts at a multiple of 1024;  bits 62 - 63 swizzle, 1: 128 bytes
QK_HD inline constexpr uint64_t operand_128(uint32_t address, uint32_t stride) {
    return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(stride >> 4) << 32 |
           uint64_t{1} << 62;
}

}  // namespace qk::cuda

#ifdef QK_EMULATE
#include "emulator/wgmma.h"
#else

namespace qk::cuda {

// ---- barriers in shared memory -------------------------------------------------------------------------------------
// A phase ends when `count` threads have arrived and as many bytes as they announced; phases count 0, 1, 0, ...
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// After the last mbarrier_init and before the block's or the cluster's barrier: the copy engine and other blocks see
// them.
__device__ __forceinline__ void mbarrier_init_fence() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}
// Until the phase of this parity has ended.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// ---- clusters: blocks that run at the same time and reach each other's shared memory (Start::cluster) ---------------
__device__ __forceinline__ int cluster_rank() {  // of this block
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return static_cast<int>(rank);
}
// All threads of all blocks of the cluster. After it all see barriers that were initialised and fenced before it;
// nothing else is ordered.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}
// At the barrier that block `rank` has where this block has `barrier`; that block must not have ended. It says that
// products, which were waited for, have read a stage. To publish what this thread wrote would take the scope of the
// cluster, and a fence of all memory (MEMBAR.GPU) for every stage.
__device__ __forceinline__ void mbarrier_arrive_at(uint64_t* barrier, int rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
}

// ---- bulk copies ---------------------------------------------------------------------------------------------------
// A box of a tensor to shared memory; its bytes, those outside of the tensor too, count at the barrier. One thread.
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, uint64_t* barrier, int x0, int x1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
            shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1)
        : "memory");
}
__device__ __forceinline__ void copy_box(void* to, const TensorMap& map, uint64_t* barrier, int x0, int x1, int x2,
                                         int x3) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], "
        "[%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "r"(x2), "r"(x3)
        : "memory");
}
// The same to every block whose bit of `blocks` is set, at the place that `to` has in this one; the bytes count at the
// barrier that each has where this block has `barrier`.
__device__ __forceinline__ void copy_box_to(uint16_t blocks, void* to, const TensorMap& map, uint64_t* barrier, int x0,
                                            int x1) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(x0), "r"(x1), "h"(blocks)
        : "memory");
}
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---- registers: a warpgroup gives some up, another takes them -------------------------------------------------------
template <int COUNT>
__device__ __forceinline__ void keep_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}
template <int COUNT>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- products of a warpgroup: d (64, N) = a (64, 32) * b (N, 32)^T, + d where `accumulate`
// --------------------------- int8 x int8 (or uint8) -> int32. Warp w of the four, lane 4g + t: d[4i + e] is row 16w +
// g + 8 (e / 2), column 8i + 2t + e % 2. Registers of d must not be touched between the instruction and the wait for
// its group.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All but the newest PENDING groups are done.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
// The compiler moves no use of d past here.
template <int COUNT>
__device__ __forceinline__ void hold(int32_t (&d)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define QK_D4(i) "+r"(d[i]), "+r"(d[i + 1]), "+r"(d[i + 2]), "+r"(d[i + 3])
#define QK_D16(i) QK_D4(i), QK_D4(i + 4), QK_D4(i + 8), QK_D4(i + 12)
#define QK_D64(i) QK_D16(i), QK_D16(i + 16), QK_D16(i + 32), QK_D16(i + 48)
#define QK_R64_0                                                                                                       \
    "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%"  \
    "30,"                                                                                                              \
    "%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58," \
    "%59,%60,%61,%62,%63"
#define QK_R64_1                                                                                                       \
    "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91," \
    "%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,"      \
    "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define QK_WGMMA(shape, types, registers, a, b, flag) \
    "{\n.reg .pred p;\nsetp.ne.b32 p, " flag          \
    ", 0;\n"                                          \
    "wgmma.mma_async.sync.aligned." shape ".s32." types " {" registers "}, " a ", " b ", p;\n}"

template <bool SIGNED>
__device__ __forceinline__ void wgmma(int32_t (&d)[64], uint64_t a, uint64_t b, bool accumulate) {
    const int flag = accumulate;
    if constexpr (SIGNED)
        asm volatile(QK_WGMMA("m64n128k32", "s8.s8", QK_R64_0, "%64", "%65", "%66")
                     : QK_D64(0)
                     : "l"(a), "l"(b), "r"(flag));
    else
        asm volatile(QK_WGMMA("m64n128k32", "s8.u8", QK_R64_0, "%64", "%65", "%66")
                     : QK_D64(0)
                     : "l"(a), "l"(b), "r"(flag));
}
template <bool SIGNED>
__device__ __forceinline__ void wgmma(int32_t (&d)[128], uint64_t a, uint64_t b, bool accumulate) {
    const int flag = accumulate;
    if constexpr (SIGNED)
        asm volatile(QK_WGMMA("m64n256k32", "s8.s8", QK_R64_0 "," QK_R64_1, "%128", "%129", "%130")
                     : QK_D64(0), QK_D64(64)
                     : "l"(a), "l"(b), "r"(flag));
    else
        asm volatile(QK_WGMMA("m64n256k32", "s8.u8", QK_R64_0 "," QK_R64_1, "%128", "%129", "%130")
                     : QK_D64(0), QK_D64(64)
                     : "l"(a), "l"(b), "r"(flag));
}

#undef QK_D4
#undef QK_D16
#undef QK_D64
#undef QK_R64_0
#undef QK_R64_1
#undef QK_WGMMA

}  // namespace qk::cuda
#endif
