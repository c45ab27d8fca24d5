// Runs kernels on the host, for tests: g++ compiles the same sources (device.h).
//
// The threads of a block are fibers on one OS thread, blocks run one after the other, those of a cluster together. An
// operation of a whole warp (mma, ldmatrix, shuffles), of a warpgroup or of the block stops each thread until all are
// there; the last one then computes for all of them. What a GPU would leave undefined shows:
//   - shared memory starts as 0xFF bytes (NaN), so does what an asynchronous copy writes until the copy is waited for;
//   - an address that an instruction needs aligned is checked, and so are the ends of shared memory;
//   - the same for bulk copies, until a thread waits for their barrier, and for products of a warpgroup, whose
//   registers
//     are poisoned until their group is waited for; operands that change in between are an error (wgmma.h);
//   - what reaches another block's shared memory before that one made its barriers, or after it ended, is an error;
//   - an operation that not all of its threads reach, or that they reach with different kinds, is an error;
//   - the order in which threads run is chosen by set_schedule(), so that a missing barrier changes results.
// Errors are std::runtime_error from launch().
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../stream.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static_assert(false, "kernels use shared_memory(), see device.h");

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct alignas(8) int2 {
    int x, y;
};
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace qk::cuda::emulator {

inline constexpr int kWarp = 32;
inline constexpr unsigned char kPoison = 0xFF;  // NaN as a float of any size

struct Copy {  // an asynchronous copy that has not been carried out: `bytes` from source, then zeros up to `size`
    char* to;
    const char* from;
    int bytes, size;
};

// A product of a warpgroup, as one of its threads sees it: not carried out before its group is waited for.
struct Product {
    int32_t* d;
    int columns;
    uint64_t a, b;
    bool is_signed, accumulate;
    uint64_t operands;  // a hash of both, when it was issued
};

// A copy by the copy engine, not carried out before somebody waits for its barrier.
struct Bulk {
    const uint64_t* barrier;
    std::function<void()> carry_out;
};

// A block of the cluster that runs.
struct Block {
    dim3 index;
    unsigned rank;  // in the cluster
    char* shared;
    int alive;  // threads that have not returned
};

struct Fiber {
    void* stack_pointer = nullptr;
    Block* home = nullptr;
    dim3 thread;
    int index = 0;  // in the block
    bool done = false;
    std::function<bool()> ready;  // empty: can run
    const char* waits_for = "";
    std::vector<Copy> open;                 // copies of the group that is not committed
    std::vector<std::vector<Copy>> groups;  // committed groups, oldest first
    std::vector<Product> products;
    std::vector<std::vector<Product>> product_groups;
    std::map<int32_t*, std::vector<int32_t>> accumulators;  // of products on their way; the registers are poisoned
    bool fenced = false;                                    // since the last wait for products

    int lane() const { return index % kWarp; }
};

// Where the threads of a group meet: each leaves its arguments, the last computes.
struct Meeting {
    int arrived = 0;
    uint64_t generation = 0;
    const char* kind = nullptr;
    std::vector<void*> arguments;
};

struct State {
    dim3 grid, block;
    size_t threads = 0;  // of a block
    Fiber* fiber = nullptr;
    Block* here = nullptr;      // the block whose shared memory is meant: that of the fiber, except in in_block()
    std::vector<Fiber> fibers;  // of all blocks of the cluster
    std::vector<Block> blocks;
    Meeting cluster_meeting;
    size_t shared_bytes = 0;
    std::vector<Bulk> bulk;
};
extern State state;

// Stops the running thread until ready() says so.
void wait_until(const char* what, std::function<bool()> ready);
[[noreturn]] void fail(const std::string& what);
// The meeting of `key`: of a warp's lanes in a mask, a warpgroup, or a barrier.
Meeting& meeting(uint64_t key);

// `count` threads meet at `key`; this one is the `index`-th. compute(arguments), an array of `count` pointers, runs
// once, when all are there.
template <class Compute>
void meet(uint64_t key, const char* kind, int index, int count, void* arguments, Compute compute) {
    Meeting& m = meeting(key);
    if (m.arrived == 0) {
        m.kind = kind;
        m.arguments.assign(count, nullptr);
    }
    if (std::strcmp(m.kind, kind) != 0) fail(std::string(kind) + " meets threads that are at " + m.kind);
    m.arguments[index] = arguments;
    if (++m.arrived == count) {
        compute(m.arguments.data());
        m.arrived = 0;
        ++m.generation;
        return;
    }
    const uint64_t generation = m.generation;
    wait_until(kind, [&m, generation] { return m.generation != generation; });
}

// All lanes of the running thread's warp: compute(Arguments* const lanes[32]).
template <class Arguments, class Compute>
void warp_collective(const char* kind, Arguments& arguments, Compute compute) {
    const Fiber& f = *state.fiber;
    const uint64_t key = uint64_t{1} << 40 | static_cast<uint64_t>(f.index / kWarp);
    meet(key, kind, f.lane(), kWarp, &arguments,
         [&](void** all) { compute(reinterpret_cast<Arguments* const*>(all)); });
}

// All 128 threads of four consecutive warps: compute(Arguments* const threads[128]).
template <class Arguments, class Compute>
void warpgroup_collective(const char* kind, Arguments& arguments, Compute compute) {
    const Fiber& f = *state.fiber;
    const uint64_t key = uint64_t{2} << 40 | static_cast<uint64_t>(f.index / 128);
    meet(key, kind, f.index % 128, 128, &arguments,
         [&](void** all) { compute(reinterpret_cast<Arguments* const*>(all)); });
}

// `count` threads at barrier `id` (bar.sync id, count); -1: all of the block that have not returned.
void barrier(int id, int count);
// All of the cluster that have not returned.
void cluster_barrier();

// operate(p) with what lies where p does, in the shared memory of block `rank` of the cluster.
template <class T, class Operate>
void in_block(const char* what, unsigned rank, T* p, Operate operate) {
    if (rank >= state.blocks.size()) fail(std::string(what) + ": the cluster has no such block");
    Block *const mine = state.here, &to = state.blocks[rank];
    if (to.alive == 0) fail(std::string(what) + ": reaches a block that has ended");
    state.here = &to;
    operate(reinterpret_cast<T*>(to.shared + (reinterpret_cast<char*>(p) - mine->shared)));
    state.here = mine;
}

void require_aligned(const char* what, const void* address, size_t bytes);
void require_shared(const char* what, const void* address, size_t bytes);

void run(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, const std::function<void()>& kernel);

// 0: threads in order; 1: backwards, and in both a block of a cluster goes as far as it can before the next one does;
// more: the seed of a random order.
void set_schedule(uint64_t seed);

// ---- shuffles and votes: mask is that of the lanes which take part -------------------------------------------------

template <class T, class Source>  // Source(lane): where the lane reads, itself if out of range
T shuffle(const char* kind, unsigned mask, T value, Source source) {
    const int lane = state.fiber->lane();
    if ((mask >> lane & 1) == 0) fail(std::string(kind) + ": the thread's own lane is not in the mask");
    struct Lane {
        T in, out;
        int from;
    } mine{value, value, source(lane)};
    const int count = __builtin_popcount(mask);
    const uint64_t key =
        uint64_t{3} << 40 | static_cast<uint64_t>(state.fiber->index / kWarp) << 32 | static_cast<uint64_t>(mask);
    meet(key, kind, __builtin_popcount(mask & ((1u << lane) - 1)), count, &mine, [&](void** all) {
        Lane* lanes[kWarp] = {};
        for (int i = 0, at = 0; i < kWarp; ++i)
            if (mask >> i & 1) lanes[i] = static_cast<Lane*>(all[at++]);
        for (Lane* l : lanes)
            if (l != nullptr) {
                if (lanes[l->from] == nullptr) fail(std::string(kind) + ": reads a lane that is not in the mask");
                l->out = lanes[l->from]->in;
            }
    });
    return mine.out;
}

}  // namespace qk::cuda::emulator

#define threadIdx (::qk::cuda::emulator::state.fiber->thread)
#define blockIdx (::qk::cuda::emulator::state.here->index)
#define blockDim (::qk::cuda::emulator::state.block)
#define gridDim (::qk::cuda::emulator::state.grid)

inline void __syncthreads() { qk::cuda::emulator::barrier(0, -1); }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    qk::cuda::emulator::shuffle("__syncwarp", mask, 0, [](int lane) { return lane; });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    return qk::cuda::emulator::shuffle("__shfl_sync", mask, value,
                                       [=](int own) { return own / width * width + (lane & (width - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    return qk::cuda::emulator::shuffle("__shfl_xor_sync", mask, value, [=](int own) {
        const int from = own ^ bits;
        return from / width == own / width ? from : own;
    });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
    return qk::cuda::emulator::shuffle("__shfl_down_sync", mask, value,
                                       [=](int own) { return own % width + delta < width ? own + delta : own; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
    return qk::cuda::emulator::shuffle("__shfl_up_sync", mask, value,
                                       [=](int own) { return own % width >= delta ? own - delta : own; });
}

inline unsigned __ballot_sync(unsigned mask, bool flag) {
    unsigned own = flag ? 1u << qk::cuda::emulator::state.fiber->lane() : 0u;
    if (mask != 0xffffffffu) qk::cuda::emulator::fail("__ballot_sync: the emulator takes whole warps");
    for (int bits = 16; bits > 0; bits /= 2) own |= __shfl_xor_sync(mask, own, bits);
    return own;
}

// Threads run one at a time and are stopped only where they wait: plain operations are atomic.
template <class T, class U>
T atomicAdd(T* p, U value) {
    const T old = *p;
    *p = static_cast<T>(old + static_cast<T>(value));
    return old;
}
template <class T>
T atomicMax(T* p, T value) {
    const T old = *p;
    *p = old < value ? value : old;
    return old;
}
template <class T>
T atomicMin(T* p, T value) {
    const T old = *p;
    *p = value < old ? value : old;
    return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* p) {
    qk::cuda::emulator::require_aligned("__ldg", p, sizeof(T));
    return *p;
}
template <class T>
T __ldcg(const T* p) {
    return __ldg(p);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned out = 0;
    for (int i = 0; i < 4; ++i) {
        const unsigned s = selector >> (4 * i) & 15, at = s & 7;
        unsigned byte = (at < 4 ? a >> (8 * at) : b >> (8 * (at - 4))) & 255;
        if (s & 8) byte = byte & 128 ? 255 : 0;
        out |= byte << (8 * i);
    }
    return out;
}
inline unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, 4);
    return u;
}
inline float __uint_as_float(unsigned u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
inline int __float_as_int(float x) { return static_cast<int>(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(static_cast<unsigned>(x)); }

namespace qk::cuda {

inline char* shared_memory() { return emulator::state.here->shared; }

template <class... Parameters, class... Arguments>
void launch_kernel(Start start, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream,
                   Arguments&&... arguments) {
    emulator::run(grid, block, start.cluster, shared_bytes, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            Arguments&&... arguments) {
    launch_kernel({}, kernel, grid, block, shared_bytes, stream, arguments...);
}

inline void fill_bytes(void* data, int value, size_t bytes, Stream) { std::memset(data, value, bytes); }

}  // namespace qk::cuda
