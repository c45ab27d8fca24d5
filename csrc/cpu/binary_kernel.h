// Binary core: tile[r][n] = start - 2 * popcount((x[r] ^ w[n]) & masks). Bits are signs, 1 is +1, so a product of signs
// is -1 exactly where bits differ.
//
// Lanes are output channels (eight 64-bit words of eight rows of w in a zmm), so no horizontal sum ends a short K.
// Without masks, two words go into one population count: with o the running parity of the differing bits,
//     o1 = o ^ x1 ^ w1     o2 = o1 ^ x2 ^ w2     carry = o1 ? ~o2 : o     (o + d1 + d2 = o2 + 2 carry)
// each line is one vpternlogq. That is five operations for two words, where xor, popcount and add take six: the two
// vector ports of the machines this was written on allow 6/5 of what the plain loop reaches. Parities and counts of a
// tile of 6 x 2 registers take 24 of 32; the two words of the weight 4, activations 2, temporaries 2.
// With masks it is the plain loop.
#pragma once

#include <utility>

#include "binary_kernels.h"

namespace {

template <int... I, class Body>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, I...>, [[maybe_unused]] Body body) {
    (body(std::integral_constant<int, I>{}), ...);
}
// body(0) ... body(N - 1) with constant indices, so that arrays stay in registers (gemm_kernel.h says why).
template <int N, class Body>
[[gnu::always_inline]] inline void each(Body body) {
    each(std::make_integer_sequence<int, N>{}, body);
}

// Counts in 64-bit lanes, even channels apart from odd ones, to int32 in order: tile = start - FACTOR * count.
template <int NV, int FACTOR, class Start>
[[gnu::always_inline]] inline void store_tile(const simd::wordv* counts, int32_t* tile, Start start) {
    using namespace simd;
    constexpr int kEven = 8 / WORDS;  // vectors of even channels in a group of 16
    each<NV / 2>([&](auto i) [[gnu::always_inline]] {
        constexpr int group = i / kEven, j = i % kEven, at = group * 16 + j * 2 * WORDS;
        store_counts<FACTOR>(tile + at, counts[group * 2 * kEven + j], counts[group * 2 * kEven + kEven + j],
                             start(at));
    });
}

template <int ROWS, int NV>
void micro_binary(const qk::BinaryTile& t) {
    using namespace simd;
    constexpr int kStep = qk::kBinaryPanel;
    const int64_t segments = t.segments, words = t.words;
    for (int column = 0; column < t.columns; column += NV * WORDS) {
        wordv parity[ROWS][NV], count[ROWS][NV];
        each<ROWS>([&](auto r) [[gnu::always_inline]] {
            each<NV>([&](auto v) [[gnu::always_inline]] { parity[r][v] = count[r][v] = zero_words(); });
        });
        const uint64_t* w = t.panel + column;
        const uint64_t* const* rows = t.rows;
        for (int64_t s = 0; s < segments; ++s, rows += ROWS) {
            const uint64_t* x[ROWS];
            each<ROWS>([&](auto r) [[gnu::always_inline]] { x[r] = rows[r]; });
            int64_t k = 0;
            for (; k + 2 <= words; k += 2, w += 2 * kStep) {
                wordv w0[NV], w1[NV];
                each<NV>([&](auto v) [[gnu::always_inline]] {
                    w0[v] = load_words(w + v * WORDS);
                    w1[v] = load_words(w + kStep + v * WORDS);
                });
                each<ROWS>([&](auto r) [[gnu::always_inline]] {
                    const wordv x0 = broadcast_word(x[r] + k), x1 = broadcast_word(x[r] + k + 1);
                    each<NV>([&](auto v) [[gnu::always_inline]] {
                        const wordv o0 = parity[r][v], o1 = xor3(o0, x0, w0[v]), o2 = xor3(o1, x1, w1[v]);
                        count[r][v] = add_words(count[r][v], count_bits(carry(o0, o1, o2)));
                        parity[r][v] = o2;
                    });
                });
            }
            if (k < words) {
                each<ROWS>([&](auto r) [[gnu::always_inline]] {
                    const wordv x0 = broadcast_word(x[r] + k);
                    each<NV>([&](auto v) [[gnu::always_inline]] {
                        const wordv o0 = parity[r][v], o1 = xor3(o0, x0, load_words(w + v * WORDS));
                        count[r][v] = add_words(count[r][v], count_bits(and_not(o0, o1)));
                        parity[r][v] = o1;
                    });
                });
                w += kStep;
            }
        }
        each<ROWS>([&](auto r) [[gnu::always_inline]] {
            wordv total[NV];
            each<NV>([&](auto v) [[gnu::always_inline]] {
                total[v] = add_words(add_words(count[r][v], count[r][v]), count_bits(parity[r][v]));
            });
            store_tile<NV, 2>(total, t.tile + r * qk::kBinaryPanel + column,
                              [&](int at) { return t.start + column + at; });
        });
    }
}

// X: activations have masks; W: the weight is ternary, its panel has two planes.
template <int ROWS, int NV, bool X, bool W>
void micro_masked(const qk::BinaryTile& t) {
    using namespace simd;
    constexpr int kPlane = qk::kBinaryPanel, kStep = W ? 2 * kPlane : kPlane;
    const int64_t segments = t.segments, words = t.words;
    for (int column = 0; column < t.columns; column += NV * WORDS) {
        wordv differ[ROWS][NV], both[ROWS][NV];  // both: products that are not zero, where no start knows them
        each<ROWS>([&](auto r) [[gnu::always_inline]] {
            each<NV>([&](auto v) [[gnu::always_inline]] { differ[r][v] = both[r][v] = zero_words(); });
        });
        const uint64_t* w = t.panel + column;
        for (int64_t s = 0; s < segments; ++s) {
            for (int64_t k = 0; k < words; ++k, w += kStep) {
                wordv sign[NV], there[NV];
                each<NV>([&](auto v) [[gnu::always_inline]] {
                    sign[v] = load_words(w + v * WORDS);
                    if constexpr (W) there[v] = load_words(w + kPlane + v * WORDS);
                });
                each<ROWS>([&](auto r) [[gnu::always_inline]] {
                    const wordv x = broadcast_word(t.rows[s * ROWS + r] + k);
                    const wordv mask = X ? broadcast_word(t.masks[s * ROWS + r] + k) : zero_words();
                    each<NV>([&](auto v) [[gnu::always_inline]] {
                        wordv m = mask;
                        if constexpr (W) m = X ? and_words(mask, there[v]) : there[v];
                        if constexpr (X && W) both[r][v] = add_words(both[r][v], count_bits(m));
                        differ[r][v] = add_words(differ[r][v], count_bits(xor_and(x, sign[v], m)));
                    });
                });
            }
        }
        each<ROWS>([&](auto r) [[gnu::always_inline]] {
            int32_t* tile = t.tile + r * qk::kBinaryPanel + column;
            if constexpr (X && W) {
                each<NV>([&](auto v) [[gnu::always_inline]] {
                    differ[r][v] = sub_words(add_words(differ[r][v], differ[r][v]), both[r][v]);
                });
                store_tile<NV, 1>(differ[r], tile, [](int) { return 0; });
            } else if constexpr (X) {
                store_tile<NV, 2>(differ[r], tile, [&](int) { return t.row_start[r]; });
            } else {
                store_tile<NV, 2>(differ[r], tile, [&](int at) { return t.start + column + at; });
            }
        });
    }
}

}  // namespace
