// Rows of an image as the convolution kernels read them: codes as u8, channels side by side, padding written out.
//
// A row holds the pixels that outputs touch, from -pad_left on. Quantization, the offset of signed codes and the change
// from NCHW to NHWC happen in this one pass, right before the rows are used, so that they are found in L1 or L2.
#pragma once

#include <cstring>

#include "conv.h"
#include "quantize.h"

namespace qk {

class ConvRows {
  public:
    ConvRows(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call);

    int64_t pixel() const { return pixel_; }          // bytes from one pixel to the next
    int64_t bytes() const { return bytes_; }          // of a row, readable past its last pixel
    int64_t temporary() const { return temporary_; }  // bytes that write() needs beside
    int64_t constants() const { return constants_; }  // bytes that prepare() needs, kept while rows are written

    // Before anything else: `space` holds constants() bytes.
    void prepare(void* space);
    // Before the first row: the maximum of the whole tensor, where the scale is dynamic. Returns the scale.
    float set_scale(uint32_t amax_bits);
    const uint8_t* empty_row() const { return empty_; }  // outside of the image
    // Row `row` = image * height + y to `out`. Returns false where a value is not finite.
    bool write(int64_t row, uint8_t* out, uint8_t* temporary) const;
    // The row in the caller's memory, where it can be used as it is; else null.
    const uint8_t* in_place(int64_t row) const {
        return direct_ ? static_cast<const uint8_t*>(x_.data) + offset(row) : nullptr;
    }
    bool direct() const { return direct_; }
    uint8_t zero() const { return zero_; }  // the stored code of 0

    // Largest bit pattern of |x / input_scale| over the whole tensor, or one row.
    uint32_t amax(int threads) const;
    uint32_t row_amax(int64_t row) const;

  private:
    int64_t offset(int64_t row) const { return row / shape_.height * x_.stride_b + row % shape_.height * x_.stride_h; }
    uint32_t codes_nhwc(const char* from, uint8_t* out) const;
    uint32_t codes_nchw(const char* from, uint8_t* out, uint8_t* temporary) const;
    QuantizeRow row_rule() const;

    const Kernels& isa_;
    const ConvKernels& leaf_;
    const ConvShape& shape_;
    const ConvInput& x_;
    const InputQuant& quant_;
    const float* input_scale_;
    ConvKind kind_;
    int64_t channels_, groups_, per_group_, repeat_;
    int64_t pixel_, bytes_, temporary_, constants_;
    int64_t count_, left_, span_;  // pixels of the image that are read, of padding before them, and of a row
    bool direct_, nhwc_, floats_;
    uint8_t flip_, zero_;
    uint8_t* empty_ = nullptr;
    float* inverse_ = nullptr;  // 1 / input_scale: [channels], or repeated over a row where that is one run
    float inv_ = 1.0f;
};

}  // namespace qk
