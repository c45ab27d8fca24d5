// Convolutions of 8-bit activations: any kernel, stride, dilation, padding, groups.
#pragma once

#include "../common/conv_layout.h"
#include "conv_kernels.h"
#include "gemm.h"

namespace qk {

struct ConvShape {
    int64_t batch = 0, height = 0, width = 0;
    int64_t out_height = 0, out_width = 0;
    int64_t stride_h = 1, stride_w = 1, dilation_h = 1, dilation_w = 1, pad_top = 0, pad_left = 0;

    int64_t out_rows() const { return batch * out_height; }
};

// Strides in elements: channels side by side (stride_c 1: NHWC), or pixels of a row side by side (stride_w 1: NCHW).
struct ConvInput {
    const void* data = nullptr;
    DType type = DType::f32;  // f32, bf16, f16, or codes i8, u8
    int64_t stride_b = 0, stride_c = 0, stride_h = 0, stride_w = 0;
};

struct ConvCall {
    ConvShape shape;
    ConvInput x;
    InputQuant quant;                    // for codes: is_signed and zero_point
    const float* input_scale = nullptr;  // [channels]: x is divided by it first; null: 1
    bool out_nchw = false;               // else NHWC
    Epilogue epilogue;                   // `out` is the first element; ldo is set here
    EpilogueFn store = nullptr;
};

// Returns the first row of images (image * height + y) with a non-finite value, or -1.
int64_t conv2d(Isa isa, const ConvView& w, const ConvCall& call, int threads);

}  // namespace qk
