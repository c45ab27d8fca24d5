// Compute layout of a dense integer weight (N, K): one self-describing block of bytes, made by prepack, never saved.
//
// K is cut into segments of equal length (the last may be short), each padded to a multiple of four: one segment for an
// ordinary weight, one a group where scales are group-wise, one a kernel tap for a convolution.
//
//   header     GemmHeader
//   table      Panel [panels]                 width of the codes of each panel, and where they are
//   init128    int32 [n_pad]                  -128 * (sum over k of w[n, k]): where an accumulator starts when
//                                             activations are stored as code + 128 (vpdpbusd multiplies u8 by s8)
//   colsum     int32 [panels][parts][64]      sum over a part's k of w[n, k]; parts: segments if grouped, else 1
//   zero_point int32 [n_pad]                  only what a patch must subtract (8-bit codes); 0 beyond N
//   scale      float [panels][parts][64]      0 beyond N
//   offset     uint8 [panels][parts][64]      what a stored code is lessened by to give w (narrow codes); not there
//                                             where codes are indices of the header's table
//   inv_input  float [k]                      1 / input_scale[k] (SPIQ, thesis eq. 3.11), only where has_input_scale
//   columns    int32 [n_pad]                  output channel of each row, only where has_columns (mixed widths)
//   codes      of all panels
//
// A panel is 64 output channels. w is the operand of the dot product, int8: code - zero_point for narrow codes, or what
// the table has at it (has_lookup), the code itself for 8 bits. One k step of a panel (4 k x 64 channels) is 256 bytes
// of int8, [64][4], four zmm registers whose lanes are output channels, so no kernel ever sums across lanes, and M = 1
// streams the block front to back. A step of b-bit codes is 32 * b bytes: planes of 4, 2 and 1 bits, those that b is
// the sum of, the low bits first.
//   4-bit plane  128 bytes: channel c, k i in byte (c % 32) * 4 + i, bits 4 * (c / 32) ...
//   2-bit plane   64 bytes: channel c, k i in byte (c % 16) * 4 + i, bits 2 * (c / 16) ...
//   1-bit plane   32 bytes: channel c, k i is bit c * 4 + i
// Stored codes are unsigned, code + 2^(b-1); width 1 stores +1 and -1 as 1 and 0 (and decodes 2 * bit - 1). Indices of
// the table are stored as they are.
#pragma once

#include "types.h"

namespace qk {

inline constexpr int kPanelN = 64;                   // output channels in a panel
inline constexpr int kStepK = 4;                     // products in one lane of a dot-product instruction
inline constexpr int kStepBytes = kPanelN * kStepK;  // bytes of a panel in one k step, as int8
inline constexpr int kMaxBits = 8;
inline constexpr int kLookupBits = 4;  // indices of up to so many bits are decoded by one byte shuffle
inline constexpr int kLookupSize = 1 << kLookupBits;
inline constexpr uint64_t kGemmMagic = 0x334d47516e7401ull;

inline constexpr int step_bytes(int64_t bits) { return static_cast<int>(32 * bits); }

// Number of what decodes a panel: its width, or beyond those for indices of a table.
inline constexpr int kDecoders = kMaxBits + kLookupBits + 1;
inline constexpr int decoder_of(int64_t bits, bool lookup) {
    return static_cast<int>(lookup && bits < kMaxBits ? kMaxBits + bits : bits);
}

struct Panel {
    int64_t bits;   // 1 to 8
    int64_t codes;  // byte offset from the header
};

struct GemmHeader {
    uint64_t magic;
    int64_t n, k;          // logical shape
    int64_t n_pad, k_pad;  // a multiple of kPanelN; all padded segments together
    int64_t segment, segment_pad, segments;
    int64_t grouped, has_zero_point, has_input_scale, has_columns;
    int64_t exact_padding;  // padded k decode to w = 0 (not so for width 1, zero points that are no codes, tables
                            // without 0)
    int64_t total_bytes;
    int64_t table, init128, colsum, zero_point, scale, offset, inv_input, columns, codes;  // byte offsets
    int64_t has_lookup;  // codes below 8 bits, 2 to 4, are indices of `lookup`
    int8_t lookup[kLookupSize];

    int64_t panels() const { return n_pad / kPanelN; }
    int64_t parts() const { return grouped ? segments : 1; }
    int64_t code_bytes() const { return total_bytes - codes; }
    // Where k lies among the padded segments.
    int64_t padded(int64_t at) const { return segment > 0 ? at / segment * segment_pad + at % segment : 0; }
};

struct GemmShape {
    int64_t n, k, segment;  // segment: group_size, channels of a tap, or k
    bool grouped, zero_point, input_scale, columns, lookup;
};

// Offsets of the parts for a shape; the one place that knows them. bits_of(panel) gives the width of a panel.
template <class BitsOf>
inline GemmHeader gemm_layout(const GemmShape& s, BitsOf bits_of) {
    GemmHeader h{};
    h.magic = kGemmMagic;
    h.n = s.n;
    h.k = s.k;
    h.n_pad = round_up(s.n, kPanelN);
    h.segment = s.segment;
    h.segment_pad = round_up(s.segment, kStepK);
    h.segments = s.segment > 0 ? ceil_div(s.k, s.segment) : 0;
    h.k_pad =
        h.segments > 0 ? (h.segments - 1) * h.segment_pad + round_up(s.k - (h.segments - 1) * s.segment, kStepK) : 0;
    h.grouped = s.grouped;
    h.has_zero_point = s.zero_point;
    h.has_input_scale = s.input_scale;
    h.has_columns = s.columns;
    h.has_lookup = s.lookup;
    const int64_t lanes = h.n_pad * h.parts();
    Places place(64, sizeof(GemmHeader));
    h.table = place(static_cast<int64_t>(sizeof(Panel)) * h.panels());
    h.init128 = place(4 * h.n_pad);
    h.colsum = place(4 * lanes);
    h.zero_point = place(4 * h.n_pad);
    h.scale = place(4 * lanes);
    h.offset = place(s.lookup ? 0 : lanes);
    h.inv_input = place(s.input_scale ? 4 * h.k : 0);
    h.columns = place(s.columns ? 4 * h.n_pad : 0);
    h.codes = place(0);
    for (int64_t p = 0; p < h.panels(); ++p) place(h.k_pad / kStepK * step_bytes(bits_of(p)));
    h.total_bytes = place.total();
    return h;
}

// A checked view of a block. valid() compares every offset with the layout the shape implies, so a block whose bytes
// came from outside cannot send a kernel out of bounds; what the arrays hold can only change the numbers.
struct GemmView {
    const GemmHeader* header = nullptr;
    const char* base = nullptr;

    static bool looked_up(int64_t bits) { return bits == kMaxBits || (bits > 1 && bits <= kLookupBits); }

    static bool valid(const void* data, int64_t bytes) {
        constexpr int64_t kMost = int64_t{1} << 31;
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(GemmHeader))) return false;
        const auto& h = *static_cast<const GemmHeader*>(data);
        if (h.magic != kGemmMagic || h.n < 0 || h.k < 0 || h.segment < 0 || h.n > kMost || h.k > kMost) return false;
        if (h.segment > h.k || (h.segment == 0 && h.k > 0)) return false;
        if ((h.grouped | h.has_zero_point | h.has_input_scale | h.has_columns | h.exact_padding | h.has_lookup) &
            ~int64_t{1})
            return false;
        if (h.table != round_up(sizeof(GemmHeader), 64)) return false;
        const int64_t panels = ceil_div(h.n, kPanelN);
        if (h.table + panels * static_cast<int64_t>(sizeof(Panel)) > bytes) return false;
        const auto* table = reinterpret_cast<const Panel*>(static_cast<const char*>(data) + h.table);
        for (int64_t p = 0; p < panels; ++p)
            if (table[p].bits < 1 || table[p].bits > kMaxBits || (h.has_lookup && !looked_up(table[p].bits)))
                return false;
        const GemmShape shape{h.n,
                              h.k,
                              h.segment,
                              h.grouped != 0,
                              h.has_zero_point != 0,
                              h.has_input_scale != 0,
                              h.has_columns != 0,
                              h.has_lookup != 0};
        const GemmHeader want = gemm_layout(shape, [table](int64_t p) { return table[p].bits; });
        if (h.n_pad != want.n_pad || h.k_pad != want.k_pad || h.segment_pad != want.segment_pad ||
            h.segments != want.segments || h.init128 != want.init128 || h.colsum != want.colsum ||
            h.zero_point != want.zero_point || h.scale != want.scale || h.offset != want.offset ||
            h.inv_input != want.inv_input || h.columns != want.columns || h.codes != want.codes ||
            h.total_bytes != want.total_bytes || want.total_bytes > bytes)
            return false;
        int64_t at = h.codes;
        for (int64_t p = 0; p < panels; ++p) {
            if (table[p].codes != at) return false;
            at = round_up(at + h.k_pad / kStepK * step_bytes(table[p].bits), 64);
        }
        const auto* columns = reinterpret_cast<const int32_t*>(static_cast<const char*>(data) + h.columns);
        for (int64_t i = 0; h.has_columns && i < h.n; ++i)
            if (columns[i] < 0 || columns[i] >= h.n) return false;
        return true;
    }
    explicit GemmView(const void* data)
        : header(static_cast<const GemmHeader*>(data)), base(static_cast<const char*>(data)) {}

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
    const Panel& panel(int64_t index) const { return at<Panel>(header->table)[index]; }
    const uint8_t* codes(int64_t index) const { return at<uint8_t>(panel(index).codes); }
    const int32_t* init128() const { return at<int32_t>(header->init128); }
    const int32_t* colsum() const { return at<int32_t>(header->colsum); }
    const int32_t* zero_point() const { return at<int32_t>(header->zero_point); }
    const float* scale() const { return at<float>(header->scale); }
    const uint8_t* offset() const { return at<uint8_t>(header->offset); }
    int decoder(int64_t index) const { return decoder_of(panel(index).bits, header->has_lookup != 0); }
    // What a decoder reads beside the codes of a panel's part: offsets, or the one table.
    const uint8_t* constants(int64_t index, int64_t part) const {
        return header->has_lookup ? reinterpret_cast<const uint8_t*>(header->lookup)
                                  : offset() + (index * header->parts() + part) * kPanelN;
    }
    int64_t constants_step() const { return header->has_lookup ? 0 : kPanelN; }  // to the next part's
    const float* inv_input() const { return at<float>(header->inv_input); }
    const int32_t* columns() const { return at<int32_t>(header->columns); }
};

}  // namespace qk
