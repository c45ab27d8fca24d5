// Leaves of the integer-only operations, templates over simd/bytes_<isa>.h. Included by one translation unit per ISA.
//
// Add: a register of bytes of each input is unpacked to four registers of (a, b) pairs of 16 bits; one vpmaddwd makes
// both products and their sum, a shift and three saturating packs finish. 22 to 25 instructions per 64 codes on
// AVX-512, which keeps up with L3 and memory and takes three times what L2 would allow. (Permutes of VBMI from both
// inputs would need 19, but occupy their port for two cycles each on Intel.)
//
// Lookup: the whole table in registers; two permutes per 64 codes with VBMI, sixteen shuffles without.
#pragma once

#include "integer.h"

namespace {

// PLAIN: int8 out over its full range, which the saturating packs give by themselves.
template <bool PLAIN>
void add_loop(const uint8_t* a, const uint8_t* b, int64_t n, const qk::AddCodes& p, uint8_t* out) {
    using namespace simd;
    const pairv m = pair(p.multiplier_a, p.multiplier_b);
    const i32v start = seti(p.start);
    const shiftv shift = shift_by(p.shift);
    const bytev fa = set_bytes(p.a_flip), fb = set_bytes(p.b_flip), fo = set_bytes(p.out_flip);
    const bytev lo = set_bytes(static_cast<uint8_t>(p.lo)), hi = set_bytes(static_cast<uint8_t>(p.hi));
    auto sum = [&](bytev x, bytev y) {
        quad q = pair_dot(xor_bytes(x, fa), xor_bytes(y, fb), m, start);
        for (int i = 0; i < QUAD; ++i) q.v[i] = sra(q.v[i], shift);
        return PLAIN ? narrow(q) : xor_bytes(clamp_signed(narrow(q), lo, hi), fo);
    };
    int64_t i = 0;
    for (; i + BYTES <= n; i += BYTES) store_raw(out + i, sum(load_bytes(a + i), load_bytes(b + i)));
    if (i < n) store_raw(out + i, sum(load_bytes(a + i, n - i), load_bytes(b + i, n - i)), n - i);
}

inline void add_codes(const uint8_t* a, const uint8_t* b, int64_t n, const qk::AddCodes& p, uint8_t* out) {
    const bool plain = p.lo == -128 && p.hi == 127 && p.out_flip == 0;
    plain ? add_loop<true>(a, b, n, p, out) : add_loop<false>(a, b, n, p, out);
}

inline void lookup(const uint8_t* x, int64_t rows, int64_t n, int64_t ldx, const uint8_t* table, uint8_t* out,
                   int64_t ldo) {
    using namespace simd;
    const Lookup at(table);
    for (int64_t r = 0; r < rows; ++r, x += ldx, out += ldo) {
        int64_t i = 0;
        for (; i + 2 * BYTES <= n; i += 2 * BYTES) {
            const bytev first = at(load_bytes(x + i)), second = at(load_bytes(x + i + BYTES));
            store_raw(out + i, first);
            store_raw(out + i + BYTES, second);
        }
        for (; i + BYTES <= n; i += BYTES) store_raw(out + i, at(load_bytes(x + i)));
        if (i < n) store_raw(out + i, at(load_bytes(x + i, n - i)), n - i);
    }
}

// ---- pooling: channels across the lanes, the window outside --------------------------------------------------------

// body(load) for each register of channels, load(p) being that register of the pixel at p; its result goes to out.
template <class Body>
inline void for_channels(int64_t channels, uint8_t* out, Body body) {
    using namespace simd;
    int64_t c = 0;
    for (; c + BYTES <= channels; c += BYTES)
        store_raw(out + c, body([c](const uint8_t* p) { return load_bytes(p + c); }));
    if (c < channels) {
        const int64_t rest = channels - c;
        store_raw(out + c, body([c, rest](const uint8_t* p) { return load_bytes(p + c, rest); }), rest);
    }
}

template <bool SIGNED>
void max_pool(const qk::PoolRow& row, uint8_t* out) {
    using namespace simd;
    const qk::PoolRow p = row;  // a copy: stores through out could change what row refers to
    for (int64_t o = 0; o < p.outputs; ++o, out += p.pixel) {
        const uint8_t* base = p.base + p.start[o] * p.pixel;
        const int64_t columns = p.count[o];
        for_channels(p.pixel, out, [&](auto load) {
            bytev most = set_bytes(SIGNED ? 0x80 : 0);
            for (int64_t r = 0; r < p.rows; ++r) {
                const uint8_t* at = base + r * p.row_step;
                for (int64_t c = 0; c < columns; ++c, at += p.column_step) most = max_bytes<SIGNED>(most, load(at));
            }
            return most;
        });
    }
}

constexpr int64_t kShortWindow = 257;  // bytes that 16 bits hold the sum of

template <class Load>
inline simd::quad sum_short(const qk::PoolRow& p, const uint8_t* base, int64_t columns, simd::bytev flip, Load load) {
    using namespace simd;
    sum16 sum = sum16_zero();
    for (int64_t r = 0; r < p.rows; ++r, base += p.row_step) {
        const uint8_t* at = base;
        for (int64_t c = 0; c < columns; ++c, at += p.column_step) sum = add16(sum, xor_bytes(load(at), flip));
    }
    return add_wide(quad_zero(), sum);
}

template <class Load>
inline simd::quad sum_long(const qk::PoolRow& p, const uint8_t* base, int64_t columns, simd::bytev flip, Load load) {
    using namespace simd;
    quad total = quad_zero();
    sum16 sum = sum16_zero();
    int64_t room = kShortWindow;
    for (int64_t r = 0; r < p.rows; ++r, base += p.row_step) {
        const uint8_t* at = base;
        for (int64_t left = columns; left > 0;) {
            const int64_t run = left < room ? left : room;
            for (int64_t c = 0; c < run; ++c, at += p.column_step) sum = add16(sum, xor_bytes(load(at), flip));
            left -= run;
            room -= run;
            if (room == 0) {
                total = add_wide(total, sum);
                sum = sum16_zero();
                room = kShortWindow;
            }
        }
    }
    return add_wide(total, sum);
}

// Means in 32 bits (see cpu_integer.py), else in 64.
struct Mean32 {
    simd::i32v multiplier, start;
    simd::shiftv shift;
    explicit Mean32(const qk::Average& a)
        : multiplier(simd::seti(static_cast<int32_t>(a.multiplier))),
          start(simd::seti(static_cast<int32_t>(a.start))),
          shift(simd::shift_by(a.shift)) {}
    simd::i32v operator()(simd::i32v sum) const {
        return simd::sra(simd::addi(simd::muli(sum, multiplier), start), shift);
    }
};
struct Mean64 {
    simd::i64v multiplier, start, shift;
    explicit Mean64(const qk::Average& a)
        : multiplier(simd::set64(a.multiplier)), start(simd::set64(a.start)), shift(simd::set64(a.shift)) {}
    simd::i64v half(simd::i64v sum) const {
        using namespace simd;
        return sra64(add64(mul32(sum, multiplier), start), shift);
    }
    simd::i32v operator()(simd::i32v sum) const { return simd::merge(half(simd::even(sum)), half(simd::odd(sum))); }
};

// Outputs from `o` on that share a divisor; returns where they end.
template <class Mean>
int64_t average_run(const qk::PoolRow& p, int64_t o, uint8_t* out) {
    using namespace simd;
    const int64_t divisor = p.divisor[o];
    const qk::Average a = p.averages[divisor];
    const Mean mean(a);
    const bytev lo = set_bytes(static_cast<uint8_t>(a.lo)), hi = set_bytes(static_cast<uint8_t>(a.hi));
    const bytev in = set_bytes(a.in_flip), flip = set_bytes(a.out_flip);
    for (; o < p.outputs && p.divisor[o] == divisor; ++o) {
        const uint8_t* base = p.base + p.start[o] * p.pixel;
        const int64_t columns = p.count[o];
        const bool is_short = p.rows * columns <= kShortWindow;
        for_channels(p.pixel, out + o * p.pixel, [&](auto load) {
            quad q = is_short ? sum_short(p, base, columns, in, load) : sum_long(p, base, columns, in, load);
            for (int i = 0; i < QUAD; ++i) q.v[i] = mean(q.v[i]);
            return xor_bytes(clamp_signed(narrow(q), lo, hi), flip);
        });
    }
    return o;
}

inline void avg_pool(const qk::PoolRow& row, uint8_t* out) {
    const qk::PoolRow p = row;
    for (int64_t o = 0; o < p.outputs;)
        o = p.averages[p.divisor[o]].narrow ? average_run<Mean32>(p, o, out) : average_run<Mean64>(p, o, out);
}

// ---- softmax -------------------------------------------------------------------------------------------------------

inline int bit_length(uint64_t v) { return v == 0 ? 0 : 64 - __builtin_clzll(v); }

// (e >> 8) * inverse / 2^shift of every exponential, in units of 1/256
struct Normalizer {
    uint32_t inverse, half;
    int shift;

    explicit Normalizer(uint64_t total) {
        const int bits = bit_length(total);
        const uint64_t r = (uint64_t{1} << (15 + bits)) / total;
        inverse = r > 65535 ? 65535 : static_cast<uint32_t>(r);
        shift = bits - 1;
        // (e >> 8) * inverse stays below 2^31: beyond a shift of 31 nothing reaches a half
        half = shift <= 31 ? 1u << (shift - 1) : 0;
        if (shift > 31) inverse = 0, shift = 31;
    }
    uint8_t operator()(uint32_t e) const {
        const uint32_t y = ((e >> 8) * inverse + half) >> shift;
        return static_cast<uint8_t>(y > 255 ? 255 : y);
    }
};

inline uint8_t largest(const uint8_t* x, int64_t n, uint8_t flip) {
    using namespace simd;
    const bytev f = set_bytes(flip);
    bytev most = set_bytes(0);
    int64_t i = 0;
    for (; i + BYTES <= n; i += BYTES) most = max_bytes<false>(most, xor_bytes(load_bytes(x + i), f));
    uint8_t lanes[BYTES], m = 0;
    store_raw(lanes, most);
    for (int j = 0; j < BYTES; ++j) m = lanes[j] > m ? lanes[j] : m;
    for (; i < n; ++i) m = static_cast<uint8_t>(x[i] ^ flip) > m ? x[i] ^ flip : m;
    return m;
}

inline uint64_t sum_exponentials(const uint8_t* x, int64_t n, uint8_t in_flip, uint8_t most, const qk::ExpTable& e) {
    using namespace simd;
    uint64_t total = 0;
    int64_t i = 0;
    if constexpr (Lookup::kFast) {  // by planes of bytes; n <= 2^24 keeps each sum below 2^32
        const Lookup high(e.plane[0]), middle(e.plane[1]), low(e.plane[2]);
        const bytev flip = set_bytes(in_flip), top = set_bytes(most);
        i32v sums[3] = {seti(0), seti(0), seti(0)};
        for (; i + BYTES <= n; i += BYTES) {
            const bytev d = sub_bytes(top, xor_bytes(load_bytes(x + i), flip));
            sums[0] = sum_bytes(sums[0], high(d));
            sums[1] = sum_bytes(sums[1], middle(d));
            sums[2] = sum_bytes(sums[2], low(d));
        }
        for (const i32v& s : sums) total = (total << 8) + static_cast<uint32_t>(reduce_add(s));
    }
    uint64_t parts[4] = {total, 0, 0, 0};  // four chains hide the latency of the additions
    auto exponential = [&](int64_t at) { return e.value[static_cast<uint8_t>(most - (x[at] ^ in_flip))]; };
    for (; i + 4 <= n; i += 4)
        for (int j = 0; j < 4; ++j) parts[j] += exponential(i + j);
    for (; i < n; ++i) parts[0] += exponential(i);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

// Every result depends on max - x alone: one table of 256 exponentials for the call, one of 256 results for the row.
inline void softmax_bytes(const uint8_t* x, int64_t n, uint8_t in_flip, const qk::ExpTable& e, uint8_t* out,
                          uint8_t out_flip) {
    using namespace simd;
    const uint8_t most = largest(x, n, in_flip);
    const Normalizer normalize(sum_exponentials(x, n, in_flip, most, e));
    alignas(64) uint8_t table[256];
    for (int d = 0; d < 256; ++d) table[d] = normalize(e.value[d]) ^ out_flip;
    const Lookup at(table);
    const bytev top = set_bytes(most), flip = set_bytes(in_flip);
    int64_t i = 0;
    for (; i + BYTES <= n; i += BYTES) store_raw(out + i, at(sub_bytes(top, xor_bytes(load_bytes(x + i), flip))));
    if (i < n) store_raw(out + i, at(sub_bytes(top, xor_bytes(load_bytes(x + i, n - i), flip))), n - i);
}

inline void softmax_int32(const int32_t* x, int64_t n, int64_t multiplier, int shift, uint32_t* e, uint8_t* out,
                          uint8_t out_flip) {
    int32_t most = INT32_MIN;
    for (int64_t i = 0; i < n; ++i) most = x[i] > most ? x[i] : most;
    const uint64_t half = (uint64_t{1} << shift) >> 1, m = static_cast<uint64_t>(multiplier);
    uint64_t total = 0;
    for (int64_t i = 0; i < n; ++i) {
        const uint64_t d = static_cast<uint32_t>(most) - static_cast<uint32_t>(x[i]);
        const uint64_t u64 = (d * m + half) >> shift;
        const uint32_t u = u64 > (31 << 14) ? 31 << 14 : static_cast<uint32_t>(u64);
        const uint32_t f = 31981u - (u & 16383u);
        const uint32_t p = (((f * f) >> 14) * 5644u + 184683594u) >> 6;
        e[i] = (p > 8388607u ? 8388607u : p) >> (u >> 14);
        total += e[i];
    }
    const Normalizer normalize(total);
    for (int64_t i = 0; i < n; ++i) out[i] = normalize(e[i]) ^ out_flip;
}

// ---- layer norm ----------------------------------------------------------------------------------------------------

// floor(sqrt(v)), v in [2^60, 2^62). The root in double precision is off by one at most; an integer Newton iteration
// finds the same, after six divisions.
inline int64_t isqrt(int64_t v) {
    int64_t r = static_cast<int64_t>(__builtin_sqrt(static_cast<double>(v)));
    if (r * r > v) --r;
    if ((r + 1) * (r + 1) <= v) ++r;
    return r;
}

// at(i, count): LANES values of the row from i on, 0 to 2^15, of which count are real.
// The shift of c is part of the product that makes it, so that int32 holds all there is: 17 instructions a register.
template <class At>
inline void norm_row(int64_t n, int64_t sum, int64_t squares, int right, int j, const qk::LayerNorm& p, uint8_t* out,
                     At at) {
    using namespace simd;
    const int eps_shift = 16 - 2 * j + 2 * right;
    int64_t w = ((n * squares - sum * sum) * (int64_t{1} << (2 * j))) + (p.eps >> (eps_shift > 63 ? 63 : eps_shift));
    if (w < 1) w = 1;
    const int k = (62 - bit_length(static_cast<uint64_t>(w))) >> 1;
    const int64_t v64 = (int64_t{1} << 61) / isqrt(w << (2 * k));
    const i32v v = seti(v64 > INT32_MAX ? INT32_MAX : static_cast<int32_t>(v64));
    const int up = j + k - 9 > 0 ? j + k - 9 : 0, down = j + k - 9 < 0 ? 9 - j - k : 0;
    // n x - sum before the shift down fits int32 (below 2^30), so a wrap on the way to it does no harm
    const i32v n_up = seti(static_cast<int32_t>(static_cast<uint32_t>(n) << up));
    const i32v sum_up = seti(static_cast<int32_t>(static_cast<uint32_t>(sum) << up));
    const i32v shift = seti(p.shift), shift_down = seti(down);
    const int32_t *weight = p.weight, *bias = p.bias;
    const bytev lo = set_bytes(static_cast<uint8_t>(p.lo)), hi = set_bytes(static_cast<uint8_t>(p.hi));
    const bytev flip = set_bytes(p.out_flip);
    auto normalized = [&](i32v x, i32v g, i32v b) {
        const i32v z = high_product(srav(subi(muli(x, n_up), sum_up), shift_down), v);
        return srav(addi(high_product(z, g), b), shift);
    };
    int64_t i = 0;
    for (; i + BYTES <= n; i += BYTES) {
        quad q;
        for (int l = 0; l < QUAD; ++l) {
            const int64_t o = i + l * LANES;
            q.v[l] = normalized(at(o, LANES), load(weight + o), load(bias + o));
        }
        store_raw(out + i, xor_bytes(clamp_signed(narrow(q, 0), lo, hi), flip));
    }
    for (; i < n; i += LANES) {
        const int rest = n - i < LANES ? static_cast<int>(n - i) : LANES;
        quad q;
        for (int l = 0; l < QUAD; ++l) q.v[l] = normalized(at(i, rest), load(weight + i, rest), load(bias + i, rest));
        uint8_t bytes[BYTES];
        store_raw(bytes, xor_bytes(clamp_signed(narrow(q, 0), lo, hi), flip));
        __builtin_memcpy(out + i, bytes, rest);
    }
}

inline void norm_bytes(const uint8_t* x, int64_t n, uint8_t in_flip, const qk::LayerNorm& p, uint8_t* out) {
    using namespace simd;
    const bytev flip = set_bytes(in_flip);
    i32v sums = seti(0), low = seti(0), high = seti(0);  // n <= 2^15 codes: sums below 2^23, squares below 2^31
    int64_t i = 0;
    for (; i + BYTES <= n; i += BYTES) {
        const bytev v = xor_bytes(load_bytes(x + i), flip);
        sums = sum_bytes(sums, v);
        add_squares(low, high, v);
    }
    int64_t sum = static_cast<uint32_t>(reduce_add(sums)), squares = static_cast<uint32_t>(reduce_add(addi(low, high)));
    for (; i < n; ++i) {
        const int32_t v = x[i] ^ in_flip;
        sum += v;
        squares += v * v;
    }
    const i32v flips = seti(in_flip);
    norm_row(n, sum, squares, 0, 8, p, out, [x, flips](int64_t at, int count) {
        if (count == LANES) return xori(widen(x + at), flips);
        uint8_t tail[LANES] = {};
        __builtin_memcpy(tail, x + at, count);
        return xori(widen(tail), flips);
    });
}

inline void norm_int32(const int32_t* x, int64_t n, const qk::LayerNorm& p, uint8_t* out) {
    using namespace simd;
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (int64_t i = 0; i < n; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    const auto base = static_cast<uint32_t>(low), span = static_cast<uint32_t>(high) - base;
    const bool wide = span > 255;
    const int bits = bit_length(span), right = wide && bits > 15 ? bits - 15 : 0;
    const uint32_t half_bit = right > 0 ? 1 : 0, half_at = right > 0 ? right - 1 : 0;
    int64_t sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i) {  // right shift, half up: the last bit shifted out is added
        const uint32_t u = static_cast<uint32_t>(x[i]) - base;
        const auto v = static_cast<int32_t>((u >> right) + ((u >> half_at) & half_bit));
        sum += v;
        squares += static_cast<int64_t>(v * v);
    }
    const i32v lows = seti(low), by = seti(right), bit = seti(static_cast<int32_t>(half_bit));
    const i32v by_half = seti(static_cast<int32_t>(half_at));
    norm_row(n, sum, squares, right, wide ? 0 : 8, p, out, [=](int64_t at, int count) {
        const i32v u = subi(count == LANES ? load(x + at) : load(x + at, count), lows);
        return addi(srlv(u, by), andi(srlv(u, by_half), bit));
    });
}

// ---- requantization ------------------------------------------------------------------------------------------------

// LANES values by the definition of requant_scalar.h and requant_vector.h, for what the fast form below does not take.
template <qk::Rounding R>
inline void requantize_lanes(const int32_t* acc, int64_t rows, int64_t ld_acc, const qk::RequantColumns& r, int64_t c,
                             int n, uint8_t* out, int64_t ldo) {
    using namespace simd;
    const bool is_signed = r.out_flip == 0;
    const int32_t offset = is_signed ? 0 : 128;
    RequantLanes q{seti(0), seti(0), set1(0.0f), r.zero + offset, r.lo + offset, r.hi + offset};
    if constexpr (R == qk::Rounding::float_) {
        q.scale = load(r.scale + c, n);
    } else {
        q.multiplier = load(r.multiplier + c, n);
        q.shift = load(r.shift + c, n);
    }
    for (int64_t row = 0; row < rows; ++row)
        store_bytes(out + row * ldo + c, requant<R>(load(acc + row * ld_acc + c, n), q), n);
}

// Four registers of accumulators at a time, multipliers and shifts in registers over all rows. Where every shift allows
// it (scales below 1/4 for `single`, below 1 for `double`) the low half of the 64-bit product does not reach the
// result: the high halves are shifted as int32, and three saturating packs replace the 64-bit clamps. A saturated value
// is beyond lo and hi already, so the clamps of the bytes come out the same.
template <qk::Rounding R>
void requantize(const int32_t* acc, int64_t rows, int64_t n, int64_t ld_acc, const qk::RequantColumns& r, uint8_t* out,
                int64_t ldo) {
    using namespace simd;
    int64_t c = 0;
    const int zero = r.zero;
    const bytev lo = set_bytes(static_cast<uint8_t>(r.lo)), hi = set_bytes(static_cast<uint8_t>(r.hi));
    const bytev flip = set_bytes(r.out_flip);
    for (; c + BYTES <= n; c += BYTES) {
        i32v m[QUAD], shift[QUAD], half[QUAD];
        f32v scale[QUAD];
        bool fast = true;
        for (int i = 0; i < QUAD; ++i) {
            const int64_t at = c + i * LANES;
            if constexpr (R == qk::Rounding::float_) {
                scale[i] = load(r.scale + at);
            } else {
                m[i] = load(r.multiplier + at);
                shift[i] = load(r.shift + at);
                fast = fast && all_at_least(shift[i], R == qk::Rounding::single ? 2 : 0);
                if constexpr (R == qk::Rounding::single) {
                    shift[i] = subi(shift[i], seti(1));  // t - 32, t = 31 + shift
                    half[i] = pow2i(subi(shift[i], seti(1)));
                }
            }
        }
        if (!fast) {
            for (int i = 0; i < QUAD; ++i) requantize_lanes<R>(acc, rows, ld_acc, r, c + i * LANES, LANES, out, ldo);
            continue;
        }
        const int32_t* from = acc + c;
        uint8_t* to = out + c;
        for (int64_t row = 0; row < rows; ++row, from += ld_acc, to += ldo) {
            quad q;
            for (int i = 0; i < QUAD; ++i) {
                const i32v a = load(from + i * LANES);
                if constexpr (R == qk::Rounding::single) {
                    q.v[i] = srav(addi(high_product(a, m[i]), half[i]), shift[i]);
                } else if constexpr (R == qk::Rounding::double_) {
                    q.v[i] = rounding_shift(high_doubled(a, m[i]), shift[i]);
                } else {
                    q.v[i] = to_int(min(mul(to_float(a), scale[i]), set1(1073741824.0f)));
                }
            }
            store_raw(to, xor_bytes(clamp_signed(narrow(q, zero), lo, hi), flip));
        }
    }
    for (; c < n; c += LANES)
        requantize_lanes<R>(acc, rows, ld_acc, r, c, n - c < LANES ? static_cast<int>(n - c) : LANES, out, ldo);
}

inline qk::IntegerKernels make_integer_kernels(const qk::IntegerKernels* small_pixels = nullptr) {
    qk::IntegerKernels t{};
    t.small_pixels = small_pixels;
    t.add = add_codes;
    t.lookup = lookup;
    t.max_pool[0] = max_pool<false>;
    t.max_pool[1] = max_pool<true>;
    t.avg_pool = avg_pool;
    t.softmax_bytes = softmax_bytes;
    t.softmax_int32 = softmax_int32;
    t.norm_bytes = norm_bytes;
    t.norm_int32 = norm_int32;
    t.requantize[0] = requantize<qk::Rounding::single>;
    t.requantize[1] = requantize<qk::Rounding::double_>;
    t.requantize[2] = requantize<qk::Rounding::float_>;
    return t;
}

}  // namespace
