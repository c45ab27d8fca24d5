// What both convolution drivers do around their tiles: threads, rows made just before they are used, outputs in NCHW.
#pragma once

#include <atomic>

#include "conv_rows.h"

namespace qk {

// Output rows [begin, end), counted over all images, and the input rows [first_row, last_row) that they read.
struct ConvUnit {
    int64_t begin, end;
    int64_t first_row, last_row;
};

// Units of about `pixels` outputs: whole images, or equal parts of one. As many as a multiple of `even`, if that is
// possible with at least a row each.
class ConvUnits {
  public:
    ConvUnits(const ConvShape& shape, const ConvHeader& h, int64_t pixels, int64_t even);
    int64_t count() const { return count_; }
    int64_t rows() const { return rows_; }              // output rows of a unit, at most
    int64_t input_rows() const { return input_rows_; }  // that a unit reads, at most
    ConvUnit at(int64_t index) const;

  private:
    const ConvShape& shape_;
    int64_t reach_, images_ = 1, parts_ = 1, rows_ = 0, count_ = 0, input_rows_ = 0;
};

// The rows of one thread: as many as a unit reads, in a ring, so that what two units share is made once.
class RowRing {
  public:
    RowRing(const ConvRows& rows, uint8_t* memory, uint8_t* temporary, int64_t slots)
        : rows_(rows), memory_(memory), temporary_(temporary), slots_(slots) {}
    // Makes the rows [first, last) that are not there yet. Returns the first that is not finite, or -1.
    int64_t need(int64_t first, int64_t last);
    const uint8_t* row(int64_t index) const {
        const uint8_t* direct = rows_.in_place(index);
        return direct ? direct : memory_ + index % slots_ * rows_.bytes();
    }

  private:
    const ConvRows& rows_;
    uint8_t *memory_, *temporary_;
    int64_t slots_, have_first_ = 0, have_last_ = 0;
};

void keep_smallest(std::atomic<int64_t>& first, int64_t row);

// Where the accumulators of a block start, integer biases included; n0: the block's first output channel. buffer:
// [n_pad].
const int32_t* conv_starts(const GemmView& block, const ConvRows& rows, const Epilogue& e, int64_t n0, int32_t* buffer);

// Sets the scale of the activations. Returns the first row that is not finite, where that is known before, or -1.
int64_t conv_scale(ConvRows& rows, const ConvCall& call, int threads, float* scale);

// cols columns of rows pixels from `from` (NHWC, pitch ld elements) to their planes of an NCHW output.
void store_planes(const ConvKernels& leaf, const ConvShape& s, int out_bytes, int64_t channels, const char* from,
                  int64_t ld, int64_t first_pixel, int64_t pixels, int64_t n0, int64_t cols, char* out);

// Depthwise part of conv2d: depthwise.cpp.
int64_t depthwise(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call, int threads);

}  // namespace qk
