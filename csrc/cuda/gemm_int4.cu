// 4-bit weights, int8 activations, on mma.sync m16n8k32: codes are decoded to int8 in registers. A group's sum is an
// exact int32; it meets its scale in one fused multiply-add, in the order of the groups, so blocks do not share a K:
// for few tokens tiles are narrow instead, 64 channels. What comes by cp.async, and from which stage, is as in
// gemm_float.cu.
#include "gemm_int4.h"

#include "epilogue_kernel.h"
#include "packed_math.h"
#include "ptx.h"

namespace qk::cuda {

namespace {

constexpr int kWarps = 4, kThreads = 32 * kWarps;

struct GemmInt4 {
    Int4Layout layout;
    Table16 table;
    const uint8_t* w;
    const float* scale;
    const uint8_t* x;  // (m, k_pad)
    int64_t m;
    Epilogue epilogue;
};

template <int ROWS, int COLUMNS>
struct Tile {
    static constexpr int kTiles = kWarps * ROWS, kChannels = kTiles * kFloatN, kTokens = 8 * COLUMNS;
    static constexpr int kX = kTiles * kFloatBytes, kScale = kX + kTokens * kFloatK;
    static constexpr int kStage = kScale + kTiles * 2 * 64;  // scales: [tile][half][16]
    static constexpr int kStages = COLUMNS == 8 ? 4 : 6, kPitch = kChannels + 4;
    static constexpr int kPipeline = kStages * kStage, kResults = kTokens * kPitch * 4;
    static constexpr int kShared = kPipeline > kResults ? kPipeline : kResults;
    static_assert(kShared <= 99 << 10);
};

template <class T>
__device__ __forceinline__ void load_stage(const GemmInt4& g, char* stage, int64_t n0, int64_t m0, int64_t block) {
    const Int4Layout& l = g.layout;
    const int64_t blocks = l.k_pad / kFloatK;
#pragma unroll
    for (int i = 0; i < T::kX / 16; i += kThreads) {
        const int chunk = i + threadIdx.x, tile = chunk / (kFloatBytes / 16);
        const bool real = n0 + tile * kFloatN < l.n_pad;
        const int64_t at =
            real ? ((n0 / kFloatN + tile) * blocks + block) * kFloatBytes + chunk % (kFloatBytes / 16) * 16 : 0;
        cp_async_16(stage + chunk * 16, g.w + at, real ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < T::kTokens * 4; i += kThreads) {  // [half][token][32 bytes]
        const int chunk = i + threadIdx.x, token = chunk / 2 % T::kTokens, half = chunk / 2 / T::kTokens;
        if (T::kTokens * 4 % kThreads != 0 && chunk >= T::kTokens * 4) break;
        const bool real = m0 + token < g.m;
        const int64_t at = real ? (m0 + token) * l.k_pad + block * kFloatK + half * 32 + chunk % 2 * 16 : 0;
        cp_async_16(stage + T::kX + chunk * 16, g.x + at, real ? 16 : 0);
    }
    if (threadIdx.x < T::kTiles * 8) {
        const int tile = threadIdx.x / 8, half = threadIdx.x / 4 % 2, part = threadIdx.x % 4;
        const uint32_t group = static_cast<uint32_t>(block * kFloatK + half * 32) / static_cast<uint32_t>(l.group);
        if (group < l.groups && n0 + tile * kFloatN < l.n_pad)
            cp_async_16(stage + T::kScale + threadIdx.x * 16,
                        g.scale + ((n0 / kFloatN + tile) * l.groups + group) * kFloatN + part * 4);
    }
    cp_async_commit();
}

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

template <Decoder D, bool SIGNED, int ROWS, int COLUMNS>
__global__ void __launch_bounds__(kThreads) gemm_int4_tile(const __grid_constant__ GemmInt4 g) {
    using T = Tile<ROWS, COLUMNS>;
    char* shared = shared_memory();
    const Int4Layout& l = g.layout;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int64_t n_tiles = ceil_div(l.n, T::kChannels), blocks = l.k_pad / kFloatK;
    const int64_t n0 = blockIdx.x % n_tiles * T::kChannels, m0 = blockIdx.x / n_tiles * T::kTokens;

    int32_t acc[ROWS][COLUMNS][4] = {};
    float total[ROWS][COLUMNS][4] = {};
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s) {
        if (s < blocks)
            load_stage<T>(g, shared + s * T::kStage, n0, m0, s);
        else
            cp_async_commit();
    }
    uint32_t left = static_cast<uint32_t>(l.group / 32);  // instructions until the group ends
#pragma unroll 1
    for (int64_t block = 0; block < blocks; ++block) {
        cp_async_wait<T::kStages - 2>();
        __syncthreads();
        const int64_t next = block + T::kStages - 1;
        if (next < blocks)
            load_stage<T>(g, shared + next % T::kStages * T::kStage, n0, m0, next);
        else
            cp_async_commit();
        const char* stage = shared + block % T::kStages * T::kStage;
        const auto* codes = reinterpret_cast<const uint4*>(stage) + warp * ROWS * 32 + lane;
        const auto* x = reinterpret_cast<const uint2*>(stage + T::kX) + lane;
        uint4 word[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) word[r] = codes[r * 32];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            uint32_t a[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                decode_bytes<D>(g.table, half == 0 ? word[r].x : word[r].z, a[r][0], a[r][1]);
                decode_bytes<D>(g.table, half == 0 ? word[r].y : word[r].w, a[r][2], a[r][3]);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const uint2 v = x[(half * T::kTokens + c * 8) * 4];
                const uint32_t b[2] = {v.x, v.y};
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    if constexpr (SIGNED)
                        mma_s8(acc[r][c], a[r], b);
                    else
                        mma_s8u8(acc[r][c], a[r], b);
                }
            }
            if (--left == 0 || (half == 1 && block == blocks - 1)) {
                left = static_cast<uint32_t>(l.group / 32);
                const int64_t group = (block * kFloatK + half * 32) / 32 / static_cast<uint32_t>(l.group / 32);
                const bool real = group < l.groups;  // else nothing but padding is left
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    const char* row = stage + T::kScale + ((warp * ROWS + r) * 2 + half) * 64;
                    const float2 s = reinterpret_cast<const float2*>(row)[lane / 4];
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int32_t sum = D == Decoder::integers ? acc[r][c][i] >> 4 : acc[r][c][i];
                            if (real) total[r][c][i] = fmaf(static_cast<float>(sum), i < 2 ? s.x : s.y, total[r][c][i]);
                            acc[r][c][i] = 0;
                        }
                }
            }
        }
    }
    cp_async_wait<0>();

    auto* results = reinterpret_cast<float*>(shared);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                results[(c * 8 + lane % 4 * 2 + i % 2) * T::kPitch + (warp * ROWS + r) * kFloatN + lane / 4 +
                        i / 2 * 8] = total[r][c][i];
    __syncthreads();
    constexpr int kRowThreads = T::kChannels / kVector, kRowsAtOnce = kThreads / kRowThreads;
    const int column = thread % kRowThreads * kVector;
    const ChannelEpilogue epilogue(g.epilogue, n0 + column);
#pragma unroll 1
    for (int row = thread / kRowThreads; row < T::kTokens && m0 + row < g.m; row += kRowsAtOnce)
        epilogue.store(m0 + row, *reinterpret_cast<const float4*>(results + row * T::kPitch + column));
}

template <Decoder D, bool SIGNED, int ROWS, int COLUMNS>
void launch_tile(const GemmInt4& g, Stream stream) {
    using T = Tile<ROWS, COLUMNS>;
    const dim3 grid(static_cast<unsigned>(ceil_div(g.layout.n, T::kChannels) * ceil_div(g.m, T::kTokens)));
    launch(gemm_int4_tile<D, SIGNED, ROWS, COLUMNS>, grid, dim3(kThreads), T::kShared, stream, g);
}

// The thresholds: 64 channels x 8 tokens up to 16, else 128 x 64.
template <Decoder D, bool SIGNED>
void launch_size(const GemmInt4& g, Stream stream) {
    if (g.m <= 16) return launch_tile<D, SIGNED, 1, 1>(g, stream);
    launch_tile<D, SIGNED, 2, 8>(g, stream);
}

template <Decoder D>
void launch_sign(const GemmInt4& g, bool is_signed, Stream stream) {
    if (is_signed) return launch_size<D, true>(g, stream);
    launch_size<D, false>(g, stream);
}

struct Scratch {
    int64_t codes, scales, bits, total;
};
Scratch scratch_of(const Int4Weight& w, int64_t m) {
    Scratch s{};
    s.scales = round_up(m * w.layout.k_pad, 256);
    s.bits = s.scales + round_up(4 * m, 256);
    s.total = s.bits + 256;
    return s;
}

}  // namespace

int64_t scratch_bytes(const Int4Weight& w, int64_t m) { return scratch_of(w, m).total; }

void linear_int4(const Int4Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream) {
    const Int4Layout& l = w.layout;
    if (x.m == 0 || l.n == 0) return;
    const Scratch s = scratch_of(w, x.m);
    char* memory = static_cast<char*>(scratch);
    x.k = l.k;
    x.k_pad = x.ldo = l.k_pad;
    x.inv_k = w.has_input_scale ? w.at<float>(l.inv_input) : nullptr;
    x.codes = reinterpret_cast<uint8_t*>(memory);
    x.scales = reinterpret_cast<float*>(memory + s.scales);
    x.tensor_bits = reinterpret_cast<uint32_t*>(memory + s.bits);
    quantize(x, stream);
    GemmInt4 g{l, w.table, w.at<uint8_t>(l.codes), w.at<float>(l.scale), x.codes, x.m, epilogue};
    g.epilogue.x_scale = x.scales;
    g.epilogue.n = l.n;
    g.epilogue.prepare();
    if (w.decoder == Decoder::integers) return launch_sign<Decoder::integers>(g, x.lo < 0, stream);
    launch_sign<Decoder::table>(g, x.lo < 0, stream);
}

}  // namespace qk::cuda
