// Compute layout of a convolution's weight (O, I, kh, kw): a header and a block of common/gemm_layout.h for each group,
// made by prepack, never saved.
//
// K is cut into segments: runs of activation bytes that lie side by side where they are read.
//   rows       one group, dilation 1 along the row: a kernel row of an NHWC image, kw * I values (kw, I), kh of them
//   taps       else: one tap, I values, kh * kw of them; pixels are padded to whole k steps, too
//   gathered   group-wise scales: K in the order of the weight, (I, kh, kw), a segment is a group of scales
//   depthwise  I = 1: lanes are channels, a segment is a kernel column of kh values, kw of them; one block for all
//   groups
#pragma once

#include "gemm_layout.h"

namespace qk {

enum class ConvKind : int64_t { rows = 0, taps = 1, gathered = 2, depthwise = 3 };
inline constexpr uint64_t kConvMagic = 0x32766e6f6351ull;

struct ConvHeader {
    uint64_t magic;
    int64_t kind;
    int64_t n, per_group;  // output channels, and input channels of a group
    int64_t kernel_h, kernel_w;
    int64_t groups;
    int64_t block_bytes;  // of one group's block, a multiple of 64
    int64_t reserved[8];

    bool is(ConvKind k) const { return kind == static_cast<int64_t>(k); }
    int64_t k() const { return per_group * kernel_h * kernel_w; }  // products of an output
    int64_t channels() const { return per_group * groups; }
    int64_t blocks() const { return is(ConvKind::depthwise) ? 1 : groups; }
    int64_t block_n() const { return n / blocks(); }
    int64_t total_bytes() const { return static_cast<int64_t>(sizeof(ConvHeader)) + blocks() * block_bytes; }
    // Length of a segment; of `gathered` ones the block knows.
    int64_t segment() const {
        if (is(ConvKind::depthwise)) return kernel_h;
        return is(ConvKind::rows) ? kernel_w * per_group : per_group;
    }
};
static_assert(sizeof(ConvHeader) == 128, "the header is two cache lines");

struct ConvView {
    const ConvHeader* header = nullptr;

    static bool valid(const void* data, int64_t bytes) {
        constexpr int64_t kMost = int64_t{1} << 20;
        if (data == nullptr || bytes < static_cast<int64_t>(sizeof(ConvHeader))) return false;
        const auto& h = *static_cast<const ConvHeader*>(data);
        if (h.magic != kConvMagic || h.kind < 0 || h.kind > 3) return false;
        const int64_t sizes[] = {h.n, h.per_group, h.kernel_h, h.kernel_w, h.groups};
        for (int64_t size : sizes)
            if (size < 0 || size > kMost) return false;
        if (h.groups < 1 || h.kernel_h < 1 || h.kernel_w < 1 || h.n % h.groups != 0) return false;
        if (h.per_group * h.kernel_h > kMost || h.k() > kMost) return false;
        if (h.is(ConvKind::rows) && h.groups != 1) return false;
        if (h.is(ConvKind::depthwise) && h.per_group != 1) return false;
        if (h.block_bytes < static_cast<int64_t>(sizeof(GemmHeader)) || h.block_bytes % 64 != 0 ||
            h.block_bytes > (int64_t{1} << 40) || h.total_bytes() > bytes)
            return false;
        const ConvView view(data);
        for (int64_t g = 0; g < h.blocks(); ++g) {
            const GemmView block = view.block(g);
            if (!GemmView::valid(block.base, h.block_bytes)) return false;
            const GemmHeader &b = *block.header, &first = *view.block(0).header;
            if (b.n != h.block_n() || b.k != h.k() || b.has_columns || b.has_zero_point != first.has_zero_point ||
                b.grouped != first.grouped || b.segment != first.segment)
                return false;
            if (h.is(ConvKind::gathered) ? !b.grouped : b.grouped || (b.segment != h.segment() && b.k > 0))
                return false;
            for (int64_t p = 0; p < b.panels(); ++p) {
                const int64_t bits = block.panel(p).bits;
                // Bytes past a segment meet weights of the padding: of packed codes those are not zero.
                if (h.is(ConvKind::rows) && bits < 8 && b.segment != b.segment_pad) return false;
                if (h.is(ConvKind::depthwise) && bits != 8) return false;
            }
        }
        return true;
    }
    explicit ConvView(const void* data) : header(static_cast<const ConvHeader*>(data)) {}
    GemmView block(int64_t group) const {
        return GemmView(reinterpret_cast<const char*>(header + 1) + group * header->block_bytes);
    }
    ConvKind kind() const { return static_cast<ConvKind>(header->kind); }
};

}  // namespace qk
