// 4-bit weights, int8 activations, up to 16 tokens: bound by the bytes of w. A block has 16 channels, so that N = 4096
// fills an H100; eight warps share the K, each a run of neighbouring tiles. Codes go from memory to registers, eight
// tiles a warp, each four of which are loaded again as soon as they were multiplied: at K = 4096 all are on their way
// before the activations are there.
//
// Sums of a group are exact int32: warps add theirs to it in shared memory, in whatever order. Where all of a round's
// groups are there, the threads that own results bring them to scale, in the order of the groups.
#include "gemm_int4_kernel.h"

namespace qk::cuda {

namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kAhead = 8, kUnroll = 4;
constexpr int kPitch = kFloatN + 4;  // of sums: the four tokens that lanes of a row add to hit different banks

// COLUMNS instructions of 8 tokens each.
template <Decoder D, bool SIGNED, int COLUMNS>
__global__ void __launch_bounds__(kThreads, 2) gemm_int4_rows(const __grid_constant__ GemmInt4 g) {
    char* shared = shared_memory();
    const Int4Layout& l = g.layout;
    const Int4Round& r = g.round;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int m = static_cast<int>(g.m), m_pad = static_cast<int>(g.m_pad), groups = static_cast<int>(l.groups);
    const int64_t panel = blockIdx.x;
    const int rows = (m + 1) / 2 * 2;  // of sums: a lane's accumulators are of two neighbouring tokens
    const uint32_t group_steps = static_cast<uint32_t>(l.group_steps), blocks = l.k_pad / kFloatK;
    auto* sums = reinterpret_cast<int32_t*>(shared + r.sums);

    const uint8_t* w = g.w + panel * blocks * kFloatBytes + lane * 16;
    const uint8_t* x[COLUMNS];
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c) {  // tokens beyond m read the last one: their results are dropped
        const int row = c * 8 + lane / 4;
        x[c] = g.x + (row < m ? row : m - 1) * l.k_pad + lane % 4 * 8;
    }

    // The tiles of this warp in the round that starts with a group.
    struct Run {
        uint32_t begin, end;
    };
    auto run_of = [&](int first) -> Run {
        const int last = first + r.groups;
        const uint32_t from = first * group_steps / 2, to = last < groups ? last * group_steps / 2 : blocks;
        if (first >= groups) return {0, 0};
        return {from + (to - from) * warp / kWarps, from + (to - from) * (warp + 1) / kWarps};
    };
    uint4 a[kAhead];  // tiles on their way; registers that never move, since a move would wait for its load
    auto load = [&](int first, int count, uint32_t from, uint32_t end) {
#pragma unroll
        for (int u = first; u < first + count; ++u) {
            a[u] = make_uint4(0, 0, 0, 0);
            if (from + u < end) a[u] = load_stream(w + static_cast<int64_t>(from + u) * kFloatBytes);
        }
    };
    auto copy = [&](int to, const void* from, int64_t bytes) {
        for (int i = thread * 16; i < bytes; i += kThreads * 16)
            cp_async_16(shared + to + i, static_cast<const char*>(from) + i);
    };
    auto copy_constants = [&](int first) {
        const int64_t at = (panel * groups + first) * kFloatN;
        const int64_t count = (groups - first < r.groups ? groups - first : r.groups) * kFloatN;
        copy(r.scale, g.scale + at * l.scale_bytes, count * l.scale_bytes);
        if (g.zero != nullptr) copy(r.zero, g.zero + at, count);
        if (g.x_zero != 0) copy(r.offset, g.offset + at, count * 4);
    };

    Run run = run_of(0);
    load(0, kAhead, run.begin, run.end);
    copy_constants(0);
    for (int i = thread; i < r.groups * rows * (kPitch / 4); i += kThreads)
        reinterpret_cast<int4*>(sums)[i] = make_int4(0, 0, 0, 0);
    const bool owns = thread < m * (kFloatN / kVector);
    const int token = thread / (kFloatN / kVector), quad = thread % (kFloatN / kVector);
    float total[kVector] = {g.start, g.start, g.start, g.start};
    wait_for_previous();
    __syncthreads();

#pragma unroll 1
    for (int first = 0; first < groups; first += r.groups) {
        const int count = groups - first < r.groups ? groups - first : r.groups;
        if (g.zero != nullptr) copy(r.x_sum, g.x_sum + first * m_pad, count * m_pad * 4);
        cp_async_commit();

        int32_t acc[COLUMNS][4] = {};
        uint32_t group = run.begin * 2 / group_steps, left = group_steps - (run.begin * 2 - group * group_steps);
        group -= first;
        auto add = [&] {  // what this warp has of a group; not of tokens that are none, nor where no group is left
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c) {
                const int two = c * 8 + lane % 4 * 2;
                int32_t* at = sums + (static_cast<int>(group) * rows + two) * kPitch + lane / 4;
                if (group < static_cast<uint32_t>(count) && two < rows) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) atomicAdd(at + i % 2 * kPitch + i / 2 * 8, sum_of<D>(acc[c][i]));
                }
#pragma unroll
                for (int i = 0; i < 4; ++i) acc[c][i] = 0;
            }
        };
        const Run after = run_of(first + r.groups);
        auto multiply_tiles = [&](int part, uint32_t from) {  // kUnroll of them; those beyond the end by 0
            uint2 b[kUnroll][COLUMNS][2];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u)
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        b[u][c][half] = make_uint2(0, 0);
                        if (from + u < run.end)
                            b[u][c][half] = *reinterpret_cast<const uint2*>(x[c] + (from + u) * kFloatK + half * kStep);
                    }
#pragma unroll
            for (int u = 0; u < kUnroll; ++u)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint32_t operand[4];
                    decode_step<D>(g.table, a[part + u], half, operand);
#pragma unroll
                    for (int c = 0; c < COLUMNS; ++c) multiply<SIGNED>(acc[c], operand, b[u][c][half]);
                    if (--left == 0) {
                        add();
                        left = group_steps;
                        ++group;
                    }
                }
        };
#pragma unroll 1
        for (uint32_t from = run.begin; from < run.end; from += kAhead) {
            const bool ends = from + kAhead >= run.end;
            const uint32_t next = ends ? after.begin : from + kAhead, end = ends ? after.end : run.end;
#pragma unroll
            for (int part = 0; part < kAhead; part += kUnroll) {
                if (part == 0 || from + part < run.end) multiply_tiles(part, from + part);
                load(part, kUnroll, next, end);
            }
        }
        add();
        if (run.begin == run.end) load(0, kAhead, after.begin, after.end);
        run = after;
        cp_async_wait<0>();
        __syncthreads();

        if (owns) {
#pragma unroll 4
            for (int i = 0; i < count; ++i) {
                auto* at = reinterpret_cast<int4*>(sums + (i * rows + token) * kPitch) + quad;
                const int4 four = *at;
                int32_t sum[kVector] = {four.x, four.y, four.z, four.w};
                *at = make_int4(0, 0, 0, 0);  // for the next round
                const int row = i * (kFloatN / kVector) + quad;
                if (g.zero != nullptr || g.x_zero != 0) {
                    int4 offset = {0, 0, 0, 0};
                    uint32_t zeros = 0;
                    int32_t x_sum = 0;
                    if (g.x_zero != 0) offset = reinterpret_cast<const int4*>(shared + r.offset)[row];
                    if (g.zero != nullptr) {
                        zeros = reinterpret_cast<const uint32_t*>(shared + r.zero)[row];
                        x_sum = reinterpret_cast<const int32_t*>(shared + r.x_sum)[i * m_pad + token];
                    }
                    const int32_t offsets[kVector] = {offset.x, offset.y, offset.z, offset.w};
#pragma unroll
                    for (int j = 0; j < kVector; ++j)
                        sum[j] = corrected(sum[j], g.x_zero, offsets[j], static_cast<int8_t>(zeros >> (8 * j)), x_sum);
                }
                const float4 s = scale_four(shared + r.scale, row, l.scale_bytes);
                const float scale[kVector] = {s.x, s.y, s.z, s.w};
#pragma unroll
                for (int j = 0; j < kVector; ++j) total[j] = fmaf(static_cast<float>(sum[j]), scale[j], total[j]);
            }
        }
        if (first + count == groups) break;
        __syncthreads();
        copy_constants(first + count);
    }
    if (owns)
        ChannelEpilogue(g.epilogue, panel * kFloatN + quad * kVector)
            .store(token, make_float4(total[0], total[1], total[2], total[3]));
}

template <Decoder D, bool SIGNED>
void launch_size(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    const dim3 grid(static_cast<unsigned>(plan.tiles)), block(kThreads);
    if (plan.tokens == 8)
        return launch_kernel({overlap}, gemm_int4_rows<D, SIGNED, 1>, grid, block, plan.round.bytes, stream, g);
    launch_kernel({overlap}, gemm_int4_rows<D, SIGNED, 2>, grid, block, plan.round.bytes, stream, g);
}

}  // namespace

void gemm_int4_skinny(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    for_types(g, [&](auto decoder, auto is_signed) {
        launch_size<decltype(decoder)::value, decltype(is_signed)::value>(g, plan, overlap, stream);
    });
}

}  // namespace qk::cuda
