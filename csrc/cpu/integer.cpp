// Loops and threads around the leaves of integer_kernel.h.
#include "integer.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

constexpr int64_t kChunk = 32 << 10;  // bytes of one output that a thread takes at a time

// Threads that the work repays: a region costs microseconds, so each gets six of them or more. `picoseconds` a value is
// what one core takes, right within a factor of two.
int threads_for(int threads, int64_t values, int64_t picoseconds) {
    return static_cast<int>(std::clamp<int64_t>(values * picoseconds / 6000000, 1, std::max(threads, 1)));
}

}  // namespace

const IntegerKernels& integer_kernels(Isa isa) {
    switch (isa) {
        case Isa::amxbf16:
        case Isa::avx512bf16:
        case Isa::avx512vpopcntdq: return integer_kernels_avx512vbmi();
        case Isa::avx512vnni: return integer_kernels_avx512vnni();
        case Isa::avx2: return integer_kernels_avx2();
        default: return integer_kernels_scalar();
    }
}

void add_codes(const IntegerKernels& isa, const uint8_t* a, const uint8_t* b, int64_t n, const AddCodes& p,
               uint8_t* out, int threads) {
    parallel_for(threads_for(threads, n, 80), ceil_div(n, kChunk), [&](int64_t unit) {
        const int64_t at = unit * kChunk;
        isa.add(a + at, b + at, std::min(kChunk, n - at), p, out + at);
    });
}

void lookup_rows(const IntegerKernels& isa, const uint8_t* x, int64_t rows, int64_t n, int64_t ldx,
                 const uint8_t* table, uint8_t* out, int64_t ldo, int threads) {
    threads = threads_for(threads, rows * n, 60);
    if (rows == 1) {
        parallel_for(threads, ceil_div(n, kChunk), [&](int64_t unit) {
            const int64_t at = unit * kChunk;
            isa.lookup(x + at, 1, std::min(kChunk, n - at), 0, table, out + at, 0);
        });
        return;
    }
    const int64_t step = std::max<int64_t>(1, kChunk / std::max<int64_t>(n, 1));
    parallel_for(threads, ceil_div(rows, step), [&](int64_t unit) {
        const int64_t row = unit * step;
        isa.lookup(x + row * ldx, std::min(step, rows - row), n, ldx, table, out + row * ldo, ldo);
    });
}

bool PoolSide::valid(int64_t divisors) const {
    for (int64_t i = 0; i < outputs; ++i) {
        if (count[i] < 0 || divisor[i] < 0 || divisor[i] >= divisors) return false;
        if (count[i] > 0 && (start[i] < 0 || start[i] + (count[i] - 1) * step >= size)) return false;
    }
    return step > 0;
}

namespace {

const IntegerKernels& for_pixels(const IntegerKernels& isa, const Pool& p) {
    return p.channels <= 32 && isa.small_pixels != nullptr ? *isa.small_pixels : isa;
}

template <class Leaf>
void pool(const Pool& p, const Average* averages, int64_t column_divisors, int threads, Leaf leaf) {
    const int64_t row_bytes = p.columns.size * p.channels, out_bytes = p.columns.outputs * p.channels;
    int64_t largest = 0;
    for (int64_t i = 0; i < p.rows.outputs; ++i) largest = std::max(largest, p.rows.count[i]);
    threads = threads_for(threads, p.images * p.rows.outputs * largest * row_bytes, 60);
    parallel_for(threads, p.images * p.rows.outputs, [&](int64_t unit) {
        const int64_t image = unit / p.rows.outputs, row = unit % p.rows.outputs;
        const uint8_t* x = p.x + (image * p.rows.size + p.rows.start[row]) * row_bytes;
        const Average* of_row = averages == nullptr ? nullptr : averages + p.rows.divisor[row] * column_divisors;
        leaf(PoolRow{x, p.rows.count[row], p.rows.step * row_bytes, p.columns.step * p.channels, p.channels,
                     p.columns.outputs, p.columns.start, p.columns.count, p.columns.divisor, of_row},
             p.out + unit * out_bytes);
    });
}

}  // namespace

void max_pool(const IntegerKernels& isa, const Pool& p, bool is_signed, int threads) {
    pool(p, nullptr, 0, threads, for_pixels(isa, p).max_pool[is_signed]);
}

void avg_pool(const IntegerKernels& isa, const Pool& p, const Average* averages, int64_t column_divisors, int threads) {
    pool(p, averages, column_divisors, threads, for_pixels(isa, p).avg_pool);
}

void softmax_codes(const IntegerKernels& isa, const void* x, DType type, int64_t rows, int64_t n, int64_t ldx,
                   const ExpTable& e, int64_t multiplier, int shift, uint8_t* out, uint8_t out_flip, int threads) {
    const bool wide = type == DType::i32;
    const uint8_t in_flip = type == DType::i8 ? 0x80 : 0;
    parallel_for(threads_for(threads, rows * n, wide ? 1500 : 200), rows, [&](int64_t row) {
        if (wide) {
            auto* scratch = Scratch::get(Scratch::padded<uint32_t>(n)).take<uint32_t>(n);
            isa.softmax_int32(static_cast<const int32_t*>(x) + row * ldx, n, multiplier, shift, scratch, out + row * n,
                              out_flip);
        } else {
            isa.softmax_bytes(static_cast<const uint8_t*>(x) + row * ldx, n, in_flip, e, out + row * n, out_flip);
        }
    });
}

void layer_norm_codes(const IntegerKernels& isa, const void* x, DType type, int64_t rows, int64_t n, int64_t ldx,
                      const LayerNorm& p, uint8_t* out, int threads) {
    parallel_for(threads_for(threads, rows * n, 400), rows, [&](int64_t row) {
        if (type == DType::i32)
            isa.norm_int32(static_cast<const int32_t*>(x) + row * ldx, n, p, out + row * n);
        else
            isa.norm_bytes(static_cast<const uint8_t*>(x) + row * ldx, n, type == DType::i8 ? 0x80 : 0, p,
                           out + row * n);
    });
}

void requantize(const IntegerKernels& isa, const int32_t* acc, int64_t m, int64_t n, int64_t ld_acc,
                const RequantColumns& r, Rounding rounding, uint8_t* out, int threads) {
    constexpr int64_t kRows = 16;  // multipliers are loaded once for so many
    auto leaf = isa.requantize[static_cast<int>(rounding)];
    parallel_for(threads_for(threads, m * n, 150), ceil_div(m, kRows), [&](int64_t unit) {
        const int64_t row = unit * kRows;
        leaf(acc + row * ld_acc, std::min(kRows, m - row), n, ld_acc, r, out + row * n, n);
    });
}

}  // namespace qk
