#include "conv_rows.h"

#include <algorithm>
#include <atomic>

#include "parallel.h"
#include "scratch.h"

namespace qk {

namespace {

int64_t bytes_of(DType type) { return type == DType::f32 ? 4 : type == DType::i8 || type == DType::u8 ? 1 : 2; }

}  // namespace

ConvRows::ConvRows(const Kernels& isa, const ConvKernels& leaf, const ConvView& w, const ConvCall& call)
    : isa_(isa), leaf_(leaf), shape_(call.shape), x_(call.x), quant_(call.quant), input_scale_(call.input_scale) {
    const ConvHeader& h = *w.header;
    const ConvShape& s = shape_;
    kind_ = w.kind();
    groups_ = h.groups;
    per_group_ = h.per_group;
    channels_ = groups_ * per_group_;
    repeat_ = kind_ == ConvKind::depthwise ? h.n / groups_ : 1;
    floats_ = x_.type != DType::i8 && x_.type != DType::u8;
    nhwc_ = x_.stride_c == 1 || channels_ == 1;
    flip_ = quant_.is_signed ? 0x80 : 0;
    zero_ = static_cast<uint8_t>(quant_.zero_point + (quant_.is_signed ? 128 : 0));
    pixel_ = kind_ == ConvKind::depthwise ? round_up(h.n, kBlockC)
             : kind_ == ConvKind::rows    ? channels_
                                          : groups_ * round_up(per_group_, kStepK);
    span_ = s.out_width > 0 ? (s.out_width - 1) * s.stride_w + (h.kernel_w - 1) * s.dilation_w + 1 : 0;
    left_ = std::min(s.pad_left, span_);
    count_ = std::clamp<int64_t>(span_ - left_, 0, s.width);
    bytes_ = round_up(span_ * pixel_ + kBlockC, 64) + 64;  // segments and vectors may read past the last pixel
    const bool padded = s.pad_top > 0 || s.pad_left > 0 || span_ > s.width ||
                        (s.out_height - 1) * s.stride_h + (h.kernel_h - 1) * s.dilation_h + 1 > s.height;
    direct_ = kind_ != ConvKind::depthwise && x_.type == DType::u8 && !quant_.is_signed && nhwc_ && !padded &&
              x_.stride_w == pixel_ && per_group_ % kStepK == 0;
    temporary_ = round_up(count_ * channels_ + 64, 64) + (nhwc_ ? 0 : round_up(count_ * channels_ + 64, 64)) +
                 round_up(repeat_ > 1 ? h.n : 0, 64) + round_up(4 * count_, 64);
    constants_ = round_up(bytes_, 64) + round_up(input_scale_ ? 4 * channels_ * std::max<int64_t>(count_, 1) : 0, 64);
}

void ConvRows::prepare(void* space) {
    empty_ = static_cast<uint8_t*>(space);
    std::memset(empty_, 0, bytes_);
    for (int64_t p = 0; p < span_; ++p) {
        uint8_t* to = empty_ + p * pixel_;
        if (kind_ == ConvKind::rows || kind_ == ConvKind::depthwise) {
            std::memset(to, zero_, pixel_);
        } else {
            const int64_t padded = round_up(per_group_, kStepK);
            for (int64_t g = 0; g < groups_; ++g) std::memset(to + g * padded, zero_, per_group_);
        }
    }
    if (input_scale_ != nullptr) {
        inverse_ = reinterpret_cast<float*>(static_cast<char*>(space) + round_up(bytes_, 64));
        for (int64_t c = 0; c < channels_; ++c) inverse_[c] = 1.0f / input_scale_[c];
        for (int64_t p = 1; p < count_; ++p) std::memcpy(inverse_ + p * channels_, inverse_, 4 * channels_);
    }
}

float ConvRows::set_scale(uint32_t amax_bits) {
    const float scale = fixed_scale(quant_, amax_bits);
    inv_ = 1.0f / scale;
    return scale;
}

QuantizeRow ConvRows::row_rule() const {
    QuantizeRow rule;
    rule.inv = inv_;
    rule.zero = static_cast<int16_t>(quant_.zero_point);
    rule.is_signed = quant_.is_signed;
    rule.lo = static_cast<int16_t>(quant_.lo());
    rule.hi = static_cast<int16_t>(quant_.hi());
    rule.flip = flip_;
    rule.check = quant_.mode != InputMode::dynamic_tensor;
    return rule;
}

// count_ pixels of `channels_` codes, side by side.
uint32_t ConvRows::codes_nhwc(const char* from, uint8_t* out) const {
    const int64_t size = bytes_of(x_.type);
    const bool run = x_.stride_w == channels_;
    const int64_t pieces = run ? 1 : count_, length = run ? count_ * channels_ : channels_;
    uint32_t bits = 0;
    QuantizeRow rule = row_rule();
    rule.inv_k = inverse_;
    for (int64_t p = 0; p < pieces; ++p, from += x_.stride_w * size, out += channels_) {
        if (floats_) {
            bits = std::max(bits, isa_.quantize[static_cast<int>(x_.type)](from, length, rule, out));
        } else {
            isa_.flip_codes(reinterpret_cast<const uint8_t*>(from), length, flip_, out);
        }
    }
    return bits;
}

uint32_t ConvRows::codes_nchw(const char* from, uint8_t* out, uint8_t* temporary) const {
    const int64_t size = bytes_of(x_.type);
    auto* constant = reinterpret_cast<float*>(temporary + round_up(count_ * channels_ + 64, 64));
    uint32_t bits = 0;
    for (int64_t c = 0; c < channels_; ++c, from += x_.stride_c * size) {
        uint8_t* to = temporary + c * count_;
        if (floats_) {
            QuantizeRow rule = row_rule();
            if (inverse_ != nullptr && quant_.mode == InputMode::channel) {
                rule.inv = inverse_[c];
            } else if (inverse_ != nullptr) {  // two roundings, as everywhere: first by channel, then by tensor
                std::fill(constant, constant + count_, inverse_[c]);
                rule.inv_k = constant;
            }
            bits = std::max(bits, isa_.quantize[static_cast<int>(x_.type)](from, count_, rule, to));
        } else {
            isa_.flip_codes(reinterpret_cast<const uint8_t*>(from), count_, flip_, to);
        }
    }
    leaf_.transpose[0](temporary, count_, channels_, count_, out, channels_);
    return bits;
}

bool ConvRows::write(int64_t row, uint8_t* out, uint8_t* temporary) const {
    const char* from = static_cast<const char*>(x_.data) + offset(row) * bytes_of(x_.type);
    const bool plain = pixel_ == channels_ && kind_ != ConvKind::depthwise;
    uint8_t* pixels = out + left_ * pixel_;
    std::memcpy(out, empty_, left_ * pixel_);
    std::memcpy(pixels + count_ * pixel_, empty_, bytes_ - (left_ + count_) * pixel_);
    if (count_ == 0) return true;
    const bool straight = kind_ == ConvKind::depthwise && !floats_ && nhwc_ && repeat_ == 1;
    if (straight) {  // the flip is part of the arrangement
        const auto* codes = reinterpret_cast<const uint8_t*>(from);
        leaf_.arrange(codes, x_.stride_w, count_, channels_, flip_, pixels, pixel_);
        return true;
    }
    uint8_t* dense = plain ? pixels : temporary;
    uint8_t* beside = temporary + round_up(count_ * channels_ + 64, 64);
    const uint32_t bits = nhwc_ ? codes_nhwc(from, dense) : codes_nchw(from, dense, beside);
    if (kind_ == ConvKind::depthwise) {
        uint8_t* repeated = temporary + temporary_ - round_up(repeat_ > 1 ? channels_ * repeat_ : 0, 64);
        for (int64_t p = 0; p < count_; ++p) {
            const uint8_t* codes = dense + p * channels_;
            if (repeat_ > 1) {
                for (int64_t c = 0; c < channels_; ++c) std::memset(repeated + c * repeat_, codes[c], repeat_);
                codes = repeated;
            }
            leaf_.arrange(codes, 0, 1, channels_ * repeat_, 0, pixels + p * pixel_, 0);
        }
    } else if (!plain) {
        const int64_t padded = round_up(per_group_, kStepK);
        for (int64_t p = 0; p < count_; ++p) {
            for (int64_t g = 0; g < groups_; ++g) {
                uint8_t* to = pixels + p * pixel_ + g * padded;
                std::memcpy(to, dense + p * channels_ + g * per_group_, per_group_);
                for (int64_t i = per_group_; i < padded; ++i) to[i] = 0;
            }
        }
    }
    return bits < kNotFinite;
}

uint32_t ConvRows::row_amax(int64_t row) const {
    const int64_t size = bytes_of(x_.type);
    const char* from = static_cast<const char*>(x_.data) + offset(row) * size;
    auto amax = isa_.amax[static_cast<int>(x_.type)];
    if (nhwc_ && x_.stride_w == channels_ && input_scale_ == nullptr)
        return amax(from, shape_.width * channels_, nullptr);
    uint32_t most = 0;
    for (int64_t p = 0; nhwc_ && p < shape_.width; ++p)
        most = std::max(most, amax(from + p * x_.stride_w * size, channels_, inverse_));
    for (int64_t c = 0; !nhwc_ && c < channels_; ++c) {
        uint32_t bits = amax(from + c * x_.stride_c * size, shape_.width, nullptr);
        if (inverse_ != nullptr && bits < kNotFinite) {  // rounding is monotone, so the maximum may be scaled
            float value;
            std::memcpy(&value, &bits, 4);
            value *= inverse_[c];
            std::memcpy(&bits, &value, 4);
        }
        most = std::max(most, bits);
    }
    return most;
}

uint32_t ConvRows::amax(int threads) const {
    const int64_t rows = shape_.batch * shape_.height, row_size = shape_.width * channels_;
    std::atomic<uint32_t> all{0};
    const int64_t chunk = std::max<int64_t>(1, (32 << 10) / std::max<int64_t>(row_size, 1));
    parallel_for(rows * row_size > (64 << 10) ? threads : 1, ceil_div(rows, chunk), [&](int64_t unit) {
        uint32_t most = 0;
        for (int64_t row = unit * chunk; row < std::min(rows, unit * chunk + chunk); ++row)
            most = std::max(most, row_amax(row));
        uint32_t seen = all.load(std::memory_order_relaxed);
        while (most > seen && !all.compare_exchange_weak(seen, most)) {
        }
    });
    return all.load();
}

}  // namespace qk
