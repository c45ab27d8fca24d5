#include "conv_units.h"

#include <algorithm>

#include "gemm_driver.h"

namespace qk {

ConvUnits::ConvUnits(const ConvShape& shape, const ConvHeader& h, int64_t pixels, int64_t even) : shape_(shape) {
    const int64_t wanted = std::max<int64_t>(1, ceil_div(pixels, shape.out_width));  // rows
    reach_ = (h.kernel_h - 1) * shape.dilation_h + 1;
    images_ = std::clamp<int64_t>(wanted / shape.out_height, 1, shape.batch);
    if (images_ > 1)
        images_ = ceil_div(shape.batch, round_up(ceil_div(shape.batch, images_), std::min(even, shape.batch)));
    if (images_ == 1) {
        parts_ = ceil_div(shape.out_height, wanted);
        while (shape.batch * parts_ % even != 0 && parts_ < shape.out_height) ++parts_;
    }
    rows_ = ceil_div(shape.out_height, parts_);
    parts_ = ceil_div(shape.out_height, rows_);
    count_ = ceil_div(shape.batch, images_) * parts_;
    input_rows_ = images_ > 1 ? images_ * shape.height : std::min(shape.height, (rows_ - 1) * shape.stride_h + reach_);
    rows_ *= images_;
}

ConvUnit ConvUnits::at(int64_t index) const {
    const ConvShape& s = shape_;
    const int64_t image = index / parts_ * images_, images = std::min(images_, s.batch - image);
    if (images_ > 1) {
        const int64_t first = image * s.out_height;
        return {first, first + images * s.out_height, image * s.height, (image + images) * s.height};
    }
    const int64_t y0 = index % parts_ * rows_, y1 = std::min(s.out_height, y0 + rows_);
    const int64_t from = std::clamp<int64_t>(y0 * s.stride_h - s.pad_top, 0, s.height);
    const int64_t to = std::clamp<int64_t>((y1 - 1) * s.stride_h - s.pad_top + reach_, from, s.height);
    return {image * s.out_height + y0, image * s.out_height + y1, image * s.height + from, image * s.height + to};
}

int64_t RowRing::need(int64_t first, int64_t last) {
    if (rows_.direct()) return -1;
    if (first < have_first_ || first > have_last_) have_first_ = have_last_ = first;
    int64_t bad = -1;
    for (int64_t row = have_last_; row < last; ++row)
        if (!rows_.write(row, memory_ + row % slots_ * rows_.bytes(), temporary_) && bad < 0) bad = row;
    have_last_ = std::max(have_last_, last);
    have_first_ = std::max(have_first_, have_last_ - slots_);
    return bad;
}

void keep_smallest(std::atomic<int64_t>& first, int64_t row) {
    int64_t seen = first.load(std::memory_order_relaxed);
    while (row >= 0 && (seen < 0 || row < seen) && !first.compare_exchange_weak(seen, row)) {
    }
}

const int32_t* conv_starts(const GemmView& block, const ConvRows& rows, const Epilogue& e, int64_t n0,
                           int32_t* buffer) {
    const int32_t* init = starts(block, rows.zero(), buffer);
    if (e.bias_i32 == nullptr) return init;
    for (int64_t n = 0; n < block.header->n_pad; ++n) {
        const int32_t bias = n < block.header->n ? e.bias_i32[n0 + n] : 0;
        buffer[n] = static_cast<int32_t>(static_cast<uint32_t>(init[n]) + static_cast<uint32_t>(bias));
    }
    return buffer;
}

int64_t conv_scale(ConvRows& rows, const ConvCall& call, int threads, float* scale) {
    uint32_t bits = 0;
    if (call.quant.mode == InputMode::dynamic_tensor) {
        bits = rows.amax(threads);
        for (int64_t row = 0; bits >= kNotFinite; ++row)
            if (rows.row_amax(row) >= kNotFinite) return row;
    }
    *scale = rows.set_scale(bits);
    return -1;
}

void store_planes(const ConvKernels& leaf, const ConvShape& s, int out_bytes, int64_t channels, const char* from,
                  int64_t ld, int64_t first_pixel, int64_t pixels, int64_t n0, int64_t cols, char* out) {
    const int64_t plane = s.out_height * s.out_width;
    const TransposeFn transpose = leaf.transpose[out_bytes == 4 ? 2 : out_bytes - 1];
    while (pixels > 0) {
        const int64_t image = first_pixel / plane, at = first_pixel % plane, here = std::min(pixels, plane - at);
        transpose(from, ld, here, cols, out + ((image * channels + n0) * plane + at) * out_bytes, plane);
        from += here * ld * out_bytes;
        first_pixel += here;
        pixels -= here;
    }
}

}  // namespace qk
