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

constexpr int kWarps = 8, kRows = kGemvChannels / kFloatN, kAhead = 3;
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

// Scales of channels g and g + 8, as they are stored: what converts them waits for them.
__device__ __forceinline__ uint2 load_scales(const char* at, int bytes) {
    const auto* word = reinterpret_cast<const uint32_t*>(at);
    return make_uint2(__ldg(word),
                      bytes == 4 ? __ldg(word + 1) : 0);  // one register has one load, which waits for none
}
__device__ __forceinline__ float2 scales_of(uint2 stored, int bytes) {
    const float2 half = pair_of(stored.x, f16{});
    return bytes == 4 ? make_float2(__uint_as_float(stored.x), __uint_as_float(stored.y)) : half;
}

// The codes and scales of a warp, 64 k at a time, every kWarps-th: loaded kAhead blocks before they are multiplied.
// Addresses and groups advance: multiplications and divisions would cost as much as a quarter of the products.
// UNITS: of scales in 64 k, 1 also for a scale a channel; 0: known at run time. One or two are loaded ahead as well,
// four would leave registers.
template <int UNITS>
struct Codes {
    static constexpr int kScales = UNITS == 2 ? 2 : 1;
    struct Block {
        uint4 word[kRows];
        uint2 scale[kScales][kRows];
    };
    const FloatLayout& l;
    const int units;
    int next, end;  // in 64 k
    const char *codes[kRows], *scales[kRows];
    uint32_t group, in_group, group_step, in_group_step;  // units == 1: groups are one or more blocks

    __device__ __forceinline__ Codes(const GemmFloat& g, const int64_t (&tile)[kRows], int first, int end_, int lane)
        : l(g.layout), units(UNITS <= 1 ? l.units : UNITS), next(first), end(end_) {
        const auto size = static_cast<uint32_t>(l.group_units), at = static_cast<uint32_t>(first);
        group = at / size;
        in_group = at % size;
        group_step = kWarps / size;
        in_group_step = kWarps % size;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            codes[r] = g.w + (tile[r] * (l.k_pad / kFloatK) + first) * kFloatBytes + lane * 16;
            scales[r] = g.scale + (tile[r] * l.groups * kFloatN + lane / 4 * 2) * l.scale_bytes;
        }
    }
    __device__ __forceinline__ void scales_at(uint32_t of_group, uint2 (&to)[kRows]) const {
        const uint32_t at = of_group * (kFloatN * l.scale_bytes);
#pragma unroll
        for (int r = 0; r < kRows; ++r) to[r] = load_scales(scales[r] + at, l.scale_bytes);
    }
    // Of two or four units: groups are units. Positions beyond the last group hold nothing.
    __device__ __forceinline__ uint32_t group_at(int block, int unit) const {
        const int at = block * units + unit, last = static_cast<int>(l.groups) - 1;
        return static_cast<uint32_t>(at < last ? at : last);
    }
    __device__ __forceinline__ void load(Block& b) {
        if (next < end) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                b.word[r] = load_stream(codes[r]);
                codes[r] += kWarps * kFloatBytes;
            }
            if constexpr (UNITS == 2) {
#pragma unroll
                for (int u = 0; u < 2; ++u) scales_at(group_at(next, u), b.scale[u]);
            } else if (units == 1) {
                scales_at(group, b.scale[0]);
                group += group_step;
                in_group += in_group_step;
                if (in_group >= static_cast<uint32_t>(l.group_units)) {
                    in_group -= static_cast<uint32_t>(l.group_units);
                    ++group;
                }
            }
        }
        next += kWarps;
    }
};

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

template <Decoder D, class Products, int UNITS>
__global__ void __launch_bounds__(32 * kWarps,
                                  sizeof(typename Products::Type) == 4 || Products::kColumns == kGemvTokens ? 1 : 2)
    gemv_float_rows(const __grid_constant__ GemmFloat g) {
    using Float = typename Products::Type;
    constexpr int TOKENS = Products::kTokens, kColumns = Products::kColumns, kLanes = Products::kLanes;
    const FloatLayout& l = g.layout;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, lane_g = lane / 4, t = lane % 4;
    const int64_t n_tiles = ceil_div(l.n, kGemvChannels), blocks = l.k_pad / kFloatK;
    const int64_t n0 = blockIdx.x % n_tiles * kGemvChannels, m0 = blockIdx.x / n_tiles * TOKENS;
    const int begin = static_cast<int>(blocks * blockIdx.y / g.split.splits),
              end = static_cast<int>(blocks * (blockIdx.y + 1) / g.split.splits);
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
        x[i] = g.x + (m < g.m ? m : g.m - 1) * g.ldx +
               (static_cast<int64_t>(begin + warp) * kFloatK + t * 8) * sizeof(Float);
    }

    float acc[kRows][2][kColumns] = {}, total[kRows][2][kColumns] = {};
    constexpr bool kScalesWhenNeeded = UNITS == 0 || UNITS == 4;
    using Block = typename Codes<UNITS>::Block;
    Codes<UNITS> stream(g, tile, begin + warp, end, lane);
    Block ahead[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) stream.load(ahead[i]);
    wait_for_previous();        // codes and scales do not depend on the kernel that prepares activations
    if (g.offset != nullptr) {  // offset * (sum of the unit's activations): units dealt to warps and lanes with parts
#pragma unroll 1
        for (int unit = begin * l.units + warp * kLanes + t % kLanes; unit < end * l.units; unit += kWarps * kLanes) {
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const uint32_t of = static_cast<uint32_t>(unit) / static_cast<uint32_t>(l.group_units);
                const int64_t group = of < l.groups ? of : l.groups - 1;
                const int64_t at = (tile[r] * l.groups + group) * kFloatN + lane_g * 2;
                const float2 offset = __ldg(reinterpret_cast<const float2*>(g.offset + at));
#pragma unroll
                for (int c = 0; c < kColumns; ++c) {
                    const int64_t m = m0 + Products::token(c, lane);
                    const float sum = m < g.m ? g.x_sum[static_cast<int64_t>(unit) * g.m_pad + m] : 0.0f;
                    total[r][0][c] = fmaf(offset.x, sum, total[r][0][c]);
                    total[r][1][c] = fmaf(offset.y, sum, total[r][1][c]);
                }
            }
        }
    }
    auto add_unit = [&](const uint2(&stored)[kRows]) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
            const float2 scale = scales_of(stored[r], l.scale_bytes);
#pragma unroll
            for (int c = 0; c < kColumns; ++c) {
                total[r][0][c] = fmaf(scale.x, acc[r][0][c], total[r][0][c]);
                total[r][1][c] = fmaf(scale.y, acc[r][1][c], total[r][1][c]);
                acc[r][0][c] = acc[r][1][c] = 0.0f;
            }
        }
    };
    auto multiply = [&](const Block& b, int block) {
        Activations<Float> xs[Products::kRows];
        uint2 scale[4][kRows];
        if (kScalesWhenNeeded && stream.units >= 2) {
#pragma unroll
            for (int u = 0; u < 4; ++u)
                if (u < stream.units) stream.scales_at(stream.group_at(block, u), scale[u]);
        }
#pragma unroll
        for (int s = 0; s < 4; ++s) {
            if (s % 2 == 0) {
#pragma unroll
                for (int i = 0; i < Products::kRows; ++i) xs[i].load(x[i] + s * 16 * sizeof(Float));
            }
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const uint4& c = b.word[r];
                Products::template add<D>(g, s == 0 ? c.x : (s == 1 ? c.y : (s == 2 ? c.z : c.w)), s % 2, xs, acc[r]);
            }
            if constexpr (UNITS == 2) {
                if (s % 2 == 1) add_unit(b.scale[s / 2]);
            } else if (kScalesWhenNeeded && stream.units == 4) {
                add_unit(scale[s]);
            } else if (kScalesWhenNeeded && stream.units == 2 && s % 2 == 1) {
                add_unit(scale[s / 2]);
            }
        }
        if (stream.units == 1) add_unit(b.scale[0]);
#pragma unroll
        for (int i = 0; i < Products::kRows; ++i) x[i] += kWarps * kFloatK * sizeof(Float);
    };
#pragma unroll 1
    for (int block = begin + warp; block < end; block += kAhead * kWarps) {
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {  // each buffer in its own registers: nothing moves
            if (i > 0 && block + i * kWarps >= end) break;
            multiply(ahead[i], block + i * kWarps);
            stream.load(ahead[i]);
        }
    }

    // Lanes, then warps: [warp][token][channel].
    auto* sums = reinterpret_cast<float*>(shared_memory());
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const float2 s = scales_of(load_scales(stream.scales[r], l.scale_bytes), l.scale_bytes);
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

template <Decoder D, class Products, int UNITS>
void launch_units(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    const dim3 grid(static_cast<unsigned>(plan.tiles), static_cast<unsigned>(plan.splits)), block(32 * kWarps);
    const size_t shared = kWarps * Products::kTokens * kPitch * 4 + 16;
    launch_kernel({overlap}, gemv_float_rows<D, Products, UNITS>, grid, block, shared, stream, g);
}

template <Decoder D, class Float>
void launch_tokens(const GemmFloat& g, const FloatPlan& plan, bool overlap, Stream stream) {
    if (plan.tokens == 1) return launch_units<D, OnCudaCores<Float, 1>, 0>(g, plan, overlap, stream);
    if (plan.tokens == kGemvTokens)
        return launch_units<D, OnCudaCores<Float, kGemvTokens>, 0>(g, plan, overlap, stream);
    if constexpr (!std::is_same_v<Float, float>) {
        using Products = OnTensorCores<Float>;
        switch (g.layout.units) {
            case 2: return launch_units<D, Products, 2>(g, plan, overlap, stream);
            case 4: return launch_units<D, Products, 4>(g, plan, overlap, stream);
            default: return launch_units<D, Products, 1>(g, plan, overlap, stream);
        }
    }
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
