#include "quantize.h"

#include <atomic>
#include <cstring>

#include "parallel.h"

namespace qk {

namespace {

const char* row_of(const void* x, DType type, int64_t ldx, int64_t row) {
    const int64_t bytes = type == DType::f32 ? 4 : 2;
    return static_cast<const char*>(x) + row * ldx * bytes;
}

void keep_first(std::atomic<int64_t>& first, int64_t row) {
    int64_t seen = first.load(std::memory_order_relaxed);
    while ((seen < 0 || row < seen) && !first.compare_exchange_weak(seen, row)) {
    }
}

// Threads for a pass that only moves bytes: one until 256 KB are touched.
int threads_for_bytes(int threads, int64_t bytes) {
    return static_cast<int>(std::clamp<int64_t>(bytes >> 17, 1, threads));
}

}  // namespace

float dynamic_scale(uint32_t amax_bits, int largest) {
    if (amax_bits < kTinyAmax) return 1.0f;
    float amax;
    std::memcpy(&amax, &amax_bits, 4);
    return amax / static_cast<float>(largest);
}

float fixed_scale(const InputQuant& q, uint32_t tensor_bits) {
    if (q.mode == InputMode::static_tensor) return q.scale;
    return q.mode == InputMode::dynamic_tensor ? dynamic_scale(tensor_bits, q.largest()) : 1.0f;
}

int64_t quantize_rows(const Kernels& isa, const void* x, DType x_type, int64_t k, int64_t ldx, int64_t row_begin,
                      int64_t row_end, const InputQuant& q, const float* inv_k, uint32_t tensor_bits, uint8_t flip,
                      uint8_t* codes, int64_t ldo, float* scales) {
    const int type = static_cast<int>(x_type);
    QuantizeRow row;
    row.zero = static_cast<int16_t>(q.zero_point);
    row.is_signed = q.is_signed;
    row.lo = static_cast<int16_t>(q.lo());
    row.hi = static_cast<int16_t>(q.hi());
    row.flip = flip;
    row.inv_k = inv_k;
    row.check = q.mode == InputMode::static_tensor || q.mode == InputMode::channel;
    float scale = fixed_scale(q, tensor_bits);
    int64_t bad = q.mode == InputMode::dynamic_tensor && tensor_bits >= kNotFinite ? row_begin : -1;
    for (int64_t m = row_begin; m < row_end; ++m) {
        const char* data = row_of(x, x_type, ldx, m);
        uint32_t bits = 0;
        if (q.mode == InputMode::dynamic_token) {
            bits = isa.amax[type](data, k, inv_k);
            scale = dynamic_scale(bits, q.hi());
            scales[m] = scale;
        }
        row.inv = 1.0f / scale;
        bits = std::max(bits, isa.quantize[type](data, k, row, codes + m * ldo));
        if (bits >= kNotFinite && bad < 0) bad = m;
    }
    return bad;
}

int64_t quantize_power_rows(const Kernels& isa, const void* x, DType x_type, int64_t k, int64_t ldx, int64_t row_begin,
                            int64_t row_end, const InputQuant& q, const float* inv_k, uint32_t tensor_bits,
                            PowerForm form, uint8_t flip, uint8_t* codes, uint8_t* low, int64_t ldo, float* scales) {
    const int type = static_cast<int>(x_type);
    PowerRow row;
    row.inv_k = inv_k;
    row.is_signed = q.is_signed;
    row.largest = static_cast<int16_t>(q.hi());
    row.flip = flip;
    row.form = form;
    float scale = fixed_scale(q, tensor_bits);
    int64_t bad = -1;
    for (int64_t m = row_begin; m < row_end; ++m) {
        const char* data = row_of(x, x_type, ldx, m);
        if (q.mode == InputMode::dynamic_token)
            scales[m] = scale = dynamic_scale(isa.amax[type](data, k, inv_k), q.largest());
        row.inv = 1.0f / scale;
        const int64_t at = m * ldo;
        const uint32_t bits = isa.quantize_power[type](data, k, row, codes + at, low == nullptr ? nullptr : low + at);
        if (bits >= kNotFinite && bad < 0) bad = m;
    }
    return bad;
}

uint32_t amax_tensor(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                     const float* inv_k, int threads) {
    std::atomic<uint32_t> bits{0};
    const int64_t chunk = std::max<int64_t>(1, (32 << 10) / std::max<int64_t>(k, 1));
    parallel_for(m * k > (64 << 10) ? threads : 1, ceil_div(m, chunk), [&](int64_t unit) {
        uint32_t found = 0;
        for (int64_t row = unit * chunk; row < std::min(m, unit * chunk + chunk); ++row)
            found = std::max(found, isa.amax[static_cast<int>(x_type)](row_of(x, x_type, ldx, row), k, inv_k));
        uint32_t seen = bits.load(std::memory_order_relaxed);
        while (found > seen && !bits.compare_exchange_weak(seen, found)) {
        }
    });
    return bits.load();
}

int64_t quantize_activations(const Kernels& isa, const void* x, DType x_type, int64_t m, int64_t k, int64_t ldx,
                             const InputQuant& q, const float* inv_k, uint8_t* codes, float* scales, int threads) {
    threads = threads_for_bytes(threads, m * k * (x_type == DType::f32 ? 4 : 2));
    uint32_t tensor_bits = 0;
    if (q.mode == InputMode::dynamic_tensor) tensor_bits = amax_tensor(isa, x, x_type, m, k, ldx, inv_k, threads);
    if (q.mode != InputMode::dynamic_token) scales[0] = fixed_scale(q, tensor_bits);
    std::atomic<int64_t> bad{-1};
    parallel_for(threads, m, [&](int64_t row) {
        const int64_t found =
            q.power ? quantize_power_rows(isa, x, x_type, k, ldx, row, row + 1, q, inv_k, tensor_bits, PowerForm::codes,
                                          0, codes, nullptr, k, scales)
                    : quantize_rows(isa, x, x_type, k, ldx, row, row + 1, q, inv_k, tensor_bits, 0, codes, k, scales);
        if (found >= 0) keep_first(bad, found);
    });
    return bad.load();
}

void dequantize(const Kernels& isa, const uint8_t* codes, int64_t m, int64_t k, int64_t ldx, const float* table,
                const float* scales, int64_t scale_step, DType out_type, void* out, int threads) {
    const int64_t bytes = out_type == DType::f32 ? 4 : 2;
    // Pieces of rows: one long row is work for all threads too.
    const int64_t piece = 16 << 10, pieces = ceil_div(k, piece);
    parallel_for(threads_for_bytes(threads, m * k * (1 + bytes)), m * pieces, [&](int64_t unit) {
        const int64_t row = unit / pieces, from = unit % pieces * piece;
        isa.dequantize[static_cast<int>(out_type)](codes + row * ldx + from, std::min(piece, k - from), table,
                                                   scales[row * scale_step],
                                                   static_cast<char*>(out) + (row * k + from) * bytes);
    });
}

}  // namespace qk
