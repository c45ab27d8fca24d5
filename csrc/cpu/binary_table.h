// The table of the binary core for one ISA, from its primitives. Included last by every isa_binary_*.cpp (ROWS: of its
// largest tile).
#pragma once

#include "binary_epilogue_kernel.h"
#include "binary_kernel.h"

namespace {

// Columns of a tile (a multiple of 16 channels) by its rows: what the registers hold. One row has the whole panel.
template <int ROWS>
constexpr int tile_vectors(int per_group, int registers) {
    int groups = 4;
    while (groups > 1 && ROWS * groups * per_group * 2 > registers) groups /= 2;
    return groups * per_group;
}

template <int ROWS>
void fill_rows(qk::BinaryKernels& t) {
    constexpr int kGroup = 16 / simd::WORDS, kFit = simd::WORDS == 8 ? 24 : 8;
    constexpr int nv = tile_vectors<ROWS>(kGroup, kFit);
    t.micro[0][0][ROWS] = micro_binary<ROWS, nv>;
    t.micro[0][1][ROWS] = micro_masked<ROWS, nv, false, true>;
    t.micro[1][0][ROWS] = micro_masked<ROWS, nv, true, false>;
    t.micro[1][1][ROWS] = micro_masked<ROWS, nv, true, true>;
    if constexpr (ROWS > 1) fill_rows<ROWS - 1>(t);
}

template <int ROWS>
qk::BinaryKernels make_binary_kernels() {
    using qk::BinaryOut;
    static_assert(ROWS <= qk::kBinaryMaxMr);
    qk::BinaryKernels t{};
    t.mr = ROWS;
    fill_rows<ROWS>(t);
    auto put = [&t](BinaryOut out, qk::BinaryStoreFn f) { t.store[static_cast<int>(out)] = f; };
    put(BinaryOut::f32, binary_store_float<float>);
    put(BinaryOut::bf16, binary_store_float<qk::bf16>);
    put(BinaryOut::f16, binary_store_float<qk::f16>);
    put(BinaryOut::i32, binary_store_i32);
    put(BinaryOut::sign, binary_store_sign);
    put(BinaryOut::threshold, binary_store_threshold);
    put(BinaryOut::multiple, binary_store_multiple);
    t.pack_signs[0] = pack_signs<float>;
    t.pack_signs[1] = pack_signs<qk::bf16>;
    t.pack_signs[2] = pack_signs<qk::f16>;
    return t;
}

}  // namespace
