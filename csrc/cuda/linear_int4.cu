// A call of the 4-bit integer core: which kernel, scratch memory, quantization, product.
#include "device.h"
#include "gemm_int4.h"
#include "runtime.h"

namespace qk::cuda {

namespace {

struct Scratch {
    int64_t codes, scales, sums, bits, total, m_pad;
};

Scratch scratch_of(const Int4Weight& w, int64_t m) {
    Scratch s{};
    s.m_pad = round_up(m, 4);
    Places place(256);
    s.codes = place(m * w.layout.k_pad);
    s.scales = place(4 * m);
    s.sums = place(w.has_zero_point ? 4 * w.layout.groups * s.m_pad : 0);
    s.bits = place(4);
    s.total = place.total();
    return s;
}

// As many groups at once as 48 KB hold, of which every multiprocessor has two, in rounds of about the same size.
Int4Round round_of(int64_t m, const Int4Layout& w, bool has_sums, bool has_x_zero) {
    const int64_t sums = round_up(m, 2) * (kFloatN + 4) * 4, scale = kFloatN * w.scale_bytes;
    const int64_t zero = has_sums ? kFloatN : 0, offset = has_x_zero ? kFloatN * 4 : 0;
    const int64_t x_sum = has_sums ? round_up(m, 4) * 4 : 0;
    const int64_t bytes = sums + scale + zero + offset + x_sum, most = (48 << 10) / bytes / 2 * 2;
    const int64_t rounds = ceil_div(w.groups, most), groups = round_up(ceil_div(w.groups, rounds), 2);
    Int4Round r{};
    r.groups = static_cast<int>(groups);
    Places place(16);
    auto of = [&](int64_t each) { return static_cast<int>(place(groups * each)); };
    r.sums = of(sums);
    r.scale = of(scale);
    r.zero = of(zero);
    r.offset = of(offset);
    r.x_sum = of(x_sum);
    r.bytes = static_cast<int>(place.total());
    return r;
}

}  // namespace

Int4Plan plan_int4(int64_t m, const Int4Layout& w, bool has_sums, bool has_x_zero, int multiprocessors) {
    if (m <= 16) {
        Int4Plan p{Int4Kernel::skinny, kFloatN, m <= 8 ? 8 : 16, w.n_pad / kFloatN, {}};
        p.round = round_of(m < 1 ? 1 : m, w, has_sums, has_x_zero);
        return p;
    }
    // Cycles that a multiprocessor is expected to need for 64 positions of a tile: its products at 2600 a cycle or its
    // bytes from L2 at 45, whichever takes longer, and about 60 around them.
    constexpr struct {
        int channels, tokens, cycles;
    } kTiles[] = {{64, 32, 150}, {64, 64, 196}, {128, 64, 260}, {128, 128, 460}};
    Int4Plan best{};
    int64_t least = -1;
    for (const auto& t : kTiles) {
        const int64_t tiles = ceil_div(w.n, t.channels) * ceil_div(m, t.tokens);
        const int64_t cycles = ceil_div(tiles, multiprocessors) * t.cycles;
        if (least >= 0 && cycles >= least) continue;
        least = cycles;
        best = {Int4Kernel::tile, t.channels, t.tokens, tiles, {}};
    }
    return best;
}

int64_t scratch_bytes(const Int4Weight& w, int64_t m) { return scratch_of(w, m).total; }

void linear_int4(const Int4Weight& w, Quantize x, const Epilogue& epilogue, void* scratch, Stream stream) {
    const Int4Layout& l = w.layout;
    if (x.m == 0 || l.n == 0) return;
    const Scratch s = scratch_of(w, x.m);
    char* memory = static_cast<char*>(scratch);
    auto* sums = w.has_zero_point ? reinterpret_cast<int32_t*>(memory + s.sums) : nullptr;
    x.k = l.k;
    x.k_pad = x.ldo = l.k_pad;
    x.inv_k = w.has_input_scale ? w.at<float>(l.inv_input) : nullptr;
    x.codes = reinterpret_cast<uint8_t*>(memory + s.codes);
    x.scales = reinterpret_cast<float*>(memory + s.scales);
    x.tensor_bits = reinterpret_cast<uint32_t*>(memory + s.bits);
    x.padded = l.padded;
    if (l.groups == 1) {
        x.sums = sums;
    } else {
        x.group_sums = sums;
        x.groups = l.groups;
        x.group_positions = l.group_steps * kStep;
        x.m_pad = s.m_pad;
    }
    quantize(x, stream);
    const Device& device = current_device();
    const Int4Plan plan = plan_int4(x.m, l, w.has_zero_point, x.zero != 0, device.multiprocessors);
    GemmInt4 g;
    g.layout = l;
    g.decoder = w.decoder;
    g.table = w.table;
    g.w = w.at<uint8_t>(l.codes);
    g.scale = w.base + l.scale;
    g.zero = w.has_zero_point ? w.at<int8_t>(l.zero) : nullptr;
    g.offset = w.at<int32_t>(l.offset);
    g.x = x.codes;
    g.x_sum = sums;
    g.m = x.m;
    g.m_pad = s.m_pad;
    g.x_zero = x.zero;
    g.is_signed = x.lo < 0;
    g.start = l.group == 0 ? -0.0f : 0.0f;
    g.round = plan.round;
    g.epilogue = epilogue;
    g.epilogue.x_scale = x.scales;
    g.epilogue.n = l.n;
    g.epilogue.prepare();
    const bool overlap = device.major == 9;
    if (plan.kernel == Int4Kernel::skinny) return gemm_int4_skinny(g, plan, overlap, stream);
    gemm_int4_tile(g, plan, overlap, stream);
}

}  // namespace qk::cuda
