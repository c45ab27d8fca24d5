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
    __device__ __forceinline__ void store(int64_t m, int4 acc) const {
        int32_t a[kVector] = {acc.x, acc.y, acc.z, acc.w};
        const uint32_t sum = e_.w_zero != nullptr ? as_unsigned(e_.x_sum[m]) : 0u;
#pragma unroll
        for (int i = 0; i < kVector; ++i)
            a[i] = static_cast<int32_t>((as_unsigned(a[i]) << e_.acc_shift) - offset_[i] - w_zero_[i] * sum);
        if (e_.pack == Pack::threshold) {
            uint32_t bits = 0;
#pragma unroll
            for (int i = 0; i < kVector; ++i) {
                const int64_t c = channel_ + i;
                if (c < e_.n && (e_.flip[c] != 0 ? a[i] <= e_.threshold[c] : a[i] >= e_.threshold[c])) bits |= 1u << i;
            }
            return put_bits(m, bits);
        }
        if (e_.out_type == DType::i32) return put<int32_t>(m, a);
        if (is_byte()) {
            uint8_t codes[kVector];
#pragma unroll
            for (int i = 0; i < kVector; ++i) codes[i] = requantized(a[i], i);
            return put<uint8_t>(m, codes);
        }
        float y[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) y[i] = static_cast<float>(a[i]) * scale_[i];
        finish(m, y);
    }

    // Sums that are scaled already.
    __device__ __forceinline__ void store(int64_t m, float4 sum) const {
        float y[kVector] = {sum.x, sum.y, sum.z, sum.w};
        finish(m, y);
    }

  private:
    static __device__ __forceinline__ uint32_t as_unsigned(int32_t x) { return static_cast<uint32_t>(x); }
    __device__ __forceinline__ bool is_byte() const { return e_.out_type == DType::i8 || e_.out_type == DType::u8; }

    __device__ __forceinline__ uint8_t requantized(int32_t acc, int i) const {
        int64_t v;
        if (e_.rounding == Rounding::single)
            v = requant_single(acc, multiplier_[i], shift_[i]);
        else if (e_.rounding == Rounding::double_)
            v = requant_double(acc, multiplier_[i], shift_[i]);
        else
            v = requant_float(acc, scale_[i]);
        return static_cast<uint8_t>(clamp64(v + e_.out_zero, e_.lo, e_.hi));
    }

    __device__ __forceinline__ void finish(int64_t m, float (&y)[kVector]) const {
        const float x_scale = e_.x_scale != nullptr ? e_.x_scale[m] : 1.0f;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            y[i] = y[i] * x_scale;
            if (e_.bias != nullptr) y[i] = y[i] + bias_[i];  // without a bias -0 stays -0
            y[i] = activate(y[i], e_.activation);
        }
        if (e_.pack == Pack::sign) {
            uint32_t bits = 0;
#pragma unroll
            for (int i = 0; i < kVector; ++i)
                if (channel_ + i < e_.n && y[i] >= 0.0f) bits |= 1u << i;
            return put_bits(m, bits);
        }
        if (e_.out_type == DType::f32) return put<float>(m, y);
        if (e_.out_type == DType::bf16) return put<bf16>(m, y);
        put<f16>(m, y);
    }

    // Four bits of this thread and the four of the next, which has the channels beside: both call it.
    __device__ __forceinline__ void put_bits(int64_t m, uint32_t bits) const {
        static_assert(kVector == 4);
        const unsigned pair = 3u << (threadIdx.x % 32 & 30);
        const uint32_t other = __shfl_xor_sync(pair, bits, 1);
        if (channel_ % 8 == 0 && channel_ < e_.n)
            static_cast<uint8_t*>(e_.out)[m * e_.ldo + channel_ / 8] = static_cast<uint8_t>(bits | other << 4);
    }

    template <class T, class From>
    __device__ __forceinline__ void put(int64_t m, const From (&y)[kVector]) const {
        T* out = static_cast<T*>(e_.out) + m * e_.ldo + channel_;
        Quad<T> q;
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
            if constexpr (std::is_same_v<T, From>)
                q.at[i] = y[i];
            else
                q.at[i] = from_float<T>(y[i]);
        }
        if (e_.vector && channel_ + kVector <= e_.n) {
            *reinterpret_cast<Quad<T>*>(out) = q;
            return;
        }
#pragma unroll
        for (int i = 0; i < kVector; ++i)
            if (channel_ + i < e_.n) out[i] = q.at[i];
    }

    const Epilogue& e_;
    int64_t channel_;
    uint32_t offset_[kVector], w_zero_[kVector];
    int32_t multiplier_[kVector], shift_[kVector];
    float scale_[kVector], bias_[kVector];
};

}  // namespace qk::cuda
