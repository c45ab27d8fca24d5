// Compute layout of a convolution's weight (O, I, kh, kw): a header and one block of common/int8_layout.h for each group,
// made by prepack, never saved.
//
// K is cut into segments, the runs of activation bytes that lie side by side in an NHWC image; each is padded to whole
// k steps by zero weights.
//   rows       one group, dilation 1 along the row: a kernel row, kw * I values (kw, I), kh of them
//   taps       else: one tap, I values, kh * kw of them; pixels are padded to whole steps, too
//   depthwise  I = 1: lanes are channels, a segment is a kernel column of kh values, kw of them; one block for all groups
#pragma once

#include <initializer_list>

#include "int8_layout.h"

namespace qk {

enum class ConvKind : int64_t { rows = 0, taps = 1, depthwise = 2 };
inline constexpr uint64_t kConvMagic = 0x31766e6f6351ull;

struct ConvHeader {
    uint64_t magic;
    int64_t kind;
    int64_t n, per_group;      // output channels, and input channels of a group
    int64_t kernel_h, kernel_w;
    int64_t groups;
    int64_t k;                 // products of an output: per_group * kernel_h * kernel_w
    int64_t block_bytes;       // from one group's block to the next
    int64_t total_bytes;
    int64_t reserved[6];

    int64_t blocks() const { return kind == static_cast<int64_t>(ConvKind::depthwise) ? 1 : groups; }
    int64_t segment() const {  // activation bytes
        if (kind == static_cast<int64_t>(ConvKind::depthwise)) return kernel_h;
        return kind == static_cast<int64_t>(ConvKind::rows) ? kernel_w * per_group : per_group;
    }
    int64_t segments() const {
        if (kind == static_cast<int64_t>(ConvKind::depthwise)) return kernel_w;
        return kind == static_cast<int64_t>(ConvKind::rows) ? kernel_h : kernel_h * kernel_w;
    }
    int64_t steps() const { return ceil_div(segment(), kStepK); }  // k steps of a segment
    int64_t k_pad() const { return segments() * steps() * kStepK; }
    int64_t block_n() const { return n / (blocks() > 0 ? blocks() : 1); }
};
static_assert(sizeof(ConvHeader) == 128, "the header is two cache lines");

inline ConvHeader conv_layout(ConvKind kind, int64_t n, int64_t per_group, int64_t kernel_h, int64_t kernel_w,
                              int64_t groups, bool has_zero_point) {
    ConvHeader h{};
    h.magic = kConvMagic;
    h.kind = static_cast<int64_t>(kind);
    h.n = n;
    h.per_group = per_group;
    h.kernel_h = kernel_h;
    h.kernel_w = kernel_w;
    h.groups = groups;
    h.k = per_group * kernel_h * kernel_w;
    h.block_bytes = int8_layout(h.block_n(), h.k_pad(), has_zero_point, false).total_bytes;
    h.total_bytes = static_cast<int64_t>(sizeof(ConvHeader)) + h.blocks() * h.block_bytes;
    return h;
}

struct ConvView {
    const ConvHeader* header = nullptr;

    static bool valid(const void* data, int64_t bytes) {
        constexpr int64_t kMost = int64_t{1} << 20;
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(ConvHeader))) return false;
        const auto& h = *static_cast<const ConvHeader*>(data);
        if (h.magic != kConvMagic || h.kind < 0 || h.kind > 2) return false;
        for (int64_t v : {h.n, h.per_group, h.kernel_h, h.kernel_w, h.groups})
            if (v < 0 || v > kMost) return false;
        if (h.groups < 1 || h.kernel_h < 1 || h.kernel_w < 1 || h.n % h.groups != 0) return false;
        if (h.per_group * h.kernel_h > 131071 || h.per_group * h.kernel_h * h.kernel_w > 131071) return false;
        const auto kind = static_cast<ConvKind>(h.kind);
        if (kind == ConvKind::rows && h.groups != 1) return false;
        if (kind == ConvKind::depthwise && (h.per_group != 1 || h.n == 0)) return false;
        if (h.k != h.per_group * h.kernel_h * h.kernel_w || h.k_pad() > 131071) return false;
        if (h.block_bytes < static_cast<int64_t>(sizeof(Int8Header)) || h.block_bytes % 64 != 0) return false;
        if (h.total_bytes != static_cast<int64_t>(sizeof(ConvHeader)) + h.blocks() * h.block_bytes) return false;
        if (h.total_bytes > bytes) return false;
        const ConvView view(data);
        for (int64_t g = 0; g < h.blocks(); ++g) {
            const Int8View block = view.block(g);
            if (!Int8View::valid(block.base, h.block_bytes)) return false;
            if (block.header->n != h.block_n() || block.header->k != h.k_pad()) return false;
            if (block.header->has_zero_point != view.block(0).header->has_zero_point) return false;
        }
        return true;
    }
    explicit ConvView(const void* data) : header(static_cast<const ConvHeader*>(data)) {}
    Int8View block(int64_t group) const {
        return Int8View(reinterpret_cast<const char*>(header + 1) + group * header->block_bytes);
    }
    ConvKind kind() const { return static_cast<ConvKind>(header->kind); }
};

}  // namespace qk
