// From a weight's codes to the compute layout of common/float_layout.h. Done once a weight, by plain loops.
#include <algorithm>

#include "gemm_float.h"

namespace qk {

namespace {

uint16_t to_bf16(float v) {  // round to nearest even, of finite numbers
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Of a number that float16 holds exactly.
uint16_t to_half(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    const uint32_t sign = bits >> 16 & 0x8000, mantissa = bits & 0x7fffff;
    const int exponent = static_cast<int>(bits >> 23 & 255) - 127;
    if (exponent >= -14) return static_cast<uint16_t>(sign | (exponent + 15) << 10 | mantissa >> 13);
    if (exponent < -24) return static_cast<uint16_t>(sign);
    return static_cast<uint16_t>(sign | (0x800000 | mantissa) >> (-exponent - 1));
}

void put_scale(char* to, bool half, float v) {
    if (half) {
        const uint16_t bits = to_half(v);
        std::memcpy(to, &bits, 2);
    } else {
        std::memcpy(to, &v, 4);
    }
}

}  // namespace

int64_t packed_float_bytes(const FloatSource& s) { return float_layout(s.shape).total_bytes; }

void prepack_float(const FloatSource& s, void* out) {
    FloatHeader h = float_layout(s.shape);
    h.ramp = s.ramp;
    char* base = static_cast<char*>(out);
    std::memset(base, 0, h.total_bytes);
    const int64_t values = int64_t{1} << h.bits, given = h.tables_of == 0 ? 1 : h.tables_of == 1 ? h.n : h.n * h.segments;
    auto* table32 = reinterpret_cast<float*>(base + h.table32);
    auto* table16 = reinterpret_cast<uint16_t*>(base + h.table16);
    for (int64_t t = 0; t < given; ++t) {
        for (int64_t i = 0; i < h.entries32(); ++i) table32[t * h.entries32() + i] = s.table[t * values + i % values];
        for (int64_t i = 0; i < h.entries16(); ++i)
            table16[t * h.entries16() + i] = to_bf16(s.table[t * values + i % values]);
    }
    const int bits = static_cast<int>(h.bits), step_bytes = float_step_bytes(bits);
    for (int64_t n = 0; n < h.n; ++n) {
        const int64_t panel = n / kFloatPanelN;
        const int c = static_cast<int>(n % kFloatPanelN);
        auto* codes = reinterpret_cast<uint8_t*>(base + h.codes + panel * h.panel_bytes());
        for (int64_t g = 0; g < h.segments; ++g) {
            const int64_t from = n * s.row_step + g * s.part_step, lane = (panel * h.segments + g) * kFloatPanelN + c;
            put_scale(base + h.scale + lane * h.scale_bytes(), h.half_scale, s.scale[from]);
            if (s.offset != nullptr)
                put_scale(base + h.offset + lane * h.offset_bytes(), h.half_offset, s.offset[from]);
            const int64_t end = std::min(h.k, (g + 1) * std::max<int64_t>(h.segment, 1));
            for (int64_t k = g * h.segment, at = g * h.segment_pad; k < end; ++k, ++at)
                put_code_of_step(codes + at / kFloatStepK * step_bytes, bits, c, static_cast<int>(at % kFloatStepK),
                                 s.index[n * h.k + k]);
        }
    }
    if (s.input_scale != nullptr) {
        auto* inv = reinterpret_cast<float*>(base + h.inv_input);
        for (int64_t i = 0; i < h.k; ++i) inv[i] = 1.0f / s.input_scale[i];
    }
    std::memcpy(base, &h, sizeof h);
}

}  // namespace qk
