// The float core: activations become operands (bfloat16 or float32) once, up front; gemm_loops.h goes over rows and
// panels. Few rows decode a panel's codes in registers; for many, blocks of it are decoded to a cache (which one, the
// products say: block_steps), and then serve all of them: for 128 rows that is 3 to 5 % of the work.
#include "gemm_float.h"

#include "gemm_loops.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kSuperRows = 8 << 20;      // bytes of operands that one pass over the weight serves
constexpr int64_t kTileRows = 192;           // rows whose partial sums are kept while k advances
constexpr int64_t kStreamBytes = 5 << 10;    // ahead of a stream of codes
constexpr int64_t kPrefetchBytes = 1 << 20;  // smaller weights sit in L2

struct FloatProblem {
    const FloatKernels& products;
    FloatView w;
    const char* a = nullptr;      // operands of rows, over the padded k
    int64_t lda = 0;              // bytes
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
    alignas(64) float tiles[kTileRows * kFloatPanelN];
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

// Row pitch of operands: whole cache lines plus one, so that rows do not fall into the same cache sets.
int64_t pitch(const FloatHeader& h, int bytes) { return round_up(h.k_pad * bytes, 64) + 64; }

int threads_for(const FloatHeader& h, const FloatKernels& f, int64_t m, int threads) {
    const double products = static_cast<double>(m) * h.n_pad * h.k_pad / (f.element_bytes == 2 ? 200.0 : 100.0);
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
    threads = threads_for(h, f, m, threads);
    const int bytes = f.element_bytes, type = static_cast<int>(x_type);
    const int64_t x_bytes = type == 0 ? 4 : 2;
    const bool direct = (type == 0 ? bytes == 4 : type == 1 && bytes == 2) && !h.has_input_scale && h.k == h.k_pad &&
                        h.segment == h.segment_pad;
    const int64_t lda = direct ? ldx * bytes : pitch(h, bytes);
    const int64_t most = std::min(m, std::max<int64_t>(kTileRows, kSuperRows / pitch(h, bytes)));
    Scratch& scratch = Scratch::get((direct ? 0 : Scratch::padded<char>(most * lda)) +
                                    Scratch::padded<float>(h.has_offset ? most * h.segments : 0));
    char* operands = scratch.take<char>(direct ? 0 : most * lda);
    float* sums = scratch.take<float>(h.has_offset ? most * h.segments : 0);
    for (int64_t row0 = 0; row0 < m; row0 += most) {
        const char* x0 = static_cast<const char*>(x) + row0 * ldx * x_bytes;
        FloatProblem p{f, w};
        p.a = direct ? x0 : operands;
        p.lda = lda;
        p.sums = sums;
        p.epilogue = epilogue;
        p.epilogue.out = static_cast<char*>(epilogue.out) + row0 * epilogue.ldo * epilogue.out_bytes;
        p.store = store;
        auto prepare = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                if (!direct) convert_row(f, w, x0 + r * ldx * x_bytes, type, operands + r * lda);
                for (int64_t s = 0; s < h.segments && h.has_offset; ++s) {
                    const int64_t length = std::min(h.segment_pad, h.k_pad - s * h.segment_pad);
                    sums[r * h.segments + s] = f.sum(p.a + r * lda + s * h.segment_pad * bytes, length);
                }
            }
        };
        const LoopShape shape{std::min(most, m - row0), h.panels(), h.k_pad * bytes, h.n_pad * h.k_pad * bytes,
                              kTileRows};
        over_panels(shape, threads, prepare,
                    [&](int64_t panel, int64_t begin, int64_t end) { run_panel(p, panel, begin, end); });
    }
}

const FloatKernels& float_kernels(Isa isa, bool exact) {
    switch (isa) {
        case Isa::avx512bf16: return exact ? float_kernels_avx512vnni() : float_kernels_avx512bf16();
        case Isa::avx512vpopcntdq:
        case Isa::avx512vnni: return float_kernels_avx512vnni();
        case Isa::avx2: return float_kernels_avx2();
        default: return float_kernels_scalar();
    }
}

}  // namespace qk
