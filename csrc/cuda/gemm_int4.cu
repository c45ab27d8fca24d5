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
    static_assert(kShared <= 99 << 10);
};

// What this thread copies of every stage. Addresses and groups advance: multiplications and divisions would cost as
// much as a stage's products. Each thread has one piece of the codes, kPieces of the activations, and some have
// constants: those of channels, or sums of activations.
template <class T>
class Copies {
  public:
    __device__ __forceinline__ Copies(const GemmInt4& g, int64_t n0, int64_t m0) : g_(g) {
        const Int4Layout& l = g.layout;
        const int thread = threadIdx.x;
        steps_ = static_cast<uint32_t>(l.k_pad / kStep);
        groups_ = static_cast<uint32_t>(l.groups);
        group_steps_ = static_cast<uint32_t>(l.group_steps);

        const int64_t blocks = l.k_pad / kFloatK, tile = n0 / kFloatN + thread / 32 % T::kTiles;
        w_step_ = thread / 32 / T::kTiles * 2;
        if (tile * kFloatN >= l.n_pad) w_step_ = kNever;
        w_ = w_step_ < steps_ ? g.w + (tile * blocks + w_step_ / 2) * kFloatBytes + thread % 32 * 16 : g.w;
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            const int chunk = i * kThreads + thread;
            const int64_t row = m0 + chunk / 2 % T::kTokens;
            x_step_[i] = row < g.m ? chunk / 2 / T::kTokens : kNever;
            x_[i] = x_step_[i] < steps_ ? g.x + row * l.k_pad + x_step_[i] * kStep + chunk % 2 * 16 : g.x;
        }

        constexpr int kFours = T::kTokens / 4, kRest = kThreads / 2;
        const int64_t panel = n0 / kFloatN + thread / 4 % T::kTiles, four = m0 + (thread - kRest) % kFours * 4;
        step_ = kNever;
        if (thread < T::kSteps * T::kTiles * 4 && panel * kFloatN < l.n_pad) {
            step_ = thread / 4 / T::kTiles;
            at_ = panel * l.groups * kFloatN;
        } else if (thread >= kRest && thread < kRest + T::kSteps * kFours && g.zero != nullptr && four < g.m_pad) {
            step_ = (thread - kRest) / kFours;
            at_ = four;
        }
        group_ = step_ / group_steps_;
        in_group_ = step_ - group_ * group_steps_;
        groups_on_ = T::kSteps / group_steps_;
        steps_on_ = T::kSteps - groups_on_ * group_steps_;
    }

    // Of the next stage, into memory of it.
    __device__ __forceinline__ void weights(char* stage) {
        cp_async_16(stage + threadIdx.x * 16, w_, w_step_ < steps_ ? 16 : 0);
        advance(w_, w_step_, T::BLOCKS * kFloatBytes);
        if (threadIdx.x >= kThreads / 2) return;
        if (ends()) {
            const Int4Layout& l = g_.layout;
            const int row = threadIdx.x / 4, part = threadIdx.x % 4;
            const int64_t at = at_ + group() * kFloatN;
            if (part < l.scale_bytes)
                cp_async_16(stage + T::kScale + row * 64 + part * 16, g_.scale + at * l.scale_bytes + part * 16);
            if (g_.x_zero != 0) cp_async_16(stage + T::kOffset + row * 64 + part * 16, g_.offset + at + part * 4);
            if (g_.zero != nullptr && part == 0) cp_async_16(stage + T::kZero + row * 16, g_.zero + at);
        }
        advance_group();
    }
    __device__ __forceinline__ void activations(char* stage) {
#pragma unroll
        for (int i = 0; i < kPieces; ++i) {
            cp_async_16(stage + T::kX + (i * kThreads + threadIdx.x) * 16, x_[i], x_step_[i] < steps_ ? 16 : 0);
            advance(x_[i], x_step_[i], T::kSteps * kStep);
        }
        if (threadIdx.x < kThreads / 2) return;
        if (ends())
            cp_async_16(stage + T::kSum + (threadIdx.x - kThreads / 2) * 16, g_.x_sum + at_ + group() * g_.m_pad);
        advance_group();
    }

  private:
    static constexpr int kPieces = T::kSteps * T::kTokens * kStep / 16 / kThreads;
    static constexpr uint32_t kNever = 0xf0000000u;  // a step that no K has, nor has it after further ones
    static_assert(T::kX == kThreads * 16 && kPieces * kThreads * 16 == T::kSteps * T::kTokens * kStep);
    static_assert(T::kSteps * T::kTiles * 4 <= kThreads / 2 && T::kSteps * T::kTokens / 4 <= kThreads / 2);

    __device__ __forceinline__ void advance(const uint8_t*& from, uint32_t& step, int bytes) {
        step += T::kSteps;
        if (step < steps_) from += bytes;  // beyond the end nothing is read, but an address has to be one
    }
    // Whether this thread's step is the last of its group; the last group's is that of K.
    __device__ __forceinline__ bool ends() const {
        return step_ + 1 == steps_ || (in_group_ + 1 == group_steps_ && group_ + 1 < groups_ && step_ < steps_);
    }
    __device__ __forceinline__ int64_t group() const { return group_ < groups_ ? group_ : groups_ - 1; }
    __device__ __forceinline__ void advance_group() {
        step_ += T::kSteps;
        group_ += groups_on_;
        in_group_ += steps_on_;
        if (in_group_ < group_steps_) return;
        in_group_ -= group_steps_;
        ++group_;
    }

    const GemmInt4& g_;
    uint32_t steps_, groups_, group_steps_;
    const uint8_t *w_, *x_[kPieces];
    uint32_t w_step_, x_step_[kPieces];
    uint32_t step_, group_, in_group_, groups_on_, steps_on_;  // of the constants
    int64_t at_ = 0;                                           // of group 0
};

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
    const int64_t n_tiles = ceil_div(l.n, T::kChannels);
    const int64_t n0 = blockIdx.x % n_tiles * T::kChannels, m0 = blockIdx.x / n_tiles * T::kTokens;
    const int stages = static_cast<int>(ceil_div(l.k_pad / kStep, T::kSteps));
    Copies<T> copies(g, n0, m0);

    int32_t acc[T::ROWS][T::COLUMNS][4] = {};
    float total[T::ROWS][T::COLUMNS][4];
#pragma unroll
    for (int i = 0; i < T::ROWS * T::COLUMNS * 4; ++i) total[i / 4 / T::COLUMNS][i / 4 % T::COLUMNS][i % 4] = g.start;
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s)
        if (s < stages) copies.weights(shared + s * T::kStage);
    wait_for_previous();
#pragma unroll
    for (int s = 0; s < T::kStages - 1; ++s) {
        if (s < stages) copies.activations(shared + s * T::kStage);
        cp_async_commit();
    }
    // Steps until a group ends; the last one ends where K does, padding included.
    int groups = static_cast<int>(l.groups);
    const int group_steps = static_cast<int>(l.group_steps);
    const int last_steps = static_cast<int>(l.k_pad / kStep - (l.groups - 1) * l.group_steps);
    int left = groups == 1 ? last_steps : group_steps;
    constexpr int kNoGroup = 1 << 30;                       // the stage goes on, K does not
    constexpr int kHeld = T::COLUMNS == 8 ? 1 : T::kSteps;  // steps whose activations registers hold
    char *stage = shared, *free = shared + (T::kStages - 1) * T::kStage;
#pragma unroll 1
    for (int at = 0; at < stages; ++at) {
        cp_async_wait<T::kStages - 2>();
        __syncthreads();  // the stage has arrived for all, and all have read the one that is loaded next
        if (at + T::kStages - 1 < stages) {
            copies.weights(free);
            copies.activations(free);
        }
        cp_async_commit();
        free = stage;
        const auto* codes = reinterpret_cast<const uint4*>(stage) + tile * 32 + lane;
        const auto* x = reinterpret_cast<const uint2*>(stage + T::kX) + token * 4 + lane;
        // What a warp multiplies is read before the first product: groups may end between products, and nothing moves
        // over a branch by itself.
        uint4 words[T::BLOCKS][T::ROWS];
        uint2 b[kHeld][T::COLUMNS];
        auto read = [&](int held, int step) {
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c) b[held][c] = x[(step * T::kTokens + c * 8) * 4];
        };
#pragma unroll
        for (int i = 0; i < T::BLOCKS * T::ROWS; ++i)
            words[i / T::ROWS][i % T::ROWS] = codes[(i / T::ROWS * T::kTiles + i % T::ROWS) * 32];
#pragma unroll
        for (int step = 0; step < kHeld; ++step) read(step, step);
        auto product = [&](int step) {
            if (kHeld < T::kSteps && step > 0) read(0, step);
            uint32_t a[T::ROWS][4];
#pragma unroll
            for (int r = 0; r < T::ROWS; ++r) decode_step<D>(g.table, words[step / 2][r], step % 2, a[r]);
#pragma unroll
            for (int c = 0; c < T::COLUMNS; ++c)
#pragma unroll
                for (int r = 0; r < T::ROWS; ++r) multiply<SIGNED>(acc[r][c], a[r], b[step % kHeld][c]);
        };
        auto end_group = [&](int step) {
            --groups;
            left = groups > 1 ? group_steps : (groups == 1 ? last_steps : kNoGroup);
#pragma unroll
            for (int r = 0; r < T::ROWS; ++r)
                add_group<T, D>(g, stage, step, tile + r, token + lane % 4 * 2, acc[r], total[r]);
        };
#pragma unroll
        for (int step = 0; step < T::kSteps; step += 2) {
            product(step);
            if (left == 1) {
                end_group(step);
                ++left;
            }
            product(step + 1);
            left -= 2;
            if (left == 0) end_group(step + 1);
        }
        stage = stage == shared + (T::kStages - 1) * T::kStage ? shared : stage + T::kStage;
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
    launch_kernel({overlap}, gemm_int4_tiles<D, SIGNED, T>, dim3(static_cast<unsigned>(plan.tiles)), dim3(kThreads),
                  T::kShared, stream, g);
}

template <Decoder D, bool SIGNED>
void launch_size(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    if (plan.tokens == 32) return launch_tile<D, SIGNED, Tile<1, 2, 2>>(g, plan, overlap, stream);
    if (plan.channels == 64) return launch_tile<D, SIGNED, Tile<1, 4, 2>>(g, plan, overlap, stream);
    if (plan.tokens == 64) return launch_tile<D, SIGNED, Tile<2, 4, 1>>(g, plan, overlap, stream);
    launch_tile<D, SIGNED, Tile<2, 8, 1>>(g, plan, overlap, stream);
}

}  // namespace

void gemm_int4_tile(const GemmInt4& g, const Int4Plan& plan, bool overlap, Stream stream) {
    for_types(g, [&](auto decoder, auto is_signed) {
        launch_size<decltype(decoder)::value, decltype(is_signed)::value>(g, plan, overlap, stream);
    });
}

}  // namespace qk::cuda
