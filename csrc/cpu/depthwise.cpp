// Driver of the depthwise kernel: for each unit of output rows, for each 64 channels, for a run of output pixels:
// interleave the columns that they read, multiply, epilogue.
#include "conv_units.h"
#include "gemm_driver.h"
#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kUnitPixels = 16;  // a row or few: what the next row of outputs shares with them is still in L1
constexpr int64_t kRun = 32;         // outputs whose columns and accumulators stay in L1

struct DepthwiseProblem {
    const Kernels& isa;
    const ConvKernels& leaf;
    const ConvView& w;
    const ConvCall& call;
    const ConvRows& rows;
    const ConvUnits& units;
    const int32_t* init;     // [n_pad]
    const uint8_t* ones;     // like one block's weights, 1 where a tap is; null without zero points
    int64_t quads, columns;  // of a kernel column; image columns that a run reads, at most
    float x_scale;
};

struct Workspace {
    uint8_t* columns;  // [columns][quads][64][4]
    int32_t* tile;     // [kRun][64]
    int32_t* sums;     // [kRun][64]
    char* out;         // [kRun][n] before they go to NCHW planes
};

void tiles(const DepthwiseProblem& p, const uint8_t* weights, const int32_t* init, int64_t count, int cols,
           const uint8_t* columns, int32_t* tile) {
    const ConvShape& s = p.call.shape;
    const int64_t column = p.quads * 4 * kBlockC;
    const int quarters = static_cast<int>(ceil_div(cols, kBlockC / kQuarters));
    for (int64_t x = 0; x < count;) {
        const int64_t left = ceil_div(count - x, p.leaf.rows[quarters]), n = ceil_div(count - x, left);
        DepthwiseArgs args;
        args.columns = columns + x * s.stride_w * column;
        args.step = s.stride_w * column;
        args.tap = s.dilation_w * column;
        args.taps = p.w.header->kernel_w;
        args.quads = p.quads;
        args.weights = weights;
        args.init = init;
        args.tile = tile + x * kBlockC;
        p.leaf.depthwise[quarters][n](args);
        x += n;
    }
}

// Columns that outputs [x, x + count) of a row read, in the order of the image; with gaps where no output reads.
void make_columns(const DepthwiseProblem& p, const uint8_t* const* rows, int64_t x, int64_t count, int64_t channel,
                  uint8_t* columns) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const int64_t pixel = p.rows.pixel(), from = x * s.stride_w;
    const int64_t needed = (count - 1) * s.stride_w + (h.kernel_w - 1) * s.dilation_w + 1;
    for (int64_t q = 0; q < p.quads; ++q) {
        const uint8_t* values[4];
        for (int64_t i = 0; i < 4; ++i)  // past the kernel's last row weights are zero
            values[i] = rows[std::min(q * 4 + i, h.kernel_h - 1)] + from * pixel + channel;
        p.leaf.interleave(values, pixel, needed, columns + q * 4 * kBlockC, p.quads * 4 * kBlockC);
    }
}

void run_row(const DepthwiseProblem& p, int64_t row, const RowRing& ring, const uint8_t** rows, const Workspace& ws) {
    const ConvShape& s = p.call.shape;
    const ConvHeader& h = *p.w.header;
    const GemmView block = p.w.block(0);
    const int64_t image = row / s.out_height, y = row % s.out_height * s.stride_h - s.pad_top;
    for (int64_t i = 0; i < h.kernel_h; ++i) {
        const int64_t at = y + i * s.dilation_h;
        rows[i] = at >= 0 && at < s.height ? ring.row(image * s.height + at) : p.rows.empty_row();
    }
    Epilogue e = p.call.epilogue;
    char* out = static_cast<char*>(e.out);
    e.w_scale = block.scale();
    e.bias_i32 = nullptr;  // the accumulators start at it
    e.x_scale = p.call.quant.mode == InputMode::channel ? nullptr : &p.x_scale;
    e.ldo = h.n;
    for (int64_t x = 0; x < s.out_width; x += kRun) {
        const int64_t count = std::min(kRun, s.out_width - x), first = row * s.out_width + x;
        e.out = p.call.out_nchw ? ws.out : out + first * h.n * e.out_bytes;
        for (int64_t n0 = 0; n0 < h.n; n0 += kBlockC) {
            const int cols = static_cast<int>(std::min<int64_t>(kBlockC, h.n - n0));
            make_columns(p, rows, x, count, n0, ws.columns);
            tiles(p, block.codes(n0 / kBlockC), p.init + n0, count, cols, ws.columns, ws.tile);
            if (p.ones != nullptr) {
                alignas(64) const int32_t zeros[kBlockC] = {};
                tiles(p, p.ones, zeros, count, cols, ws.columns, ws.sums);
                const int32_t* zero = block.zero_point() + n0;
                for (int64_t i = 0; i < count * kBlockC; ++i)
                    ws.tile[i] = static_cast<int32_t>(static_cast<uint32_t>(ws.tile[i]) -
                                                      static_cast<uint32_t>(zero[i % kBlockC]) *
                                                          static_cast<uint32_t>(ws.sums[i]));
            }
            p.call.store(e, ws.tile, 0, static_cast<int>(count), n0, cols);
        }
        if (p.call.out_nchw) store_planes(p.leaf, s, e.out_bytes, h.n, ws.out, h.n, first, count, 0, h.n, out);
    }
}

}  // namespace

int64_t depthwise(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call, int threads) {
    const ConvHeader& h = *w.header;
    const ConvShape& s = call.shape;
    const GemmHeader& block = *w.block(0).header;
    ConvRows rows(isa, leaf, w, call);
    const ConvUnits units(s, h, kUnitPixels, threads);
    const bool patch = block.has_zero_point;
    const int64_t quads = ceil_div(h.kernel_h, kStepK);
    const int64_t columns = (std::min(kRun, s.out_width) - 1) * s.stride_w + (h.kernel_w - 1) * s.dilation_w + 1;

    const int64_t sizes[] = {round_up(units.input_rows() * rows.bytes(), 64),
                             round_up(rows.temporary(), 64),
                             columns * quads * 4 * kBlockC,
                             kRun * kBlockC * 4,
                             patch ? kRun * kBlockC * 4 : 0,
                             call.out_nchw ? round_up(kRun * h.n * 4, 64) : 0,
                             round_up(h.kernel_h * 8, 64)};
    int64_t thread_bytes = 0;
    for (int64_t size : sizes) thread_bytes += size;
    const int64_t weight_bytes = block.k_pad * kBlockC;
    Scratch& scratch =
        Scratch::get(Scratch::padded<uint8_t>(thread_bytes * threads + rows.constants() + 64) +
                     Scratch::padded<int32_t>(block.n_pad) + Scratch::padded<uint8_t>(patch ? weight_bytes : 0));
    uint8_t* memory = scratch.take<uint8_t>(thread_bytes * threads);
    rows.prepare(scratch.take<uint8_t>(rows.constants()));
    int32_t* buffer = scratch.take<int32_t>(block.n_pad);
    uint8_t* ones = patch ? scratch.take<uint8_t>(weight_bytes) : nullptr;
    const int32_t* init = conv_starts(w.block(0), rows, call.epilogue, 0, buffer);
    for (int64_t i = 0; patch && i < weight_bytes; ++i)  // [kw][quads][64][4]
        ones[i] = i / (4 * kBlockC) % quads * 4 + i % 4 < h.kernel_h ? 1 : 0;

    DepthwiseProblem p{isa, leaf, w, call, rows, units, init, ones, quads, columns, 1.0f};
    const int64_t known = conv_scale(rows, call, threads, &p.x_scale);
    if (known >= 0) return known;
    std::atomic<int64_t> bad{-1};
    WorkRanges ranges(units.count(), threads);
    on_threads(threads, [&](int thread) {
        uint8_t* at = memory + thread * thread_bytes;
        uint8_t* piece[7];
        for (int i = 0; i < 7; at += sizes[i], ++i) piece[i] = at;
        RowRing ring(rows, piece[0], piece[1], units.input_rows());
        const Workspace ws{piece[2], reinterpret_cast<int32_t*>(piece[3]), reinterpret_cast<int32_t*>(piece[4]),
                           reinterpret_cast<char*>(piece[5])};
        auto** pointers = reinterpret_cast<const uint8_t**>(piece[6]);
        ranges.run(thread, [&](int64_t u) {
            const ConvUnit unit = units.at(u);
            keep_smallest(bad, ring.need(unit.first_row, unit.last_row));
            for (int64_t r = unit.begin; r < unit.end; ++r) run_row(p, r, ring, pointers, ws);
        });
    });
    return bad.load();
}

}  // namespace qk
