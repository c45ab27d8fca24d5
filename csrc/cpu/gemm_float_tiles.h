// Float GEMM core on matrix tiles: as gemm_float_kernel.h, for units that multiply tiles of 16 rows, 32 k, 16 channels.
//
// A call computes up to 48 rows of one panel. Sums stay in tiles over all of a group's k, so a row of activations is
// read once for each column of 32 channels and nothing else goes to and from the caches but codes: 3 x 2 tiles of sums
// take 3 KB of A in 96 cycles. Weights are decoded two tiles ahead into a ring of four in L1, a few steps after every
// product: shifts and permutes run while the matrix unit does. Up to 16 rows take 1 x 4 tiles, and decode a step whole.
// A group ends with its sums in memory, where vectors scale them. Tails of groups are zeros, in A and in B.
#pragma once

#include <algorithm>
#include <cstring>

#include "gemm_float_kernel.h"

namespace {

// Decodes the next 16 steps of a panel, or what a group has left of them.
template <class From, int COLUMN, int WIDTH, bool PREFETCH>
class Feeder {
  public:
    Feeder(const qk::FloatTilesArgs& a, char* ring)
        : table_(static_cast<const char*>(a.table)),
          table_stride_(a.table_stride),
          table_next_(a.table_segment),
          codes_(a.codes),
          ring_(ring),
          left_(a.steps),
          segment_(a.segment_steps),
          in_segment_(std::min(segment_, left_)),
          from_(table_, table_stride_) {}

    // Chooses the next tile of the ring; whether step() then has all of its steps to do.
    [[gnu::always_inline]] bool begin() {
        out_ = ring_ + (turn_++ & 3) * kBytes;
        count_ = static_cast<int>(std::min<int64_t>(in_segment_, products::TILE_STEPS));
        return count_ == products::TILE_STEPS;
    }
    [[gnu::always_inline]] void step(int i) {
        unroll<WIDTH / 16>([&](auto v) __attribute__((always_inline)) {
            products::store_weight(reinterpret_cast<products::element*>(out_ + i * 4 * WIDTH), v * 16, 0,
                                   from_(codes_ + i * From::kBytes, COLUMN + v * 16, 0));
        });
        if constexpr (PREFETCH) prefetch(codes_ + i * From::kBytes);
    }
    [[gnu::always_inline]] void end() {
        codes_ += count_ * From::kBytes;
        left_ -= count_;
        in_segment_ -= count_;
        if (in_segment_ == 0) next_segment();
    }
    // All of its steps and the zeros behind them.
    [[gnu::always_inline]] void rest() {
        if (count_ == 0) return;
        for (int i = 0; i < count_; ++i) step(i);
        std::memset(out_ + count_ * 4 * WIDTH, 0, (products::TILE_STEPS - count_) * 4 * WIDTH);
        end();
    }

    static constexpr int kBytes = products::TILE_STEPS * 4 * WIDTH;

  private:
    static constexpr int kAhead = 5 << 10;  // bytes of codes
    [[gnu::always_inline]] static void prefetch(const uint8_t* codes) {
        for (int line = 0; line < From::kBytes; line += 64)
            simd::prefetch(reinterpret_cast<const char*>(codes) + kAhead + line);
    }
    void next_segment() {
        in_segment_ = std::min(segment_, left_);
        if (table_next_ != 0) {
            table_ += table_next_;
            from_ = From(table_, table_stride_);
        }
    }

    const char* table_;
    int64_t table_stride_, table_next_;
    const uint8_t* codes_;
    char *ring_, *out_ = nullptr;
    int count_ = 0;
    unsigned turn_ = 0;
    int64_t left_, segment_, in_segment_;
    From from_;
};

// tile[r][COLUMN..) += scale * sums + offset * sums of x, for what a group left in `sums`, [rows][WIDTH]: some rows at
// a time, while the next group is multiplied.
template <int COLUMN, int WIDTH>
class Folder {
  public:
    Folder(const qk::FloatTilesArgs& a, const float* sums) : a_(a), sums_(sums), row_(a.rows) {}

    // There is a new group, to be folded in `parts` parts.
    void begin(int64_t group) {
        scale_ = a_.scale + (group * qk::kFloatPanelN + COLUMN) * (a_.half_scale ? 2 : 4);
        group_ = group;
        row_ = 0;
    }
    [[gnu::always_inline]] void some(int rows) {
        const int end = std::min(row_ + rows, a_.rows);
        if (row_ == end) return;
        simd::f32v s[WIDTH / 16];
        unroll<WIDTH / 16>([&](auto v)
                               __attribute__((always_inline)) { s[v] = load_scale(scale_, a_.half_scale, v * 16); });
        float* to = a_.tile + row_ * qk::kFloatPanelN + COLUMN;
        const float* from = sums_ + row_ * WIDTH;
        for (; row_ < end; ++row_, to += qk::kFloatPanelN, from += WIDTH)
            unroll<WIDTH / 16>([&](auto v) __attribute__((always_inline)) {
                simd::store(to + v * 16, simd::fma(simd::load(from + v * 16), s[v], simd::load(to + v * 16)));
            });
    }
    void end() {
        some(a_.rows);
        if (a_.offset == nullptr) return;
        const char* offset = a_.offset + (group_ * qk::kFloatPanelN + COLUMN) * (a_.half_offset ? 2 : 4);
        unroll<WIDTH / 16>([&](auto v) __attribute__((always_inline)) {
            const simd::f32v o = load_scale(offset, a_.half_offset, v * 16);
            float* to = a_.tile + COLUMN + v * 16;
            for (int r = 0; r < a_.rows; ++r, to += qk::kFloatPanelN)
                simd::store(to, simd::fma(simd::set1(a_.sums[r * a_.sums_pitch + group_]), o, simd::load(to)));
        });
    }

  private:
    const qk::FloatTilesArgs& a_;
    const float* sums_;
    const char* scale_ = nullptr;
    int64_t group_ = 0;
    int row_;
};

// NT rows of tiles by WIDTH channels. Register numbers are literals: the intrinsics paste them into assembly.
//   NT 1: sums 0..3, A 4, B 5..7    NT 2: sums 0..3, A 4 5, B 6 7    NT 3: sums 0..5, A 6, B 7
template <int NT>
inline constexpr products::TileConfigs kTileConfigs{NT == 1   ? 5
                                                    : NT == 2 ? 6
                                                              : 7};

template <class From, int NT>
void tiles_float(const qk::FloatTilesArgs& args) {
    using namespace products;
    constexpr int WIDTH = NT == 1 ? 64 : 32, ROW = 4 * WIDTH, BYTES = TILE_STEPS * ROW;
    const qk::FloatTilesArgs a = args;
    const int rows = (a.rows + NT - 1) / NT;  // of a tile; the last row of tiles begins where it ends with the rows
    const int64_t last = (a.rows - rows) * 64, next = NT == 3 ? rows * 64 : last;
    char* const ring = a.scratch;
    float* const sums = reinterpret_cast<float*>(a.scratch + 4 * BYTES);
    _tile_loadconfig(&kTileConfigs<NT>.of[rows]);
    unroll<qk::kFloatPanelN / WIDTH>([&](auto pass) __attribute__((always_inline)) {
        constexpr int COLUMN = pass * WIDTH;
        Feeder<From, COLUMN, WIDTH, NT != 3 && COLUMN == 0> feeder(a, ring);
        for (int i = 0; i < 2; ++i) {
            feeder.begin();
            feeder.rest();
        }
        Folder<COLUMN, WIDTH> folder(a, sums);
        const char* x = a.x;
        unsigned turn = 0;
        int64_t left = a.steps;
        for (int64_t segment = 0; segment < a.segments; ++segment) {
            const int64_t steps = std::min(a.segment_steps, left);
            left -= steps;
            constexpr int PARTS = NT == 3 ? 6 : 4;
            const int part = static_cast<int>((a.rows + PARTS - 1) / PARTS * TILE_STEPS / steps + 1);
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
            if constexpr (NT == 3) {
                _tile_zero(4);
                _tile_zero(5);
            }
            for (int64_t at = 0; at < steps; at += TILE_STEPS, x += a.rows * 64) {
                const char* b = ring + (turn++ & 3) * BYTES;
                auto multiply = [&](auto feed) __attribute__((always_inline)) {
                    memory_order();
                    if constexpr (NT == 1) {
                        _tile_loadd(4, x, 64);
                        _tile_loadd(5, b, ROW);
                        _tile_dpbf16ps(0, 4, 5);
                        feed(0, 4);
                        _tile_loadd(6, b + 64, ROW);
                        _tile_dpbf16ps(1, 4, 6);
                        feed(4, 8);
                        _tile_loadd(7, b + 128, ROW);
                        _tile_dpbf16ps(2, 4, 7);
                        feed(8, 12);
                        _tile_loadd(5, b + 192, ROW);
                        _tile_dpbf16ps(3, 4, 5);
                        feed(12, 16);
                    } else if constexpr (NT == 2) {
                        _tile_loadd(6, b, ROW);
                        _tile_loadd(4, x, 64);
                        _tile_dpbf16ps(0, 4, 6);
                        feed(0, 4);
                        _tile_loadd(7, b + 64, ROW);
                        _tile_dpbf16ps(1, 4, 7);
                        feed(4, 8);
                        _tile_loadd(5, x + last, 64);
                        _tile_dpbf16ps(2, 5, 6);
                        feed(8, 12);
                        _tile_dpbf16ps(3, 5, 7);
                        feed(12, 16);
                    } else {
                        _tile_loadd(7, b, ROW);
                        _tile_loadd(6, x, 64);
                        _tile_dpbf16ps(0, 6, 7);
                        feed(0, 2);
                        _tile_loadd(6, x + next, 64);
                        _tile_dpbf16ps(2, 6, 7);
                        feed(2, 5);
                        _tile_loadd(6, x + last, 64);
                        _tile_dpbf16ps(4, 6, 7);
                        feed(5, 8);
                        _tile_loadd(7, b + 64, ROW);
                        _tile_dpbf16ps(5, 6, 7);
                        feed(8, 11);
                        _tile_loadd(6, x + next, 64);
                        _tile_dpbf16ps(3, 6, 7);
                        feed(11, 14);
                        _tile_loadd(6, x, 64);
                        _tile_dpbf16ps(1, 6, 7);
                        feed(14, 16);
                    }
                };
                if (feeder.begin()) {
                    multiply([&](int i, int end) __attribute__((always_inline)) {
                        for (; i < end; ++i) feeder.step(i);
                        folder.some(part);
                    });
                    feeder.end();
                } else {
                    multiply([&](int, int) __attribute__((always_inline)) { folder.some(part); });
                    feeder.rest();
                }
            }
            if (segment > 0) folder.end();
            memory_order();
            _tile_stored(0, sums, ROW);
            _tile_stored(1, sums + 16, ROW);
            if constexpr (NT == 1) {
                _tile_stored(2, sums + 32, ROW);
                _tile_stored(3, sums + 48, ROW);
            } else {
                float* const second = sums + (NT == 3 ? rows : a.rows - rows) * WIDTH;
                _tile_stored(2, second, ROW);
                _tile_stored(3, second + 16, ROW);
            }
            if constexpr (NT == 3) {
                float* const third = sums + (a.rows - rows) * WIDTH;
                _tile_stored(4, third, ROW);
                _tile_stored(5, third + 16, ROW);
            }
            memory_order();
            folder.begin(segment);
        }
        folder.end();
    });
    _tile_release();
}

template <class From>
void fill_tiles(qk::FloatTilesFn* table) {
    table[1] = tiles_float<From, 1>;
    table[2] = tiles_float<From, 2>;
    table[3] = tiles_float<From, 3>;
}
template <int BITS>
void fill_tiles_of_bits(qk::FloatKernels& t) {
    fill_tiles<FromTable<BITS>>(t.tiles[BITS]);
    fill_tiles<FromOwn<BITS>>(t.tiles[qk::kFromOwn + BITS]);
    if constexpr (BITS > 1) fill_tiles_of_bits<BITS - 1>(t);
}

// The table of the vectors below, with tiles.
inline qk::FloatKernels add_tiles(qk::FloatKernels t, const char* name) {
    t.name = name;
    fill_tiles<FromRamp>(t.tiles[qk::kFromRamp]);
    fill_tiles_of_bits<8>(t);
    return t;
}

}  // namespace
