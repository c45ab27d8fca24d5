// The epilogue of epilogue.h. A thread has kVector neighbouring channels, whose constants it loads once, and goes over
// tokens of the tile.
#pragma once

#include <type_traits>

#include "../common/fixed_point.h"
#include "activation.h"
#include "convert.h"
#include "epilogue.h"

namespace qk::cuda {

template <class T>
struct alignas(sizeof(T) * kVector) Quad {
    T at[kVector];
};

class ChannelEpilogue {
  public:
    // `channel`: the first of kVector.
    __device__ __forceinline__ ChannelEpilogue(const Epilogue& e, int64_t channel) : e_(e), channel_(channel) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            const int64_t c = channel + i;
            const bool real = c < e.n;
            // Modulo 2^32 throughout: a result fits int32, its parts need not.
            offset_[i] = real && e.x_zero != 0 ? as_unsigned(e.x_zero) * as_unsigned(e.x_offset[c]) : 0u;
            w_zero_[i] = real && e.w_zero != nullptr ? as_unsigned(e.w_zero[c]) : 0u;
            if (is_byte()) {
                if (real && e.bias_i32 != nullptr) offset_[i] -= as_unsigned(e.bias_i32[c]);
                if (e.rounding == Rounding::float_) {
                    scale_[i] = real ? e.requant_scale[c] : 0.0f;
                } else {
                    multiplier_[i] = real ? e.multiplier[c] : 0;
                    shift_[i] = real ? e.shift[c] : 0;
                }
            } else {
                scale_[i] = real && e.w_scale != nullptr ? e.w_scale[c] : 1.0f;
                bias_[i] = real && e.bias != nullptr ? e.bias[c] : 0.0f;
            }
        }
    }

    // Accumulators of token m.
    __device__ __forceinline__ void store(int64_t m, int4 acc) const { store_rows<1>(m, 1, m + 1, {acc}); }

    // Of tokens m, m + step, ..., those below `end`: ROWS independent chains of instructions.
    template <int ROWS>
    __device__ __forceinline__ void store_rows(int64_t m, int64_t step, int64_t end, const int4 (&acc)[ROWS]) const {
        int32_t a[ROWS][kVector];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const bool real = ROWS == 1 || m + r * step < end;
            const uint32_t sum = e_.w_zero != nullptr && real ? as_unsigned(e_.x_sum[m + r * step]) : 0u;
            const int32_t v[kVector] = {acc[r].x, acc[r].y, acc[r].z, acc[r].w};
#pragma unroll
            for (int i = 0; i < kVector; ++i)
                a[r][i] = static_cast<int32_t>((as_unsigned(v[i]) << e_.acc_shift) - offset_[i] - w_zero_[i] * sum);
        }
        if constexpr (ROWS == 1) {  // products of signs, row by row
            if (e_.pack == Pack::threshold) {
                uint32_t bits = 0;
#pragma unroll
                for (int i = 0; i < kVector; ++i) {
                    const int64_t c = channel_ + i;
                    if (c < e_.n && (e_.flip[c] != 0 ? a[0][i] <= e_.threshold[c] : a[0][i] >= e_.threshold[c]))
                        bits |= 1u << i;
                }
                return put_bits(m, bits);
            }
        }
        if (e_.out_type == DType::i32) return put<int32_t>(m, step, end, a);
        if (is_byte()) {
            uint8_t codes[ROWS][kVector];
            requantize(a, codes);
            return put<uint8_t>(m, step, end, codes);
        }
        float y[ROWS][kVector];
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
            for (int i = 0; i < kVector; ++i) y[r][i] = static_cast<float>(a[r][i]) * scale_[i];
        finish(m, step, end, y);
    }

    // Sums that are scaled already.
    __device__ __forceinline__ void store(int64_t m, float4 sum) const {
        float y[1][kVector] = {{sum.x, sum.y, sum.z, sum.w}};
        finish(m, 1, m + 1, y);
    }

  private:
    static __device__ __forceinline__ uint32_t as_unsigned(int32_t x) { return static_cast<uint32_t>(x); }
    __device__ __forceinline__ bool is_byte() const { return e_.out_type == DType::i8 || e_.out_type == DType::u8; }

    // What every row does alike is decided once, outside of the loops.
    template <int ROWS>
    __device__ __forceinline__ void requantize(const int32_t (&acc)[ROWS][kVector],
                                               uint8_t (&codes)[ROWS][kVector]) const {
        auto all = [&](auto requant) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int i = 0; i < kVector; ++i)
                    codes[r][i] =
                        static_cast<uint8_t>(clamp64(int64_t{requant(acc[r][i], i)} + e_.out_zero, e_.lo, e_.hi));
        };
        if (e_.rounding == Rounding::single)
            all([&](int32_t a, int i) { return requant_single(a, multiplier_[i], shift_[i]); });
        else if (e_.rounding == Rounding::double_)
            all([&](int32_t a, int i) { return requant_double(a, multiplier_[i], shift_[i]); });
        else
            all([&](int32_t a, int i) { return requant_float(a, scale_[i]); });
    }

    template <int ROWS>
    __device__ __forceinline__ void finish(int64_t m, int64_t step, int64_t end, float (&y)[ROWS][kVector]) const {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const bool real = ROWS == 1 || m + r * step < end;
            const float x_scale = e_.x_scale != nullptr && real ? e_.x_scale[m + r * step] : 1.0f;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                y[r][i] = y[r][i] * x_scale;
                if (e_.bias != nullptr) y[r][i] = y[r][i] + bias_[i];  // without a bias -0 stays -0
            }
        }
        if (e_.activation != Activation::none) {
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int i = 0; i < kVector; ++i) y[r][i] = activate(y[r][i], e_.activation);
        }
        if constexpr (ROWS == 1) {
            if (e_.pack == Pack::sign) {
                uint32_t bits = 0;
#pragma unroll
                for (int i = 0; i < kVector; ++i)
                    if (channel_ + i < e_.n && y[0][i] >= 0.0f) bits |= 1u << i;
                return put_bits(m, bits);
            }
        }
        if (e_.out_type == DType::f32) return put<float>(m, step, end, y);
        if (e_.out_type == DType::bf16) return put<bf16>(m, step, end, y);
        put<f16>(m, step, end, y);
    }

    // Four bits of this thread and the four of the next, which has the channels beside: both call it.
    __device__ __forceinline__ void put_bits(int64_t m, uint32_t bits) const {
        static_assert(kVector == 4);
        const unsigned pair = 3u << (threadIdx.x % 32 & 30);
        const uint32_t other = __shfl_xor_sync(pair, bits, 1);
        if (channel_ % 8 == 0 && channel_ < e_.n)
            static_cast<uint8_t*>(e_.out)[m * e_.ldo + channel_ / 8] = static_cast<uint8_t>(bits | other << 4);
    }

    template <class T, int ROWS, class From>
    __device__ __forceinline__ void put(int64_t m, int64_t step, int64_t end, const From (&y)[ROWS][kVector]) const {
        T* out = static_cast<T*>(e_.out) + m * e_.ldo + channel_;
#pragma unroll
        for (int r = 0; r < ROWS; ++r, out += step * e_.ldo) {
            if (ROWS > 1 && m + r * step >= end) return;
            Quad<T> q;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                if constexpr (std::is_same_v<T, From>)
                    q.at[i] = y[r][i];
                else
                    q.at[i] = from_float<T>(y[r][i]);
            }
            if (e_.vector && channel_ + kVector <= e_.n) {
                *reinterpret_cast<Quad<T>*>(out) = q;
            } else {
#pragma unroll
                for (int i = 0; i < kVector; ++i)
                    if (channel_ + i < e_.n) out[i] = q.at[i];
            }
        }
    }

    const Epilogue& e_;
    int64_t channel_;
    uint32_t offset_[kVector], w_zero_[kVector];
    int32_t multiplier_[kVector], shift_[kVector];
    float scale_[kVector], bias_[kVector];
};

}  // namespace qk::cuda
