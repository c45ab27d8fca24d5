// Binary GEMM driver: products of sign bits, and of ternary values, with the epilogues of binary_kernels.h.
#pragma once

#include "../common/binary_layout.h"
#include "binary_kernels.h"

namespace qk {

// Where the scale of binarized activations comes from: mean |x| of a row or of the tensor (reference/binary.py), or the
// caller.
enum class SignScale : int { token = 0, tensor = 1, given = 2 };

// Writes the block described in common/binary_layout.h from rows of ceil(k / 8) bytes, least significant bit first.
// `nonzero` is null for binary weights. Bits past k are taken as 0. `products` is what a full row of equal signs sums
// to: k, or less where rows have padding between (a convolution's taps start at whole words).
void binary_prepack(const uint8_t* signs, const uint8_t* nonzero, int64_t n, int64_t k, int64_t products,
                    const float* alpha, void* out);

// `backwards` takes the panels from the last to the first. Calls on one thread that take turns find the end of a weight
// in L2 that is a little too large for it, where the same order every time would always have just lost what comes next.

// Bits of activations, (m, k) in rows of `pitch` bytes; `nonzero` null, or rows of the same pitch: bits that are 0
// where an activation is 0.
struct SignRows {
    const uint8_t* signs;
    const uint8_t* nonzero;
    int64_t m, pitch, nonzero_pitch;
};
void binary_gemm_bits(const BinaryKernels& isa, const SignRows& x, const BinaryView& w, BinaryEpilogue epilogue,
                      BinaryOut out, bool backwards, int threads);

// The same from floating-point x, whose signs are taken on the way. Returns the first row with a value that is not
// finite (or whose |x| add up to more than float32 holds), or -1.
int64_t binary_gemm_float(const BinaryKernels& isa, const void* x, DType x_type, int64_t m, int64_t ldx, SignScale mode,
                          float scale, const BinaryView& w, BinaryEpilogue epilogue, BinaryOut out, bool backwards,
                          int threads);

// Images of packed signs, NHWC: a pixel is `pixel_words` words, of which a convolution reads `words` (a group's
// channels, whole words). Its weight has a segment of `words` for each tap. What lies outside of the image is 0,
// corrected with tap_sums [taps][n_pad], the sum over a tap's weights; or +1 and -1 in turns where there are no
// tap_sums: +1 where row plus column of the padded image is even.
struct BinaryImages {
    const uint64_t* bits;
    int64_t batch, height, width, out_height, out_width, kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
    int64_t pad_top, pad_left, pixel_words, words, channels;
    const int32_t* tap_sums;

    int64_t outputs() const { return batch * out_height * out_width; }
};
// out: NHWC, one row of `epilogue` an output pixel.
void binary_conv(const BinaryKernels& isa, const BinaryImages& x, const BinaryView& w, BinaryEpilogue epilogue,
                 BinaryOut out, int threads);

// Signs of x as bytes (m, ceil(k / 8)), `pitch` of them between rows (those past the bits of a row are 0), and their
// scales (one a row for SignScale::token, else one); scales may be null with SignScale::given. Returns as
// binary_gemm_float.
int64_t pack_signs(const BinaryKernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                   SignScale mode, float scale, uint8_t* bits, int64_t pitch, float* scales, int threads);

}  // namespace qk
