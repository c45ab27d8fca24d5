// The float core: activations become operands (bfloat16 or float32) once, up front; gemm_loops.h goes over rows and
// panels. Few rows decode a panel's codes in registers; for many, blocks of it are decoded to a cache (which one, the
// products say: block_steps), and then serve all of them: for 128 rows that is 3 to 5 % of the work.
#include "gemm_float.h"

#include "gemm_loops.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kSuperRows = 8 << 20;      // bytes of operands that one pass over the weight serves
constexpr int64_t kKeptRows = 192;           // rows whose partial sums are kept while k advances
constexpr int64_t kTiledBytes = 5 << 18;     // of operands in tiles, that stay in L2 while panels pass
constexpr int64_t kStreamBytes = 5 << 10;    // ahead of a stream of codes
constexpr int64_t kPrefetchBytes = 1 << 20;  // smaller weights sit in L2

struct FloatProblem {
    const FloatKernels& products;
    FloatView w;
    const char* a = nullptr;  // operands of rows, over the padded k
    int64_t lda = 0;          // bytes between rows; in tiles: between blocks of `block` rows
    int64_t block = 1, rows = 0;
    const float* sums = nullptr;  // [rows][segments], where there are offsets
    Epilogue epilogue = {};
    EpilogueFn store = nullptr;
};

// Steps of k that one call of a kernel takes: whole segments, or a part of one.
struct Span {
    int64_t first, steps, group_steps, segment;
    bool ends;  // the segment, or segments, end with it
};

// Kernels are faster where steps come in fours, so what is left over gets a span of its own.
template <class Body>
void each_span(const FloatHeader& h, int64_t most, Body body) {
    const int64_t all = h.k_pad / kFloatStepK, each = h.segment_pad / kFloatStepK;
    if (all == 0) return;
    if (each > most || h.segments == 1) {
        for (int64_t s = 0; s < h.segments; ++s) {
            const int64_t end = std::min(all, (s + 1) * each);
            for (int64_t at = s * each; at < end;) {
                int64_t steps = std::min(most, end - at);
                if (steps > 4) steps -= steps % 4;
                body(Span{at, steps, steps, s, at + steps == end});
                at += steps;
            }
        }
        return;
    }
    const int64_t whole = all / each, at_once = most / each;
    for (int64_t s = 0; s < whole; s += at_once) {
        const int64_t count = std::min(at_once, whole - s);
        body(Span{s * each, count * each, each, s, true});
    }
    if (whole < h.segments) body(Span{whole * each, all - whole * each, all - whole * each, whole, true});
}

void run_panel(const FloatProblem& p, int64_t panel, int64_t begin, int64_t end) {
    const FloatHeader& h = *p.w.header;
    const FloatKernels& f = p.products;
    const int source = f.source(h), bytes = f.element_bytes;
    const int64_t rows_all = end - begin, n0 = panel * kFloatPanelN;
    const int cols = static_cast<int>(std::min<int64_t>(kFloatPanelN, h.n - n0));
    const bool packed = rows_all <= kMaxMr && f.micro[source][rows_all] != nullptr;
    const int64_t groups = packed ? 1 : ceil_div(rows_all, f.mr);
    int64_t most = packed ? h.k_pad : f.block_steps;
    if (h.tables_of == 2) most = std::min(most, h.segment_pad / kFloatStepK);  // a segment has tables of its own
    const int64_t step_bytes = float_step_bytes(h.bits);
    Ahead ahead;
    if (packed || (panel + 1 < h.panels() && h.panels() * h.panel_bytes() > kPrefetchBytes)) {
        ahead.from = reinterpret_cast<const char*>(p.w.codes(panel) + (packed ? kStreamBytes : h.panel_bytes()));
        ahead.most = step_bytes / 16;
        ahead.over(groups);
    }
    alignas(64) float tiles[kKeptRows * kFloatPanelN];
    std::fill_n(tiles, rows_all * kFloatPanelN, 0.0f);
    each_span(h, most, [&](const Span& span) {
        FloatArgs args;
        args.steps = span.steps;
        args.group_steps = span.group_steps;
        args.codes = p.w.codes(panel) + span.first * step_bytes;
        args.table = f.table(p.w, source, panel, span.segment);
        args.table_stride = f.table_stride(h);
        args.scale = p.w.scale(panel, span.segment);
        args.half_scale = h.half_scale;
        if (h.has_offset && span.ends) args.offset = p.w.offset(panel, span.segment);
        args.half_offset = h.half_offset;
        args.pitch = p.lda;
        args.sums_pitch = h.segments;
        if (!packed) {
            void* out = Scratch::get(span.steps * 128 * bytes, Scratch::panel).take<char>(span.steps * 128 * bytes);
            f.decode[source](args.codes, span.steps, args.table, args.table_stride, out);
            args.codes = static_cast<const uint8_t*>(out);
        }
        const FloatMicroFn* micro = f.micro[packed ? source : kFromPanel];
        for (args.column = 0; args.column < (packed ? 1 : kFloatPanelN / f.column); ++args.column)
            each_group(begin, end, groups, [&](int64_t g, int64_t row, int rows) {
                args.x = p.a + row * p.lda + span.first * kFloatStepK * bytes;
                args.sums = p.sums + row * h.segments + span.segment;
                args.tile = tiles + (row - begin) * kFloatPanelN;
                if (args.column == 0) ahead.request(args, g, span.first);
                micro[rows](args);
                args.lines = 0;
            });
    });
    p.store(p.epilogue, tiles, begin, static_cast<int>(rows_all), n0, cols);
}

// As run_panel(), on matrix tiles. The panel's sums do not depend on how rows are grouped.
void run_panel_tiles(const FloatProblem& p, int64_t panel, int64_t begin, int64_t end) {
    const FloatHeader& h = *p.w.header;
    const FloatKernels& f = p.products;
    const int source = f.source(h);
    const int64_t rows_all = end - begin, n0 = panel * kFloatPanelN;
    const int cols = static_cast<int>(std::min<int64_t>(kFloatPanelN, h.n - n0));
    alignas(64) float tiles[(kKeptRows + kTilesRows) * kFloatPanelN];  // a chunk, and a block more: LoopShape
    std::fill_n(tiles, rows_all * kFloatPanelN, 0.0f);
    FloatTilesArgs args;
    args.steps = h.k_pad / kFloatStepK;
    args.segment_steps = h.segment_pad / kFloatStepK;
    args.segments = h.segments;
    args.codes = p.w.codes(panel);
    args.table = f.table(p.w, source, panel, 0);
    args.table_stride = f.table_stride(h);
    args.table_segment = h.tables_of == 2 ? h.entries16() * f.element_bytes : 0;
    args.scale = p.w.scale(panel, 0);
    args.half_scale = h.half_scale;
    if (h.has_offset) args.offset = p.w.offset(panel, 0);
    args.half_offset = h.half_offset;
    args.sums_pitch = h.segments;
    args.scratch = Scratch::get(kTilesScratch, Scratch::panel).take<char>(kTilesScratch);
    for (int64_t row = begin; row < end && args.steps > 0; row += p.block) {
        args.rows = static_cast<int>(std::min(p.block, p.rows - row));
        args.x = p.a + row / p.block * p.lda;
        args.sums = p.sums + row * h.segments;
        args.tile = tiles + (row - begin) * kFloatPanelN;
        f.tiles[source][ceil_div(args.rows, kTileRows)](args);
    }
    p.store(p.epilogue, tiles, begin, static_cast<int>(rows_all), n0, cols);
}

// Tiles of k that a row of operands takes: a segment begins with a tile of its own.
int64_t tiles_of_k(const FloatHeader& h) {
    const int64_t whole = h.segments - 1;
    return whole * ceil_div(h.segment_pad, kTileK) + ceil_div(h.k_pad - whole * h.segment_pad, kTileK);
}

// Rows that a kernel takes at a time, all of even size; small enough to be shared out where there are few panels.
int64_t block_rows(int64_t rows, const FloatHeader& h, int threads) {
    const int64_t few = threads > 1 && h.panels() < 4 * threads ? std::min<int64_t>(4 * threads, rows / 12) : 0;
    return ceil_div(rows, std::max(ceil_div(rows, kTilesRows), few));
}

// A row of operands into its place in a block of `rows`: [tiles of k][rows][32].
void scatter_row(const FloatHeader& h, const char* row, int64_t rows, char* out) {
    constexpr int64_t kBytes = kTileK * 2;
    const int64_t pitch = rows * kBytes;
    for (int64_t s = 0; s < h.segments; ++s) {
        const char* from = row + s * h.segment_pad * 2;
        int64_t left = std::min(h.segment_pad, h.k_pad - s * h.segment_pad) * 2;
        for (; left >= kBytes; left -= kBytes, from += kBytes, out += pitch) std::memcpy(out, from, kBytes);
        if (left > 0) {
            std::memcpy(out, from, left);
            std::memset(out + left, 0, kBytes - left);
            out += pitch;
        }
    }
}

// Row pitch of operands: whole cache lines plus one, so that rows do not fall into the same cache sets.
int64_t pitch(const FloatHeader& h, int bytes) { return round_up(h.k_pad * bytes, 64) + 64; }

int threads_for(const FloatHeader& h, const FloatKernels& f, bool tiled, int64_t m, int threads) {
    const double each_ns = tiled ? 1000.0 : f.element_bytes == 2 ? 200.0 : 100.0;
    const double products = static_cast<double>(m) * h.n_pad * h.k_pad / each_ns;
    return threads_worth(std::max(products, h.stored_bytes() / 40.0), threads);
}

// The operands of one row, each segment at its padded place and 0 between: what lies there is multiplied, too.
void convert_row(const FloatKernels& f, const FloatView& w, const char* x, int type, char* out) {
    const FloatHeader& h = *w.header;
    const int64_t x_bytes = type == 0 ? 4 : 2, bytes = f.element_bytes;
    const float* inv = h.has_input_scale ? w.inv_input() : nullptr;
    const int64_t length = h.segment_pad == h.segment ? h.k : h.segment;
    int64_t to = 0;
    for (int64_t k = 0; k < h.k; k += length, to += h.segment_pad) {
        const int64_t count = std::min(length, h.k - k);
        f.convert[type](x + k * x_bytes, count, inv ? inv + k : nullptr, out + to * bytes);
        const int64_t pad = std::min(to + round_up(count, kFloatStepK), h.k_pad) - to - count;
        std::memset(out + (to + count) * bytes, 0, pad * bytes);
    }
}

}  // namespace

void gemm_float(const FloatKernels& f, const void* x, DType x_type, int64_t m, int64_t ldx, const FloatView& w,
                const Epilogue& epilogue, EpilogueFn store, int threads) {
    const FloatHeader& h = *w.header;
    if (m == 0 || h.n == 0) return;
    // That a group's sums leave their tiles costs about what 64 k of one row take.
    const bool tiled = f.tiles[f.source(h)][1] != nullptr && (h.segments == 1 || m * h.segment_pad >= 64);
    threads = threads_for(h, f, tiled, m, threads);
    const int bytes = f.element_bytes, type = static_cast<int>(x_type);
    const int64_t x_bytes = type == 0 ? 4 : 2;
    const bool direct = (type == 0 ? bytes == 4 : type == 1 && bytes == 2) && !h.has_input_scale && h.k == h.k_pad &&
                        h.segment == h.segment_pad;
    const int64_t tiles = tiles_of_k(h),
                  row_bytes = tiled ? std::max<int64_t>(tiles, 1) * kTileK * bytes : pitch(h, bytes);
    const int64_t most = std::min(m, std::max<int64_t>(kKeptRows, kSuperRows / row_bytes));
    const int64_t operand_bytes = tiled || !direct ? most * row_bytes : 0;
    Scratch& scratch = Scratch::get(Scratch::padded<char>(operand_bytes) +
                                    Scratch::padded<float>(h.has_offset ? most * h.segments : 0));
    char* operands = scratch.take<char>(operand_bytes);
    float* sums = scratch.take<float>(h.has_offset ? most * h.segments : 0);
    for (int64_t row0 = 0; row0 < m; row0 += most) {
        const char* x0 = static_cast<const char*>(x) + row0 * ldx * x_bytes;
        FloatProblem p{f, w};
        p.a = direct && !tiled ? x0 : operands;
        p.rows = std::min(most, m - row0);
        p.block = tiled ? block_rows(p.rows, h, threads) : 1;
        p.lda = tiled ? p.block * row_bytes : direct ? ldx * bytes : row_bytes;
        p.sums = sums;
        p.epilogue = epilogue;
        p.epilogue.out = static_cast<char*>(epilogue.out) + row0 * epilogue.ldo * epilogue.out_bytes;
        p.store = store;
        auto prepare = [&](int64_t begin, int64_t end) {
            const int64_t buffer_bytes = tiled && !direct ? pitch(h, bytes) : 0;
            char* buffer = Scratch::get(buffer_bytes, Scratch::panel).take<char>(buffer_bytes);
            for (int64_t r = begin; r < end; ++r) {
                const char* row = x0 + r * ldx * x_bytes;
                if (!direct) {
                    char* to = tiled ? buffer : operands + r * row_bytes;
                    convert_row(f, w, row, type, to);
                    row = to;
                }
                if (tiled) {
                    const int64_t block = r / p.block, in_block = std::min(p.block, p.rows - block * p.block);
                    scatter_row(h, row, in_block, operands + block * p.lda + r % p.block * kTileK * bytes);
                }
                for (int64_t s = 0; s < h.segments && h.has_offset; ++s) {
                    const int64_t length = std::min(h.segment_pad, h.k_pad - s * h.segment_pad);
                    sums[r * h.segments + s] = f.sum(row + s * h.segment_pad * bytes, length);
                }
            }
        };
        const int64_t chunk =
            tiled ? std::clamp<int64_t>(kTiledBytes / row_bytes / kTilesRows, 1, 3) * kTilesRows : kKeptRows;
        const LoopShape shape{p.rows, h.panels(), h.k_pad * bytes, h.n_pad * h.k_pad * bytes, chunk, p.block};
        over_panels(shape, threads, prepare, [&](int64_t panel, int64_t begin, int64_t end) {
            tiled ? run_panel_tiles(p, panel, begin, end) : run_panel(p, panel, begin, end);
        });
    }
}

const FloatKernels& float_kernels(Isa isa, bool exact) {
    switch (isa) {
        case Isa::amxbf16: return exact ? float_kernels_avx512vnni() : float_kernels_amxbf16();
        case Isa::avx512bf16: return exact ? float_kernels_avx512vnni() : float_kernels_avx512bf16();
        case Isa::avx512vpopcntdq:
        case Isa::avx512vnni: return float_kernels_avx512vnni();
        case Isa::avx2: return float_kernels_avx2();
        default: return float_kernels_scalar();
    }
}

}  // namespace qk
