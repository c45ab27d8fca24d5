// The integer core: activation codes are quantized (or offset) once, up front; gemm_loops.h goes over rows and panels,
// gemm_driver.cpp over k and the rows of a panel: micro kernel -> tile in L1 -> patches -> epilogue -> output.
#include "gemm.h"

#include <atomic>
#include <cstring>

#include "gemm_driver.h"
#include "gemm_loops.h"
#include "quantize.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kSuperRows = 4 << 20;  // bytes of codes that one pass over the weight serves

int threads_for(const GemmHeader& h, int64_t m, int threads) {
    return threads_worth(std::max(static_cast<double>(m) * h.n_pad * h.k_pad / 300.0, h.code_bytes() / 60.0), threads);
}

// prepare(begin, end) makes the codes of those rows.
template <class Prepare>
void run(const Problem& p, int threads, Prepare prepare) {
    const GemmHeader& h = *p.w.header;
    const LoopShape shape{p.m, h.panels(), h.k_pad, h.n_pad * h.k_pad, h.k_pad > kBlockK ? kTileRows : rows_in_cache(h.k_pad)};
    over_panels(shape, threads, prepare,
                [&](int64_t panel, int64_t begin, int64_t end) { run_panel(p, panel, begin, end); });
}

// Row pitch of codes: whole cache lines plus one, so that rows do not fall into the same cache sets.
int64_t pitch(int64_t k_pad) { return round_up(k_pad, 64) + 64; }

int64_t super_rows(const GemmHeader& h) { return std::max<int64_t>(kTileRows, kSuperRows / pitch(h.k_pad)); }

// Moves each segment to its padded place, and clears what is between: those codes are multiplied by weights of the
// padding, and a run must not depend on what memory held.
void finish_row(const Kernels& isa, const GemmHeader& h, uint8_t* codes, int32_t* sum) {
    if (sum != nullptr) *sum = isa.sum_codes(codes, h.k);
    const int64_t gap = h.segment_pad - h.segment;
    for (int64_t s = h.segments - 1; s > 0 && gap > 0; --s) {
        const int64_t length = std::min(h.segment, h.k - s * h.segment);
        std::memmove(codes + s * h.segment_pad, codes + s * h.segment, length);
        std::memset(codes + s * h.segment_pad - gap, 0, gap);
    }
    const int64_t end = h.k > 0 ? h.padded(h.k - 1) + 1 : 0;
    std::memset(codes + end, 0, h.k_pad - end);
}

Epilogue below(Epilogue e, int64_t rows) {  // the same output, `rows` further down
    e.out = static_cast<char*>(e.out) + rows * e.ldo * e.out_bytes;
    return e;
}

// Output channels of a block with mixed widths come sorted by width. The epilogue works in that order, with its vectors
// brought into it, on a buffer; then the columns go where they belong.
class Columns {
  public:
    static int64_t bytes(const GemmHeader& h, int64_t rows, int out_bytes) {
        return h.has_columns ? 5 * Scratch::padded<int32_t>(h.n_pad) + Scratch::padded<char>(rows * h.n * out_bytes)
                             : 0;
    }
    Columns(const GemmView& w, const Epilogue& e, int64_t rows, Scratch& scratch) : h_(*w.header), to_(w.columns()) {
        inner = e;
        if (!h_.has_columns) return;
        inner.bias = sorted(e.bias, scratch);
        inner.bias_i32 = sorted(e.bias_i32, scratch);
        inner.multiplier = sorted(e.multiplier, scratch);
        inner.shift = sorted(e.shift, scratch);
        inner.requant_scale = sorted(e.requant_scale, scratch);
        inner.out = scratch.take<char>(rows * h_.n * e.out_bytes);
        inner.ldo = h_.n;
    }
    // The epilogue that rows from row0 of `e` are computed with.
    Epilogue at(const Epilogue& e, int64_t row0) const { return h_.has_columns ? inner : below(e, row0); }

    void scatter(const Epilogue& e, int64_t row0, int64_t rows, int threads) const {
        if (!h_.has_columns) return;
        const Epilogue out = below(e, row0);
        parallel_for(rows * h_.n > (64 << 10) ? threads : 1, rows, [&](int64_t r) {
            if (e.out_bytes == 4) move<uint32_t>(out, r);
            if (e.out_bytes == 2) move<uint16_t>(out, r);
            if (e.out_bytes == 1) move<uint8_t>(out, r);
        });
    }

    Epilogue inner;

  private:
    template <class T>
    const T* sorted(const T* from, Scratch& scratch) const {
        T* to = scratch.take<T>(h_.n_pad);
        if (from == nullptr) return nullptr;
        for (int64_t i = 0; i < h_.n; ++i) to[i] = from[to_[i]];
        return to;
    }
    template <class T>
    void move(const Epilogue& out, int64_t r) const {
        const T* from = static_cast<const T*>(inner.out) + r * h_.n;
        T* to = static_cast<T*>(out.out) + r * out.ldo;
        for (int64_t i = 0; i < h_.n; ++i) to[to_[i]] = from[i];
    }

    const GemmHeader& h_;
    const int32_t* to_;
};

}  // namespace

void gemm_codes(const Kernels& isa, const uint8_t* x, bool is_signed, int64_t m, int64_t ldx, int32_t x_zero,
                const GemmView& w, Epilogue epilogue, EpilogueFn store, int threads) {
    const GemmHeader& h = *w.header;
    if (m == 0 || h.n == 0) return;
    threads = threads_for(h, m, threads);
    const bool patch = h.has_zero_point, direct = !is_signed && !patch && h.k == h.k_pad;
    const int64_t lda = direct ? ldx : pitch(h.k_pad), most = std::min(m, super_rows(h));
    Scratch& scratch = Scratch::get(Scratch::padded<uint8_t>(most * lda) + Scratch::padded<int32_t>(most) +
                                    Scratch::padded<int32_t>(h.n_pad) + Columns::bytes(h, most, epilogue.out_bytes));
    uint8_t* codes = scratch.take<uint8_t>(direct ? 0 : most * lda);
    int32_t* sums = scratch.take<int32_t>(most);
    const int32_t zero = x_zero + (is_signed ? 128 : 0);
    const int32_t* init = starts(w, zero, scratch.take<int32_t>(h.n_pad));
    epilogue.w_zero = w.zero_point();
    epilogue.x_sum = sums;
    const Columns columns(w, epilogue, most, scratch);
    for (int64_t row0 = 0; row0 < m; row0 += most) {
        const int64_t rows = std::min(most, m - row0);
        const uint8_t* x0 = x + row0 * ldx;
        auto copy = [&](int64_t begin, int64_t end) {
            for (int64_t r = begin; r < end && !direct; ++r) {
                isa.flip_codes(x0 + r * ldx, h.k, is_signed ? 0x80 : 0, codes + r * lda);
                finish_row(isa, h, codes + r * lda, patch ? sums + r : nullptr);
            }
        };
        Problem p{isa, w, rows};
        p.a = direct ? x0 : codes;
        p.lda = lda;
        p.init = init;
        p.zero = static_cast<uint8_t>(zero);
        p.epilogue = columns.at(epilogue, row0);
        p.store = store;
        p.patch = patch;
        run(p, threads, copy);
        columns.scatter(epilogue, row0, rows, threads);
    }
}

int64_t gemm_quantized(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, const InputQuant& q,
                       const GemmView& w, Epilogue epilogue, EpilogueFn store, int threads) {
    const GemmHeader& h = *w.header;
    if (m == 0) return -1;
    threads = threads_for(h, m, threads);
    const bool patch = h.has_zero_point;
    const int64_t lda = pitch(h.k_pad), most = std::min(m, super_rows(h));
    Scratch& scratch = Scratch::get(Scratch::padded<uint8_t>(most * lda) + Scratch::padded<int32_t>(most) +
                                    Scratch::padded<float>(most) + Scratch::padded<int32_t>(h.n_pad) +
                                    Columns::bytes(h, most, epilogue.out_bytes));
    uint8_t* codes = scratch.take<uint8_t>(most * lda);
    int32_t* sums = scratch.take<int32_t>(most);
    float* scales = scratch.take<float>(most);
    const int32_t zero = q.zero_point + (q.is_signed ? 128 : 0);
    const int32_t* init = starts(w, zero, scratch.take<int32_t>(h.n_pad));
    const int64_t x_bytes = x_type == DType::f32 ? 4 : 2;
    const float* inv_k = h.has_input_scale ? w.inv_input() : nullptr;
    epilogue.w_zero = w.zero_point();
    epilogue.x_sum = sums;
    epilogue.x_scale = q.mode == InputMode::channel ? nullptr : scales;
    epilogue.x_scale_step = q.mode == InputMode::dynamic_token ? 1 : 0;
    const Columns columns(w, epilogue, most, scratch);

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
        Problem p{isa, w, rows};
        p.a = codes;
        p.lda = lda;
        p.init = init;
        p.zero = static_cast<uint8_t>(zero);
        p.epilogue = columns.at(epilogue, row0);
        p.store = store;
        p.patch = patch;
        run(p, threads, quantize);
        columns.scatter(epilogue, row0, rows, threads);
    }
    return bad.load();
}

}  // namespace qk
