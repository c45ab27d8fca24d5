#include "linear_float.h"

#include "../common/half.h"
#include "convert.h"
#include "device.h"
#include "ptx.h"
#include "runtime.h"

namespace qk::cuda {

namespace {

// Activations as the core reads them: rows of positions, and the sums of units. A warp has 64 positions at a time.
struct Prepare {
    const void* x;
    DType x_type;
    int64_t m, k, ldx, group, k_pad;
    const float* inv_k;  // [k] or null
    void* out;           // (m, k_pad)
    float* sums;         // [unit][m_pad] or null
    int64_t m_pad;
    int units;
};

__device__ __forceinline__ float load_as_float(const void* x, DType type, int64_t at) {
    if (type == DType::f32) return static_cast<const float*>(x)[at];
    if (type == DType::bf16) return to_float(static_cast<const bf16*>(x)[at]);
    return to_float(static_cast<const f16*>(x)[at]);
}

template <class To>
struct alignas(2 * sizeof(To)) Two {
    To at[2];
};

template <class To>
__global__ void prepare_rows(const __grid_constant__ Prepare p) {
    const int64_t row = blockIdx.x;
    const int lane = threadIdx.x % 32;
    let_next_start();  // a GEMM, which loads weights until this kernel ends
    for (int64_t block = threadIdx.x / 32; block < p.k_pad / kFloatK; block += blockDim.x / 32) {
        Two<To> two;
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int64_t k = element_at(block * kFloatK + lane * 2 + i, p.group, p.k);
            float v = k < 0 ? 0.0f : load_as_float(p.x, p.x_type, row * p.ldx + k);
            if (k >= 0 && p.inv_k != nullptr) v = v * p.inv_k[k];
            two.at[i] = from_float<To>(v);
            sum += to_float(two.at[i]);
        }
        static_cast<Two<To>*>(p.out)[(row * p.k_pad + block * kFloatK) / 2 + lane] = two;
        if (p.sums == nullptr) continue;
        // Lane bits of a unit: 0, 2, 3 of 16 positions (bit 1 says which instruction); 1 from 32 on; 4 with 64.
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 4);
        sum += __shfl_xor_sync(0xffffffffu, sum, 8);
        if (p.units <= 2) sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (p.units == 1) sum += __shfl_xor_sync(0xffffffffu, sum, 16);
        const int unit = p.units == 1 ? 0 : (p.units == 2 ? lane / 16 : lane / 16 * 2 + lane / 2 % 2);
        const int others = p.units == 1 ? 31 : (p.units == 2 ? 15 : 13);  // lane bits that are 0 in the one that writes
        if ((lane & others) == 0) p.sums[(block * p.units + unit) * p.m_pad + row] = sum;
    }
}

struct Scratch {
    int64_t x, sums, workspace, total, m_pad;
    FloatPlan plan;
};

Scratch scratch_of(const FloatWeight& w, int64_t m, DType compute) {
    const FloatLayout& l = w.layout;
    Scratch s{};
    s.plan = plan_float(m, l, compute, current_device().multiprocessors);
    s.m_pad = round_up(m, 4);
    Places place(256);
    s.x = place(m * l.k_pad * (compute == DType::f32 ? 4 : 2));
    s.sums = place(w.has_offset ? l.k_pad / kFloatK * l.units * s.m_pad * 4 : 0);
    s.workspace = place(s.plan.part_bytes() + s.plan.counter_bytes());
    s.total = place.total();
    return s;
}

void prepare(const Prepare& p, DType compute, Stream stream) {
    const dim3 grid(static_cast<unsigned>(p.m)), block(p.k_pad <= 512 ? 64 : 256);
    switch (compute) {
        case DType::f32: return launch(prepare_rows<float>, grid, block, 0, stream, p);
        case DType::bf16: return launch(prepare_rows<bf16>, grid, block, 0, stream, p);
        default: return launch(prepare_rows<f16>, grid, block, 0, stream, p);
    }
}

}  // namespace

void FloatWeight::set_table(const float (&entries)[16]) {
    for (int i = 0; i < 16; ++i) {
        const uint32_t bits = float_bits(entries[i]);
        half.set(i, float_to_half(entries[i]));
        brain.set(i, float_to_bfloat(entries[i]));
        high.set(i, static_cast<uint16_t>(bits >> 16));
        low.set(i, static_cast<uint16_t>(bits));
    }
}

int64_t scratch_bytes(const FloatWeight& w, int64_t m, DType compute) { return scratch_of(w, m, compute).total; }

void linear_float(const FloatWeight& w, const FloatInput& x, const Epilogue& epilogue, void* scratch, Stream stream) {
    const FloatLayout& l = w.layout;
    if (x.m == 0 || l.n == 0) return;
    const Scratch s = scratch_of(w, x.m, x.compute);
    char* memory = static_cast<char*>(scratch);
    const int64_t bytes = x.compute == DType::f32 ? 4 : 2;
    // Rows that the core can read where they are.
    const bool direct = x.type == x.compute && !w.has_input_scale && !w.has_offset && l.k == l.k_pad &&
                        (l.group == 0 || (l.group == group_positions(l.group) && l.group > 16)) &&
                        x.ldx * bytes % 16 == 0 && reinterpret_cast<uintptr_t>(x.x) % 16 == 0;
    auto* sums = w.has_offset ? reinterpret_cast<float*>(memory + s.sums) : nullptr;
    if (s.plan.counter_bytes() > 0)  // before the kernel that the GEMM may overlap: a memset would part them
        fill_bytes(memory + s.workspace + s.plan.part_bytes(), 0, s.plan.counter_bytes(), stream);
    if (!direct)
        prepare({x.x, x.type, x.m, l.k, x.ldx, l.group, l.k_pad, w.has_input_scale ? w.at<float>(l.inv_input) : nullptr,
                 memory + s.x, sums, s.m_pad, l.units},
                x.compute, stream);
    GemmFloat g;
    g.layout = l;
    g.decoder = w.decoder;
    g.table = x.compute == DType::f16 ? w.half : (x.compute == DType::bf16 ? w.brain : w.high);
    g.table_rest = w.low;
    g.w = w.base + l.codes;
    g.scale = w.base + l.scale;
    g.offset = w.has_offset ? w.at<float>(l.offset) : nullptr;
    g.x = direct ? static_cast<const char*>(x.x) : memory + s.x;
    g.x_type = x.compute;
    g.m = x.m;
    g.ldx = (direct ? x.ldx : l.k_pad) * bytes;
    g.x_sum = sums;
    g.m_pad = s.m_pad;
    g.epilogue = epilogue;
    gemm_float(g, s.plan, memory + s.workspace, !direct && current_device().major == 9, stream);
}

}  // namespace qk::cuda
