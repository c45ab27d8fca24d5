// 4-bit weights, int8 activations, more than 16 tokens: mma.sync m16n8k32, whose rows are channels; codes are decoded
// to int8 in registers. A group's sum is an exact int32; it meets its scale in one fused multiply-add, in the order of
// the groups, so blocks do not share a K: few tokens take small tiles instead. Eight warps, four of them side by side
// along the channels. What comes by cp.async, and from which stage, is as in gemm_float.cu; small tiles have 128
// positions a stage, since what they do between two barriers is little.
#include "gemm_int4_kernel.h"

namespace qk::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kChannelWarps = 4, kTokenWarps = kWarps / kChannelWarps;

// Of a warp: ROWS instructions of 16 channels, COLUMNS of 8 tokens. BLOCKS of 64 positions a stage.
template <int ROWS_, int COLUMNS_, int BLOCKS_>
struct Tile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, BLOCKS = BLOCKS_, kSteps = 2 * BLOCKS;
    static constexpr int kTiles = kChannelWarps * ROWS, kChannels = kTiles * kFloatN;
    static constexpr int kTokens = kTokenWarps * 8 * COLUMNS;
    // A stage: codes [block][tile], activations [step][token][32], constants of the groups that end in it: scale,
    // offset and zero [step][tile][16], sums of activations [step][token].
    static constexpr int kX = BLOCKS * kTiles * kFloatBytes, kScale = kX + kSteps * kTokens * kStep;
    static constexpr int kOffset = kScale + kSteps * kTiles * 64, kZero = kOffset + kSteps * kTiles * 64;
    static constexpr int kSum = kZero + kSteps * kTiles * 16, kStage = kSum + kSteps * kTokens * 4;
    static constexpr int kStages = BLOCKS == 2 ? 5 : 4, kPitch = kChannels + 4;
    static constexpr int kPipeline = kStages * kStage, kResults = kTokens * kPitch * 4;
    static constexpr int kShared = kPipeline > kResults ? kPipeline : kResults;
    static constexpr int kBlocksAtOnce = ROWS * COLUMNS > 8 ? 1 : 2;  // of a multiprocessor
    static_assert(kShared <= 99 << 10 && kSteps * kTiles * 4 <= kThreads && kSteps * kTokens / 4 <= kThreads);
};

// The group that ends with a step, or -1.
__device__ __forceinline__ int64_t group_ending(const Int4Layout& l, uint32_t step) {
    const uint32_t steps = static_cast<uint32_t>(l.group_steps), group = step / steps;
    const bool ends = step + 1 == (group + 1) * steps || step + 1 == l.k_pad / kStep;
    return ends && group < l.groups ? static_cast<int64_t>(group) : -1;
}

template <class T>
__device__ __forceinline__ void load_w(const GemmInt4& g, char* stage, int64_t n0, int64_t first) {
    const Int4Layout& l = g.layout;
    const int64_t blocks = l.k_pad / kFloatK;
#pragma unroll
    for (int i = 0; i < T::kX / 16; i += kThreads) {
        const int chunk = i + threadIdx.x, tile = chunk / 32 % T::kTiles;
        if (T::kX / 16 % kThreads != 0 && chunk >= T::kX / 16) break;
        const int64_t block = first + chunk / 32 / T::kTiles;
        const bool real = n0 + tile * kFloatN < l.n_pad && block < blocks;
        const int64_t at = real ? ((n0 / kFloatN + tile) * blocks + block) * kFloatBytes + chunk % 32 * 16 : 0;
        cp_async_16(stage + chunk * 16, g.w + at, real ? 16 : 0);
    }
    if (threadIdx.x < T::kSteps * T::kTiles * 4) {
        const int row = threadIdx.x / 4, part = threadIdx.x % 4, tile = row % T::kTiles;
        const int64_t group = group_ending(l, static_cast<uint32_t>(first * 2 + row / T::kTiles));
        if (group >= 0 && n0 + tile * kFloatN < l.n_pad) {
            const int64_t at = ((n0 / kFloatN + tile) * l.groups + group) * kFloatN;
            if (part < l.scale_bytes)
                cp_async_16(stage + T::kScale + row * 64 + part * 16, g.scale + at * l.scale_bytes + part * 16);
            if (g.x_zero != 0) cp_async_16(stage + T::kOffset + row * 64 + part * 16, g.offset + at + part * 4);
            if (g.zero != nullptr && part == 0) cp_async_16(stage + T::kZero + row * 16, g.zero + at);
        }
    }
}

template <class T>
__device__ __forceinline__ void load_x(const GemmInt4& g, char* stage, int64_t m0, int64_t first) {
    const Int4Layout& l = g.layout;
    constexpr int kChunks = T::kSteps * T::kTokens * kStep / 16;
#pragma unroll
    for (int i = 0; i < kChunks; i += kThreads) {
        const int chunk = i + threadIdx.x, token = chunk / 2 % T::kTokens;
        if (kChunks % kThreads != 0 && chunk >= kChunks) break;
        const int64_t k = first * kFloatK + chunk / 2 / T::kTokens * kStep;
        const bool real = m0 + token < g.m && k < l.k_pad;
        const int64_t at = real ? (m0 + token) * l.k_pad + k + chunk % 2 * 16 : 0;
        cp_async_16(stage + T::kX + chunk * 16, g.x + at, real ? 16 : 0);
    }
    constexpr int kFours = T::kTokens / 4;
    if (g.zero != nullptr && threadIdx.x < T::kSteps * kFours) {
        const int64_t group = group_ending(l, static_cast<uint32_t>(first * 2 + threadIdx.x / kFours));
        const int64_t m = m0 + threadIdx.x % kFours * 4;
        if (group >= 0 && m < g.m_pad) cp_async_16(stage + T::kSum + threadIdx.x * 16, g.x_sum + group * g.m_pad + m);
    }
}

// total += scale * (sum less what zero points take from it), for a group that ended with a step of the stage.
template <class T, Decoder D>
__device__ __forceinline__ void add_group(const GemmInt4& g, const char* stage, int step, int tile, int token,
                                          int32_t (&acc)[T::COLUMNS][4], float (&total)[T::COLUMNS][4]) {
    const int lane_g = threadIdx.x % 32 / 4, row = step * T::kTiles + tile;
    const char* scales = stage + T::kScale + row * 64;
    const float s[2] = {scale_at(scales, lane_g, g.layout.scale_bytes),
                        scale_at(scales, lane_g + 8, g.layout.scale_bytes)};
    int32_t offset[2] = {}, zero[2] = {};
    const bool corrects = g.zero != nullptr || g.x_zero != 0;
#pragma unroll
    for (int i = 0; i < 2 && corrects; ++i) {
        if (g.x_zero != 0)
            offset[i] = reinterpret_cast<const int32_t*>(stage + T::kOffset)[row * kFloatN + lane_g + 8 * i];
        if (g.zero != nullptr)
            zero[i] = reinterpret_cast<const int8_t*>(stage + T::kZero)[row * kFloatN + lane_g + 8 * i];
    }
    const auto* sums = reinterpret_cast<const int2*>(stage + T::kSum) + (step * T::kTokens + token) / 2;
#pragma unroll
    for (int c = 0; c < T::COLUMNS; ++c) {
        int32_t sum[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum[i] = sum_of<D>(acc[c][i]);
            acc[c][i] = 0;
        }
        if (corrects) {
            const int2 x_sum = g.zero != nullptr ? sums[c * 4] : make_int2(0, 0);
#pragma unroll
            for (int i = 0; i < 4; ++i)
                sum[i] = corrected(sum[i], g.x_zero, offset[i / 2], zero[i / 2], i % 2 == 0 ? x_sum.x : x_sum.y);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) total[c][i] = fmaf(static_cast<float>(sum[i]), s[i / 2], total[c][i]);
    }
}

template <Decoder D, bool SIGNED, class T>
__global__ void __launch_bounds__(kThreads, T::kBlocksAtOnce) gemm_int4_tiles(const __grid_constant__ GemmInt4 g) {
    char* shared = shared_memory();
    const Int4Layout& l = g.layout;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int tile = warp % kChannelWarps * T::ROWS, token = warp / kChannelWarps * 8 * T::COLUMNS;  // of the warp
    const int64_t n_tiles = ceil_div(l.n, T::kChannels), blocks = l.k_pad / kFloatK;
    const int64_t n0 = blockIdx.x % n_tiles * T::kChannels, m0 = blockIdx.x / n_tiles * T::kTokens;
    const int64_t stages = ceil_div(blocks, T::BLOCKS);

    int32_t acc[T::ROWS][T::COLUMNS][4] = {};
    float total[T::ROWS][T::COLUMNS][4];
#pragma unroll
    for (int i = 0; i < T::ROWS * T::COLUMNS * 4; ++i) total[i / 4 / T::COLUMNS][i / 4 % T::COLUMNS][i % 4] = g.start;
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s)
        if (s < stages) load_w<T>(g, shared + s * T::kStage, n0, s * T::BLOCKS);
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s) {
        if (s < stages) load_x<T>(g, shared + s * T::kStage, m0, s * T::BLOCKS);
        cp_async_commit();
    }
    const uint32_t group_steps = static_cast<uint32_t>(l.group_steps);
    uint32_t left = group_steps, groups = static_cast<uint32_t>(l.groups);  // steps of the group; groups to come
#pragma unroll 1
    for (int64_t at = 0; at < stages; ++at) {
        cp_async_wait<T::kStages - 2>();
        __syncthreads();  // the stage has arrived for all, and all have read the one that is loaded next
        const int64_t next = at + T::kStages - 1;
        if (next < stages) {
            load_w<T>(g, shared + next % T::kStages * T::kStage, n0, next * T::BLOCKS);
            load_x<T>(g, shared + next % T::kStages * T::kStage, m0, next * T::BLOCKS);
        }
        cp_async_commit();
        const char* stage = shared + at % T::kStages * T::kStage;
        const auto* codes = reinterpret_cast<const uint4*>(stage) + tile * 32 + lane;
        const auto* x = reinterpret_cast<const uint2*>(stage + T::kX) + token * 4 + lane;
#pragma unroll
        for (int block = 0; block < T::BLOCKS; ++block) {
            uint4 words[T::ROWS];
#pragma unroll
            for (int r = 0; r < T::ROWS; ++r) words[r] = codes[(block * T::kTiles + r) * 32];
#pragma unroll(T::COLUMNS == 8 ? 1 : 2)
            for (int half = 0; half < 2; ++half) {
                const int step = block * 2 + half;
                uint32_t a[T::ROWS][4];
#pragma unroll
                for (int r = 0; r < T::ROWS; ++r) decode_step<D>(g.table, words[r], half, a[r]);
#pragma unroll
                for (int c = 0; c < T::COLUMNS; ++c) {
                    const uint2 b = x[(step * T::kTokens + c * 8) * 4];
#pragma unroll
                    for (int r = 0; r < T::ROWS; ++r) multiply<SIGNED>(acc[r][c], a[r], b);
                }
                const bool last = (at * T::BLOCKS + block) * 2 + half == blocks * 2 - 1;
                if (--left == 0 || last) {
                    left = group_steps;
                    if (groups != 0) {  // else nothing but padding was left
                        --groups;
#pragma unroll
                        for (int r = 0; r < T::ROWS; ++r)
                            add_group<T, D>(g, stage, step, tile + r, token + lane % 4 * 2, acc[r], total[r]);
                    }
                }
            }
        }
    }
    cp_async_wait<0>();

    auto* results = reinterpret_cast<float*>(shared);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < T::ROWS; ++r)
#pragma unroll
        for (int c = 0; c < T::COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                results[(token + c * 8 + lane % 4 * 2 + i % 2) * T::kPitch + (tile + r) * kFloatN + lane / 4 +
                        i / 2 * 8] = total[r][c][i];
    __syncthreads();
    constexpr int kRowThreads = T::kChannels / kVector, kRowsAtOnce = kThreads / kRowThreads;
    const int column = thread % kRowThreads * kVector;
    const ChannelEpilogue epilogue(g.epilogue, n0 + column);
#pragma unroll 1
    for (int row = thread / kRowThreads; row < T::kTokens && m0 + row < g.m; row += kRowsAtOnce)
        epilogue.store(m0 + row, *reinterpret_cast<const float4*>(results + row * T::kPitch + column));
}

template <Decoder D, bool SIGNED, class T>
void launch_tile(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    launch_kernel(overlap, gemm_int4_tiles<D, SIGNED, T>, dim3(static_cast<unsigned>(plan.tiles)), dim3(kThreads),
                  T::kShared, stream, g);
}

template <Decoder D, bool SIGNED>
void launch_size(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    if (plan.tokens == 32) return launch_tile<D, SIGNED, Tile<1, 2, 2>>(g, plan, overlap, stream);
    if (plan.channels == 64) return launch_tile<D, SIGNED, Tile<1, 4, 2>>(g, plan, overlap, stream);
    if (plan.tokens == 64) return launch_tile<D, SIGNED, Tile<2, 4, 1>>(g, plan, overlap, stream);
    launch_tile<D, SIGNED, Tile<2, 8, 1>>(g, plan, overlap, stream);
}

template <Decoder D>
void launch_sign(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    if (g.is_signed) return launch_size<D, true>(g, plan, overlap, stream);
    launch_size<D, false>(g, plan, overlap, stream);
}

}  // namespace

void gemm_int4_tile(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    if (g.decoder == Decoder::integers) return launch_sign<Decoder::integers>(g, plan, overlap, stream);
    launch_sign<Decoder::table>(g, plan, overlap, stream);
}

}  // namespace qk::cuda
