// Convolution as the integer product of gemm_driver.cpp, without unfolding the image.
//
//   for each unit: some whole rows of outputs, about kUnitPixels
//     make the input rows that it reads and that are not there yet (conv_rows.h)
//     point at them: one pointer per output pixel and segment of k, which is a kernel row where pixels lie side by side
//     for each panel of 64 output channels: run_panel over the pixels
//
// Threads share the units where each core can keep the weight in its L2; else they share panels, all units over each,
// and all rows are made before the first is used.
#include "conv.h"

#include "conv_units.h"
#include "gemm_driver.h"
#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kUnitPixels = 128;
constexpr int64_t kSharedWeight = 1 << 20;  // a weight that every core may keep in its own L2
constexpr int64_t kSharedRows = 4 << 20;    // bytes of rows that are made before panels are shared out

struct ConvProblem {
    const Kernels& isa;
    const ConvKernels& leaf;
    const ConvView& w;
    const ConvCall& call;
    const ConvRows& rows;
    const ConvUnits& units;
    const int32_t* const* init;  // [blocks], of each group
    float x_scale;
};

// Memory that one thread writes to while it computes a unit.
struct Workspace {
    const uint8_t** pointers;  // [pixels][segments]
    uint8_t* gathered;         // [pixels][k_pad], ConvKind::gathered
    int32_t* sums;             // [pixels]
    char* out;                 // [pixels][n_pad] before they go to NCHW planes
};

// Everything that the threads of a call write to, from the scratch of the thread that calls.
struct Memory {
    int64_t ring, temporary, pointers, gathered, sums, out;  // bytes of one thread
    uint8_t* base = nullptr;

    int64_t thread_bytes() const { return ring + temporary + pointers + gathered + sums + out; }
    uint8_t* ring_of(int thread) const { return base + thread * thread_bytes(); }
    uint8_t* temporary_of(int thread) const { return ring_of(thread) + ring; }
    Workspace workspace(int thread) const {
        uint8_t* at = temporary_of(thread) + temporary;
        return {reinterpret_cast<const uint8_t**>(at), at + pointers,
                reinterpret_cast<int32_t*>(at + pointers + gathered),
                reinterpret_cast<char*>(at + pointers + gathered + sums)};
    }
};

// pointers[pixel * runs + run]: where the codes of an output pixel are, a run for each kernel row, or for each tap.
void point(const ConvProblem& p, const ConvUnit& unit, const RowRing& ring, int64_t taps, const uint8_t** pointers) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const int64_t pixel = p.rows.pixel(), runs = h.kernel_h * taps;
    for (int64_t r = unit.begin; r < unit.end; ++r) {
        const int64_t image = r / s.out_height, y = r % s.out_height * s.stride_h - s.pad_top;
        const uint8_t** to = pointers + (r - unit.begin) * s.out_width * runs;
        for (int64_t i = 0; i < h.kernel_h; ++i) {
            const int64_t at = y + i * s.dilation_h;
            const bool inside = at >= 0 && at < s.height;
            const uint8_t* row = inside ? ring.row(image * s.height + at) : p.rows.empty_row();
            for (int64_t j = 0; j < taps; ++j, ++to) {
                const uint8_t* from = row + j * s.dilation_w * pixel;
                for (int64_t x = 0; x < s.out_width; ++x) to[x * runs] = from + x * s.stride_w * pixel;
            }
        }
    }
}

// Codes of one pixel in the order of the weight, (I, kh, kw), each group of scales at its padded place.
void gather(const ConvProblem& p, const GemmHeader& block, const uint8_t* const* taps, uint8_t* to) {
    const ConvHeader& h = *p.w.header;
    const int64_t kernel = h.kernel_h * h.kernel_w;
    if (kernel == 1 && block.segment == block.segment_pad) {
        std::memcpy(to, taps[0], h.per_group);
        std::memset(to + h.per_group, 0, block.k_pad - h.per_group);
        return;
    }
    std::memset(to, 0, block.k_pad);
    for (int64_t t = 0; t < kernel; ++t)
        for (int64_t i = 0; i < h.per_group; ++i) to[block.padded(i * kernel + t)] = taps[t][i];
}

// run_panel for a panel of at most 48 channels of 8-bit codes.
void run_narrow(const ConvKernels& leaf, const Problem& p, int64_t panel, int cols) {
    const GemmHeader& h = *p.w.header;
    const int quarters = static_cast<int>(ceil_div(cols, kPanelN / kQuarters));
    const int64_t n0 = panel * kPanelN;
    alignas(64) int32_t tile[kMaxRows * kPanelN];
    MicroArgs args;
    args.row_step = args.segments = h.segments;
    args.steps = h.segment_pad / kStepK;
    args.codes = p.w.codes(panel);
    args.init = p.init + n0;
    args.tile = tile;
    for (int64_t pixel = 0; pixel < p.m;) {
        const int64_t left = ceil_div(p.m - pixel, leaf.rows[quarters]);
        const int rows = static_cast<int>(ceil_div(p.m - pixel, left));
        args.rows = p.pointers + pixel * h.segments;
        leaf.narrow[quarters][rows](args);
        if (p.patch) p.isa.patch_zero_point(p.epilogue, tile, pixel, rows, n0);
        p.store(p.epilogue, tile, pixel, rows, n0, cols);
        pixel += rows;
    }
}

void run_group_panel(const ConvProblem& p, int64_t group, int64_t panel, const ConvUnit& unit, const Workspace& ws) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const GemmView block = p.w.block(group);
    const GemmHeader& b = *block.header;
    const int64_t pixels = (unit.end - unit.begin) * s.out_width, first = unit.begin * s.out_width;
    const int64_t shift = group * b.n, n0 = panel * kPanelN;

    Problem product{p.isa, block, pixels};
    if (b.grouped) {
        product.a = ws.gathered;
        product.lda = b.k_pad;
    } else {
        product.pointers = ws.pointers;
    }
    product.init = p.init[group];
    product.zero = p.rows.zero();
    product.store = p.call.store;
    product.patch = b.has_zero_point;
    // Arrays of the weight are a group's own, those of the call are over all output channels.
    Epilogue& e = product.epilogue = p.call.epilogue;
    e.w_scale = block.scale();
    e.w_zero = block.zero_point();
    e.x_sum = ws.sums;
    e.x_scale = p.call.quant.mode == InputMode::channel ? nullptr : &p.x_scale;
    if (e.bias) e.bias += shift;
    e.bias_i32 = nullptr;  // the accumulators start at it
    if (e.multiplier) e.multiplier += shift;
    if (e.shift) e.shift += shift;
    if (e.requant_scale) e.requant_scale += shift;
    char* out = static_cast<char*>(e.out);
    e.out = p.call.out_nchw ? ws.out : out + (first * h.n + shift) * e.out_bytes;
    e.ldo = p.call.out_nchw ? b.n_pad : h.n;
    const int cols = static_cast<int>(std::min<int64_t>(kPanelN, b.n - n0));
    if (cols <= kPanelN - kPanelN / kQuarters && block.panel(panel).bits == 8 && !b.grouped) {
        run_narrow(p.leaf, product, panel, cols);
    } else {
        const int64_t most = b.k_pad > kBlockK ? kTileRows : pixels;
        for (int64_t pixel = 0; pixel < pixels; pixel += most)
            run_panel(product, panel, pixel, std::min(pixels, pixel + most));
    }
    if (p.call.out_nchw)
        store_planes(p.leaf, s, e.out_bytes, h.n, ws.out + n0 * e.out_bytes, b.n_pad, first, pixels, shift + n0, cols,
                     out);
}

// All panels of a unit, or the one that is asked for (only >= 0, counted over all groups).
void run_unit(const ConvProblem& p, const ConvUnit& unit, const RowRing& ring, const Workspace& ws, int64_t only) {
    const ConvHeader& h = *p.w.header;
    const GemmHeader& b = *p.w.block(0).header;
    const int64_t pixels = (unit.end - unit.begin) * p.call.shape.out_width, panels = b.panels();
    const int64_t slice = round_up(h.per_group, kStepK);  // bytes of a pixel that one group reads
    const int64_t first = only < 0 ? 0 : only / panels, last = only < 0 ? h.blocks() : first + 1;
    const int64_t taps = h.is(ConvKind::rows) ? 1 : h.kernel_w, runs = h.kernel_h * taps;
    point(p, unit, ring, taps, ws.pointers);
    for (int64_t g = first; g < last; ++g) {
        const int64_t skip = (g == first ? g : 1) * slice;
        for (int64_t i = 0; skip > 0 && i < pixels * runs; ++i) ws.pointers[i] += skip;
        for (int64_t i = 0; b.grouped && i < pixels; ++i)
            gather(p, b, ws.pointers + i * runs, ws.gathered + i * b.k_pad);
        for (int64_t i = 0; b.has_zero_point && i < pixels; ++i) {
            int32_t sum = 0;
            for (int64_t k = 0; k < runs; ++k) sum += p.isa.sum_codes(ws.pointers[i * runs + k], b.segment);
            ws.sums[i] = sum;
        }
        const int64_t begin = only < 0 ? 0 : only % panels, end = only < 0 ? panels : begin + 1;
        for (int64_t panel = begin; panel < end; ++panel) run_group_panel(p, g, panel, unit, ws);
    }
}

// Each thread takes units and makes the rows that they read.
int64_t share_units(const ConvProblem& p, const Memory& memory, int threads) {
    std::atomic<int64_t> bad{-1};
    WorkRanges ranges(p.units.count(), threads);
    on_threads(threads, [&](int thread) {
        RowRing ring(p.rows, memory.ring_of(thread), memory.temporary_of(thread), p.units.input_rows());
        const Workspace ws = memory.workspace(thread);
        ranges.run(thread, [&](int64_t u) {
            const ConvUnit unit = p.units.at(u);
            keep_smallest(bad, ring.need(unit.first_row, unit.last_row));
            run_unit(p, unit, ring, ws, -1);
        });
    });
    return bad.load();
}

// Rows are made together, `together` units' at a time; then each thread takes panels, all those units over each.
int64_t share_panels(const ConvProblem& p, const Memory& memory, uint8_t* shared, int64_t together, int threads) {
    std::atomic<int64_t> bad{-1};
    const int64_t panels = p.w.block(0).header->panels() * p.w.header->blocks();
    const int64_t slots = together * p.units.input_rows();
    for (int64_t u0 = 0; u0 < p.units.count(); u0 += together) {
        const int64_t units = std::min(p.units.count() - u0, together);
        const int64_t first = p.units.at(u0).first_row, last = p.units.at(u0 + units - 1).last_row;
        const RowRing ring(p.rows, shared, nullptr, slots);
        WorkRanges rows(p.rows.direct() ? 0 : last - first, threads), work(panels * units, threads);
        on_threads(threads, [&](int thread) {
            rows.run(thread, [&](int64_t r) {
                uint8_t* to = shared + (first + r) % slots * p.rows.bytes();
                if (!p.rows.write(first + r, to, memory.temporary_of(thread))) keep_smallest(bad, first + r);
            });
            team_barrier();
            const Workspace ws = memory.workspace(thread);
            work.run(thread, [&](int64_t i) { run_unit(p, p.units.at(u0 + i % units), ring, ws, i / units); });
        });
    }
    return bad.load();
}

// Threads that the work repays, as in gemm.cpp: about six microseconds each.
int threads_for(const ConvHeader& h, const ConvShape& s, int threads) {
    const double outputs = static_cast<double>(s.out_rows()) * s.out_width * h.n;
    const double ns =
        outputs * (h.is(ConvKind::depthwise) ? 0.1 + 0.01 * h.kernel_h * h.kernel_w : 0.05 + h.k() / 300.0);
    return static_cast<int>(std::clamp<double>(ns / 6000.0, 1.0, usable_threads(threads)));
}

int64_t gemm_conv(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call, int threads) {
    const ConvHeader& h = *w.header;
    const ConvShape& s = call.shape;
    const GemmHeader& block = *w.block(0).header;
    const bool small = h.blocks() * h.block_bytes <= kSharedWeight;
    ConvRows rows(isa, leaf, w, call);
    const ConvUnits units(s, h, kUnitPixels, small ? threads : 1);
    const bool by_units = threads == 1 || units.count() >= (small ? 1 : 4) * threads;
    const int64_t unit_bytes = std::max<int64_t>(1, units.input_rows() * rows.bytes());
    const int64_t together = std::clamp<int64_t>(kSharedRows / unit_bytes, 1, units.count());
    const int64_t pixels = units.rows() * s.out_width, runs = h.kernel_h * (h.is(ConvKind::rows) ? 1 : h.kernel_w);

    Memory memory;
    memory.ring = by_units && !rows.direct() ? round_up(unit_bytes, 64) : 0;
    memory.temporary = rows.temporary();
    memory.pointers = round_up(pixels * runs * 8, 64);
    memory.gathered = block.grouped ? round_up(pixels * block.k_pad, 64) : 0;
    memory.sums = round_up(pixels * 4, 64);
    memory.out = call.out_nchw ? round_up(pixels * block.n_pad * call.epilogue.out_bytes, 64) : 0;
    const int64_t shared = by_units || rows.direct() ? 0 : together * unit_bytes;
    Scratch& scratch =
        Scratch::get(Scratch::padded<uint8_t>(memory.thread_bytes() * threads) + Scratch::padded<uint8_t>(shared) +
                     Scratch::padded<uint8_t>(rows.constants()) + Scratch::padded<int32_t>(block.n_pad * h.blocks()) +
                     Scratch::padded<int32_t*>(h.blocks()));
    memory.base = scratch.take<uint8_t>(memory.thread_bytes() * threads);
    uint8_t* shared_rows = scratch.take<uint8_t>(shared);
    rows.prepare(scratch.take<uint8_t>(rows.constants()));
    int32_t* buffer = scratch.take<int32_t>(block.n_pad * h.blocks());
    const int32_t** init = scratch.take<const int32_t*>(h.blocks());
    for (int64_t g = 0; g < h.blocks(); ++g)
        init[g] = conv_starts(w.block(g), rows, call.epilogue, g * block.n, buffer + g * block.n_pad);

    ConvProblem p{isa, leaf, w, call, rows, units, init, 1.0f};
    const int64_t bad = conv_scale(rows, call, threads, &p.x_scale);
    if (bad >= 0) return bad;
    return by_units ? share_units(p, memory, threads) : share_panels(p, memory, shared_rows, together, threads);
}

}  // namespace

int64_t conv2d(Isa isa, const ConvView& w, const ConvCall& call, int threads) {
    const ConvShape& s = call.shape;
    if (s.out_rows() * s.out_width * w.header->n == 0) return -1;
    threads = threads_for(*w.header, s, threads);
    auto* driver = w.kind() == ConvKind::depthwise ? depthwise : gemm_conv;
    return driver(kernels(isa), conv_kernels(isa), w, call, threads);
}

const ConvKernels& conv_kernels(Isa isa) {
    switch (isa) {
        case Isa::amxbf16:
        case Isa::avx512bf16:
        case Isa::avx512vpopcntdq:
        case Isa::avx512vnni: return conv_kernels_avx512vnni();
        case Isa::avx2: return conv_kernels_avx2();
        default: return conv_kernels_scalar();
    }
}

}  // namespace qk
