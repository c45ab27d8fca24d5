// The integer core on mma.sync (sm_80 and later): m16n8k32 of int8, and, as a template over the product, m16n8k256 of
// bits, whose registers lie the same (binary.cu). Channels are the instruction's rows, so that a weight's 16 x 64
// tiles are operands as they lie in memory (gemm_layout.h), for any number of tokens.
//
//   tile    many tokens: 128 channels x 128 tokens, or 64 x 64, by four warps; four stages of 64 k by cp.async. A warp
//           has a quarter of the tile: for 64 x 64 results it reads 8 KB of shared memory a 64 k, half of what the
//           banks give in the time of its products.
//   skinny  up to 16 tokens: bound by the bytes of w. Eight warps share the K of 16 channels; weights go from memory to
//           registers, four tiles in flight a warp.
// Where tiles are fewer than multiprocessors, blocks share a K (split_k.h).
#pragma once

#include "epilogue_kernel.h"
#include "gemm.h"
#include "ptx.h"
#include "split_k_kernel.h"

namespace qk::cuda {

namespace {  // each file that includes it has kernels of its own

constexpr int kStages = 4, kWarps = 4, kThreads = 32 * kWarps, kSkinnyWarps = 8;

// What one instruction does with a lane's registers: 4 bytes of each of four rows of w and of two halves of x.
struct SignedProduct {
    static __device__ __forceinline__ void add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_s8(d, a, b);
    }
};
struct UnsignedProduct {
    static __device__ __forceinline__ void add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_s8u8(d, a, b);
    }
};
struct BitProduct {
    static __device__ __forceinline__ void add(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        mma_b1_and(d, a, b);
    }
};

template <class Product>
__device__ __forceinline__ void mma(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    const uint32_t b[2] = {b0, b1};
    Product::add(d, a, b);
}

// The operands of two instructions from the 64 k of channels g and g + 8.
__device__ __forceinline__ void operands(uint32_t (&a)[2][4], const uint4& g, const uint4& g8) {
    const uint32_t words[2][4] = {{g.x, g8.x, g.y, g8.y}, {g.z, g8.z, g.w, g8.w}};
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i / 4][i % 4] = words[i / 4][i % 4];
}

template <int CHANNELS, int TOKENS>
struct Tile {
    static constexpr int kW = CHANNELS * kTileK, kX = TOKENS * kTileK, kStage = kW + kX;
    static constexpr int kWarpChannels = CHANNELS / 2, kWarpTokens = TOKENS / 2;
    static constexpr int kRows = kWarpChannels / 16, kColumns = kWarpTokens / 8;  // instructions of a warp
    static constexpr int kPitch = CHANNELS + 4;  // of results in shared memory: 8 tokens x 4 channels hit 32 banks
    static constexpr int kPipeline = kStages * kStage, kResults = kWarpTokens * kPitch * 4;
    static constexpr int kShared = (kPipeline > kResults ? kPipeline : kResults) + 16;
};

// 64 k of weights into shared memory: tiles as they are.
template <class T>
__device__ __forceinline__ void load_w(const GemmInt8& g, char* stage, int64_t n0, int64_t block) {
    const int64_t blocks = g.k_pad / kTileK;
#pragma unroll
    for (int i = 0; i < T::kW / 16 / kThreads; ++i) {
        const int chunk = i * kThreads + threadIdx.x, tile = chunk / (kTileBytes / 16);
        const bool real = n0 + tile * kTileN < g.n_pad;
        const int64_t at = ((n0 / kTileN + tile) * blocks + block) * kTileBytes + chunk % (kTileBytes / 16) * 16;
        cp_async_16(stage + chunk * 16, g.w + (real ? at : 0), real ? 16 : 0);
    }
}

// 64 k of activations: a row of 64 bytes for each token.
template <class T>
__device__ __forceinline__ void load_x(const GemmInt8& g, char* stage, int64_t m0, int64_t block) {
#pragma unroll
    for (int i = 0; i < T::kX / 16 / kThreads; ++i) {
        const int chunk = i * kThreads + threadIdx.x;
        const int64_t row = m0 + chunk / 4;
        const bool real = row < g.m;
        cp_async_16(stage + T::kW + chunk * 16, g.x + (real ? row * g.ldx + block * kTileK + chunk % 4 * 16 : 0),
                    real ? 16 : 0);
    }
}

template <int CHANNELS, int TOKENS, class Product>
__global__ void __launch_bounds__(kThreads, CHANNELS == 128 ? 2 : 4)
    gemm_int8_tile(const __grid_constant__ GemmInt8 g) {
    using T = Tile<CHANNELS, TOKENS>;
    char* shared = shared_memory();
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int warp_n = warp % 2, warp_m = warp / 2;

    // Neighbouring blocks share operands in L2: eight tiles of channels, then the next tokens.
    const int64_t n_tiles = ceil_div(g.n, CHANNELS), m_tiles = ceil_div(g.m, TOKENS);
    const int64_t group = blockIdx.x / (8 * m_tiles), in_group = blockIdx.x % (8 * m_tiles);
    const int64_t width = n_tiles - group * 8 < 8 ? n_tiles - group * 8 : 8;
    const int64_t n0 = (group * 8 + in_group % width) * CHANNELS, m0 = in_group / width * TOKENS;

    const int64_t blocks = g.k_pad / kTileK;
    const int64_t begin = blocks * blockIdx.y / g.split.splits, end = blocks * (blockIdx.y + 1) / g.split.splits;

    alignas(16) int32_t acc[T::kRows][T::kColumns][4] = {};
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s)
        if (begin + s < end) load_w<T>(g, shared + s * T::kStage, n0, begin + s);
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) {
        if (begin + s < end) load_x<T>(g, shared + s * T::kStage, m0, begin + s);
        cp_async_commit();
    }
#pragma unroll 1
    for (int64_t block = begin; block < end; ++block) {
        cp_async_wait<kStages - 2>();
        __syncthreads();  // the stage has arrived for all, and all have read the one that is loaded next
        const int64_t next = block + kStages - 1;
        if (next < end) {
            char* to = shared + (next - begin) % kStages * T::kStage;
            load_w<T>(g, to, n0, next);
            load_x<T>(g, to, m0, next);
        }
        cp_async_commit();
        const char* stage = shared + (block - begin) % kStages * T::kStage;
        const auto* w = reinterpret_cast<const uint4*>(stage + warp_n * T::kWarpChannels * kTileK) + lane;
        const auto* x = reinterpret_cast<const uint4*>(stage + T::kW + warp_m * T::kWarpTokens * kTileK) + lane;
        uint32_t a[T::kRows][2][4];
#pragma unroll
        for (int r = 0; r < T::kRows; ++r) {
            operands(a[r], w[r * (kTileBytes / 16)], w[r * (kTileBytes / 16) + 32]);
#pragma unroll
            for (int i = 0; i < 8; ++i) a[r][i / 4][i % 4] = opaque_move(a[r][i / 4][i % 4]);
        }
#pragma unroll
        for (int c = 0; c < T::kColumns; ++c) {
            const uint4 b = x[c * 32];  // token g: 64 bytes, of which lane t has 16
#pragma unroll
            for (int r = 0; r < T::kRows; ++r) mma<Product>(acc[r][c], a[r][0], b.x, b.y);
#pragma unroll
            for (int r = 0; r < T::kRows; ++r) mma<Product>(acc[r][c], a[r][1], b.z, b.w);
        }
    }
    cp_async_wait<0>();

    if (g.split.splits > 1) {
        auto& flat = reinterpret_cast<int4(&)[T::kRows * T::kColumns]>(acc);
        auto* flag = reinterpret_cast<int32_t*>(shared + T::kShared - 16);
        if (!sum_parts(g.split, blockIdx.x, blockIdx.y, thread, kThreads, flat, flag)) return;
    }

    // Results through shared memory, half of the tokens at a time: rows of channels, stored 4 at a time.
    auto* results = reinterpret_cast<int32_t*>(shared);
    constexpr int kRowThreads = CHANNELS / kVector, kRowsAtOnce = kThreads / kRowThreads;
    const ChannelEpilogue epilogue(g.epilogue, n0 + thread % kRowThreads * kVector);
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
        __syncthreads();
        if (warp_m == half) {
#pragma unroll
            for (int r = 0; r < T::kRows; ++r)
#pragma unroll
                for (int c = 0; c < T::kColumns; ++c)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        results[(c * 8 + lane % 4 * 2 + i % 2) * T::kPitch + warp_n * T::kWarpChannels + r * 16 +
                                lane / 4 + i / 2 * 8] = acc[r][c][i];
        }
        __syncthreads();
        const int64_t base = m0 + half * T::kWarpTokens;
#pragma unroll 1
        for (int row = thread / kRowThreads; row < T::kWarpTokens && base + row < g.m; row += kRowsAtOnce)
            epilogue.store(base + row,
                           *reinterpret_cast<const int4*>(results + row * T::kPitch + thread % kRowThreads * kVector));
    }
}

// COLUMNS instructions of 8 tokens each.
template <int COLUMNS, class Product>
__global__ void __launch_bounds__(32 * kSkinnyWarps, 2) gemm_int8_skinny(const __grid_constant__ GemmInt8 g) {
    constexpr int kUnroll = 4, kPitch = kTileN + 4;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int64_t n0 = static_cast<int64_t>(blockIdx.x) * kTileN, blocks = g.k_pad / kTileK;
    const int64_t begin = blocks * blockIdx.y / g.split.splits, end = blocks * (blockIdx.y + 1) / g.split.splits;
    const uint8_t* w = g.w + n0 / kTileN * blocks * kTileBytes + lane * 16;
    const uint8_t* x[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {  // tokens beyond m read the last one: their results are dropped
        const int64_t row = c * 8 + lane / 4;
        x[c] = g.x + (row < g.m ? row : g.m - 1) * g.ldx + lane % 4 * 16;
    }

    // Two sets of kUnroll tiles: one is multiplied, one on its way.
    auto load = [&](uint4(&a)[kUnroll][2], int64_t from) {
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t block = from + u * kSkinnyWarps;
            a[u][0] = a[u][1] = make_uint4(0, 0, 0, 0);
            if (block < end) {
                a[u][0] = load_stream(w + block * kTileBytes);
                a[u][1] = load_stream(w + block * kTileBytes + 512);
            }
        }
    };
    int32_t acc[COLUMNS][4] = {};
    uint4 a[kUnroll][2], next[kUnroll][2];
    load(a, begin + warp);
    wait_for_previous();
#pragma unroll 1
    for (int64_t from = begin + warp; from < end; from += kUnroll * kSkinnyWarps) {
        uint4 b[kUnroll][COLUMNS];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int64_t block = from + u * kSkinnyWarps;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)  // what is beyond the end is multiplied by 0
                b[u][c] = *reinterpret_cast<const uint4*>(x[c] + (block < end ? block : from) * kTileK);
        }
        load(next, from + kUnroll * kSkinnyWarps);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            uint32_t pair[2][4];
            operands(pair, a[u][0], a[u][1]);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                mma<Product>(acc[c], pair[0], b[u][c].x, b[u][c].y);
                mma<Product>(acc[c], pair[1], b[u][c].z, b[u][c].w);
            }
            a[u][0] = next[u][0];
            a[u][1] = next[u][1];
        }
    }

    // The warps' sums meet in shared memory: [warp][token][channel].
    auto* sums = reinterpret_cast<int32_t*>(shared_memory());
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            sums[(warp * COLUMNS * 8 + c * 8 + lane % 4 * 2 + i % 2) * kPitch + lane / 4 + i / 2 * 8] = acc[c][i];
    __syncthreads();
    constexpr int kOwners = COLUMNS * 8 * (kTileN / kVector);  // threads that own results
    const int token = thread / (kTileN / kVector), quad = thread % (kTileN / kVector);
    int4 total[1] = {make_int4(0, 0, 0, 0)};
    if (thread < kOwners) {
#pragma unroll
        for (int p = 0; p < kSkinnyWarps; ++p) {
            const int4 v = *reinterpret_cast<const int4*>(sums + (p * COLUMNS * 8 + token) * kPitch + quad * kVector);
            total[0].x += v.x;
            total[0].y += v.y;
            total[0].z += v.z;
            total[0].w += v.w;
        }
    }
    if (g.split.splits > 1) {
        auto* flag = sums + kSkinnyWarps * COLUMNS * 8 * kPitch;
        int4* parts = static_cast<int4*>(g.split.parts) + static_cast<int64_t>(blockIdx.x) * g.split.splits * kOwners;
        if (thread < kOwners) parts[blockIdx.y * kOwners + threadIdx.x] = total[0];
        if (!arrives_last(g.split, blockIdx.x, flag)) return;
        total[0] = make_int4(0, 0, 0, 0);
#pragma unroll 1
        for (int p = 0; p < g.split.splits && thread < kOwners; ++p) {
            const int4 v = __ldcg(parts + p * kOwners + threadIdx.x);
            total[0].x += v.x;
            total[0].y += v.y;
            total[0].z += v.z;
            total[0].w += v.w;
        }
    }
    if (thread < kOwners && token < g.m) ChannelEpilogue(g.epilogue, n0 + quad * kVector).store(token, total[0]);
}

template <class Product, int CHANNELS, int TOKENS>
void launch_tile(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream) {
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits));
    launch_kernel({overlap}, gemm_int8_tile<CHANNELS, TOKENS, Product>, grid, dim3(kThreads),
                  Tile<CHANNELS, TOKENS>::kShared, stream, g);
}

template <class Product, int COLUMNS>
void launch_skinny(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream) {
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits));
    const int shared_bytes = kSkinnyWarps * COLUMNS * 8 * (kTileN + 4) * 4 + 16;
    launch_kernel({overlap}, gemm_int8_skinny<COLUMNS, Product>, grid, dim3(32 * kSkinnyWarps), shared_bytes, stream,
                  g);
}

template <class Product>
void launch_gemm(GemmInt8 g, const GemmPlan& plan, void* workspace, bool overlap, Stream stream) {
    if (g.m == 0 || g.n == 0) return;
    g.epilogue.n = g.n;
    g.epilogue.prepare();
    g.split.splits = plan.splits;
    g.split.parts = workspace;
    g.split.counters = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + plan.part_bytes());
    if (plan.kernel == GemmKernel::skinny)
        return plan.tokens == 8 ? launch_skinny<Product, 1>(g, plan, overlap, stream)
                                : launch_skinny<Product, 2>(g, plan, overlap, stream);
    return plan.channels == 128 ? launch_tile<Product, 128, 128>(g, plan, overlap, stream)
                                : launch_tile<Product, 64, 64>(g, plan, overlap, stream);
}

}  // namespace

}  // namespace qk::cuda
