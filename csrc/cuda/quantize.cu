// Activation quantization: a block a row, two passes where the row's own maximum is the scale. The second pass finds
// the row in L1 or L2. Memory-bound: 16-byte loads and 8-byte (float32: 4-byte) stores where addresses allow them.
#include "quantize.h"

#include "convert.h"
#include "ptx.h"
#include "reduce.h"

namespace qk::cuda {

namespace {

constexpr uint32_t kTinyAmax = (127u - 100u) << 23;  // below 2^-100 nothing is there to scale
constexpr uint32_t kNotFinite = 0x7f800000u;

template <class T>
struct alignas(16) Vector {
    static constexpr int kCount = 16 / sizeof(T);
    T at[kCount];
};

// Largest bit pattern of |x * inv_k|: float order for finite values, infinities and NaN above all of them.
template <class T>
__device__ uint32_t row_amax(const Quantize& q, const T* x, bool aligned, bool scaled) {
    constexpr int kCount = Vector<T>::kCount;
    uint32_t most = 0;
    auto take = [&](T value, int64_t i) {
        float v = to_float(value);
        if (scaled) v = v * q.inv_k[i];
        const uint32_t bits = __float_as_uint(v) & 0x7fffffffu;
        most = most > bits ? most : bits;
    };
    const int64_t vectors = aligned ? q.k / kCount : 0;
    for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
        const Vector<T> v = reinterpret_cast<const Vector<T>*>(x)[i];
#pragma unroll
        for (int j = 0; j < kCount; ++j) take(v.at[j], i * kCount + j);
    }
    for (int64_t i = vectors * kCount + threadIdx.x; i < q.k; i += blockDim.x) take(x[i], i);
    return most;
}

__device__ uint32_t block_max(uint32_t value, uint32_t* scratch) {
    return block_reduce(value, scratch, 0u, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}

__device__ float scale_of(uint32_t amax_bits, int32_t largest) {
    if (amax_bits >= kNotFinite) return __uint_as_float(0x7fc00000u);
    return amax_bits < kTinyAmax ? 1.0f : __uint_as_float(amax_bits) / static_cast<float>(largest);
}

template <class T>
__global__ void amax_rows(const Quantize q, bool aligned) {
    auto* scratch = reinterpret_cast<uint32_t*>(shared_memory());
    const T* x = static_cast<const T*>(q.x) + blockIdx.x * q.ldx;
    const uint32_t most = block_max(row_amax(q, x, aligned, q.inv_k != nullptr), scratch);
    if (threadIdx.x == 0) atomicMax(q.tensor_bits, most);
}

// Sums of a row's codes, group by group: lanes have four codes at a time, 8 or 16 lanes of a warp a group where all
// have no more.
__device__ void sum_groups(const Quantize& q, const uint8_t* codes, int64_t row) {
    const int64_t words = q.group_positions / 4;
    const int width = words >= 32 ? 32 : (words >= 16 ? 16 : 8), lane = threadIdx.x % width;
    const bool is_signed = q.lo < 0;
    for (int64_t first = 0; first < q.groups; first += blockDim.x / width) {
        const int64_t group = first + threadIdx.x / width;
        int32_t sum = 0;
        for (int64_t i = lane; i < words && group < q.groups; i += width) {
            const uint32_t word = reinterpret_cast<const uint32_t*>(codes)[group * words + i];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                const uint32_t c = word >> (8 * j) & 255u;
                sum += is_signed ? static_cast<int32_t>(static_cast<int8_t>(c)) : static_cast<int32_t>(c);
            }
        }
        for (int bits = width / 2; bits > 0; bits /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, bits);
        if (lane == 0 && group < q.groups) q.group_sums[group * q.m_pad + row] = sum;
    }
}

template <class T>
__global__ void quantize_rows(const Quantize q, bool aligned) {
    constexpr int kCount = Vector<T>::kCount;
    let_next_start();  // a GEMM, which loads weights until this kernel ends
    auto* scratch = reinterpret_cast<uint32_t*>(shared_memory());
    const int64_t row = blockIdx.x;
    const T* x = static_cast<const T*>(q.x) + row * q.ldx;
    uint8_t* out = q.codes + row * q.ldo;
    const bool per_k = q.inv_k != nullptr;
    for (int64_t i = row * blockDim.x + threadIdx.x; i < q.clear_count; i += q.m * blockDim.x) q.clear[i] = 0;

    float scale = q.mode == InputMode::static_tensor ? q.scale : 1.0f;
    if (q.mode == InputMode::dynamic_token)
        scale = scale_of(block_max(row_amax(q, x, aligned, per_k), scratch), q.largest);
    if (q.mode == InputMode::dynamic_tensor) scale = scale_of(*q.tensor_bits, q.largest);
    const float inv = 1.0f / scale, zero = static_cast<float>(q.zero);
    const float lo = static_cast<float>(q.lo), hi = static_cast<float>(q.hi);

    uint32_t most = 0;
    int32_t sum = 0;
    auto code = [&](T value, int64_t i) -> uint8_t {
        const float v = to_float(value);
        const uint32_t bits = __float_as_uint(v) & 0x7fffffffu;
        most = most > bits ? most : bits;
        const float y = rintf((per_k ? v * q.inv_k[i] : v) * inv) + zero;
        const int32_t c = static_cast<int32_t>(fminf(fmaxf(y, lo), hi));  // NaN becomes lo
        sum += c;
        return static_cast<uint8_t>(c);
    };
    const int64_t vectors = aligned && q.padded.group == 0 ? q.k / kCount : 0;
    for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
        const Vector<T> v = reinterpret_cast<const Vector<T>*>(x)[i];
        uint32_t words[kCount / 4];
#pragma unroll
        for (int j = 0; j < kCount; ++j) {
            const uint32_t c = code(v.at[j], i * kCount + j);
            words[j / 4] = j % 4 == 0 ? c : words[j / 4] | c << (j % 4 * 8);
        }
#pragma unroll
        for (int j = 0; j < kCount / 4; ++j) reinterpret_cast<uint32_t*>(out)[i * (kCount / 4) + j] = words[j];
    }
    for (int64_t i = vectors * kCount + threadIdx.x; i < q.k_pad; i += blockDim.x) {
        const int64_t k = q.padded.element(static_cast<uint32_t>(i), q.k);
        out[i] = k >= 0 ? code(x[k], k) : static_cast<uint8_t>(0);
    }

    const bool looks = q.mode == InputMode::static_tensor || q.mode == InputMode::channel;
    if (looks) {
        most = block_max(most, scratch);
        if (most >= kNotFinite) scale = __uint_as_float(0x7fc00000u);
    }
    if (q.sums != nullptr) {
        sum = block_reduce(sum, reinterpret_cast<int32_t*>(scratch), 0, [](int32_t a, int32_t b) { return a + b; });
        if (threadIdx.x == 0) q.sums[row] = sum;
    }
    if (threadIdx.x == 0 && q.scales != nullptr) q.scales[row] = scale;
    if (q.group_sums != nullptr) {
        __syncthreads();  // the row's codes are there for all
        sum_groups(q, out, row);
    }
}

template <class T>
void quantize_type(const Quantize& q, Stream stream) {
    const bool aligned = reinterpret_cast<uintptr_t>(q.x) % 16 == 0 && q.ldx * sizeof(T) % 16 == 0 &&
                         reinterpret_cast<uintptr_t>(q.codes) % 8 == 0 && q.ldo % 8 == 0;
    const int64_t work = ceil_div(q.k_pad, Vector<T>::kCount);
    const dim3 grid(static_cast<unsigned>(q.m)), block(work <= 64 ? 64 : work <= 256 ? 128 : 256);
    if (q.mode == InputMode::dynamic_tensor) {
        fill_bytes(q.tensor_bits, 0, 4, stream);
        launch(amax_rows<T>, grid, block, 32 * 4, stream, q, aligned);
    }
    launch(quantize_rows<T>, grid, block, 32 * 4, stream, q, aligned);
}

}  // namespace

void quantize(const Quantize& q, Stream stream) {
    if (q.m == 0) return;
    switch (q.x_type) {
        case DType::f32: return quantize_type<float>(q, stream);
        case DType::bf16: return quantize_type<bf16>(q, stream);
        default: return quantize_type<f16>(q, stream);
    }
}

}  // namespace qk::cuda
