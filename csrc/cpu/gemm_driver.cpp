// Packed codes meet few rows: decoded in registers, once. Many rows: a block of the panel is decoded to int8, which
// then lies in L2 and serves all of them; for 128 rows that is about 3 % of the work.
#include "gemm_driver.h"

#include <algorithm>

#include "gemm_loops.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kStreamBytes = 5 << 10;    // 2 KB were too few (13.1 GB/s), 8 KB no better than 4
constexpr int64_t kPrefetchBytes = 1 << 20;  // smaller weights sit in L2, where requesting costs load slots

// A panel that is decoded in registers: the code stream itself, kStreamBytes further on. The hardware's prefetcher
// alone keeps up with int8, not with codes that take more instructions a byte (11 of 16 GB/s; 14.3 so). A panel that
// several groups of rows pass over: the one that comes next trickles in while they compute.
Ahead ahead_of(const Problem& p, int64_t panel, int64_t rows, int64_t groups, bool in_registers) {
    const GemmHeader& h = *p.w.header;
    const int64_t bits = p.w.panel(panel).bits;
    const bool stream = in_registers && bits < 8;
    Ahead ahead;
    // A single row of int8 only streams, which the hardware foresees; more rows compute long enough.
    if (!stream && (rows <= 1 || panel + 1 >= h.panels() || h.code_bytes() <= kPrefetchBytes)) return ahead;
    if (p.pointers != nullptr) return ahead;
    ahead.from = reinterpret_cast<const char*>(stream ? p.w.codes(panel) + kStreamBytes : p.w.codes(panel + 1));
    ahead.most = step_bytes(stream ? bits : p.w.panel(panel + 1).bits) / 16;
    ahead.over(groups);
    return ahead;
}

// A block of k: steps [step, step + steps) of a contiguous row, or whole segments.
struct Block {
    int64_t segment, segments, step, steps;
};

void finish(const Problem& p, int32_t* tile, int64_t row, int rows, int64_t n0, int cols) {
    if (p.patch) p.isa.patch_zero_point(p.epilogue, tile, row, rows, n0);
    p.store(p.epilogue, tile, row, rows, n0, cols);
}

void run_channels(const Problem& p, int64_t panel, int64_t begin, int64_t end, int cols) {
    const GemmHeader& h = *p.w.header;
    const int64_t n0 = panel * kPanelN, groups = ceil_div(end - begin, p.isa.mr), bits = p.w.panel(panel).bits;
    const bool indirect = p.pointers != nullptr;
    const int64_t segments = indirect ? h.segments : 1, steps = (indirect ? h.segment_pad : h.k_pad) / kStepK;
    const int64_t block_segments = std::max<int64_t>(1, kBlockK / std::max<int64_t>(h.segment_pad, 1));
    const int64_t blocks =
        std::max<int64_t>(1, segments > 1 ? ceil_div(segments, block_segments) : ceil_div(steps, kBlockK / kStepK));
    const MicroFn* packed = p.isa.micro[bits];
    const bool decode = bits < 8 && (groups > 1 || packed[end - begin] == nullptr);
    const MicroFn* micro = decode ? p.isa.micro[8] : packed;
    const Ahead ahead = ahead_of(p, panel, end - begin, groups, !decode);
    alignas(64) int32_t tiles[kTileRows * kPanelN];

    for (int64_t b = 0; b < blocks; ++b) {
        Block k{0, segments, 0, steps};
        if (segments > 1) {
            k.segment = b * block_segments;
            k.segments = std::min(block_segments, segments - k.segment);
        } else {
            k.step = b * (kBlockK / kStepK);
            k.steps = std::min<int64_t>(kBlockK / kStepK, steps - k.step);
        }
        const int64_t first = k.segment * steps + k.step, count = k.segments * k.steps;
        MicroArgs args;
        args.codes = p.w.codes(panel) + first * step_bytes(bits);
        args.offset = p.w.offset() + n0;
        args.segments = k.segments;
        args.steps = k.steps;
        if (decode) {
            int8_t* out = Scratch::get(count * kStepBytes, Scratch::panel).take<int8_t>(count * kStepBytes);
            p.isa.decode[bits](args.codes, count, args.offset, out);
            args.codes = reinterpret_cast<const uint8_t*>(out);
        }
        args.init = b == 0 ? p.init + n0 : nullptr;
        each_group(begin, end, groups, [&](int64_t g, int64_t row, int rows) {
            const uint8_t* direct[kMaxMr];
            for (int r = 0; r < rows && !indirect; ++r) direct[r] = p.a + (row + r) * p.lda + k.step * kStepK;
            args.rows = indirect ? p.pointers + row * segments + k.segment : direct;
            args.row_step = indirect ? segments : 1;
            args.tile = tiles + (blocks > 1 ? (row - begin) * kPanelN : 0);
            ahead.request(args, g, first);
            micro[rows](args);
            if (b == blocks - 1) finish(p, args.tile, row, rows, n0, cols);
        });
    }
}

void run_groups(const Problem& p, int64_t panel, int64_t begin, int64_t end, int cols) {
    const GemmHeader& h = *p.w.header;
    const int64_t rows_all = end - begin, bits = p.w.panel(panel).bits, lanes = panel * h.segments * kPanelN;
    const int64_t group_steps = h.segment_pad / kStepK, steps = h.k_pad / kStepK;
    const int64_t block = std::max<int64_t>(1, kBlockK / std::max<int64_t>(h.segment_pad, 1));
    const int64_t blocks = std::max<int64_t>(1, ceil_div(h.segments, block));
    const bool fits = rows_all < kMaxMr && p.isa.group[bits][rows_all] != nullptr;
    const bool decode = bits == 8 || !fits || !h.exact_padding;
    const GroupFn* micro = p.isa.group[decode ? 8 : bits];
    const int64_t groups = decode ? ceil_div(rows_all, p.isa.mr) : 1;
    const Ahead ahead = ahead_of(p, panel, rows_all, groups, !decode);
    alignas(64) float tiles[kTileRows * kPanelN];

    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t part = b * block, parts = std::min(block, h.segments - part);
        const int64_t first = part * group_steps;
        GroupArgs args;
        args.group_steps = std::max<int64_t>(group_steps, 1);
        args.steps = std::min(parts * group_steps, steps - first);
        args.codes = p.w.codes(panel) + first * step_bytes(bits);
        args.offset = p.w.offset() + lanes + part * kPanelN;
        args.scale = p.w.scale() + lanes + part * kPanelN;
        args.zero = p.zero;
        if (decode) {
            Scratch& scratch =
                Scratch::get(Scratch::padded<int32_t>(parts * kPanelN) + args.steps * kStepBytes, Scratch::panel);
            int32_t* init = scratch.take<int32_t>(parts * kPanelN);
            const int32_t* colsum = p.w.colsum() + lanes + part * kPanelN;
            for (int64_t i = 0; i < parts * kPanelN; ++i)
                init[i] = static_cast<int32_t>(0u - uint32_t{p.zero} * static_cast<uint32_t>(colsum[i]));
            args.init = init;
            if (bits < 8) {
                int8_t* out = scratch.take<int8_t>(args.steps * kStepBytes);
                for (int64_t g = 0; g < parts; ++g)
                    p.isa.decode[bits](args.codes + g * group_steps * step_bytes(bits),
                                       std::min(group_steps, args.steps - g * group_steps), args.offset + g * kPanelN,
                                       out + g * group_steps * kStepBytes);
                args.codes = reinterpret_cast<const uint8_t*>(out);
            }
        }
        each_group(begin, end, groups, [&](int64_t g, int64_t row, int rows) {
            const uint8_t* direct[kMaxMr];
            for (int r = 0; r < rows; ++r) direct[r] = p.a + (row + r) * p.lda + first * kStepK;
            args.rows = direct;
            args.tile = tiles + (blocks > 1 ? (row - begin) * kPanelN : 0);
            ahead.request(args, g, first);
            if (b == 0) std::fill_n(args.tile, rows * kPanelN, 0.0f);
            micro[rows](args);
            if (b == blocks - 1) p.store(p.epilogue, args.tile, row, rows, panel * kPanelN, cols);
        });
    }
}

}  // namespace

void run_panel(const Problem& p, int64_t panel, int64_t begin, int64_t end) {
    const int cols = static_cast<int>(std::min<int64_t>(kPanelN, p.w.header->n - panel * kPanelN));
    (p.w.header->grouped ? run_groups : run_channels)(p, panel, begin, end, cols);
}

const int32_t* starts(const GemmView& w, int32_t zero, int32_t* buffer) {
    const GemmHeader& h = *w.header;
    if (h.grouped) return nullptr;
    if (zero == 128) return w.init128();
    const auto z = static_cast<uint32_t>(zero);
    const auto zk = z * static_cast<uint32_t>(h.k);
    for (int64_t n = 0; n < h.n_pad; ++n)
        buffer[n] = static_cast<int32_t>(zk * static_cast<uint32_t>(w.zero_point()[n]) -
                                         z * static_cast<uint32_t>(w.colsum()[n]));
    return buffer;
}

}  // namespace qk
