// Integer-only elementwise operations on 8-bit codes: add, table lookup, pooling, softmax, layer norm; and
// requantization of accumulators. Everything equals qkernels/reference/integer.py bit for bit.
//
// Codes are bytes; `flip` 0x80 on an int8 code gives the unsigned byte of the same order, and kernels compute on one
// of the two forms. The drivers (integer.cpp) are compiled once; an instruction set contributes leaf functions.
#pragma once

#include "kernels.h"

namespace qk {

// out = clamp((a * multiplier_a + b * multiplier_b + start >> shift), lo, hi) ^ out_flip, a and b after their flips,
// the result as int8: start holds zero points and the rounding half.
struct AddCodes {
    int16_t multiplier_a = 0, multiplier_b = 0;
    int32_t start = 0;
    int shift = 0;
    uint8_t a_flip = 0, b_flip = 0, out_flip = 0;
    int8_t lo = -128, hi = 127;
};

// out = clamp((sum * multiplier + start) >> shift, lo, hi) ^ out_flip of the sum of codes ^ in_flip. With `narrow` all
// of it fits int32.
struct Average {
    int64_t multiplier = 0, start = 0;
    int shift = 0;
    bool narrow = false;
    uint8_t in_flip = 0, out_flip = 0;
    int8_t lo = -128, hi = 127;
};

// One row of outputs of a pooling. Output o sees `rows` x count[o] pixels from base + start[o] * pixel on, each `pixel`
// bytes of channels; steps are bytes between pixels of a window.
struct PoolRow {
    const uint8_t* base;
    int64_t rows, row_step, column_step, pixel, outputs;
    const int64_t *start, *count, *divisor;
    const Average* averages;  // [divisor[o]]
};

// exp_int(d) of the reference for every d = 0..255: 2^23 is 1. Planes: bits 16 to 23, 8 to 15, 0 to 7.
struct ExpTable {
    uint32_t value[256];
    uint8_t plane[3][256];
};

struct LayerNorm {
    const int32_t *weight, *bias;  // [n]
    int shift;
    int64_t eps;
    uint8_t out_flip;  // 0x80 for uint8 output; lo and hi are then those minus 128, and so is the bias
    int8_t lo, hi;
};

struct RequantColumns {
    const int32_t* multiplier;  // [n] each
    const int32_t* shift;
    const float* scale;
    int32_t zero, lo, hi;
    uint8_t out_flip;  // 0x80 for uint8 output; zero, lo and hi are then those minus 128
};

struct IntegerKernels {
    void (*add)(const uint8_t* a, const uint8_t* b, int64_t n, const AddCodes& p, uint8_t* out);
    // out[r][i] = table[x[r][i]], n of each row
    void (*lookup)(const uint8_t* x, int64_t rows, int64_t n, int64_t ldx, const uint8_t* table, uint8_t* out,
                   int64_t ldo);
    void (*max_pool[2])(const PoolRow& p, uint8_t* out);  // [1]: int8 codes
    void (*avg_pool)(const PoolRow& p, uint8_t* out);
    // one row of n codes, out ^ out_flip
    void (*softmax_bytes)(const uint8_t* x, int64_t n, uint8_t in_flip, const ExpTable& e, uint8_t* out,
                          uint8_t out_flip);
    // one row of n int32; e: scratch of n
    void (*softmax_int32)(const int32_t* x, int64_t n, int64_t multiplier, int shift, uint32_t* e, uint8_t* out,
                          uint8_t out_flip);
    // one row; int8 and uint8 differ by the flip alone, since the mean is subtracted
    void (*norm_bytes)(const uint8_t* x, int64_t n, uint8_t in_flip, const LayerNorm& p, uint8_t* out);
    void (*norm_int32)(const int32_t* x, int64_t n, const LayerNorm& p, uint8_t* out);
    void (*requantize[3])(const int32_t* acc, int64_t rows, int64_t n, int64_t ld_acc, const RequantColumns& r,
                          uint8_t* out, int64_t ldo);  // by Rounding
    // What pools pixels of up to 32 bytes: a whole register of AVX2 is faster than half of one of AVX-512 and its
    // masks.
    const IntegerKernels* small_pixels;
};

const IntegerKernels& integer_kernels_scalar();
const IntegerKernels& integer_kernels_avx2();
const IntegerKernels& integer_kernels_avx512vnni();
const IntegerKernels& integer_kernels_avx512vbmi();
const IntegerKernels& integer_kernels(Isa isa);

// ---- drivers -----------------------------------------------------------------------------------------------------

void add_codes(const IntegerKernels& isa, const uint8_t* a, const uint8_t* b, int64_t n, const AddCodes& p,
               uint8_t* out, int threads);
void lookup_rows(const IntegerKernels& isa, const uint8_t* x, int64_t rows, int64_t n, int64_t ldx,
                 const uint8_t* table, uint8_t* out, int64_t ldo, int threads);

// Where a pooling's outputs look along one side: first index inside the input, how many are inside, and (average) the
// place of their divisor among the distinct ones.
struct PoolSide {
    const int64_t *start, *count, *divisor;
    int64_t size, step, outputs;  // of the input, between values of a window (dilation), of the output

    bool valid(int64_t divisors) const;
};
struct Pool {
    const uint8_t* x;  // (images, rows, columns, channels), dense
    int64_t images, channels;
    PoolSide rows, columns;
    uint8_t* out;
};
void max_pool(const IntegerKernels& isa, const Pool& p, bool is_signed, int threads);
// averages[row divisor * column_divisors + column divisor]
void avg_pool(const IntegerKernels& isa, const Pool& p, const Average* averages, int64_t column_divisors, int threads);

void softmax_codes(const IntegerKernels& isa, const void* x, DType type, int64_t rows, int64_t n, int64_t ldx,
                   const ExpTable& e, int64_t multiplier, int shift, uint8_t* out, uint8_t out_flip, int threads);
void layer_norm_codes(const IntegerKernels& isa, const void* x, DType type, int64_t rows, int64_t n, int64_t ldx,
                      const LayerNorm& p, uint8_t* out, int threads);

// out[m][n] = requant(acc[m][n])
void requantize(const IntegerKernels& isa, const int32_t* acc, int64_t m, int64_t n, int64_t ld_acc,
                const RequantColumns& r, Rounding rounding, uint8_t* out, int threads);

}  // namespace qk
