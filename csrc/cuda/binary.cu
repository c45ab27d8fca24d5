#include "binary.h"

#include "convert.h"
#include "gemm_kernel.h"
#include "reduce.h"
#include "runtime.h"

namespace qk::cuda {

namespace {

constexpr int kRowsOfBlock = 4;  // a warp each

__device__ __forceinline__ float load_as_float(const void* x, DType type, int64_t at) {
    if (type == DType::f32) return static_cast<const float*>(x)[at];
    if (type == DType::bf16) return to_float(static_cast<const bf16*>(x)[at]);
    return to_float(static_cast<const f16*>(x)[at]);
}

// A warp has a row, a lane numbers lane and lane + 32 of every 64: their sums are partial sums lane and lane + 32 of
// the definition, and a vote gives 32 bits.
__global__ void sign_rows(const __grid_constant__ PackSigns p) {
    const int lane = threadIdx.x % 32;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / 32;
    if (row >= p.m) return;
    uint8_t* out = p.bits + row * p.row_bytes * (p.complement ? 2 : 1);
    float sums[2] = {0.0f, 0.0f};
    int32_t count = 0;
    bool finite = true;
#pragma unroll 4
    for (int64_t at = 0; at < p.row_bytes * 8; at += 64) {
        uint32_t words[2], others[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int64_t k = at + i * 32 + lane;
            const bool real = k < p.k;
            const float v = real ? load_as_float(p.x, p.type, row * p.ldx + k) : 0.0f;
            const float size = fabsf(v);
            finite = finite && size <= 3.4028235e38f;
            sums[i] += size;
            words[i] = __ballot_sync(0xffffffffu, real && v >= 0.0f);
            others[i] = __ballot_sync(0xffffffffu, real && !(v >= 0.0f));
        }
        count += __popc(words[0]) + __popc(words[1]);
        const int64_t byte = at / 8 + lane;
        if (lane < 8 && byte < p.row_bytes) {
            out[byte] = static_cast<uint8_t>(words[lane / 4] >> (lane % 4 * 8));
            if (p.complement) out[p.row_bytes + byte] = static_cast<uint8_t>(others[lane / 4] >> (lane % 4 * 8));
        }
    }
    float sum = sums[0] + sums[1];
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) sum = sum + __shfl_xor_sync(0xffffffffu, sum, bits);
    finite = __ballot_sync(0xffffffffu, finite) == 0xffffffffu;
    if (lane != 0) return;
    if (p.counts != nullptr) p.counts[row] = count;
    if (p.scales == nullptr) return;
    const float k = static_cast<float>(p.k < 1 ? 1 : p.k);
    float scale = p.mode == SignScale::token ? sum / k : (p.mode == SignScale::tensor ? sum : p.scale);
    if (!finite || !(sum <= 3.4028235e38f)) {
        if (p.mode != SignScale::fixed || !finite) scale = __uint_as_float(0x7fc00000u);
    }
    p.scales[row] = scale;
}

// scales[m] hold the rows' sums, and become their mean.
__global__ void tensor_scale(float* scales, int64_t m, int64_t k) {
    auto* mean = reinterpret_cast<float*>(shared_memory());
    if (threadIdx.x == 0) {
        double total = 0.0;
        for (int64_t row = 0; row < m; ++row) total += static_cast<double>(scales[row]);
        const int64_t count = m * k < 1 ? 1 : m * k;
        *mean = static_cast<float>(total / static_cast<double>(count));
    }
    __syncthreads();
    for (int64_t row = threadIdx.x; row < m; row += blockDim.x) scales[row] = *mean;
}

// Rows of bits, padded, those past k cleared; and their popcounts. A block a row.
__global__ void pad_bits(const uint8_t* x, int64_t k, int64_t ldx, uint8_t* out, int64_t row_bytes, bool complement,
                         int32_t* counts) {
    const int64_t row = blockIdx.x;
    uint8_t* to = out + row * row_bytes * (complement ? 2 : 1);
    int32_t count = 0;
    for (int64_t i = threadIdx.x; i < row_bytes; i += blockDim.x) {
        const int64_t left = k - i * 8;
        const uint32_t there = left >= 8 ? 255u : (left <= 0 ? 0u : (1u << left) - 1u);
        const uint32_t bits = left > 0 ? x[row * ldx + i] & there : 0u;
        to[i] = static_cast<uint8_t>(bits);
        if (complement) to[row_bytes + i] = static_cast<uint8_t>(~bits & there);
        count += __popc(bits);
    }
    count =
        block_reduce(count, reinterpret_cast<int32_t*>(shared_memory()), 0, [](int32_t a, int32_t b) { return a + b; });
    if (threadIdx.x == 0) counts[row] = count;
}

struct Scratch {
    int64_t bits, counts, scales, workspace, total;
    GemmPlan plan;
};

Scratch scratch_of(const BinaryWeight& w, int64_t m) {
    Scratch s{};
    s.plan = plan_gemm(m, w.layout.n, w.layout.row_bytes, current_device().multiprocessors, false);
    Places place(256);
    s.bits = place(m * w.layout.row_bytes);
    s.counts = place(4 * m);
    s.scales = place(4 * m);
    s.workspace = place(s.plan.part_bytes() + s.plan.counter_bytes());
    s.total = place.total();
    return s;
}

void multiply(const BinaryWeight& w, int64_t m, const Epilogue& epilogue, const Scratch& s, char* memory,
              Stream stream) {
    const BinaryLayout& l = w.layout;
    if (s.plan.counter_bytes() > 0)
        fill_bytes(memory + s.workspace + s.plan.part_bytes(), 0, s.plan.counter_bytes(), stream);
    GemmInt8 g;
    g.w = w.at<uint8_t>(l.codes);
    g.n = l.n;
    g.n_pad = l.n_pad;
    g.k_pad = l.row_bytes;
    g.x = reinterpret_cast<const uint8_t*>(memory + s.bits);
    g.m = m;
    g.ldx = l.row_bytes;
    g.epilogue = epilogue;
    g.epilogue.acc_shift = l.ternary ? 1 : 2;
    g.epilogue.x_zero = 1;
    g.epilogue.x_offset = w.at<int32_t>(l.offset);
    if (!l.ternary) {
        g.epilogue.w_zero = w.at<int32_t>(l.two);
        g.epilogue.x_sum = reinterpret_cast<const int32_t*>(memory + s.counts);
    }
    launch_gemm<BitProduct>(g, s.plan, memory + s.workspace, false, stream);
}

}  // namespace

void pack_signs(const PackSigns& p, Stream stream) {
    if (p.m == 0) return;
    launch(sign_rows, dim3(static_cast<unsigned>(ceil_div(p.m, kRowsOfBlock))), dim3(32 * kRowsOfBlock), 0, stream, p);
    if (p.mode == SignScale::tensor && p.scales != nullptr)
        launch(tensor_scale, dim3(1), dim3(256), 16, stream, p.scales, p.m, p.k);
}

int64_t scratch_bytes(const BinaryWeight& w, int64_t m) { return scratch_of(w, m).total; }

void linear_signs(const BinaryWeight& w, PackSigns x, const Epilogue& epilogue, void* scratch, Stream stream) {
    const Scratch s = scratch_of(w, x.m);
    char* memory = static_cast<char*>(scratch);
    x.k = w.layout.k;
    x.bits = reinterpret_cast<uint8_t*>(memory + s.bits);
    x.row_bytes = w.layout.plane_bytes;
    x.complement = w.layout.ternary;
    x.counts = reinterpret_cast<int32_t*>(memory + s.counts);
    x.scales = reinterpret_cast<float*>(memory + s.scales);
    pack_signs(x, stream);
    Epilogue e = epilogue;
    e.w_scale = w.at<float>(w.layout.scale);
    e.x_scale = x.scales;
    multiply(w, x.m, e, s, memory, stream);
}

void linear_bits(const BinaryWeight& w, const uint8_t* x, int64_t m, int64_t ldx, const Epilogue& epilogue,
                 void* scratch, Stream stream) {
    const Scratch s = scratch_of(w, m);
    char* memory = static_cast<char*>(scratch);
    if (m == 0) return;
    launch(pad_bits, dim3(static_cast<unsigned>(m)), dim3(w.layout.plane_bytes <= 256 ? 64 : 256), 32 * 4, stream, x,
           w.layout.k, ldx, reinterpret_cast<uint8_t*>(memory + s.bits), w.layout.plane_bytes, w.layout.ternary,
           reinterpret_cast<int32_t*>(memory + s.counts));
    multiply(w, m, epilogue, s, memory, stream);
}

}  // namespace qk::cuda
