// The convolution table of one ISA. Included after isa_table.h by every isa_*.cpp.
#pragma once

#include "conv_kernel.h"
#include "depthwise_kernel.h"

namespace {

inline qk::ConvKernels make_conv_kernels() {
    qk::ConvKernels t{};
    t.mr = simd::MR;
    fill_depthwise(t.depthwise);
    t.transpose[0] = transpose<uint8_t>;
    t.transpose[1] = transpose<uint16_t>;
    t.transpose[2] = transpose<uint32_t>;
    t.arrange = arrange;
    t.interleave = interleave;
    return t;
}

}  // namespace
