// Weight-only GEMM on mma.sync m16n8k16 (sm_80 and later): 4-bit codes against float16 or bfloat16 activations.
//
// Channels are the instruction's rows: codes are decoded into the very registers that it takes (decode.h). A block has
// 8 to 64 tokens; a warp has 32 channels, a block four warps, or eight for many tokens. Codes, activations, scales and
// sums of activations come by cp.async, several 64 k ahead. For few tokens the codes' bytes bound it; for many, the
// activations: a block reads 8 KB of them for each 64 k, and more channels divide that.
//
// Scales are applied to sums, not to weights: a unit (64 k, or a shorter group) is summed from 0 and added to the total
// by a fused multiply-add. Weights stay what the table holds, which 16 bits hold exactly for most formats, and a
// product loses nothing; folding scales into registers would round every weight and cost 4 products for 8 codes, where
// this costs 4 for 8 codes of each 8 tokens. An offset is added as offset * (sum of the unit's activations).
// Where tiles are fewer than multiprocessors, blocks share a K (split_k.h).
#include "gemm_float.h"

#include <atomic>

#include "convert.h"
#include "decode.h"
#include "epilogue_kernel.h"
#include "ptx.h"
#include "split_k_kernel.h"

namespace qk::cuda {

namespace {

constexpr int kWarpRows = 2;  // instructions of 16 channels a warp

template <int COLUMNS, int WARPS>
struct Tile {
    static constexpr int kTokens = 8 * COLUMNS, kThreads = 32 * WARPS;
    static constexpr int kTiles = WARPS * kWarpRows, kChannels = kTiles * kFloatN;
    static constexpr int kX = kTiles * kFloatBytes, kScale = kX + kTokens * kFloatK * 2;
    static constexpr int kUnit = kTiles * 4 * 64;  // bytes of scales: [tile][unit][16], at most float
    static constexpr int kOffset = kScale + kUnit, kSum = kOffset + kUnit, kStage = kSum + 4 * kTokens * 4;
    static constexpr int kStages = WARPS == 8 ? 3 : (kTokens == 64 ? 4 : 6);
    static constexpr int kPitch = kChannels + 4;  // of results: 8 tokens x 4 channels hit 32 banks
    static constexpr int kPipeline = kStages * kStage, kResults = kTokens * kPitch * 4;
    static constexpr int kShared = (kPipeline > kResults ? kPipeline : kResults) + 16;
    static_assert(kShared <= 99 << 10);
};

// One 64 k: codes as they are; x as [half][token][64 bytes]; scales and offsets of its units as [tile][unit][16]; sums
// as [unit][token].
template <class T>
__device__ __forceinline__ void load_stage(const GemmFloat& g, char* stage, int64_t n0, int64_t m0, int64_t block) {
    const FloatLayout& l = g.layout;
    const int64_t blocks = l.k_pad / kFloatK;
#pragma unroll
    for (int i = 0; i < T::kX / 16; i += T::kThreads) {
        const int chunk = i + threadIdx.x, tile = chunk / (kFloatBytes / 16);
        const bool real = n0 + tile * kFloatN < l.n_pad;
        const int64_t at =
            real ? ((n0 / kFloatN + tile) * blocks + block) * kFloatBytes + chunk % (kFloatBytes / 16) * 16 : 0;
        cp_async_16(stage + chunk * 16, g.w + at, real ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < T::kTokens * 8; i += T::kThreads) {
        const int chunk = i + threadIdx.x, token = chunk / 4 % T::kTokens, half = chunk / 4 / T::kTokens;
        if (T::kTokens * 8 % T::kThreads != 0 && chunk >= T::kTokens * 8) break;
        const bool real = m0 + token < g.m;
        const int64_t at = real ? (m0 + token) * g.ldx + block * (kFloatK * 2) + half * 64 + chunk % 4 * 16 : 0;
        cp_async_16(stage + T::kX + chunk * 16, g.x + at, real ? 16 : 0);
    }
    if (l.units != 0) {
        const int thread = threadIdx.x, tile = thread / 16, unit = thread / 4 % 4, part = thread % 4;  // of 16 bytes
        // 32 bits: a 64-bit division is a subroutine.
        const uint32_t group = static_cast<uint32_t>(block * l.units + unit) / static_cast<uint32_t>(l.group_units);
        const bool real = unit < l.units && group < l.groups && n0 + tile * kFloatN < l.n_pad;
        const int64_t row = real ? ((n0 / kFloatN + tile) * l.groups + group) * kFloatN : 0;
        const int at = (tile * 4 + unit) * 64 + part * 16, bytes = real ? 16 : 0;
        // Zeros for units that no group has: their sums are 0, but what memory holds may not be finite.
        if (part < l.scale_bytes) cp_async_16(stage + T::kScale + at, g.scale + row * l.scale_bytes + part * 16, bytes);
        if (g.offset != nullptr) cp_async_16(stage + T::kOffset + at, g.offset + row + part * 4, bytes);
        const int fours = T::kTokens / 4, u = thread / fours;
        if (g.offset != nullptr && u < l.units) {
            const int64_t m = m0 + thread % fours * 4;
            const bool there = m < g.m_pad;
            const float* from = g.x_sum + (there ? (block * l.units + u) * g.m_pad + m : 0);
            cp_async_16(stage + T::kSum + thread * 16, from, there ? 16 : 0);
        }
    }
    cp_async_commit();
}

// Scales of channels g and g + 8 of a tile.
__device__ __forceinline__ float2 scales_at(const char* row, int g, int bytes) {
    if (bytes == 4) return reinterpret_cast<const float2*>(row)[g];
    const uint32_t two = reinterpret_cast<const uint32_t*>(row)[g];
    return make_float2(to_float(f16{static_cast<uint16_t>(two)}), to_float(f16{static_cast<uint16_t>(two >> 16)}));
}

// total += scale * acc + offset * sum, in this order.
template <class T, int COLUMNS>
__device__ __forceinline__ void add_unit(const GemmFloat& g, const char* stage, int tile, int unit, int token,
                                         float (&acc)[COLUMNS][4], float (&total)[COLUMNS][4]) {
    const int lane_g = threadIdx.x % 32 / 4;
    const float2 s = scales_at(stage + T::kScale + (tile * 4 + unit) * 64, lane_g, g.layout.scale_bytes);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            total[c][i] = fmaf(i < 2 ? s.x : s.y, acc[c][i], total[c][i]);
            acc[c][i] = 0.0f;
        }
    if (g.offset == nullptr) return;
    const float2 o = reinterpret_cast<const float2*>(stage + T::kOffset + (tile * 4 + unit) * 64)[lane_g];
    const auto* sums = reinterpret_cast<const float*>(stage + T::kSum) + unit * T::kTokens + token;
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {
        const float2 x = *reinterpret_cast<const float2*>(sums + c * 8);
#pragma unroll
        for (int i = 0; i < 4; ++i) total[c][i] = fmaf(i < 2 ? o.x : o.y, i % 2 == 0 ? x.x : x.y, total[c][i]);
    }
}

template <Decoder D, class Float, int COLUMNS, int WARPS>
__global__ void __launch_bounds__(32 * WARPS) gemm_float_tile(const __grid_constant__ GemmFloat g) {
    using T = Tile<COLUMNS, WARPS>;
    char* shared = shared_memory();
    const FloatLayout& l = g.layout;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;

    // Neighbouring blocks share operands in L2: eight tiles of channels, then the next tokens.
    const int64_t n_tiles = ceil_div(l.n, T::kChannels), m_tiles = ceil_div(g.m, T::kTokens);
    const int64_t group = blockIdx.x / (8 * m_tiles), in_group = blockIdx.x % (8 * m_tiles);
    const int64_t width = n_tiles - group * 8 < 8 ? n_tiles - group * 8 : 8;
    const int64_t n0 = (group * 8 + in_group % width) * T::kChannels, m0 = in_group / width * T::kTokens;
    const int64_t blocks = l.k_pad / kFloatK;
    const int64_t begin = blocks * blockIdx.y / g.split.splits, end = blocks * (blockIdx.y + 1) / g.split.splits;

    alignas(16) float acc[kWarpRows][COLUMNS][4] = {};
    alignas(16) float total[kWarpRows][COLUMNS][4] = {};
    const int token = lane % 4 * 2;  // of the tile: the first column's first
    // Units end after which of the four instructions.
    const int ends = l.units == 1 ? 8 : (l.units == 2 ? 10 : (l.units == 4 ? 15 : 0));
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s) {
        if (begin + s < end)
            load_stage<T>(g, shared + s * T::kStage, n0, m0, begin + s);
        else
            cp_async_commit();
    }
#pragma unroll 1
    for (int64_t block = begin; block < end; ++block) {
        cp_async_wait<T::kStages - 2>();
        __syncthreads();  // the stage has arrived for all, and all have read the one that is loaded next
        const int64_t next = block + T::kStages - 1;
        if (next < end)
            load_stage<T>(g, shared + (next - begin) % T::kStages * T::kStage, n0, m0, next);
        else
            cp_async_commit();
        const char* stage = shared + (block - begin) % T::kStages * T::kStage;
        const auto* codes = reinterpret_cast<const uint4*>(stage) + warp * kWarpRows * 32 + lane;
        const auto* x = reinterpret_cast<const uint4*>(stage + T::kX) + lane;
        uint4 word[kWarpRows];
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) word[r] = codes[r * 32];
#pragma unroll(COLUMNS == 8 ? 1 : 2)
        for (int half = 0; half < 2; ++half) {  // not unrolled where one is 64 products: code and its build double
            uint4 b[COLUMNS];                   // token g: 64 bytes, of which lane t has 16
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) b[c] = x[(half * T::kTokens + c * 8) * 4];
#pragma unroll
            for (int step = 0; step < 2; ++step) {
                uint32_t a[kWarpRows][4];
#pragma unroll
                for (int r = 0; r < kWarpRows; ++r) {
                    const uint32_t w =
                        half == 0 ? (step == 0 ? word[r].x : word[r].y) : (step == 0 ? word[r].z : word[r].w);
                    decode<D, Float>(g.table, w, a[r]);
                }
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                    for (int r = 0; r < kWarpRows; ++r)
                        mma_float<Float>(acc[r][c], a[r], step == 0 ? b[c].x : b[c].z, step == 0 ? b[c].y : b[c].w);
                const int s = 2 * half + step;
                if (ends >> s & 1) {
                    const int unit = l.units == 1 ? 0 : (l.units == 2 ? half : s);
#pragma unroll
                    for (int r = 0; r < kWarpRows; ++r)
                        add_unit<T>(g, stage, warp * kWarpRows + r, unit, token, acc[r], total[r]);
                }
            }
        }
    }
    cp_async_wait<0>();

    if (l.units == 0) {  // one scale a channel
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) {
            const int64_t tile = n0 / kFloatN + warp * kWarpRows + r;
            const bool real = tile * kFloatN < l.n_pad;
            const float2 s = real ? scales_at(g.scale + tile * kFloatN * l.scale_bytes, lane / 4, l.scale_bytes)
                                  : make_float2(0.0f, 0.0f);
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                for (int i = 0; i < 4; ++i) total[r][c][i] = (i < 2 ? s.x : s.y) * acc[r][c][i];
        }
    }
    if (g.split.splits > 1) {
        auto& flat = reinterpret_cast<float4(&)[kWarpRows * COLUMNS]>(total);
        auto* flag = reinterpret_cast<int32_t*>(shared + T::kShared - 16);
        if (!sum_parts(g.split, blockIdx.x, blockIdx.y, thread, T::kThreads, flat, flag)) return;
    }

    // Results through shared memory: rows of channels, stored 4 at a time.
    auto* results = reinterpret_cast<float*>(shared);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                results[(c * 8 + token + i % 2) * T::kPitch + (warp * kWarpRows + r) * kFloatN + lane / 4 + i / 2 * 8] =
                    total[r][c][i];
    __syncthreads();
    constexpr int kRowThreads = T::kChannels / kVector, kRowsAtOnce = T::kThreads / kRowThreads;
    const int column = thread % kRowThreads * kVector;
    const ChannelEpilogue epilogue(g.epilogue, n0 + column);
#pragma unroll 1
    for (int row = thread / kRowThreads; row < T::kTokens && m0 + row < g.m; row += kRowsAtOnce)
        epilogue.store(m0 + row, *reinterpret_cast<const float4*>(results + row * T::kPitch + column));
}

template <Decoder D, class Float, int COLUMNS, int WARPS>
void launch_tile(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    using T = Tile<COLUMNS, WARPS>;
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits));
    launch_kernel({overlap}, gemm_float_tile<D, Float, COLUMNS, WARPS>, grid, dim3(T::kThreads), T::kShared, stream, g);
}

template <Decoder D, class Float>
void launch_size(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    switch (plan.tokens) {
        case 8: return launch_tile<D, Float, 1, 4>(g, plan, overlap, stream);
        case 16: return launch_tile<D, Float, 2, 4>(g, plan, overlap, stream);
        case 32: return launch_tile<D, Float, 4, 4>(g, plan, overlap, stream);
        default:
            if (plan.channels == 128) return launch_tile<D, Float, 8, 4>(g, plan, overlap, stream);
            return launch_tile<D, Float, 8, 8>(g, plan, overlap, stream);
    }
}

template <Decoder D>
void launch_type(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    if (g.x_type == DType::f16) return launch_size<D, f16>(g, plan, overlap, stream);
    launch_size<D, bf16>(g, plan, overlap, stream);
}

std::atomic<FloatChoice> forced{FloatChoice::any};

}  // namespace

void force_float(FloatChoice choice) { forced = choice; }

FloatPlan plan_float(int64_t m, const FloatLayout& w, DType x_type, int multiprocessors) {
    const int64_t blocks = w.k_pad / kFloatK;
    // Blocks for `wanted` at once, but no fewer than `least` steps of K each, and at most 16 parts to add.
    auto splits = [&](int64_t tiles, int64_t wanted, int64_t least) {
        const int64_t share = wanted / (tiles < 1 ? 1 : tiles), most = blocks / least;
        const int64_t s = share < most ? share : most;
        return static_cast<int>(s < 1 ? 1 : (s < 16 ? s : 16));
    };
    FloatPlan p{};
    const FloatChoice choice = forced;
    if (x_type == DType::f32 || (m <= kGemvTokens && choice == FloatChoice::cuda_cores)) {
        p.tokens = m <= 1 ? 1 : kGemvTokens;
        p.channels = kGemvChannels;
    } else if (m <= 8 && choice != FloatChoice::tiles) {
        p.tokens = 8;
        p.channels = kGemvChannels;
    } else {
        p.tokens = m <= 8 ? 8 : (m <= 16 ? 16 : (m <= 32 ? 32 : 64));
        p.channels = m >= 128 && ceil_div(w.n, 256) * ceil_div(m, 64) >= multiprocessors ? 256 : 128;
    }
    p.tiles = ceil_div(w.n, p.channels) * ceil_div(m, p.tokens);
    const int at_once = p.channels == 256 ? 1 : (p.tokens == 64 || p.channels == kGemvChannels ? 2 : 3);
    p.splits = splits(p.tiles, at_once * static_cast<int64_t>(multiprocessors), p.channels == kGemvChannels ? 16 : 8);
    return p;
}

void gemm_float(GemmFloat g, const FloatPlan& plan, void* workspace, bool overlap, Stream stream) {
    if (g.m == 0 || g.layout.n == 0) return;
    g.epilogue.n = g.layout.n;
    g.epilogue.prepare();
    g.split.splits = plan.splits;
    g.split.parts = workspace;
    g.split.counters = reinterpret_cast<int32_t*>(static_cast<char*>(workspace) + plan.part_bytes());
    if (plan.channels == kGemvChannels) return gemv_float(g, plan, overlap, stream);
    if (g.decoder == Decoder::integers) return launch_type<Decoder::integers>(g, plan, overlap, stream);
    launch_type<Decoder::table>(g, plan, overlap, stream);
}

}  // namespace qk::cuda
