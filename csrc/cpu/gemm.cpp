// Loops around the register tile.
//
//   for each chunk of rows whose codes stay in L2
//   for each panel of 64 output channels (a thread's own range, then whatever others have left)
//     for each block of k (one unless k > kBlockK: the panel must stay in L2 while all rows pass over it)
//       for each group of up to MR rows: micro kernel -> tile in L1 -> patches -> epilogue -> output
//
// The panel is read from memory once: the first group of rows pulls it in, the others find it in L2, and while they
// compute they prefetch the panel that comes next. Rows of activation codes are quantized (or offset) once, up front.
#include "gemm.h"

#include <atomic>
#include <cstring>

#include "parallel.h"
#include "quantize.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kBlockK = 8192;               // 512 KB of a panel
constexpr int64_t kSuperRows = 4 << 20;         // bytes of codes that one pass over the weight serves
constexpr int64_t kRowBytes = 512 << 10;        // codes that stay in L2 beside two panels
constexpr int64_t kSharedWeight = 1 << 20;      // a weight that every core may keep in its own L2
constexpr int64_t kPrepareTogether = 16 << 10;  // codes that one thread makes before two have met
constexpr int64_t kTileRows = 192;              // rows whose partial sums are kept while k advances in blocks
constexpr int64_t kPrefetchBytes = 1 << 20;     // smaller weights sit in L2 where it costs load slots

struct Problem {
    const Kernels& isa;
    const uint8_t* a;
    int64_t lda, m;
    const Int8View& w;
    const int32_t* init;  // [n_pad]
    Epilogue epilogue;
    EpilogueFn store;
    bool patch;
};

void run_panel(const Problem& p, int64_t panel, int64_t row_begin, int64_t row_end) {
    const Int8Header& h = *p.w.header;
    const int64_t n0 = panel * kPanelN;
    const int cols = static_cast<int>(std::min<int64_t>(kPanelN, h.n - n0));
    const int64_t steps = h.k_pad / kStepK, block = kBlockK / kStepK;
    const int64_t groups = ceil_div(row_end - row_begin, p.isa.mr);
    // A single row only streams, which the hardware foresees; more rows compute long enough to fetch the next panel.
    const bool ahead = row_end - row_begin > 1 && n0 + kPanelN < h.n_pad && h.n_pad * h.k_pad > kPrefetchBytes;
    const char* next = reinterpret_cast<const char*>(p.w.panel(panel + 1));
    const int lines = ahead ? static_cast<int>(ceil_div(16, groups)) : 0;  // 16 lines are four k steps
    alignas(64) int32_t tiles[kTileRows * kPanelN];

    const int64_t blocks = std::max<int64_t>(1, ceil_div(steps, block));
    for (int64_t b = 0; b < blocks; ++b) {
        const int64_t k0 = b * block, k_steps = std::min(block, steps - k0);
        int64_t row = row_begin;
        for (int64_t g = 0; g < groups; ++g) {  // groups of even size: 16 rows are 6 + 5 + 5, not 6 + 6 + 4
            const int rows = static_cast<int>((row_end - row + groups - g - 1) / (groups - g));
            int32_t* tile = tiles + (blocks > 1 ? (row - row_begin) * kPanelN : 0);
            const int request = static_cast<int>(std::clamp<int64_t>(16 - g * lines, 0, lines));
            p.isa.micro[rows](p.a + row * p.lda + k0 * kStepK, p.lda, p.w.panel(panel) + k0 * kStepBytes, k_steps,
                              b == 0 ? p.init + n0 : nullptr, tile, next + (k0 * 4 + g * lines * (k_steps / 4)) * 64,
                              request);
            if (b == blocks - 1) {
                if (p.patch) p.isa.patch_zero_point(p.epilogue, tile, row, rows, n0);
                p.store(p.epilogue, tile, row, rows, n0, cols);
            }
            row += rows;
        }
    }
}

// Threads that the work repays. A region costs a microsecond when the cores are free, and as much again until the other
// core has the activations, so each thread must find about six to do. The two rates (products and bytes a nanosecond)
// only need to be right within a factor of two.
int threads_for(const Int8Header& h, int64_t m, int threads) {
    const double ns = std::max(static_cast<double>(m) * h.n_pad * h.k_pad / 300.0, h.n_pad * h.k_pad / 60.0);
    return static_cast<int>(std::clamp<double>(ns / 6000.0, 1.0, std::max(threads, 1)));
}

// Rows that are prepared and computed together: their codes stay in L2, and their partial sums on the stack.
int64_t chunk_rows(const Int8Header& h, int64_t m) {
    const int64_t most =
        h.k_pad > kBlockK ? kTileRows : std::max<int64_t>(48, kRowBytes / std::max<int64_t>(h.k_pad, 1));
    return ceil_div(m, std::max<int64_t>(1, ceil_div(m, most)));
}

// prepare(begin, end) makes the codes of those rows; it runs before they are used, on any thread.
template <class Prepare>
void run(const Problem& p, int threads, Prepare prepare) {
    const Int8Header& h = *p.w.header;
    const int64_t panels = h.n_pad / kPanelN;
    // A weight that each core's L2 holds: split the rows, so that codes never travel between cores and nothing waits.
    const bool by_rows = h.n_pad * h.k_pad <= kSharedWeight && p.m >= 12 * threads;
    if (threads == 1 || by_rows) {
        const int64_t rows = chunk_rows(h, threads == 1 ? p.m : ceil_div(p.m, 2 * threads));
        parallel_for(threads, ceil_div(p.m, rows), [&](int64_t unit) {
            const int64_t begin = unit * rows, end = std::min(p.m, begin + rows);
            prepare(begin, end);
            for (int64_t panel = 0; panel < panels; ++panel) run_panel(p, panel, begin, end);
        });
        return;
    }
    // Else split the panels, all rows over each, and the rows too where there are few panels.
    const int64_t wanted =
        std::min(ceil_div(4 * threads, std::max<int64_t>(panels, 1)), std::max<int64_t>(p.m / 12, 1));
    const int64_t rows = std::min(chunk_rows(h, p.m), ceil_div(p.m, wanted));
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

// Start of accumulators when stored codes are u = real code + zero: -zero * colsum + zero * K * w_zero, mod 2^32.
const int32_t* starts(const Int8View& w, int32_t zero, int32_t* buffer) {
    if (zero == 128) return w.init128();
    const Int8Header& h = *w.header;
    const auto z = static_cast<uint32_t>(zero);
    const auto zk = z * static_cast<uint32_t>(h.k);
    for (int64_t n = 0; n < h.n_pad; ++n)
        buffer[n] = static_cast<int32_t>(zk * static_cast<uint32_t>(w.zero_point()[n]) -
                                         z * static_cast<uint32_t>(w.colsum()[n]));
    return buffer;
}

// Row pitch of codes: whole cache lines plus one, so that rows do not fall into the same cache sets.
int64_t pitch(int64_t k_pad) { return round_up(k_pad, 64) + 64; }

int64_t super_rows(const Int8Header& h) { return std::max<int64_t>(kTileRows, kSuperRows / pitch(h.k_pad)); }

// Codes past K are multiplied by zero weights; they are set so that a run never depends on what memory held.
void finish_row(const Kernels& isa, const Int8Header& h, uint8_t* codes, int32_t* sum) {
    for (int64_t i = h.k; i < h.k_pad; ++i) codes[i] = 0;
    if (sum != nullptr) *sum = isa.sum_codes(codes, h.k);
}

Epilogue below(Epilogue e, int64_t rows) {  // the same output, `rows` further down
    e.out = static_cast<char*>(e.out) + rows * e.ldo * e.out_bytes;
    return e;
}

}  // namespace

void int8_prepack(const int8_t* codes, int64_t n, int64_t k, const float* scale, int64_t scale_step,
                  const int16_t* zero_point, int64_t zero_step, const float* input_scale, void* out) {
    const Int8Header h = int8_layout(n, k, zero_point != nullptr, input_scale != nullptr);
    char* base = static_cast<char*>(out);
    std::memset(base, 0, h.total_bytes);
    std::memcpy(base, &h, sizeof h);
    auto* init = reinterpret_cast<int32_t*>(base + h.init128);
    auto* colsum = reinterpret_cast<int32_t*>(base + h.colsum);
    auto* zero = reinterpret_cast<int32_t*>(base + h.zero_point);
    auto* scales = reinterpret_cast<float*>(base + h.scale);
    auto* panels = reinterpret_cast<int8_t*>(base + h.panels);
    for (int64_t row = 0; row < n; ++row) {
        int8_t* to = panels + row / kPanelN * kPanelN * h.k_pad + row % kPanelN * kStepK;
        const int8_t* from = codes + row * k;
        int32_t sum = 0;
        for (int64_t i = 0; i < k; ++i) {
            to[i / kStepK * kStepBytes + i % kStepK] = from[i];
            sum += from[i];
        }
        colsum[row] = sum;
        scales[row] = scale[row * scale_step];
        if (zero_point != nullptr) zero[row] = zero_point[row * zero_step];
        init[row] = static_cast<int32_t>(128u * static_cast<uint32_t>(k) * static_cast<uint32_t>(zero[row]) -
                                         128u * static_cast<uint32_t>(sum));
    }
    if (input_scale != nullptr) {
        auto* inv = reinterpret_cast<float*>(base + h.inv_input);
        for (int64_t i = 0; i < k; ++i) inv[i] = 1.0f / input_scale[i];
    }
}

void int8_gemm_codes(const Kernels& isa, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                     const Int8View& w, Epilogue epilogue, EpilogueFn store, int threads) {
    const Int8Header& h = *w.header;
    if (m == 0 || h.n == 0) return;
    threads = threads_for(h, m, threads);
    const bool patch = h.has_zero_point, direct = !is_signed && !patch && h.k == h.k_pad;
    const int64_t lda = direct ? ldx : pitch(h.k_pad), most = std::min(m, super_rows(h));
    Scratch& scratch = Scratch::get(Scratch::padded<uint8_t>(most * lda) + Scratch::padded<int32_t>(most) +
                                    Scratch::padded<int32_t>(h.n_pad));
    uint8_t* codes = scratch.take<uint8_t>(direct ? 0 : most * lda);
    int32_t* sums = scratch.take<int32_t>(most);
    const int32_t* init = starts(w, x_zero + (is_signed ? 128 : 0), scratch.take<int32_t>(h.n_pad));
    epilogue.w_zero = w.zero_point();
    epilogue.x_sum = sums;
    for (int64_t row0 = 0; row0 < m; row0 += most) {
        const int64_t rows = std::min(most, m - row0);
        const uint8_t* x0 = x + row0 * ldx;
        auto copy = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end && !direct; ++r) {
                isa.flip_codes(x0 + r * ldx, h.k, is_signed ? 0x80 : 0, codes + r * lda);
                finish_row(isa, h, codes + r * lda, patch ? sums + r : nullptr);
            }
        };
        const Problem p{isa, direct ? x0 : codes, lda, rows, w, init, below(epilogue, row0), store, patch};
        run(p, threads, copy);
    }
}

int64_t int8_gemm_float(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, const InputQuant& q,
                        const Int8View& w, Epilogue epilogue, EpilogueFn store, int threads) {
    const Int8Header& h = *w.header;
    if (m == 0) return -1;
    threads = threads_for(h, m, threads);
    const bool patch = h.has_zero_point;
    const int64_t lda = pitch(h.k_pad), most = std::min(m, super_rows(h));
    Scratch& scratch = Scratch::get(Scratch::padded<uint8_t>(most * lda) + Scratch::padded<int32_t>(most) +
                                    Scratch::padded<float>(most) + Scratch::padded<int32_t>(h.n_pad));
    uint8_t* codes = scratch.take<uint8_t>(most * lda);
    int32_t* sums = scratch.take<int32_t>(most);
    float* scales = scratch.take<float>(most);
    const int32_t* init = starts(w, q.zero_point + (q.is_signed ? 128 : 0), scratch.take<int32_t>(h.n_pad));
    const int64_t x_bytes = x_type == DType::f32 ? 4 : 2;
    const float* inv_k = h.has_input_scale ? w.inv_input() : nullptr;
    epilogue.w_zero = w.zero_point();
    epilogue.x_sum = sums;
    epilogue.x_scale = q.mode == InputMode::channel ? nullptr : scales;
    epilogue.x_scale_step = q.mode == InputMode::dynamic_token ? 1 : 0;

    uint32_t tensor_bits = 0;
    if (q.mode == InputMode::dynamic_tensor) tensor_bits = amax_tensor(isa, x, x_type, m, h.k, ldx, inv_k, threads);
    scales[0] = fixed_scale(q, tensor_bits);
    std::atomic<int64_t> bad{-1};
    for (int64_t row0 = 0; row0 < m && bad.load() < 0; row0 += most) {
        const int64_t rows = std::min(most, m - row0);
        const char* x0 = static_cast<const char*>(x) + row0 * ldx * x_bytes;
        auto quantize = [&](int64_t begin, int64_t end) {
            const int64_t found = quantize_rows(isa, x0, x_type, h.k, ldx, begin, end, q, inv_k, tensor_bits,
                                                q.is_signed ? 0x80 : 0, codes, lda, scales);
            for (int64_t r = begin; r < end; ++r) finish_row(isa, h, codes + r * lda, patch ? sums + r : nullptr);
            int64_t none = -1;
            if (found >= 0) bad.compare_exchange_strong(none, row0 + found);
        };
        const Problem p{isa, codes, lda, rows, w, init, below(epilogue, row0), store, patch};
        run(p, threads, quantize);
    }
    return bad.load();
}

}  // namespace qk
