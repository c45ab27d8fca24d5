// The convolution table of one ISA. Included after isa_table.h by every isa_*.cpp.
#pragma once

#include "conv_kernel.h"
#include "depthwise_kernel.h"

namespace {

inline qk::ConvKernels make_conv_kernels() {
    qk::ConvKernels t{};
    for (int q = 1; q <= qk::kQuarters; ++q) t.rows[q] = rows_of(q);
    fill_narrow<1>(t.narrow[1]);
    fill_narrow<2>(t.narrow[2]);
    fill_narrow<3>(t.narrow[3]);
    fill_depthwise<1>(t.depthwise[1]);
    fill_depthwise<2>(t.depthwise[2]);
    fill_depthwise<3>(t.depthwise[3]);
    fill_depthwise<4>(t.depthwise[4]);
    t.transpose[0] = transpose<uint8_t>;
    t.transpose[1] = transpose<uint16_t>;
    t.transpose[2] = transpose<uint32_t>;
    t.arrange = arrange;
    t.interleave = interleave;
    return t;
}

}  // namespace
