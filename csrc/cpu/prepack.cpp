// From a weight's codes to the compute layout of common/gemm_layout.h. Done once a weight, by plain loops.
#include <cstring>

#include "gemm.h"

namespace qk {

namespace {

// Stores the unsigned code u of channel c (0..63) and k i (0..3) in the planes of one step.
void put(uint8_t* step, int bits, int c, int i, unsigned u) {
    if (bits == 8) {
        step[c * kStepK + i] = static_cast<uint8_t>(u);
        return;
    }
    if (bits & 4) {
        step[c % 32 * 4 + i] |= static_cast<uint8_t>((u & 15) << (c / 32 * 4));
        step += 128;
        u >>= 4;
    }
    if (bits & 2) {
        step[c % 16 * 4 + i] |= static_cast<uint8_t>((u & 3) << (c / 16 * 2));
        step += 64;
        u >>= 2;
    }
    if (bits & 1) step[(c * 4 + i) / 8] |= static_cast<uint8_t>((u & 1) << ((c * 4 + i) % 8));
}

// What is stored for a code: int8 and indices as they are, +-1 as a bit, else code + 2^(b-1).
unsigned stored(const PrepackSource& s, int bits, int code) {
    if (bits == 8 || s.lookup != nullptr) return static_cast<uint8_t>(code);
    return bits == 1 ? code > 0 : static_cast<unsigned>(code + (1 << (bits - 1)));
}

// The index that decodes to 0, or -1.
int index_of_zero(const int8_t* lookup, int bits) {
    int i = (1 << bits) - 1;
    while (i >= 0 && lookup[i] != 0) --i;
    return i;
}

int row_bits(const PrepackSource& s, int64_t row) { return s.row_bits != nullptr ? s.row_bits[row] : s.bits; }

// Width of the codes of a panel: rows come sorted by width, the widest of a panel counts.
int panel_bits(const PrepackSource& s, int64_t panel) {
    int bits = 1;
    for (int64_t p = panel * kPanelN; p < std::min(s.shape.n, (panel + 1) * kPanelN); ++p)
        bits = std::max(bits, row_bits(s, s.columns != nullptr ? s.columns[p] : p));
    return bits;
}

}  // namespace

int64_t packed_bytes(const PrepackSource& s) {
    return gemm_layout(s.shape, [&](int64_t p) { return panel_bits(s, p); }).total_bytes;
}

void prepack(const PrepackSource& s, void* out) {
    GemmHeader h = gemm_layout(s.shape, [&](int64_t p) { return panel_bits(s, p); });
    char* base = static_cast<char*>(out);
    std::memset(base, 0, h.total_bytes);
    auto* table = reinterpret_cast<Panel*>(base + h.table);
    auto* init = reinterpret_cast<int32_t*>(base + h.init128);
    auto* colsum = reinterpret_cast<int32_t*>(base + h.colsum);
    auto* zero = reinterpret_cast<int32_t*>(base + h.zero_point);
    auto* scales = reinterpret_cast<float*>(base + h.scale);
    auto* offsets = reinterpret_cast<uint8_t*>(base + h.offset);
    const int64_t parts = h.parts();
    h.exact_padding = 1;
    const bool lookup = s.lookup != nullptr;
    if (lookup) std::memcpy(h.lookup, s.lookup, sizeof h.lookup);
    int64_t at = h.codes;
    for (int64_t p = 0; p < h.panels(); ++p) {
        const int bits = panel_bits(s, p);
        table[p] = {bits, at};
        auto* panel = reinterpret_cast<uint8_t*>(base + at);
        at = round_up(at + h.k_pad / kStepK * step_bytes(bits), 64);
        for (int c = 0; c < kPanelN; ++c) {
            const int64_t position = p * kPanelN + c;
            const bool real = position < h.n;
            const int64_t row = !real ? 0 : s.columns != nullptr ? s.columns[position] : position;
            int32_t total = 0;
            for (int64_t part = 0; part < parts; ++part) {
                const int64_t lane = (p * parts + part) * kPanelN + c;
                const int zp =
                    real && s.zero_point != nullptr ? s.zero_point[row * s.row_step + part * s.part_step] : 0;
                // Narrow codes subtract their zero point as they are decoded; 8-bit ones would leave int8.
                const int lessen = bits == 8   ? 0
                                   : lookup    ? index_of_zero(s.lookup, bits)
                                   : bits == 1 ? 1
                                               : zp + (1 << (bits - 1));
                if (!lookup) offsets[lane] = static_cast<uint8_t>(lessen);
                if (bits == 8) zero[position] = zp;
                if (real) scales[lane] = s.scale[row * s.row_step + part * s.part_step];
                const int64_t begin = s.shape.grouped ? part * h.segment : 0;
                const int64_t end = s.shape.grouped ? std::min(begin + h.segment, h.k) : h.k;
                int32_t sum = 0;
                for (int64_t k = begin; k < end && real; ++k) {
                    const int code = s.codes[row * h.k + k];
                    const int64_t to = h.padded(k);
                    put(panel + to / kStepK * step_bytes(bits), bits, c, static_cast<int>(to % kStepK),
                        stored(s, bits, code));
                    sum += lookup ? s.lookup[code & (kLookupSize - 1)] : code - (bits == 8 ? 0 : zp);
                }
                colsum[lane] = sum;
                total += sum;
                // The padding of a group shall decode to 0, and of channels too: both as far as a code does.
                const bool code_for_zero = bits == 8 || (lessen >= 0 && lessen < 1 << bits && bits > 1);
                const int64_t pad_end = s.shape.grouped ? std::min((part + 1) * h.segment_pad, h.k_pad) : h.k_pad;
                const int64_t pad_begin = s.shape.grouped ? part * h.segment_pad + (end - begin) : 0;
                if (!code_for_zero && s.shape.grouped && pad_begin < pad_end) h.exact_padding = 0;
                for (int64_t to = pad_begin; to < pad_end && code_for_zero && s.shape.grouped && bits < 8; ++to)
                    put(panel + to / kStepK * step_bytes(bits), bits, c, static_cast<int>(to % kStepK),
                        static_cast<unsigned>(lessen));
            }
            init[position] =
                static_cast<int32_t>(128u * static_cast<uint32_t>(h.k) * static_cast<uint32_t>(zero[position]) -
                                     128u * static_cast<uint32_t>(total));
        }
    }
    if (s.columns != nullptr) std::memcpy(base + h.columns, s.columns, 4 * h.n);
    if (s.input_scale != nullptr) {
        auto* inv = reinterpret_cast<float*>(base + h.inv_input);
        for (int64_t i = 0; i < h.k; ++i) inv[i] = 1.0f / s.input_scale[i];
    }
    std::memcpy(base, &h, sizeof h);
}

}  // namespace qk
