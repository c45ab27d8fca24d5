// int8 GEMM on wgmma, for more tokens than the kernels of gemm.cu are good for. Bound by L2, or by the tensor cores: a
// stage of 128 x 256 x 128 takes them 1024 cycles, in which the copy engine brings 48 KB, or 32 KB to a block of a
// pair.
//
// One block a multiprocessor goes over tiles. Of its three warpgroups one thread copies (bulk tensor copies into a ring
// of stages, each with a barrier for "full" and one for "empty"), the other two multiply 64 channels each, and then
// bring results through shared memory into rows of channels for the epilogue, while the copies of the next tile run.
//
// The blocks of a cluster have neighbouring channels of the same tokens. Each copies its own weights, and its part of
// the activations to all of them; so what fills a stage of one block comes from all, and the stage may be filled again
// when the consumers of all have released it.
#include "gemm.h"

#include "epilogue_kernel.h"
#include "gemm_wgmma.h"
#include "wgmma.h"

namespace qk::cuda {

namespace {

constexpr int kWarpgroup = 128, kThreads = 3 * kWarpgroup, kConsumers = 2 * kWarpgroup,
              kConsumerWarps = kConsumers / 32;
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
static_assert(kWarpgroup * (kProducerRegisters + 2 * kConsumerRegisters) <= 65536);
constexpr int kResultsBarrier = 1;

template <int STAGES>
struct Ring {
    int stage = 0;
    uint32_t phase = 0;
    __device__ __forceinline__ void advance() {
        if (++stage == STAGES) {
            stage = 0;
            phase ^= 1;
        }
    }
};

// What a cluster goes over: tiles of CLUSTER * 128 channels, of which each block has its own 128; beyond the last
// channel it multiplies zeros.
template <int TOKENS, int CLUSTER>
struct Walk {
    int n_tiles, m_tiles, tiles, first, stride, rank, steps;
    __device__ __forceinline__ explicit Walk(const GemmInt8& g)
        : n_tiles(static_cast<int>(ceil_div(g.n, CLUSTER * WgmmaTile<TOKENS>::kChannels))),
          m_tiles(static_cast<int>(ceil_div(g.m, TOKENS))),
          tiles(n_tiles * m_tiles),
          first(static_cast<int>(blockIdx.x) / CLUSTER),
          stride(static_cast<int>(gridDim.x) / CLUSTER),
          rank(CLUSTER == 1 ? 0 : cluster_rank()),
          steps(static_cast<int>(ceil_div(g.k_pad, WgmmaTile<TOKENS>::kDepth))) {}
    __device__ __forceinline__ TileAt at(int index) const {  // this block's
        const TileAt t = tile_at(index, n_tiles, m_tiles, WgmmaTile<TOKENS>::kGroup / CLUSTER);
        return {t.n * CLUSTER + rank, t.m};
    }
};

template <int TOKENS, int CLUSTER>
__device__ __forceinline__ void produce(const TensorMap& w_map, const TensorMap& x_map, const GemmInt8& g, char* shared,
                                        uint64_t* full, uint64_t* empty) {
    using T = WgmmaTile<TOKENS>;
    constexpr int kPart = TOKENS / CLUSTER;  // tokens that this block copies
    const Walk<TOKENS, CLUSTER> walk(g);
    auto load_w = [&](int stage, const TileAt& t, int step) {
        copy_box(shared + stage * T::kStage, w_map, full + stage, 0, 0, step * (T::kDepth / kTileK),
                 t.n * (T::kChannels / kTileN));
    };
    auto load_x = [&](int stage, const TileAt& t, int step) {
        char* to = shared + stage * T::kStage + T::kW + walk.rank * kPart * T::kDepth;
        const int k = step * T::kDepth, token = t.m * TOKENS + walk.rank * kPart;
        if constexpr (CLUSTER == 1)
            copy_box(to, x_map, full + stage, k, token);
        else
            copy_box_to((1 << CLUSTER) - 1, to, x_map, full + stage, k, token);
    };
    // Weights of the first stages do not depend on the kernel before.
    const TileAt first = walk.at(walk.first);
    const int ahead = walk.steps < T::kStages ? walk.steps : T::kStages;
#pragma unroll 1
    for (int s = 0; s < ahead; ++s) {
        mbarrier_arrive_expect(full + s, T::kStage);
        load_w(s, first, s);
    }
    wait_for_previous();
    Ring<T::kStages> ring;
#pragma unroll 1
    for (int tile = walk.first; tile < walk.tiles; tile += walk.stride) {
        const TileAt t = walk.at(tile);
#pragma unroll 1
        for (int step = 0; step < walk.steps; ++step, ring.advance()) {
            if (tile != walk.first || step >= ahead) {
                mbarrier_wait(empty + ring.stage, ring.phase ^ 1);
                mbarrier_arrive_expect(full + ring.stage, T::kStage);
                load_w(ring.stage, t, step);
            }
            load_x(ring.stage, t, step);
        }
    }
    // A block does not end while others arrive at its barriers. When all have released its last stages, its own copies
    // have reached them too.
    if constexpr (CLUSTER > 1) {
#pragma unroll 1
        for (int s = 0; s < T::kStages; ++s, ring.advance()) mbarrier_wait(empty + ring.stage, ring.phase ^ 1);
    }
}

template <int TOKENS, int CLUSTER, bool SIGNED>
__device__ __forceinline__ void consume(const GemmInt8& g, char* shared, uint64_t* full, uint64_t* empty) {
    using T = WgmmaTile<TOKENS>;
    const Walk<TOKENS, CLUSTER> walk(g);
    const int thread = threadIdx.x - kWarpgroup, warpgroup = thread / kWarpgroup, warp = thread / 32,
              lane = thread % 32;
    const int row = warp % 4 * 16 + lane / 4;  // of the operand: the first of this lane's two
    const int column = wgmma_column(wgmma_channel(warpgroup, row)),
              next = wgmma_column(wgmma_channel(warpgroup, row + 8));
    auto* results = reinterpret_cast<int32_t*>(shared + T::kResults);
    auto release = [&](int stage) {  // in every block: each copies into this one
        if constexpr (CLUSTER == 1) {
            if (lane == 0) mbarrier_arrive(empty + stage);
        } else {
            if (lane < CLUSTER) mbarrier_arrive_at(empty + stage, lane);
        }
    };
    wait_for_previous();

    int32_t acc[TOKENS / 2];
    Ring<T::kStages> ring;
    int buffer = 0;
#pragma unroll 1
    for (int tile = walk.first; tile < walk.tiles; tile += walk.stride) {
        const TileAt t = walk.at(tile);
        const ChannelEpilogue epilogue(g.epilogue, int64_t{t.n} * T::kChannels + lane * kVector);
        int before = 0;
#pragma unroll 1
        for (int step = 0; step < walk.steps; ++step, ring.advance()) {
            mbarrier_wait(full + ring.stage, ring.phase);
            const uint32_t w = shared_address(shared + ring.stage * T::kStage), x = w + T::kW;
            wgmma_fence();
#pragma unroll
            for (int s = 0; s < T::kDepth / 32; ++s)
                wgmma<SIGNED>(acc, operand_128(w + wgmma_w_offset(warpgroup, s), kWgmmaStrideW),
                              operand_128(x + wgmma_x_offset(s), kWgmmaStrideX), step > 0 || s > 0);
            wgmma_commit();
            wgmma_wait<1>();  // the step before is done: its stage can be loaded again
            if (step > 0) release(before);
            before = ring.stage;
        }
        wgmma_wait<0>();
        hold(acc);
        release(before);

        // kRows tokens at a time. A buffer is written two rounds after it was read, and the barrier of the round in
        // between is behind all reads.
#pragma unroll 1
        for (int round = 0; round < TOKENS / T::kRows; ++round) {
            const int64_t m0 = int64_t{t.m} * TOKENS + round * T::kRows;
            if (m0 >= g.m) break;
            int32_t* rows = results + buffer * T::kBuffer;
            buffer ^= 1;
#pragma unroll
            for (int r = 0; r < TOKENS / T::kRows; ++r)  // registers have no run-time index
                if (r == round) {
#pragma unroll
                    for (int i = 0; i < T::kRows / 8; ++i)
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            rows[(i * 8 + lane % 4 * 2 + e % 2) * T::kPitch + (e < 2 ? column : next)] =
                                acc[r * (T::kRows / 2) + i * 4 + e];
                }
            named_barrier(kResultsBarrier, kConsumers);
            int4 sums[T::kRows / kConsumerWarps];
#pragma unroll
            for (int i = 0; i < T::kRows / kConsumerWarps; ++i) {
                const int32_t* from = rows + (warp + i * kConsumerWarps) * T::kPitch + lane * 2;
                const int2 even = *reinterpret_cast<const int2*>(from);
                const int2 odd = *reinterpret_cast<const int2*>(from + T::kChannels / 2);
                sums[i] = make_int4(even.x, odd.x, even.y, odd.y);
            }
            epilogue.store_rows(m0 + warp, kConsumerWarps, g.m, sums);
        }
    }
}

template <int TOKENS, int CLUSTER, bool SIGNED>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_int8_wgmma(const __grid_constant__ TensorMap w_map, const __grid_constant__ TensorMap x_map,
                    const __grid_constant__ GemmInt8 g) {
    using T = WgmmaTile<TOKENS>;
    char* shared = shared_memory();
    auto* full = reinterpret_cast<uint64_t*>(shared + T::kBarriers);
    uint64_t* empty = full + T::kStages;
    if (threadIdx.x == 0) {
        prefetch_map(w_map);
        prefetch_map(x_map);
        for (int s = 0; s < T::kStages; ++s) {
            mbarrier_init(full + s, 1);
            mbarrier_init(empty + s, CLUSTER * kConsumerWarps);
        }
        mbarrier_init_fence();
    }
    // No block reaches another one's barriers before they are made.
    if constexpr (CLUSTER == 1)
        __syncthreads();
    else
        cluster_barrier();
    if (threadIdx.x < kWarpgroup) {
        keep_registers<kProducerRegisters>();
        if (threadIdx.x == 0) produce<TOKENS, CLUSTER>(w_map, x_map, g, shared, full, empty);
    } else {
        take_registers<kConsumerRegisters>();
        consume<TOKENS, CLUSTER, SIGNED>(g, shared, full, empty);
    }
}

template <int TOKENS, int CLUSTER>
void launch_tile(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream) {
    const TensorMap x_map = tensor_map({g.x,
                                        2,
                                        {static_cast<uint64_t>(g.k_pad), static_cast<uint64_t>(g.m)},
                                        {static_cast<uint64_t>(g.ldx)},
                                        {WgmmaTile<TOKENS>::kDepth, TOKENS / CLUSTER}});
    auto* kernel = g.is_signed ? gemm_int8_wgmma<TOKENS, CLUSTER, true> : gemm_int8_wgmma<TOKENS, CLUSTER, false>;
    launch_kernel({overlap, CLUSTER}, kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(kThreads),
                  WgmmaTile<TOKENS>::kShared, stream, *g.w_map, x_map, g);
}

template <int TOKENS>
void launch_tokens(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream) {
    return plan.cluster == 2 ? launch_tile<TOKENS, 2>(g, plan, overlap, stream)
                             : launch_tile<TOKENS, 1>(g, plan, overlap, stream);
}

}  // namespace

TensorMap int8_tensor_map(const void* codes, int64_t n_pad, int64_t k_pad) {
    const auto panel = static_cast<uint64_t>(kTileN * k_pad);
    return tensor_map(
        {codes,
         4,
         {128, kTileBytes / 128, static_cast<uint64_t>(k_pad / kTileK), static_cast<uint64_t>(n_pad / kTileN)},
         {128, kTileBytes, panel},
         {128, kTileBytes / 128, 128 / kTileK, 128 / kTileN}});
}

void gemm_int8_wgmma(const GemmInt8& g, const GemmPlan& plan, bool overlap, Stream stream) {
    if (g.w_map == nullptr) throw std::invalid_argument("gemm_int8_wgmma: the weight has no tensor map");
    return plan.tokens == 256 ? launch_tokens<256>(g, plan, overlap, stream)
                              : launch_tokens<128>(g, plan, overlap, stream);
}

}  // namespace qk::cuda
