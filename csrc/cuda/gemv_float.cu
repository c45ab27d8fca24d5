// Weight-only products of few tokens, codes in the layout of gemm_float_layout.h: bound by their bytes.
//
// Eight warps share the K of 32 channels. A warp takes 64 k at a time, 16 bytes of codes a lane and 16 channels
// straight from device memory; no barrier stops it before the end. Activations are read from L1. What multiplies is
// one of two:
//   OnTensorCores   up to 8 tokens of 16 bits, by mma.sync m16n8k16: 16 instructions beside the decoding of 64 k
//   OnCudaCores     float32 activations, up to 4 tokens at once. A lane has channels g and g + 8 and 16 of the 64 k;
//                   products and sums are float32, in the order of k, and four lanes are added at the end. float32
//                   activations meet table entries of float32: two 16-bit tables make their halves. For 16 bits this
//                   is 64 products a token, and 64 instructions that widen weights: kept to be measured against.
// Eight warps and then the blocks that share a K (split_k.h) are added in an order that never changes.
#include "convert.h"
#include "decode.h"
#include "epilogue_kernel.h"
#include "gemm_float.h"
#include "ptx.h"
#include "split_k_kernel.h"

namespace qk::cuda {

namespace {

constexpr int kWarps = 8, kRows = kGemvChannels / kFloatN, kAhead = 2;
constexpr int kPitch = kGemvChannels + 4;  // of sums: pairs of tokens x 8 channels hit 32 banks

__device__ __forceinline__ float2 pair_of(uint32_t two, f16) {
    return make_float2(to_float(f16{static_cast<uint16_t>(two)}), to_float(f16{static_cast<uint16_t>(two >> 16)}));
}
__device__ __forceinline__ float2 pair_of(uint32_t two, bf16) {
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

// The 8 activations of a lane in 32 positions, of two instructions.
template <class Float>
struct Activations {
    static constexpr int kLoads = static_cast<int>(sizeof(Float)) / 2;  // of 16 bytes
    uint4 at[kLoads];

    __device__ __forceinline__ void load(const char* from) {
#pragma unroll
        for (int i = 0; i < kLoads; ++i) at[i] = reinterpret_cast<const uint4*>(from)[i];  // not "nc": load_stream
    }
    // The four of one instruction.
    __device__ __forceinline__ void get(int step, float (&x)[4]) const {
        if constexpr (std::is_same_v<Float, float>) {
            const uint4 v = at[step];
            x[0] = __uint_as_float(v.x);
            x[1] = __uint_as_float(v.y);
            x[2] = __uint_as_float(v.z);
            x[3] = __uint_as_float(v.w);
        } else {
            const uint4 v = at[0];
            const float2 a = pair_of(step == 0 ? v.x : v.z, Float{}), b = pair_of(step == 0 ? v.y : v.w, Float{});
            x[0] = a.x;
            x[1] = a.y;
            x[2] = b.x;
            x[3] = b.y;
        }
    }
};

// Four elements each of channels g and g + 8.
template <Decoder D, class Float>
__device__ __forceinline__ void decode_floats(const GemmFloat& g, uint32_t word, float (&w)[2][4]) {
    uint32_t a[4];
    if constexpr (std::is_same_v<Float, float>) {
        decode<D, bf16>(g.table, word, a);
        uint32_t rest[4] = {};
        if constexpr (D == Decoder::table) decode<D, bf16>(g.table_rest, word, rest);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            w[r % 2][r / 2 * 2] = __uint_as_float(permute_bytes(rest[r], a[r], 0x5410u));
            w[r % 2][r / 2 * 2 + 1] = __uint_as_float(permute_bytes(rest[r], a[r], 0x7632u));
        }
    } else {
        decode<D, Float>(g.table, word, a);
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const float2 two = pair_of(a[r], Float{});
            w[r % 2][r / 2 * 2] = two.x;
            w[r % 2][r / 2 * 2 + 1] = two.y;
        }
    }
}

// Scales of channels g and g + 8.
__device__ __forceinline__ float2 scale_pair(const char* at, int bytes) {
    if (bytes == 4) return __ldg(reinterpret_cast<const float2*>(at));
    return pair_of(__ldg(reinterpret_cast<const uint32_t*>(at)), f16{});
}
__device__ __forceinline__ float2 scales_of(const GemmFloat& g, int64_t tile, int64_t group, int lane_g) {
    return scale_pair(g.scale + ((tile * g.layout.groups + group) * kFloatN + lane_g * 2) * g.layout.scale_bytes,
                      g.layout.scale_bytes);
}

// Products of a block of up to TOKENS tokens. `acc` has a lane's sums: of channels g and g + 8, kColumns tokens.
template <class Float, int TOKENS>
struct OnCudaCores {
    using Type = Float;
    static constexpr int kTokens = TOKENS, kColumns = TOKENS;
    static constexpr int kRows = TOKENS;  // of x that a lane reads
    static constexpr int kLanes = 4;      // that have parts of the same sums
    static __device__ __forceinline__ int row(int i, int) { return i; }
    static __device__ __forceinline__ int token(int column, int) { return column; }

    // The products of one word of codes; step: which half of the activations.
    template <Decoder D>
    static __device__ __forceinline__ void add(const GemmFloat& g, uint32_t word, int step,
                                               const Activations<Float> (&x)[kRows], float (&acc)[2][kColumns]) {
        float w[2][4];
        decode_floats<D, Float>(g, word, w);
#pragma unroll
        for (int m = 0; m < TOKENS; ++m) {
            float v[4];
            x[m].get(step, v);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                acc[0][m] = fmaf(w[0][i], v[i], acc[0][m]);
                acc[1][m] = fmaf(w[1][i], v[i], acc[1][m]);
            }
        }
    }
};

template <class Float>
struct OnTensorCores {
    using Type = Float;
    static constexpr int kTokens = 8, kColumns = 2, kRows = 1, kLanes = 1;
    static __device__ __forceinline__ int row(int, int lane) { return lane / 4; }
    static __device__ __forceinline__ int token(int column, int lane) { return lane % 4 * 2 + column; }

    template <Decoder D>
    static __device__ __forceinline__ void add(const GemmFloat& g, uint32_t word, int step,
                                               const Activations<Float> (&x)[1], float (&acc)[2][2]) {
        uint32_t a[4];
        decode<D, Float>(g.table, word, a);
        const uint4& v = x[0].at[0];
        float d[4] = {acc[0][0], acc[0][1], acc[1][0], acc[1][1]};
        mma_float<Float>(d, a, step == 0 ? v.x : v.z, step == 0 ? v.y : v.w);
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[i / 2][i % 2] = d[i];
    }
};

template <Decoder D, class Products>
__global__ void __launch_bounds__(32 * kWarps,
                                  sizeof(typename Products::Type) == 4 || Products::kColumns == kGemvTokens ? 1 : 2)
    gemv_float_rows(const __grid_constant__ GemmFloat g) {
    using Float = typename Products::Type;
    constexpr int TOKENS = Products::kTokens, kColumns = Products::kColumns, kLanes = Products::kLanes;
    const FloatLayout& l = g.layout;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, lane_g = lane / 4, t = lane % 4;
    const int64_t n_tiles = ceil_div(l.n, kGemvChannels), blocks = l.k_pad / kFloatK;
    const int64_t n0 = blockIdx.x % n_tiles * kGemvChannels, m0 = blockIdx.x / n_tiles * TOKENS;
    const int64_t begin = blocks * blockIdx.y / g.split.splits, end = blocks * (blockIdx.y + 1) / g.split.splits;
    int64_t tile[kRows];  // one beyond N repeats the last: its results are dropped
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        tile[r] = n0 / kFloatN + r;
        if (tile[r] * kFloatN >= l.n_pad) tile[r] = l.n_pad / kFloatN - 1;
    }
    const char* x[Products::kRows];
#pragma unroll
    for (int i = 0; i < Products::kRows; ++i) {  // tokens beyond m read the last one: their results are dropped
        const int64_t m = m0 + Products::row(i, lane);
        x[i] = g.x + (m < g.m ? m : g.m - 1) * g.ldx + ((begin + warp) * kFloatK + t * 8) * sizeof(Float);
    }

    auto group_of = [&](int64_t unit) {  // 32 bits: a 64-bit division is a subroutine
        const uint32_t group = static_cast<uint32_t>(unit) / static_cast<uint32_t>(l.group_units);
        return group < l.groups ? group : l.groups - 1;  // positions beyond the last group hold nothing
    };
    float acc[kRows][2][kColumns] = {}, total[kRows][2][kColumns] = {};
    auto add_unit = [&](const float2(&scale)[kRows]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                total[r][0][c] = fmaf(scale[r].x, acc[r][0][c], total[r][0][c]);
                total[r][1][c] = fmaf(scale[r].y, acc[r][1][c], total[r][1][c]);
                acc[r][0][c] = acc[r][1][c] = 0.0f;
            }
    };
    // Codes and (one unit in 64 k) scales of the next kAhead blocks are on their way while one is multiplied. Addresses
    // and groups advance: multiplications and divisions would cost as much as a quarter of the products.
    struct Block {
        uint4 word[kRows];
        float2 scale[kRows];
    };
    const char *codes[kRows], *scales[kRows];
    const uint32_t group_units = static_cast<uint32_t>(l.group_units), first = static_cast<uint32_t>(begin) + warp;
    uint32_t group = first / group_units, in_group = first % group_units;
    const uint32_t group_step = kWarps / group_units, in_group_step = kWarps % group_units;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        codes[r] = g.w + (tile[r] * blocks + begin + warp) * kFloatBytes + lane * 16;
        scales[r] = g.scale + (tile[r] * l.groups * kFloatN + lane_g * 2) * l.scale_bytes;
    }
    int64_t loaded = begin + warp;
    auto load = [&] {
        Block b = {};
        if (loaded < end) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) b.word[r] = load_stream(codes[r]);
            if (l.units == 1) {
                const uint32_t at = group * (kFloatN * l.scale_bytes);
#pragma unroll
                for (int r = 0; r < kRows; ++r) b.scale[r] = scale_pair(scales[r] + at, l.scale_bytes);
                group += group_step;
                in_group += in_group_step;
                if (in_group >= group_units) {
                    in_group -= group_units;
                    ++group;
                }
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) codes[r] += kWarps * kFloatBytes;
        }
        loaded += kWarps;
        return b;
    };
    Block ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) ahead[i] = load();
    wait_for_previous();        // codes and scales do not depend on the kernel that prepares activations
    if (g.offset != nullptr) {  // offset * (sum of the unit's activations): units dealt to warps and lanes with parts
#pragma unroll 1
        for (int64_t unit = begin * l.units + warp * kLanes + t % kLanes; unit < end * l.units;
             unit += kWarps * kLanes) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const int64_t at = (tile[r] * l.groups + group_of(unit)) * kFloatN + lane_g * 2;
                const float2 offset = __ldg(reinterpret_cast<const float2*>(g.offset + at));
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                    const int64_t m = m0 + Products::token(c, lane);
                    const float sum = m < g.m ? g.x_sum[unit * g.m_pad + m] : 0.0f;
                    total[r][0][c] = fmaf(offset.x, sum, total[r][0][c]);
                    total[r][1][c] = fmaf(offset.y, sum, total[r][1][c]);
                }
            }
        }
    }
#pragma unroll 1
    for (int64_t block = begin + warp; block < end; block += kWarps) {
        const Block now = ahead[0];
#pragma unroll
        for (int i = 0; i + 1 < kAhead; ++i) ahead[i] = ahead[i + 1];
        ahead[kAhead - 1] = load();
        Activations<Float> xs[Products::kRows];
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (s % 2 == 0) {
#pragma unroll
                for (int i = 0; i < Products::kRows; ++i) xs[i].load(x[i] + s * 16 * sizeof(Float));
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const uint4& c = now.word[r];
                Products::template add<D>(g, s == 0 ? c.x : (s == 1 ? c.y : (s == 2 ? c.z : c.w)), s % 2, xs, acc[r]);
            }
            if (l.units == 4 || (l.units == 2 && s % 2 == 1)) {
                const int64_t unit = block * l.units + (l.units == 4 ? s : s / 2);
                const uint32_t at = static_cast<uint32_t>(group_of(unit)) * (kFloatN * l.scale_bytes);
                float2 scale[kRows];
#pragma unroll
                for (int r = 0; r < kRows; ++r) scale[r] = scale_pair(scales[r] + at, l.scale_bytes);
                add_unit(scale);
            }
        }
        if (l.units == 1) add_unit(now.scale);
#pragma unroll
        for (int i = 0; i < Products::kRows; ++i) x[i] += kWarps * kFloatK * sizeof(Float);
    }

    // Lanes, then warps: [warp][token][channel].
    auto* sums = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const float2 s = l.units == 0 ? scales_of(g, tile[r], 0, lane_g) : make_float2(0.0f, 0.0f);
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                float v = l.units == 0 ? (h == 0 ? s.x : s.y) * acc[r][h][c] : total[r][h][c];
                if constexpr (kLanes == 4) {
                    v += __shfl_xor_sync(0xffffffffu, v, 1);
                    v += __shfl_xor_sync(0xffffffffu, v, 2);
                }
                if (t < 4 / kLanes)
                    sums[(warp * TOKENS + Products::token(c, lane)) * kPitch + r * kFloatN + h * 8 + lane_g] = v;
            }
    }
    __syncthreads();
    constexpr int kOwners = TOKENS * kGemvChannels / kVector;  // threads that own results
    const int token = thread / (kGemvChannels / kVector), quad = thread % (kGemvChannels / kVector);
    float4 sum = {0.0f, 0.0f, 0.0f, 0.0f};
    auto add = [&sum](const float4 v) {
        sum.x += v.x;
        sum.y += v.y;
        sum.z += v.z;
        sum.w += v.w;
    };
    if (thread < kOwners) {
#pragma unroll
        for (int p = 0; p < kWarps; ++p)
            add(*reinterpret_cast<const float4*>(sums + (p * TOKENS + token) * kPitch + quad * kVector));
    }
    if (g.split.splits > 1) {
        auto* flag = reinterpret_cast<int32_t*>(sums + kWarps * TOKENS * kPitch);
        float4* parts =
            static_cast<float4*>(g.split.parts) + static_cast<int64_t>(blockIdx.x) * g.split.splits * kOwners;
        if (thread < kOwners) parts[blockIdx.y * kOwners + thread] = sum;
        if (!arrives_last(g.split, blockIdx.x, flag)) return;
        sum = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1
        for (int p = 0; p < g.split.splits && thread < kOwners; ++p) add(__ldcg(parts + p * kOwners + thread));
    }
    if (thread < kOwners && m0 + token < g.m) ChannelEpilogue(g.epilogue, n0 + quad * kVector).store(m0 + token, sum);
}

template <Decoder D, class Products>
void launch_products(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits)), block(32 * kWarps);
    const size_t shared = kWarps * Products::kTokens * kPitch * 4 + 16;
    launch_kernel(overlap, gemv_float_rows<D, Products>, grid, block, shared, stream, g);
}

template <Decoder D, class Float>
void launch_tokens(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    switch (plan.tokens) {
        case 1: return launch_products<D, OnCudaCores<Float, 1>>(g, plan, overlap, stream);
        case 2: return launch_products<D, OnCudaCores<Float, 2>>(g, plan, overlap, stream);
        case kGemvTokens: return launch_products<D, OnCudaCores<Float, kGemvTokens>>(g, plan, overlap, stream);
        default: break;
    }
    if constexpr (!std::is_same_v<Float, float>) launch_products<D, OnTensorCores<Float>>(g, plan, overlap, stream);
}

template <Decoder D>
void launch_type(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    switch (g.x_type) {
        case DType::f32: return launch_tokens<D, float>(g, plan, overlap, stream);
        case DType::bf16: return launch_tokens<D, bf16>(g, plan, overlap, stream);
        default: return launch_tokens<D, f16>(g, plan, overlap, stream);
    }
}

}  // namespace

void gemv_float(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    if (g.decoder == Decoder::integers) return launch_type<Decoder::integers>(g, plan, overlap, stream);
    launch_type<Decoder::table>(g, plan, overlap, stream);
}

}  // namespace qk::cuda
