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
inline constexpr int COLUMN = NW_MANY * LANES;  // channels of a register tile

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

// Where operands come from: kBytes of `codes` a step. One that is kWhole decodes all channels of a step together, for
// one row: multiply() adds the step's products, in an order of its own that arrange() undoes.
template <int BITS>
struct FromTable {
    static constexpr bool kWhole = false;
    static constexpr int kBytes = qk::float_step_bytes(BITS);
    products::Table<BITS> table;
    FromTable(const void* t, int64_t) : table(t) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return table(products::code_at<BITS>(step, channel, sub));
    }
};
template <int BITS>
struct FromOwn {  // each channel has a table of its own: gathered
    static constexpr bool kWhole = false;
    static constexpr int kBytes = qk::float_step_bytes(BITS);
    const void* tables;
    int stride;
    FromOwn(const void* t, int64_t s) : tables(t), stride(static_cast<int>(s)) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return products::gather(tables, stride, channel, products::code_at<BITS>(step, channel, sub), (1 << BITS) - 1);
    }
};
struct FromRamp {
    static constexpr bool kWhole = false;
    static constexpr int kBytes = qk::float_step_bytes(8);
    FromRamp(const void*, int64_t) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return products::ramp(step, channel, sub);
    }
};
struct FromPanel {  // [columns][steps], each step as load_weight() takes it
    static constexpr bool kWhole = false;
    static constexpr int kBytes = 2 * products::COLUMN * sizeof(products::element);
    FromPanel(const void*, int64_t) {}
    products::weight operator()(const uint8_t* step, int channel, int sub) const {
        return products::load_weight(reinterpret_cast<const products::element*>(step), channel % products::COLUMN, sub);
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
    const From from(a.table, a.table_stride);
    constexpr bool PANEL = std::is_same_v<From, FromPanel>;
    constexpr int NW = ROWS == 1 && !PANEL ? NW_ONE : NW_MANY;
    constexpr int SETS = ROWS == 1 && NW < 8 ? 2 : 1;  // fewer than eight sums do not hide the latency of an addition
    const char* ahead = a.ahead;
    const int64_t pitch = a.pitch;
    const int begin = PANEL ? a.column * COLUMN : 0, end = PANEL ? begin + COLUMN : qk::kFloatPanelN;
    for (int column = begin; column < end; column += NW * LANES) {
        const uint8_t* step = a.codes + (PANEL ? a.column * a.steps * From::kBytes : 0);
        const char *scale = a.scale, *offset = a.offset;
        // Two bases and a pitch reach six rows: a pointer a row would not leave the compiler registers for the rest.
        const char *x0 = static_cast<const char*>(a.x), *x3 = x0 + 3 * pitch;
        int64_t group = 0;
        auto x = [&](auto i, auto r) __attribute__((always_inline)) {
            return reinterpret_cast<const element*>((r < 3 ? x0 : x3) + r % 3 * pitch) + i * qk::kFloatStepK;
        };
        f32v acc[SETS][ROWS][NW];
        auto start = [&]() __attribute__((always_inline)) {
            unroll<SETS * ROWS * NW>([&](auto i) __attribute__((always_inline)) {
                acc[i / (ROWS * NW)][i / NW % ROWS][i % NW] = own(set1(0.0f));
            });
        };
        // Step i of a chunk. One closure: of two, one inside the other, gcc writes the sums to memory.
        auto advance = [&](auto i) __attribute__((always_inline)) {
            const uint8_t* from_step = step + i * From::kBytes;
            if constexpr (From::kWhole) {
                from.multiply(from_step, x(i, std::integral_constant<int, 0>{}), acc[0][0]);
            } else {
                unroll<SUB>([&](auto sub) __attribute__((always_inline)) {
                    if constexpr (ROWS == 1) {  // each weight is used once: none waits in a register
                        const auto xs = broadcast(x(i, std::integral_constant<int, 0>{}), sub);
                        unroll<NW>([&](auto v) __attribute__((always_inline)) {
                            f32v& sum = acc[i % SETS][0][v];
                            sum = multiply_add(sum, xs, from(from_step, PANEL ? v * LANES : column + v * LANES, sub));
                        });
                    } else {
                        weight w[NW];
                        unroll<NW>([&](auto v) __attribute__((always_inline)) {
                            w[v] = from(from_step, PANEL ? v * LANES : column + v * LANES, sub);
                        });
                        unroll<ROWS>([&](auto r) __attribute__((always_inline)) {
                            const auto xs = broadcast(x(i, r), sub);
                            unroll<NW>([&](auto v) __attribute__((always_inline)) {
                                acc[0][r][v] = multiply_add(acc[0][r][v], xs, w[v]);
                            });
                        });
                    }
                });
            }
        };
        auto finish = [&]() __attribute__((always_inline)) {
            if constexpr (From::kWhole) From::arrange(acc[0][0]);
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
                        store(to, fma(set1(a.sums[r * a.sums_pitch + group]), o, load(to)));
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
                step += width * From::kBytes;
                x0 += width * qk::kFloatStepK * sizeof(element);
                x3 += width * qk::kFloatStepK * sizeof(element);
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
void decode_float(const uint8_t* codes, int64_t steps, const void* table, int64_t stride, void* out) {
    using namespace products;
    const From from(table, stride);
    auto* to = static_cast<element*>(out);
    if constexpr (From::kWhole) {
        for (int64_t s = 0; s < steps; ++s)
            from.decode(codes + s * From::kBytes, to + s * 2 * COLUMN, steps * 2 * COLUMN);
    } else {
        for (int column = 0; column < qk::kFloatPanelN; column += COLUMN)
            for (int64_t s = 0; s < steps; ++s, to += 2 * COLUMN)
                unroll<SUB>([&](auto sub) __attribute__((always_inline)) {
                    unroll<NW_MANY>([&](auto v) __attribute__((always_inline)) {
                        store_weight(to, v * LANES, sub, from(codes + s * From::kBytes, column + v * LANES, sub));
                    });
                });
    }
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
    t.micro[qk::kFromOwn + BITS][1] = micro_float<FromOwn<BITS>, 1>;
    t.decode[qk::kFromOwn + BITS] = decode_float<FromOwn<BITS>>;
    if constexpr (BITS > 1) fill_tables<BITS - 1>(t);
}

// Tables of at most 16 entries that bfloat16 holds exactly, where that is faster.
inline void fill_short(qk::FloatKernels& t) {
#ifdef QK_SHORT_TABLES
    t.micro[qk::kFromShort][1] = micro_float<products::FromShort, 1>;
    t.decode[qk::kFromShort] = decode_float<products::FromShort>;
#else
    t.micro[qk::kFromShort][1] = nullptr;
#endif
}

inline qk::FloatKernels make_float_kernels(const char* name) {
    static_assert(products::MR <= qk::kMaxMr);
    qk::FloatKernels t{};
    t.name = name;
    t.mr = products::MR;
    t.element_bytes = sizeof(products::element);
    t.column = products::COLUMN;
    t.block_steps = products::BLOCK_STEPS;
    fill_float<FromPanel, products::MR>(t.micro[qk::kFromPanel]);
    fill_float<FromRamp, products::MR_PACKED>(t.micro[qk::kFromRamp]);
    t.decode[qk::kFromRamp] = decode_float<FromRamp>;
    fill_tables<8>(t);
    fill_short(t);
    t.convert[0] = convert<float>;
    t.convert[1] = convert<qk::bf16>;
    t.convert[2] = convert<qk::f16>;
    t.sum = sum_operands;
    return t;
}

}  // namespace
