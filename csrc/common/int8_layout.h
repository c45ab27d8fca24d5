// Compute layout of an int8 weight (N, K): one self-describing block of bytes, made by prepack, never saved.
//
//   header     Int8Header
//   init128    int32 [n_pad]   -128 * colsum[n] + 128 * K * zero_point[n] (mod 2^32): where an accumulator starts
//                              when activations are stored as code + 128 (vpdpbusd multiplies u8 by s8)
//   colsum     int32 [n_pad]   sum over k of code[n, k]
//   zero_point int32 [n_pad]   0 beyond N
//   scale      float [n_pad]   one per output channel, also for a per-tensor weight; 0 beyond N
//   inv_input  float [k_pad]   1 / input_scale[k] (SPIQ, thesis eq. 3.11), only where has_input_scale
//   panels     int8  [n_pad / 64][k_pad / 4][64][4]   code[n, k] at [n / 64][k / 4][n % 64][k % 4], 0 in the padding
//
// A panel is 64 output channels: one 4-deep k step is 256 contiguous bytes, four zmm registers whose lanes are output
// channels, so no kernel ever sums across lanes, and M = 1 streams the whole block front to back.
#pragma once

#include "types.h"

namespace qk {

inline constexpr int kPanelN = 64;                   // output channels in a panel
inline constexpr int kStepK = 4;                     // products in one lane of a dot-product instruction
inline constexpr int kStepBytes = kPanelN * kStepK;  // bytes of a panel in one k step
inline constexpr uint64_t kInt8Magic = 0x31384b51696e7401ull;

struct Int8Header {
    uint64_t magic;
    int64_t n, k;          // logical shape
    int64_t n_pad, k_pad;  // multiples of kPanelN and kStepK
    int64_t has_zero_point, has_input_scale;
    int64_t total_bytes;
    int64_t init128, colsum, zero_point, scale, inv_input, panels;  // byte offsets
    int64_t reserved[2];
};
static_assert(sizeof(Int8Header) == 128, "the header is two cache lines");

// Offsets of the parts for a shape; the one place that knows them.
inline Int8Header int8_layout(int64_t n, int64_t k, bool has_zero_point, bool has_input_scale) {
    Int8Header h{};
    h.magic = kInt8Magic;
    h.n = n;
    h.k = k;
    h.n_pad = round_up(n, kPanelN);
    h.k_pad = round_up(k, kStepK);
    h.has_zero_point = has_zero_point;
    h.has_input_scale = has_input_scale;
    int64_t at = sizeof(Int8Header);
    auto place = [&at](int64_t bytes) {
        const int64_t here = at;
        at = round_up(at + bytes, 64);
        return here;
    };
    h.init128 = place(4 * h.n_pad);
    h.colsum = place(4 * h.n_pad);
    h.zero_point = place(4 * h.n_pad);
    h.scale = place(4 * h.n_pad);
    h.inv_input = place(has_input_scale ? 4 * h.k_pad : 0);
    h.panels = place(h.n_pad * h.k_pad);
    h.total_bytes = at;
    return h;
}

// A checked view of a block. valid() compares every offset with the layout the shape implies, so a block whose bytes
// came from outside cannot send a kernel out of bounds; what the arrays hold can only change the numbers.
struct Int8View {
    const Int8Header* header = nullptr;
    const char* base = nullptr;

    static bool valid(const void* data, int64_t bytes) {
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(Int8Header))) return false;
        const auto& h = *static_cast<const Int8Header*>(data);
        if (h.magic != kInt8Magic || h.n < 0 || h.k < 0 || h.n > (int64_t{1} << 40) || h.k > 131071) return false;
        if ((h.has_zero_point | h.has_input_scale) & ~int64_t{1}) return false;
        const Int8Header want = int8_layout(h.n, h.k, h.has_zero_point, h.has_input_scale);
        return h.n_pad == want.n_pad && h.k_pad == want.k_pad && h.init128 == want.init128 && h.colsum == want.colsum &&
               h.zero_point == want.zero_point && h.scale == want.scale && h.inv_input == want.inv_input &&
               h.panels == want.panels && h.total_bytes == want.total_bytes && want.total_bytes <= bytes;
    }
    explicit Int8View(const void* data)
        : header(static_cast<const Int8Header*>(data)), base(static_cast<const char*>(data)) {}

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
    const int32_t* init128() const { return at<int32_t>(header->init128); }
    const int32_t* colsum() const { return at<int32_t>(header->colsum); }
    const int32_t* zero_point() const { return at<int32_t>(header->zero_point); }
    const float* scale() const { return at<float>(header->scale); }
    const float* inv_input() const { return at<float>(header->inv_input); }
    const int8_t* panel(int64_t index) const { return at<int8_t>(header->panels) + index * kPanelN * header->k_pad; }
};

}  // namespace qk
