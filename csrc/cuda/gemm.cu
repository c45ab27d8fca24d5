// int8 GEMM: the kernels of gemm_kernel.h for signed and unsigned activations, and rows of codes as they want them. On
// sm_90 gemm_int8_sm90a.cu takes most of what has many tokens.
#include <atomic>

#include "gemm_kernel.h"
#include "reduce.h"

namespace qk::cuda {

namespace {

__global__ void pad_rows(const uint8_t* x, bool is_signed, int64_t k, int64_t ldx, uint8_t* codes, int64_t k_pad,
                         int32_t* sums) {
    const int64_t row = blockIdx.x;
    int32_t sum = 0;
    for (int64_t i = threadIdx.x; i < k_pad; i += blockDim.x) {
        const uint8_t c = i < k ? x[row * ldx + i] : 0;
        sum += is_signed ? static_cast<int32_t>(static_cast<int8_t>(c)) : static_cast<int32_t>(c);
        if (codes != nullptr) codes[row * k_pad + i] = c;
    }
    if (sums == nullptr) return;
    sum = block_reduce(sum, reinterpret_cast<int32_t*>(shared_memory()), 0, [](int32_t a, int32_t b) { return a + b; });
    if (threadIdx.x == 0) sums[row] = sum;
}

std::atomic<GemmChoice> forced{GemmChoice::any};

// The tile and cluster that load the fewest bytes: a block's stage, 128 bytes a channel and a token, times the waves.
// L2 bounds all of them (docs/gpu.md). A pair has neighbouring tiles of channels, loads half of its tokens a block, and
// wants two multiprocessors at once: they come in twos (TPCs), so that every one finds its partner.
GemmPlan plan_wgmma(int64_t m, int64_t n, int multiprocessors, GemmChoice choice) {
    GemmPlan best{};
    int64_t least = INT64_MAX;
    const int64_t channels = ceil_div(n, 128);
    const bool pairs =
        choice == GemmChoice::wgmma_pair || (choice != GemmChoice::wgmma_single && channels > 1 && multiprocessors > 1);
    for (const int cluster : {2, 1}) {
        if (cluster == 2 ? !pairs : choice == GemmChoice::wgmma_pair) continue;
        const int64_t at_once = multiprocessors < cluster ? 1 : multiprocessors / cluster;
        for (const int tokens : {256, 128}) {
            const int64_t m_tiles = ceil_div(m, tokens), tiles = ceil_div(channels, cluster) * m_tiles;
            const int64_t bytes = ceil_div(tiles, at_once) * (128 + tokens / cluster);
            if (bytes >= least) continue;
            least = bytes;
            const int64_t clusters = tiles < at_once ? tiles : at_once;
            best = {GemmKernel::wgmma, 128, tokens, 1, channels * m_tiles, clusters * cluster, cluster};
        }
    }
    return best;
}

}  // namespace

void force_gemm(GemmChoice choice) { forced = choice; }

GemmPlan plan_gemm(int64_t m, int64_t n, int64_t k_pad, int multiprocessors, bool has_wgmma) {
    const GemmChoice choice = forced;
    const int64_t blocks = k_pad / kTileK;
    // As many blocks as run at once (`wanted`), but no fewer than `least` steps of K each, and at most 16 parts to add.
    auto splits = [&](int64_t tiles, int64_t at_once, int64_t least) {
        int64_t s = at_once / (tiles < 1 ? 1 : tiles);
        if (s > blocks / least) s = blocks / least;
        return static_cast<int>(s < 1 ? 1 : (s > 16 ? 16 : s));
    };
    if (has_wgmma && choice != GemmChoice::mma && m > 0 && n > 0 && blocks > 0) {
        const GemmPlan plan = plan_wgmma(m, n, multiprocessors, choice);
        if (choice != GemmChoice::any) return plan;
        // With fewer tiles the kernel below, whose blocks share a K, keeps more multiprocessors busy.
        if (m > 64 && 2 * plan.tiles >= multiprocessors) return plan;
    }
    if (m <= 16) {
        const int64_t tiles = ceil_div(n, kTileN);
        const int parts = splits(tiles, 2 * multiprocessors, 2 * kSkinnyWarps);
        return {GemmKernel::skinny, kTileN, m <= 8 ? 8 : 16, parts, tiles, 0};
    }
    const int64_t large = ceil_div(n, 128) * ceil_div(m, 128);
    if (m > 64 && large >= multiprocessors) return {GemmKernel::tile, 128, 128, 1, large, 0};
    const int64_t small = ceil_div(n, 64) * ceil_div(m, 64);
    return {GemmKernel::tile, 64, 64, splits(small, 2 * multiprocessors, 2 * kStages), small, 0};
}

void gemm_int8(const GemmInt8& g, const GemmPlan& plan, void* workspace, bool overlap, Stream stream) {
    if (plan.kernel == GemmKernel::wgmma) {
        if (g.m == 0 || g.n == 0) return;
        GemmInt8 prepared = g;
        prepared.epilogue.n = g.n;
        prepared.epilogue.prepare();
        return gemm_int8_wgmma(prepared, plan, overlap, stream);
    }
    if (g.is_signed) return launch_gemm<SignedProduct>(g, plan, workspace, overlap, stream);
    launch_gemm<UnsignedProduct>(g, plan, workspace, overlap, stream);
}

void pad_codes(const uint8_t* x, bool is_signed, int64_t m, int64_t k, int64_t ldx, uint8_t* codes, int64_t k_pad,
               int32_t* sums, Stream stream) {
    if (m == 0) return;
    launch(pad_rows, dim3(static_cast<unsigned>(m)), dim3(256), 32 * 4, stream, x, is_signed, k, ldx, codes, k_pad,
           sums);
}

}  // namespace qk::cuda
