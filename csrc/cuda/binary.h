// Products of signs: the integer core on bits, AND and popcount (gemm_kernel.h), and rows of bits as it wants them.
//
// Bits are 1 for +1 and 0 for -1, those past K 0 on both sides.
//   binary    dot = K - 2 pop(x) - 2 pop(w) + 4 pop(x & w); pop(w) is kept from prepack, pop(x) from packing
//   ternary   w is two planes, "is +1" and "is -1", one after the other along K; x is its bits, then their complement:
//             dot = 2 pop(x & w) - (number of w that are not 0)
// Both are the epilogue's (acc << acc_shift) - x_offset[n] - w_zero[n] * x_sum[m].
#pragma once

#include "epilogue.h"
#include "gemm_layout.h"
#include "stream.h"

namespace qk::cuda {

// Compute layout: rows of bits as bytes, each plane's row padded with 0 to a multiple of 64 bytes, in the tiles that
// gemm_layout.h has for codes (a lane's four bytes are 32 bits); then
//   scale   float [n_pad]
//   offset  int32 [n_pad]   binary: 2 pop(w[n]) - K; ternary: the number of w[n] that are not 0
//   two     int32 [n_pad]   2; binary only
struct BinaryLayout {
    int64_t n, k, n_pad, plane_bytes, row_bytes;
    bool ternary;
    int64_t codes, scale, offset, two, total_bytes;
};

inline BinaryLayout binary_layout(int64_t n, int64_t k, bool ternary) {
    BinaryLayout l{};
    l.n = n;
    l.k = k;
    l.ternary = ternary;
    l.n_pad = round_up(n, kTileN);
    l.plane_bytes = round_up(ceil_div(k, 8), kTileK);
    l.row_bytes = ternary ? 2 * l.plane_bytes : l.plane_bytes;
    Places place(256);
    l.codes = place(l.n_pad * l.row_bytes);
    l.scale = place(4 * l.n_pad);
    l.offset = place(4 * l.n_pad);
    l.two = place(ternary ? 0 : 4 * l.n_pad);
    l.total_bytes = place.total();
    return l;
}

// Byte of the codes that holds bit k of channel n of a plane; the bit is k % 8 of it.
QK_HD inline constexpr int64_t binary_byte(int64_t n, int64_t plane, int64_t k, int64_t plane_bytes,
                                           int64_t row_bytes) {
    return int8_offset(n, plane * plane_bytes + k / 8, row_bytes);
}

struct BinaryWeight {
    BinaryLayout layout;
    const char* base = nullptr;

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
};

enum class SignScale : int { token = 0, tensor = 1, fixed = 2 };

// Bits of x >= 0 and the scale of qkernels.reference.sign_scale, bit for bit. What cannot be refused on a device, rows
// that are not finite or whose sums are not, has the scale NaN.
struct PackSigns {
    const void* x = nullptr;  // (m, k) of type, pitch ldx
    DType type = DType::f32;
    int64_t m = 0, k = 0, ldx = 0;
    SignScale mode = SignScale::fixed;
    float scale = 1.0f;         // of mode fixed
    uint8_t* bits = nullptr;    // (m, row_bytes), pitch row_bytes
    int64_t row_bytes = 0;      // of a plane, at least ceil(k / 8)
    bool complement = false;    // the complement's plane follows each row
    int32_t* counts = nullptr;  // [m] popcounts, or null
    float* scales = nullptr;    // [m]
};
void pack_signs(const PackSigns& p, Stream stream);

int64_t scratch_bytes(const BinaryWeight& w, int64_t m);

// x as in PackSigns (where, how many and the scale's mode). The epilogue brings out, ldo, out_type, bias, activation.
void linear_signs(const BinaryWeight& w, PackSigns x, const Epilogue& epilogue, void* scratch, Stream stream);

// x: bits (m, ceil(k / 8)), pitch ldx; those past k are not looked at. The epilogue also brings x_scale or w_scale, or
// pack.
void linear_bits(const BinaryWeight& w, const uint8_t* x, int64_t m, int64_t ldx, const Epilogue& epilogue,
                 void* scratch, Stream stream);

}  // namespace qk::cuda
