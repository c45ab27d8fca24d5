// Compute layout of a weight (N, K) for the float core: codes of 1 to 8 bits that index a table, scales and offsets.
//
//   W[n, k] = (scale[n, g] * table[code[n, k]] + offset[n, g]) / input_scale[k]
//
// One self-describing block of bytes, made by prepack, never saved. K is cut into segments of equal length (the last
// may be short), the groups of scales, or one segment; each is padded to a multiple of two.
//
//   header     FloatHeader
//   table32    float [tables][entries32]            2^bits values, repeated to at least 16; tables: 1, or one a row or
//   a table16    bf16  [tables][entries16]            group of a row (padded rows too); the same values as bfloat16, at
//                                                   least 32
//   scale      float or half [panels][segments][64] 0 beyond N; half (float16) where that holds every one exactly
//   offset     float or half [panels][segments][64] only where has_offset
//   inv_input  float [k]                            1 / input_scale[k], only where has_input_scale
//   codes      [panels][k_pad / 2][16 * bits bytes]
//
// A panel is 64 output channels, a k step two k of it: 128 codes in 16 * bits bytes. A step of 8 bits is one byte a
// code, channel c, k i in byte 2 * c + i. Narrower codes are planes of p = 4, 2 and 1 bits, those that the width is the
// sum of, the low bits first. A plane of p bits is 4 * p 32-bit words: channel c = 16 * v + d, k i is in word
// d % (4 * p), at bit 16 * i + 4 * v + p * (d / (4 * p)). So a 4-bit step is one 64-byte register; shifted right by
// 4 * v its 16-bit lanes hold the codes of 16 channels, two k each, in the order in which bf16 pairs are multiplied,
// and its 32-bit lanes those of one k. What is above a code is left there: tables are repeated, so the rest of an index
// does not matter.
#pragma once

#include <algorithm>
#include <cstring>

#include "types.h"

namespace qk {

inline constexpr int kFloatPanelN = 64;
inline constexpr int kFloatStepK = 2;
inline constexpr int kFloatMaxBits = 8;
inline constexpr uint64_t kFloatMagic = 0x314651746e7401ull;

inline constexpr int float_step_bytes(int64_t bits) { return static_cast<int>(16 * bits); }

// Where a plane of p bits keeps channel c, k i of a step: 32-bit word, and bit of it.
struct PlanePlace {
    int word, bit;
};
inline constexpr PlanePlace plane_place(int p, int c, int i) {
    const int v = c / 16, d = c % 16;
    return {d % (4 * p), 16 * i + 4 * v + p * (d / (4 * p))};
}

// The code of channel c (0..63), k i (0, 1) of a step.
inline unsigned code_of_step(const uint8_t* step, int bits, int c, int i) {
    if (bits == 8) return step[2 * c + i];
    unsigned code = 0;
    int below = 0;
    for (int p = 4; p > 0; p /= 2) {
        if (!(bits & p)) continue;
        const PlanePlace at = plane_place(p, c, i);
        uint32_t word;
        std::memcpy(&word, step + 4 * at.word, 4);
        code |= (word >> at.bit & ((1u << p) - 1)) << below;
        below += p;
        step += 16 * p;
    }
    return code;
}
inline void put_code_of_step(uint8_t* step, int bits, int c, int i, unsigned code) {
    if (bits == 8) {
        step[2 * c + i] = static_cast<uint8_t>(code);
        return;
    }
    for (int p = 4; p > 0; p /= 2) {
        if (!(bits & p)) continue;
        const PlanePlace at = plane_place(p, c, i);
        uint32_t word;
        std::memcpy(&word, step + 4 * at.word, 4);
        word |= (code & ((1u << p) - 1)) << at.bit;
        std::memcpy(step + 4 * at.word, &word, 4);
        code >>= p;
        step += 16 * p;
    }
}

struct FloatHeader {
    uint64_t magic;
    int64_t n, k, bits;
    int64_t segment, segment_pad, segments;  // segments >= 1
    int64_t n_pad, k_pad;
    int64_t tables_of;                // 0: one table, 1: one a row, 2: one a segment of a row
    int64_t ramp;                     // the table is that of two's complement codes: 8-bit codes convert as integers
    int64_t short_table;              // one table, whose values bfloat16 holds exactly
    int64_t half_scale, half_offset;  // stored as float16
    int64_t has_offset, has_input_scale;
    int64_t total_bytes;
    int64_t table32, table16, scale, offset, inv_input, codes;  // byte offsets

    int64_t panels() const { return n_pad / kFloatPanelN; }
    int64_t tables() const { return tables_of == 0 ? 1 : tables_of == 1 ? n_pad : n_pad * segments; }
    int64_t entries32() const { return bits < 4 ? 16 : int64_t{1} << bits; }
    int64_t entries16() const { return bits < 5 ? 32 : int64_t{1} << bits; }
    int64_t scale_bytes() const { return half_scale ? 2 : 4; }
    int64_t offset_bytes() const { return half_offset ? 2 : 4; }
    int64_t panel_bytes() const { return k_pad / kFloatStepK * float_step_bytes(bits); }
    int64_t stored_bytes() const { return total_bytes - scale; }
};

struct FloatShape {
    int64_t n, k, bits, segment;
    int64_t tables_of;
    bool half_scale, half_offset, offset, input_scale;
};

// The one place that knows the offsets.
inline FloatHeader float_layout(const FloatShape& s) {
    FloatHeader h{};
    h.magic = kFloatMagic;
    h.n = s.n;
    h.k = s.k;
    h.bits = s.bits;
    h.segment = s.segment;
    h.segment_pad = round_up(s.segment, kFloatStepK);
    h.segments = s.segment > 0 ? ceil_div(s.k, s.segment) : 1;
    h.n_pad = round_up(s.n, kFloatPanelN);
    const int64_t last = s.k - (h.segments - 1) * s.segment;
    h.k_pad = (h.segments - 1) * h.segment_pad + round_up(last, kFloatStepK);
    h.tables_of = s.tables_of;
    h.half_scale = s.half_scale;
    h.half_offset = s.half_offset;
    h.has_offset = s.offset;
    h.has_input_scale = s.input_scale;
    Places place(64, sizeof(FloatHeader));
    const int64_t lanes = h.n_pad * h.segments;
    h.table32 = place(4 * h.tables() * h.entries32());
    h.table16 = place(2 * h.tables() * h.entries16());
    h.scale = place(h.scale_bytes() * lanes);
    h.offset = place(s.offset ? h.offset_bytes() * lanes : 0);
    h.inv_input = place(s.input_scale ? 4 * s.k : 0);
    h.codes = place(h.panels() * h.panel_bytes());
    h.total_bytes = place.total();
    return h;
}

// A checked view of a block: offsets are compared with what the shape implies; what the arrays hold can only change the
// numbers, since every code of `bits` bits is inside its table.
struct FloatView {
    const FloatHeader* header = nullptr;
    const char* base = nullptr;

    static bool valid(const void* data, int64_t bytes) {
        constexpr int64_t kMost = int64_t{1} << 31;
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(FloatHeader))) return false;
        const auto& h = *static_cast<const FloatHeader*>(data);
        if (h.magic != kFloatMagic || h.n < 0 || h.k < 0 || h.n > kMost || h.k > kMost) return false;
        if (h.bits < 1 || h.bits > kFloatMaxBits || h.segment < 0 || h.segment > h.k) return false;
        if ((h.segment == 0 && h.k > 0) || h.tables_of < 0 || h.tables_of > 2) return false;
        if ((h.ramp | h.short_table | h.half_scale | h.half_offset | h.has_offset | h.has_input_scale) & ~int64_t{1})
            return false;
        // Keeps every product below inside of 64 bits.
        if (ceil_div(h.k + 1, h.segment > 0 ? h.segment : 1) >
            (int64_t{1} << 50) / round_up(h.n + 1, kFloatPanelN) / 1024)
            return false;
        if (h.ramp && h.bits != 8) return false;
        // Tables of a panel are reached by 32-bit indices.
        if (h.tables_of == 2 && ceil_div(h.k, std::max<int64_t>(h.segment, 1)) > (1 << 16)) return false;
        const FloatHeader want = float_layout({h.n, h.k, h.bits, h.segment, h.tables_of, h.half_scale != 0,
                                               h.half_offset != 0, h.has_offset != 0, h.has_input_scale != 0});
        return h.segment_pad == want.segment_pad && h.segments == want.segments && h.n_pad == want.n_pad &&
               h.k_pad == want.k_pad && h.table32 == want.table32 && h.table16 == want.table16 &&
               h.scale == want.scale && h.offset == want.offset && h.inv_input == want.inv_input &&
               h.codes == want.codes && h.total_bytes == want.total_bytes && want.total_bytes <= bytes;
    }
    explicit FloatView(const void* data)
        : header(static_cast<const FloatHeader*>(data)), base(static_cast<const char*>(data)) {}

    template <class T>
    const T* at(int64_t offset) const {
        return reinterpret_cast<const T*>(base + offset);
    }
    const uint8_t* codes(int64_t panel) const { return at<uint8_t>(header->codes + panel * header->panel_bytes()); }
    // Scales of a panel from segment g on.
    const char* scale(int64_t panel, int64_t g) const {
        return base + header->scale + (panel * header->segments + g) * kFloatPanelN * header->scale_bytes();
    }
    const char* offset(int64_t panel, int64_t g) const {
        return base + header->offset + (panel * header->segments + g) * kFloatPanelN * header->offset_bytes();
    }
    // The tables that channel n of segment g looks its codes up in.
    int64_t table(int64_t n, int64_t g) const {
        const FloatHeader& h = *header;
        return h.tables_of == 0 ? 0 : h.tables_of == 1 ? n : n * h.segments + g;
    }
    const float* table32(int64_t t) const { return at<float>(header->table32) + t * header->entries32(); }
    const uint16_t* table16(int64_t t) const { return at<uint16_t>(header->table16) + t * header->entries16(); }
    const float* inv_input() const { return at<float>(header->inv_input); }
};

}  // namespace qk
