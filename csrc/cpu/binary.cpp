// Loops around the register tile of the binary core.
//
//   for each chunk of rows whose bits stay in L2
//     for each panel of 64 output channels (a thread's own range, then whatever others have left)
//       for each group of up to MR rows: micro kernel -> tile in L1 -> epilogue -> output
//
// Bits of activations are copied, or made from floats, up front: a row of 4096 is 512 bytes, and whole words without
// foreign bits past K let the micro kernel be simple.
#include "binary.h"

#include <atomic>
#include <cmath>
#include <cstring>

#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr uint32_t kNotFiniteBits = 0x7f800000u;
constexpr int64_t kSuperRows = 4 << 20;         // bytes of bits that one pass over the weight serves
constexpr int64_t kRowBytes = 512 << 10;        // bits that stay in L2 beside two panels
constexpr int64_t kSharedWeight = 1 << 20;      // a weight that every core may keep in its own L2
constexpr int64_t kPrepareTogether = 64 << 10;  // activations that one thread packs before two have met

struct Problem {
    const BinaryKernels& isa;
    const uint64_t* x;
    const uint64_t* masks;       // or null
    const int32_t* mask_counts;  // [m]: activations that are not zero, where there are masks
    int64_t ldx, m;              // ldx: words between rows of x and of masks
    const BinaryView& w;
    BinaryEpilogue epilogue;
    BinaryStoreFn store;
    bool backwards;
    const BinaryImages* images = nullptr;  // a convolution with zeros outside of the image: rows are output pixels
    int64_t first_pixel = 0;               // of row 0
};

int64_t pitch(int64_t words) { return round_up(words, 8) + 8; }  // rows do not fall into the same cache sets

struct Pixel {  // where the taps of an output pixel start
    int64_t image, y, x;

    Pixel(const BinaryImages& s, int64_t pixel)
        : image(pixel / (s.out_height * s.out_width)),
          y(pixel / s.out_width % s.out_height * s.stride_h - s.pad_top),
          x(pixel % s.out_width * s.stride_w - s.pad_left) {}
    bool inside(const BinaryImages& s, int64_t tap) const {
        const int64_t row = y + tap / s.kernel_w * s.dilation_h, column = x + tap % s.kernel_w * s.dilation_w;
        return row >= 0 && row < s.height && column >= 0 && column < s.width;
    }
    bool all_inside(const BinaryImages& s) const { return inside(s, 0) && inside(s, s.kernel_h * s.kernel_w - 1); }
};

// Bits of taps outside of the image are 0, which the product took for -1: add what that cost.
void add_outside(const Problem& p, int64_t n0, int64_t row, int count, int32_t* tile) {
    const BinaryImages& s = *p.images;
    for (int r = 0; r < count; ++r) {
        const Pixel pixel(s, p.first_pixel + row + r);
        if (pixel.all_inside(s)) continue;
        for (int64_t tap = 0; tap < s.kernel_h * s.kernel_w; ++tap) {
            if (pixel.inside(s, tap)) continue;
            const int32_t* sums = s.tap_sums + tap * p.w.header->n_pad + n0;
            for (int c = 0; c < kBinaryPanel; ++c) tile[r * kBinaryPanel + c] += sums[c];
        }
    }
}

void run_panel(const Problem& p, int64_t panel, int64_t row_begin, int64_t row_end) {
    const BinaryHeader& h = *p.w.header;
    const bool masked = p.masks != nullptr, ternary = h.planes == 2;
    const int64_t n0 = panel * kBinaryPanel, groups = ceil_div(row_end - row_begin, p.isa.mr);
    const int cols = static_cast<int>(std::min<int64_t>(kBinaryPanel, h.n - n0));
    alignas(64) int32_t tile[kBinaryMaxMr * kBinaryPanel] = {};
    const uint64_t *rows[kBinaryMaxMr], *masks[kBinaryMaxMr];
    BinaryTile t{rows,
                 masked ? masks : nullptr,
                 1,
                 h.words,
                 p.w.panel(panel),
                 masked ? nullptr : p.w.start() + n0,
                 nullptr,
                 cols,
                 tile};
    int64_t row = row_begin;
    for (int64_t g = 0; g < groups; ++g) {  // groups of even size: 16 rows are 6 + 5 + 5, not 6 + 6 + 4
        const int count = static_cast<int>((row_end - row + groups - g - 1) / (groups - g));
        for (int r = 0; r < count; ++r) {
            rows[r] = p.x + (row + r) * p.ldx;
            if (masked) masks[r] = p.masks + (row + r) * p.ldx;
        }
        if (masked) t.row_start = p.mask_counts + row;
        p.isa.micro[masked][ternary][count](t);
        if (p.images != nullptr) add_outside(p, n0, row, count, tile);
        p.store(p.epilogue, tile, row, count, n0, cols);
        row += count;
    }
}

// Threads that the work repays, as in gemm.cpp: about six microseconds each, at a thousand products a nanosecond or
// sixty bytes of the weight.
int threads_for(const BinaryHeader& h, int64_t m, int threads) {
    const double bytes = static_cast<double>(h.n_pad) * h.words * h.planes * 8;
    const double ns = std::max(static_cast<double>(m) * bytes / 125.0, bytes / 60.0);
    return static_cast<int>(std::clamp<double>(ns / 6000.0, 1.0, std::max(threads, 1)));
}

// prepare(begin, end) makes the bits of those rows; it runs before they are used, on any thread.
template <class Prepare>
void run(const Problem& p, int threads, Prepare prepare) {
    const BinaryHeader& h = *p.w.header;
    const int64_t panels = h.n_pad / kBinaryPanel, row_bytes = std::max<int64_t>(h.words * 8, 64);
    const int64_t most = std::max<int64_t>(48, kRowBytes / row_bytes);
    auto chunk_rows = [&](int64_t m) { return ceil_div(m, std::max<int64_t>(1, ceil_div(m, most))); };
    // A weight that each core's L2 holds: split the rows, so that bits never travel between cores and nothing waits.
    const bool by_rows = h.n_pad * h.words * h.planes * 8 <= kSharedWeight && p.m >= 12 * threads;
    if (threads == 1 || by_rows) {
        const int64_t rows = chunk_rows(threads == 1 ? p.m : ceil_div(p.m, 2 * threads));
        parallel_for(threads, ceil_div(p.m, rows), [&](int64_t unit) {
            const int64_t begin = unit * rows, end = std::min(p.m, begin + rows);
            prepare(begin, end);
            for (int64_t i = 0; i < panels; ++i) run_panel(p, p.backwards ? panels - 1 - i : i, begin, end);
        });
        return;
    }
    // Else split the panels, all rows over each, and the rows too where there are few panels.
    const int64_t wanted =
        std::min(ceil_div(4 * threads, std::max<int64_t>(panels, 1)), std::max<int64_t>(p.m / 12, 1));
    const int64_t rows = std::min(chunk_rows(p.m), ceil_div(p.m, wanted));
    const bool together = p.m * h.k > kPrepareTogether;
    if (!together) prepare(0, p.m);
    WorkRanges preparations(ceil_div(p.m, 4), threads), units(panels * ceil_div(p.m, rows), threads);
    on_threads(threads, [&](int thread) {
        if (together) {
            preparations.run(thread, [&](int64_t u) { prepare(u * 4, std::min(p.m, u * 4 + 4)); });
            team_barrier();
        }
        units.run(thread, [&](int64_t u) {
            const int64_t begin = u / panels * rows;
            run_panel(p, u % panels, begin, std::min(p.m, begin + rows));
        });
    });
}

// Bytes of bits, least significant first, to words; what is past k is 0.
void copy_bits(const uint8_t* from, int64_t k, uint64_t* to) {
    const int64_t whole = k / 64, bytes = ceil_div(k % 64, 8);
    std::memcpy(to, from, whole * 8);
    if (k % 64 == 0) return;
    to[whole] = 0;
    std::memcpy(to + whole, from + whole * 8, bytes);
    to[whole] &= (uint64_t{1} << k % 64) - 1;
}

int32_t count_row(const uint64_t* words, int64_t count) {
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += __builtin_popcountll(words[i]);
    return static_cast<int32_t>(sum);
}

BinaryEpilogue below(BinaryEpilogue e, int64_t rows, BinaryOut out) {  // the same output, `rows` further down
    const int64_t bytes = out == BinaryOut::f32 || out == BinaryOut::i32    ? 4
                          : out == BinaryOut::f16 || out == BinaryOut::bf16 ? 2
                                                                            : 1;
    e.out = static_cast<char*>(e.out) + rows * e.ldo * bytes;
    if (e.x_scale != nullptr) e.x_scale += rows * e.x_scale_step;
    return e;
}

const char* row_of(const void* x, DType type, int64_t ldx, int64_t row) {
    return static_cast<const char*>(x) + row * ldx * (type == DType::f32 ? 4 : 2);
}

void keep_first(std::atomic<int64_t>& first, int64_t row) {
    int64_t seen = first.load(std::memory_order_relaxed);
    while ((seen < 0 || row < seen) && !first.compare_exchange_weak(seen, row)) {
    }
}

// Packs one row; its scale where rows have one. False where it has something that is not finite.
bool pack_one(PackSignsFn pack, const void* x, int64_t k, SignScale mode, uint64_t* bits, float* scale) {
    float sum = 0.0f;
    const uint32_t most = pack(x, k, bits, mode == SignScale::token ? &sum : nullptr);
    if (mode == SignScale::token) *scale = sum / static_cast<float>(std::max<int64_t>(k, 1));
    return most < kNotFiniteBits && std::isfinite(sum);
}

// mean |x| of a tensor: float32 sums of rows, added in order in float64. Returns the first bad row, or -1.
int64_t tensor_scale(PackSignsFn pack, const void* x, DType type, int64_t m, int64_t k, int64_t ldx, float* sums,
                     float* scale, int threads) {
    std::atomic<int64_t> bad{-1};
    parallel_for(m * k > (64 << 10) ? threads : 1, m, [&](int64_t row) {
        const uint32_t most = pack(row_of(x, type, ldx, row), k, nullptr, sums + row);
        if (most >= kNotFiniteBits || !std::isfinite(sums[row])) keep_first(bad, row);
    });
    double total = 0;
    for (int64_t row = 0; row < m; ++row) total += sums[row];
    *scale = static_cast<float>(total / static_cast<double>(std::max<int64_t>(m * k, 1)));
    return bad.load();
}

}  // namespace

const BinaryKernels& binary_kernels(Isa isa) {
    switch (isa) {
        case Isa::amxbf16:
        case Isa::avx512bf16:
        case Isa::avx512vpopcntdq: return kernels_binary_avx512vpopcntdq();
        case Isa::avx512vnni:
        case Isa::avx2: return kernels_binary_avx2();
        default: return kernels_binary_scalar();
    }
}

void binary_prepack(const uint8_t* signs, const uint8_t* nonzero, int64_t n, int64_t k, int64_t products,
                    const float* alpha, void* out) {
    const BinaryHeader h = binary_layout(n, k, nonzero == nullptr ? 1 : 2);
    char* base = static_cast<char*>(out);
    std::memset(base, 0, h.total_bytes);
    std::memcpy(base, &h, sizeof h);
    auto* start = reinterpret_cast<int32_t*>(base + h.start);
    auto* alphas = reinterpret_cast<float*>(base + h.alpha);
    auto* panels = reinterpret_cast<uint64_t*>(base + h.panels);
    const int64_t row_bytes = ceil_div(k, 8), step = h.planes * kBinaryPanel;
    Scratch& scratch = Scratch::get(Scratch::padded<uint64_t>(h.words));
    uint64_t* words = scratch.take<uint64_t>(h.words);
    for (int64_t row = 0; row < n; ++row) {
        uint64_t* to = panels + row / kBinaryPanel * h.words * step + binary_slot(static_cast<int>(row % kBinaryPanel));
        alphas[row] = alpha[row];
        start[row] = static_cast<int32_t>(products);
        copy_bits(signs + row * row_bytes, k, words);
        for (int64_t i = 0; i < h.words; ++i) to[i * step] = words[i];
        if (nonzero == nullptr) continue;
        copy_bits(nonzero + row * row_bytes, k, words);
        start[row] = count_row(words, h.words);
        for (int64_t i = 0; i < h.words; ++i) to[i * step + kBinaryPanel] = words[i];
    }
}

void binary_gemm_bits(const BinaryKernels& isa, const SignRows& x, const BinaryView& w, BinaryEpilogue epilogue,
                      BinaryOut out, bool backwards, int threads) {
    const BinaryHeader& h = *w.header;
    if (x.m == 0 || h.n == 0) return;
    threads = threads_for(h, x.m, threads);
    const bool masked = x.nonzero != nullptr;
    const int64_t ldx = pitch(h.words), most = std::min(x.m, std::max<int64_t>(192, kSuperRows / (ldx * 8)));
    Scratch& scratch =
        Scratch::get((masked ? 2 : 1) * Scratch::padded<uint64_t>(most * ldx) + Scratch::padded<int32_t>(most));
    uint64_t* bits = scratch.take<uint64_t>(most * ldx);
    uint64_t* masks = masked ? scratch.take<uint64_t>(most * ldx) : nullptr;
    int32_t* counts = scratch.take<int32_t>(most);
    for (int64_t row0 = 0; row0 < x.m; row0 += most) {
        const int64_t rows = std::min(most, x.m - row0);
        auto copy = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                copy_bits(x.signs + (row0 + r) * x.pitch, h.k, bits + r * ldx);
                if (!masked) continue;
                copy_bits(x.nonzero + (row0 + r) * x.nonzero_pitch, h.k, masks + r * ldx);
                counts[r] = count_row(masks + r * ldx, h.words);
            }
        };
        const Problem p{
            isa,      bits, masks, counts, ldx, rows, w, below(epilogue, row0, out), isa.store[static_cast<int>(out)],
            backwards};
        run(p, threads, copy);
    }
}

void binary_conv(const BinaryKernels& isa, const BinaryImages& x, const BinaryView& w, BinaryEpilogue epilogue,
                 BinaryOut out, int threads) {
    const BinaryHeader& h = *w.header;
    const int64_t m = x.outputs(), taps = x.kernel_h * x.kernel_w;
    if (m == 0 || h.n == 0) return;
    threads = threads_for(h, m, threads);
    const int64_t ldx = pitch(h.words), most = std::min(m, std::max<int64_t>(192, kSuperRows / (ldx * 8)));
    Scratch& scratch = Scratch::get(Scratch::padded<uint64_t>(most * ldx) + Scratch::padded<uint64_t>(2 * x.words));
    uint64_t* bits = scratch.take<uint64_t>(most * ldx);
    uint64_t* outside = scratch.take<uint64_t>(2 * x.words);  // a pixel of zeros, then one of ones
    std::fill(outside, outside + 2 * x.words, 0);
    if (x.tap_sums == nullptr)
        for (int64_t c = 0; c < x.channels; ++c) outside[x.words + c / 64] |= uint64_t{1} << c % 64;
    for (int64_t row0 = 0; row0 < m; row0 += most) {
        const int64_t rows = std::min(most, m - row0);
        auto gather = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r) {
                const Pixel pixel(x, row0 + r);
                uint64_t* to = bits + r * ldx;
                for (int64_t tap = 0; tap < taps; ++tap, to += x.words) {
                    const int64_t row = pixel.y + tap / x.kernel_w * x.dilation_h;
                    const int64_t column = pixel.x + tap % x.kernel_w * x.dilation_w;
                    const bool even = (row + x.pad_top + column + x.pad_left) % 2 == 0;
                    const uint64_t* from =
                        pixel.inside(x, tap)
                            ? x.bits + ((pixel.image * x.height + row) * x.width + column) * x.pixel_words
                            : outside + (x.tap_sums == nullptr && even ? x.words : 0);
                    for (int64_t i = 0; i < x.words; ++i) to[i] = from[i];
                }
            }
        };
        const Problem p{isa,
                        bits,
                        nullptr,
                        nullptr,
                        ldx,
                        rows,
                        w,
                        below(epilogue, row0, out),
                        isa.store[static_cast<int>(out)],
                        false,
                        x.tap_sums != nullptr ? &x : nullptr,
                        row0};
        run(p, threads, gather);
    }
}

int64_t binary_gemm_float(const BinaryKernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, SignScale mode,
                          float scale, const BinaryView& w, BinaryEpilogue epilogue, BinaryOut out, bool backwards,
                          int threads) {
    const BinaryHeader& h = *w.header;
    if (m == 0) return -1;
    threads = threads_for(h, m, threads);
    const PackSignsFn pack = isa.pack_signs[static_cast<int>(x_type)];
    const int64_t ld_bits = pitch(h.words), most = std::min(m, std::max<int64_t>(192, kSuperRows / (ld_bits * 8)));
    const int64_t kept = mode == SignScale::tensor ? m : most;
    Scratch& scratch = Scratch::get(Scratch::padded<uint64_t>(most * ld_bits) + Scratch::padded<float>(kept));
    uint64_t* bits = scratch.take<uint64_t>(most * ld_bits);
    float* scales = scratch.take<float>(kept);
    if (mode == SignScale::tensor) {
        const int64_t bad = tensor_scale(pack, x, x_type, m, h.k, ldx, scales, &scale, threads);
        if (bad >= 0) return bad;
    }
    epilogue.x_scale_step = 0;
    epilogue.x_scale = &scale;
    std::atomic<int64_t> bad{-1};
    for (int64_t row0 = 0; row0 < m && bad.load() < 0; row0 += most) {
        const int64_t rows = std::min(most, m - row0);
        auto make = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end; ++r)
                if (!pack_one(pack, row_of(x, x_type, ldx, row0 + r), h.k, mode, bits + r * ld_bits, scales + r))
                    keep_first(bad, row0 + r);
        };
        BinaryEpilogue e = below(epilogue, row0, out);
        if (mode == SignScale::token) {
            e.x_scale = scales;
            e.x_scale_step = 1;
        }
        const Problem p{isa, bits, nullptr, nullptr, ld_bits, rows, w, e, isa.store[static_cast<int>(out)], backwards};
        run(p, threads, make);
    }
    return bad.load();
}

int64_t pack_signs(const BinaryKernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                   SignScale mode, float scale, uint8_t* bits, int64_t pitch, float* scales, int threads) {
    const PackSignsFn pack = isa.pack_signs[static_cast<int>(x_type)];
    const int64_t bytes = ceil_div(k, 8), words = ceil_div(k, 64);
    threads = static_cast<int>(std::clamp<int64_t>(m * k * 4 >> 17, 1, threads));
    if (mode == SignScale::given) scales[0] = scale;
    if (mode == SignScale::tensor) {
        Scratch& scratch = Scratch::get(Scratch::padded<float>(m));
        const int64_t bad = tensor_scale(pack, x, x_type, m, k, ldx, scratch.take<float>(m), scales, threads);
        if (bad >= 0) return bad;
    }
    std::atomic<int64_t> bad{-1};
    parallel_for(threads, m, [&](int64_t row) {
        uint64_t* made = Scratch::get(Scratch::padded<uint64_t>(words)).take<uint64_t>(words);
        if (!pack_one(pack, row_of(x, x_type, ldx, row), k, mode, made, scales + row)) keep_first(bad, row);
        std::memcpy(bits + row * pitch, made, bytes);
        std::memset(bits + row * pitch + bytes, 0, pitch - bytes);
    });
    return bad.load();
}

}  // namespace qk
