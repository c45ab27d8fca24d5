#include "linear.h"

#include "epilogue_kernel.h"

namespace qk::cuda {

namespace {

struct Scratch {
    int64_t codes, scales, sums, bits, workspace, total;
    GemmPlan plan;
};

Scratch scratch_of(const Int8Weight& w, int64_t m) {
    const Int8Layout& l = w.layout;
    Scratch s{};
    const Device& d = current_device();
    s.plan = plan_gemm(m, l.n, l.k_pad, d.multiprocessors, has_wgmma(d));
    Places place(256);
    s.codes = place(m * l.k_pad);
    s.scales = place(4 * m);
    s.sums = place(w.has_zero_point ? 4 * m : 0);
    s.bits = place(4);
    s.workspace = place(s.plan.part_bytes() + s.plan.counter_bytes());
    s.total = place.total();
    return s;
}

GemmInt8 gemm_of(const Int8Weight& w, int64_t m, bool is_signed, int32_t x_zero, const Epilogue& epilogue,
                 const int32_t* sums) {
    const Int8Layout& l = w.layout;
    GemmInt8 g;
    g.w = w.at<uint8_t>(l.codes);
    g.w_map = &w.map;
    g.n = l.n;
    g.n_pad = l.n_pad;
    g.k_pad = l.k_pad;
    g.m = m;
    g.is_signed = is_signed;
    g.epilogue = epilogue;
    g.epilogue.x_zero = x_zero;
    g.epilogue.x_offset = w.at<int32_t>(l.offset);
    if (w.has_zero_point) {
        g.epilogue.w_zero = w.at<int32_t>(l.zero);
        g.epilogue.x_sum = sums;
    }
    return g;
}

// A thread has four channels and every 64th row from its own on.
__global__ void requantize_rows(const int32_t* acc, int64_t m, int64_t ld_acc, const __grid_constant__ Epilogue e) {
    const int64_t channel = (static_cast<int64_t>(blockIdx.x) * 64 + threadIdx.x) * kVector;
    if (channel >= e.n) return;
    const ChannelEpilogue epilogue(e, channel);
    for (int64_t row = blockIdx.y * blockDim.y + threadIdx.y; row < m;
         row += static_cast<int64_t>(gridDim.y) * blockDim.y) {
        int32_t v[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) v[i] = channel + i < e.n ? acc[row * ld_acc + channel + i] : 0;
        epilogue.store(row, make_int4(v[0], v[1], v[2], v[3]));
    }
}

}  // namespace

bool has_wgmma(const Device& device) { return device.major == 9 && device.minor == 0; }

void prepare(Int8Weight& w) {
    const Int8Layout& l = w.layout;
    if (l.n > 0 && l.k > 0 && has_wgmma(current_device())) w.map = int8_tensor_map(w.base + l.codes, l.n_pad, l.k_pad);
}

int64_t scratch_bytes(const Int8Weight& w, int64_t m) { return scratch_of(w, m).total; }

void linear_int8(const Int8Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream) {
    const Int8Layout& l = w.layout;
    const Scratch s = scratch_of(w, x.m);
    char* memory = static_cast<char*>(scratch);
    x.k = l.k;
    x.k_pad = x.ldo = l.k_pad;
    x.inv_k = w.has_input_scale ? w.at<float>(l.inv_input) : nullptr;
    x.codes = reinterpret_cast<uint8_t*>(memory + s.codes);
    x.scales = reinterpret_cast<float*>(memory + s.scales);
    x.sums = w.has_zero_point ? reinterpret_cast<int32_t*>(memory + s.sums) : nullptr;
    x.tensor_bits = reinterpret_cast<uint32_t*>(memory + s.bits);
    x.clear = reinterpret_cast<int32_t*>(memory + s.workspace + s.plan.part_bytes());
    x.clear_count = s.plan.counter_bytes() / 4;
    quantize(x, stream);
    GemmInt8 g = gemm_of(w, x.m, x.lo < 0, x.zero, epilogue, x.sums);
    g.x = x.codes;
    g.ldx = l.k_pad;
    g.epilogue.w_scale = w.at<float>(l.scale);
    g.epilogue.x_scale = x.scales;
    gemm_int8(g, s.plan, memory + s.workspace, current_device().major == 9, stream);
}

void linear_codes(const Int8Weight& w, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                  const Epilogue& epilogue, void* scratch, Stream stream) {
    const Int8Layout& l = w.layout;
    const Scratch s = scratch_of(w, m);
    char* memory = static_cast<char*>(scratch);
    auto* codes = reinterpret_cast<uint8_t*>(memory + s.codes);
    auto* sums = w.has_zero_point ? reinterpret_cast<int32_t*>(memory + s.sums) : nullptr;
    // Rows that the GEMM can read where they are; a tensor map has no rows that overlap.
    const bool direct = l.k == l.k_pad && ldx % 16 == 0 && reinterpret_cast<uintptr_t>(x) % 16 == 0 &&
                        (s.plan.kernel != GemmKernel::wgmma || ldx >= l.k);
    if (!direct || sums != nullptr)
        pad_codes(x, is_signed, m, l.k, ldx, direct ? nullptr : codes, l.k_pad, sums, stream);
    if (s.plan.counter_bytes() > 0)
        fill_bytes(memory + s.workspace + s.plan.part_bytes(), 0, s.plan.counter_bytes(), stream);
    GemmInt8 g = gemm_of(w, m, is_signed, x_zero, epilogue, sums);
    g.x = direct ? x : codes;
    g.ldx = direct ? ldx : l.k_pad;
    gemm_int8(g, s.plan, memory + s.workspace, false, stream);
}

void requantize(const int32_t* acc, int64_t m, int64_t n, int64_t ld_acc, const Epilogue& epilogue, Stream stream) {
    if (m == 0 || n == 0) return;
    Epilogue e = epilogue;
    e.n = e.ldo = n;
    e.prepare();
    const int64_t rows = ceil_div(m, 4);
    const dim3 grid(static_cast<unsigned>(ceil_div(n, 64 * kVector)), static_cast<unsigned>(rows < 1024 ? rows : 1024));
    launch(requantize_rows, grid, dim3(64, 4), 0, stream, acc, m, ld_acc, e);
}

}  // namespace qk::cuda
