// Convolution as the integer product of gemm.cpp, without unfolding the image.
//
//   for each unit: some whole rows of outputs, about kUnitPixels
//     make the input rows that it reads and that are not there yet (conv_rows.h)
//     point at them: one pointer per output pixel and segment of k, a kernel row where pixels lie side by side
//     for each panel of 64 output channels: for each group of up to MR pixels: tile -> patches -> epilogue
//
// Threads share the units where each core can keep the weight in its L2; else they share panels, all units over each,
// and all rows are made before the first is used.
#include "conv.h"

#include "conv_units.h"
#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kUnitPixels = 128;
constexpr int64_t kSharedWeight = 1 << 20;   // a weight that every core may keep in its own L2
constexpr int64_t kPrefetchBytes = 1 << 20;  // smaller weights sit in L2 where it costs load slots
constexpr int64_t kSharedRows = 4 << 20;     // bytes of rows that are made before panels are shared out

struct Problem {
    const Kernels& isa;
    const ConvKernels& leaf;
    const ConvView& w;
    const ConvCall& call;
    const ConvRows& rows;
    const ConvUnits& units;
    const int32_t* init;  // [groups][n_pad]
    int64_t n_pad;        // of a group
    float x_scale;
};

// Memory of one thread.
struct Workspace {
    const uint8_t** pointers;  // [pixels][segments]
    int32_t* sums;             // [pixels]
    char* out;                 // [pixels][64] before they go to NCHW planes
};

void point(const Problem& p, const ConvUnit& unit, const RowRing& ring, const uint8_t** pointers) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const int64_t pixel = p.rows.pixel(), taps = p.w.kind() == ConvKind::rows ? 1 : h.kernel_w;
    const int64_t segments = h.segments();
    for (int64_t r = unit.begin; r < unit.end; ++r) {
        const int64_t image = r / s.out_height, y = r % s.out_height * s.stride_h - s.pad_top;
        const uint8_t** to = pointers + (r - unit.begin) * s.out_width * segments;
        for (int64_t i = 0; i < h.kernel_h; ++i) {
            const int64_t at = y + i * s.dilation_h;
            const bool inside = at >= 0 && at < s.height;
            const uint8_t* row = inside ? ring.row(image * s.height + at) : p.rows.empty_row();
            for (int64_t j = 0; j < taps; ++j, ++to) {
                const uint8_t* from = row + j * s.dilation_w * pixel;
                for (int64_t x = 0; x < s.out_width; ++x) to[x * segments] = from + x * s.stride_w * pixel;
            }
        }
    }
}

void run_panel(const Problem& p, int64_t group, int64_t panel, const ConvUnit& unit, const Workspace& ws) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const Int8View block = p.w.block(group);
    const int64_t n0 = panel * kPanelN, n_group = block.header->n, segments = h.segments(), steps = h.steps();
    const int cols = static_cast<int>(std::min<int64_t>(kPanelN, n_group - n0));
    const int64_t pixels = (unit.end - unit.begin) * s.out_width, first = unit.begin * s.out_width;
    const int64_t groups = ceil_div(pixels, p.isa.mr), k_steps = segments * steps;
    const bool ahead = p.n_pad * block.header->k_pad > kPrefetchBytes && n0 + kPanelN < p.n_pad;
    const int lines = ahead ? static_cast<int>(ceil_div(16, groups)) : 0;
    const char* next = reinterpret_cast<const char*>(block.panel(panel + 1));
    alignas(64) int32_t tile[kMaxMr * kPanelN];

    // Arrays of the weight are a group's own, those of the call are over all output channels.
    Epilogue e = p.call.epilogue;
    const int64_t shift = group * n_group;
    e.w_scale = block.scale();
    e.w_zero = block.zero_point();
    e.x_sum = ws.sums;
    e.x_scale = p.call.quant.mode == InputMode::channel ? nullptr : &p.x_scale;
    if (e.bias) e.bias += shift;
    if (e.bias_i32) e.bias_i32 += shift;
    if (e.multiplier) e.multiplier += shift;
    if (e.shift) e.shift += shift;
    if (e.requant_scale) e.requant_scale += shift;
    char* out = static_cast<char*>(e.out);
    if (p.call.out_nchw) {
        e.out = ws.out;
        e.ldo = p.n_pad;
    } else {
        e.ldo = h.n;
        e.out = out + (first * h.n + shift) * e.out_bytes;
    }
    const bool patch = block.header->has_zero_point;
    int64_t pixel = 0;
    for (int64_t g = 0; g < groups; ++g) {
        const int count = static_cast<int>((pixels - pixel + groups - g - 1) / (groups - g));
        SegmentArgs args;
        args.rows = ws.pointers + pixel * segments;
        args.segments = segments;
        args.steps = steps;
        args.panel = block.panel(panel);
        args.init = p.init + group * p.n_pad + n0;
        args.tile = tile;
        args.ahead = next + g * lines * (k_steps / 4) * 64;
        args.lines = static_cast<int>(std::clamp<int64_t>(16 - g * lines, 0, lines));
        p.leaf.segments[count](args);
        if (patch) p.isa.patch_zero_point(e, tile, pixel, count, n0);
        p.call.store(e, tile, pixel, count, n0, cols);
        pixel += count;
    }
    if (p.call.out_nchw)
        store_planes(p.leaf, s, e.out_bytes, h.n, ws.out + n0 * e.out_bytes, p.n_pad, first, pixels, shift + n0, cols,
                     out);
}

// All panels of a unit, or the one that is asked for (panel >= 0, counted over all groups).
void run_unit(const Problem& p, const ConvUnit& unit, const RowRing& ring, const Workspace& ws, int64_t only) {
    const ConvHeader& h = *p.w.header;
    const int64_t panels = p.n_pad / kPanelN, segments = h.segments();
    const int64_t pixels = (unit.end - unit.begin) * p.call.shape.out_width;
    const int64_t slice = round_up(h.per_group, kStepK);  // bytes of a pixel that one group reads
    const int64_t first = only < 0 ? 0 : only / panels, last = only < 0 ? h.blocks() : first + 1;
    point(p, unit, ring, ws.pointers);
    for (int64_t g = first; g < last; ++g) {
        const int64_t skip = (g == first ? g : 1) * slice;
        for (int64_t i = 0; skip > 0 && i < pixels * segments; ++i) ws.pointers[i] += skip;
        if (p.w.block(g).header->has_zero_point) {
            for (int64_t i = 0; i < pixels; ++i) {
                int32_t sum = 0;
                for (int64_t k = 0; k < segments; ++k) sum += p.isa.sum_codes(ws.pointers[i * segments + k], h.segment());
                ws.sums[i] = sum;
            }
        }
        if (only >= 0) {
            run_panel(p, g, only % panels, unit, ws);
        } else {
            for (int64_t panel = 0; panel < panels; ++panel) run_panel(p, g, panel, unit, ws);
        }
    }
}

// Everything that the threads of a call write to, from the scratch of the thread that calls.
struct Memory {
    int64_t pixels, segments, ring, temporary, out;  // bytes of the last three, of one thread
    uint8_t* base = nullptr;

    int64_t thread_bytes() const {
        return round_up(pixels * segments * 8, 64) + round_up(pixels * 4, 64) + ring + temporary + out;
    }
    Workspace workspace(int thread) const {
        char* at = reinterpret_cast<char*>(base) + thread * thread_bytes() + ring + temporary;
        return {reinterpret_cast<const uint8_t**>(at),
                reinterpret_cast<int32_t*>(at + round_up(pixels * segments * 8, 64)),
                at + round_up(pixels * segments * 8, 64) + round_up(pixels * 4, 64)};
    }
    uint8_t* ring_of(int thread) const { return base + thread * thread_bytes(); }
    uint8_t* temporary_of(int thread) const { return ring_of(thread) + ring; }
};

// Each thread takes units and makes the rows that they read.
int64_t share_units(const Problem& p, const Memory& memory, int threads) {
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

// Rows are made together, some units' at a time; then each thread takes panels, all those units over each.
int64_t share_panels(const Problem& p, const Memory& memory, uint8_t* shared, int64_t together, int threads) {
    std::atomic<int64_t> bad{-1};
    const int64_t panels = p.n_pad / kPanelN * p.w.header->blocks(), slots = together * p.units.input_rows();
    for (int64_t u0 = 0; u0 < p.units.count(); u0 += together) {
        const int64_t u1 = std::min(p.units.count(), u0 + together);
        const int64_t first = p.units.at(u0).first_row, last = p.units.at(u1 - 1).last_row;
        const RowRing ring(p.rows, shared, nullptr, slots);
        WorkRanges rows(p.rows.direct() ? 0 : last - first, threads), work(panels * (u1 - u0), threads);
        on_threads(threads, [&](int thread) {
            rows.run(thread, [&](int64_t r) {
                uint8_t* to = shared + (first + r) % slots * p.rows.bytes();
                if (!p.rows.write(first + r, to, memory.temporary_of(thread))) keep_smallest(bad, first + r);
            });
            team_barrier();
            work.run(thread, [&](int64_t i) {
                run_unit(p, p.units.at(u0 + i % (u1 - u0)), ring, memory.workspace(thread), i / (u1 - u0));
            });
        });
    }
    return bad.load();
}

// Threads that the work repays, as in gemm.cpp: about six microseconds each.
int threads_for(const ConvHeader& h, const ConvShape& s, int threads) {
    const double outputs = static_cast<double>(s.out_rows()) * s.out_width * h.n;
    const double ns = h.kind == static_cast<int64_t>(ConvKind::depthwise)
                          ? outputs * (0.15 + 0.01 * h.kernel_h * h.kernel_w)
                          : outputs * h.k / 300.0;
    return static_cast<int>(std::clamp<double>(ns / 6000.0, 1.0, usable_threads(threads)));
}

int64_t gemm_conv(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call, int threads) {
    const ConvHeader& h = *w.header;
    const ConvShape& s = call.shape;
    const Int8Header& block = *w.block(0).header;
    const bool small = h.blocks() * h.block_bytes <= kSharedWeight;
    ConvRows rows(isa, leaf, w, call);
    const ConvUnits units(s, h, kUnitPixels, small ? threads : 1);
    const bool by_units = threads == 1 || units.count() >= (small ? 1 : 4) * threads;
    const int64_t together = std::clamp<int64_t>(
        kSharedRows / std::max<int64_t>(1, units.input_rows() * rows.bytes()), 1, units.count());

    Memory memory;
    memory.pixels = units.rows() * s.out_width;
    memory.segments = h.segments();
    memory.ring = by_units && !rows.direct() ? round_up(units.input_rows() * rows.bytes(), 64) : 0;
    memory.temporary = rows.temporary();
    memory.out = call.out_nchw ? round_up(memory.pixels * block.n_pad * call.epilogue.out_bytes, 64) : 0;
    const int64_t shared = by_units || rows.direct() ? 0 : together * units.input_rows() * rows.bytes();
    Scratch& scratch = Scratch::get(Scratch::padded<uint8_t>(memory.thread_bytes() * threads) +
                                    Scratch::padded<uint8_t>(shared) + Scratch::padded<uint8_t>(rows.constants()) +
                                    Scratch::padded<int32_t>(block.n_pad * h.blocks()));
    memory.base = scratch.take<uint8_t>(memory.thread_bytes() * threads);
    uint8_t* shared_rows = scratch.take<uint8_t>(shared);
    rows.prepare(scratch.take<uint8_t>(rows.constants()));
    int32_t* init = scratch.take<int32_t>(block.n_pad * h.blocks());
    for (int64_t g = 0; g < h.blocks(); ++g)
        conv_starts(w.block(g), h.k, call.quant, init + g * block.n_pad);

    Problem p{isa, leaf, w, call, rows, units, init, block.n_pad, 1.0f};
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
        case Isa::avx512vpopcntdq:
        case Isa::avx512vnni: return conv_kernels_avx512vnni();
        case Isa::avx2: return conv_kernels_avx2();
        default: return conv_kernels_scalar();
    }
}

}  // namespace qk
