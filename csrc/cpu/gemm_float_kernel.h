// Float GEMM core: tile[r][n] += sum over groups g of scale[g][n] * sum over k of x[r][k] * table[code[n][k]].
//
// Tile: MR rows by one 64-channel panel, as in gemm_kernel.h: lanes are output channels, an activation is broadcast, no
// sum crosses lanes. Codes index a table that lies in registers: a shift and a permute decode 16 channels, whatever the
// format. Few rows decode as they multiply; for many a block of the panel is decoded once. A group's sum stays in
// registers, and is scaled where the group ends. Included by one translation unit per kind of product, after its
// simd/products_*.h.
#pragma once

#include <type_traits>

#include "gemm_float_kernels.h"
#include "unroll.h"

namespace {

namespace products {
// Codes of a step, planes joined: common/float_layout.h.
template <int BITS>
[[gnu::always_inline]] inline index code_at(const uint8_t* step, int channel, int sub) {
    if constexpr (BITS == 8) {
        return bytes(step, channel, sub);
    } else {
        constexpr int FOUR = BITS & 4, TWO = BITS & 2, ONE = BITS & 1;
        index code;
        if constexpr (FOUR) code = plane<4>(step, channel, sub);
        if constexpr (TWO) {
            const index two = plane<2>(step + FOUR * 16, channel, sub);
            if constexpr (FOUR) {
                code = join(15, code, shift_left(two, 4));
            } else {
                code = two;
            }
        }
        if constexpr (ONE) {
            const index one = plane<1>(step + (FOUR + TWO) * 16, channel, sub);
            if constexpr (BITS > 1) {
                code = join((1 << (BITS - 1)) - 1, code, shift_left(one, BITS - 1));
            } else {
                code = one;
            }
        }
        return code;
    }
}
}  // namespace products

// Where operands come from: kBytes of `codes` a step.
template <int BITS>
struct FromTable {
    static constexpr int kBytes = qk::float_step_bytes(BITS);
    products::Table<BITS> table;
    explicit FromTable(const void* t) : table(t) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return table(products::code_at<BITS>(step, channel, sub));
    }
};
struct FromRamp {
    static constexpr int kBytes = qk::float_step_bytes(8);
    explicit FromRamp(const void*) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return products::ramp(step, channel, sub);
    }
};
struct FromPanel {
    static constexpr int kBytes = 128 * sizeof(products::element);
    explicit FromPanel(const void*) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return products::load_weight(reinterpret_cast<const products::element*>(step), channel, sub);
    }
};

inline simd::f32v load_scale(const char* p, bool half, int lane) {
    return half ? simd::load(reinterpret_cast<const qk::f16*>(p) + lane)
                : simd::load(reinterpret_cast<const float*>(p) + lane);
}

template <class From, int ROWS>
void micro_float(const qk::FloatArgs& args) {
    using namespace products;
    const qk::FloatArgs a = args;
    const From from(a.table);
    constexpr int SETS = ROWS == 1 ? 2 : 1;  // one row has too few sums to hide the latency of an addition
    const char* ahead = a.ahead;
    const element* x[ROWS];
    unroll<ROWS>([&](auto r) __attribute__((always_inline)) { x[r] = static_cast<const element*>(a.rows[r]); });
    for (int column = 0; column < qk::kFloatPanelN; column += NW * LANES) {
        const uint8_t* step = a.codes;
        const char *scale = a.scale, *offset = a.offset;
        int64_t at = 0, group = 0;
        f32v acc[SETS][ROWS][NW];
        auto start = [&]() __attribute__((always_inline)) {
            unroll<SETS * ROWS * NW>([&](auto i) __attribute__((always_inline)) {
                acc[i / (ROWS * NW)][i / NW % ROWS][i % NW] = own(set1(0.0f));
            });
        };
        auto advance = [&](auto set) __attribute__((always_inline)) {
            unroll<SUB>([&](auto sub) __attribute__((always_inline)) {
                weight w[NW];
                unroll<NW>([&](auto v) __attribute__((always_inline)) { w[v] = from(step, column + v * LANES, sub); });
                unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                    const auto xs = broadcast(x[r] + at, sub);
                    unroll<NW>([&](auto v) __attribute__((always_inline)) {
                        acc[set % SETS][r][v] = multiply_add(acc[set % SETS][r][v], xs, w[v]);
                    });
                });
            });
            step += From::kBytes;
            at += qk::kFloatStepK;
        };
        auto finish = [&]() __attribute__((always_inline)) {
            unroll<NW>([&](auto v) __attribute__((always_inline)) {
                const int lane = column + v * LANES;
                const f32v s = load_scale(scale, a.half_scale, lane);
                unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                    float* to = a.tile + r * qk::kFloatPanelN + lane;
                    f32v sum = acc[0][r][v];
                    if constexpr (SETS == 2) sum = add(sum, acc[SETS - 1][r][v]);
                    store(to, fma(sum, s, load(to)));
                });
            });
            if (a.offset != nullptr) {
                for (int lane = column; lane < column + NW * LANES; lane += LANES) {
                    const f32v o = load_scale(offset, a.half_offset, lane);
                    for (int r = 0; r < ROWS; ++r) {
                        float* to = a.tile + r * qk::kFloatPanelN + lane;
                        store(to, fma(set1(a.sums[r][group]), o, load(to)));
                    }
                }
                offset += qk::kFloatPanelN * (a.half_offset ? 2 : 4);
            }
            scale += qk::kFloatPanelN * (a.half_scale ? 2 : 4);
            ++group;
        };
        auto sweep = [&](auto width) __attribute__((always_inline)) {
            const int64_t chunks = a.group_steps / width;
            int64_t left = chunks;
            start();
            for (int64_t all = a.steps / width; all > 0; --all) {
                for (int i = 0; i < a.lines && width == 4; ++i, ahead += 64) prefetch(ahead);
                unroll<width>([&](auto i) __attribute__((always_inline)) { advance(i); });
                if (--left == 0 || all == 1) {
                    finish();
                    if (all > 1) start();
                    left = chunks;
                }
            }
        };
        if (a.group_steps % 4 == 0 && a.steps % 4 == 0) {
            sweep(std::integral_constant<int, 4>{});
        } else {
            sweep(std::integral_constant<int, 1>{});
        }
    }
}

template <class From>
void decode_float(const uint8_t* codes, int64_t steps, const void* table, void* out) {
    using namespace products;
    const From from(table);
    auto* to = static_cast<element*>(out);
    for (int column = 0; column < qk::kFloatPanelN; column += NW * LANES)
        for (int64_t s = 0; s < steps; ++s)
            unroll<SUB>([&](auto sub) __attribute__((always_inline)) {
                unroll<NW>([&](auto v) __attribute__((always_inline)) {
                    const int channel = column + v * LANES;
                    store_weight(to + s * 128, channel, sub, from(codes + s * From::kBytes, channel, sub));
                });
            });
}

// Rows of activations: out[i] = x[i] * inv_k[i], as operands.
template <class T>
void convert(const void* data, int64_t k, const float* inv_k, void* out) {
    using namespace products;
    const T* x = static_cast<const T*>(data);
    auto* to = static_cast<element*>(out);
    if constexpr (std::is_same_v<T, element>) {
        if (inv_k == nullptr) {
            __builtin_memcpy(to, x, k * sizeof(T));
            return;
        }
    }
    for (int64_t i = 0; i < k; i += LANES) {
        const int n = k - i < LANES ? static_cast<int>(k - i) : LANES;
        f32v v = n == LANES ? load(x + i) : load(x + i, n);
        if (inv_k != nullptr) v = mul(v, n == LANES ? load(inv_k + i) : load(inv_k + i, n));
        if (n == LANES) {
            store(to + i, v);
        } else {
            store(to + i, v, n);
        }
    }
}

inline float sum_operands(const void* data, int64_t k) {
    using namespace products;
    const auto* x = static_cast<const element*>(data);
    f32v total = set1(0.0f);
    for (int64_t i = 0; i < k; i += LANES)
        total = add(total, k - i < LANES ? load(x + i, static_cast<int>(k - i)) : load(x + i));
    float lanes[LANES], sum = 0.0f;
    store(lanes, total);
    for (float lane : lanes) sum += lane;
    return sum;
}

template <class From, int ROWS>
void fill_float(qk::FloatMicroFn* table) {
    table[ROWS] = micro_float<From, ROWS>;
    if constexpr (ROWS > 1) fill_float<From, ROWS - 1>(table);
}
template <int BITS>
void fill_tables(qk::FloatKernels& t) {
    fill_float<FromTable<BITS>, products::MR_PACKED>(t.micro[BITS]);
    t.decode[BITS] = decode_float<FromTable<BITS>>;
    if constexpr (BITS > 1) fill_tables<BITS - 1>(t);
}

inline qk::FloatKernels make_float_kernels(const char* name) {
    static_assert(products::MR <= qk::kMaxMr);
    qk::FloatKernels t{};
    t.name = name;
    t.mr = products::MR;
    t.element_bytes = sizeof(products::element);
    fill_float<FromPanel, products::MR>(t.micro[qk::kFromPanel]);
    fill_float<FromRamp, products::MR_PACKED>(t.micro[qk::kFromRamp]);
    t.decode[qk::kFromRamp] = decode_float<FromRamp>;
    fill_tables<8>(t);
    t.convert[0] = convert<float>;
    t.convert[1] = convert<qk::bf16>;
    t.convert[2] = convert<qk::f16>;
    t.sum = sum_operands;
    return t;
}

}  // namespace
