// One byte at a time: what integer_kernel.h needs beyond simd/scalar.h. Internal linkage.
#pragma once

#include "scalar.h"

namespace {
namespace simd {

using bytev = uint8_t;
inline constexpr int QUAD = BYTES / LANES;  // int32 registers of one register of bytes
struct quad {
    i32v v[QUAD];
};

inline bytev load_bytes(const uint8_t* p, int64_t) { return *p; }
inline void store_raw(uint8_t* p, bytev v, int64_t) { *p = v; }
inline bytev sub_bytes(bytev a, bytev b) { return static_cast<bytev>(a - b); }
template <bool SIGNED>
inline bytev max_bytes(bytev a, bytev b) {
    if (SIGNED) return static_cast<int8_t>(a) > static_cast<int8_t>(b) ? a : b;
    return a > b ? a : b;
}
inline bytev clamp_signed(bytev x, bytev lo, bytev hi) {
    const int v = static_cast<int8_t>(x), l = static_cast<int8_t>(lo), h = static_cast<int8_t>(hi);
    return static_cast<bytev>(v < l ? l : v > h ? h : v);
}

using shiftv = int;
inline shiftv shift_by(int n) { return n; }
inline i32v sra(i32v a, shiftv n) { return a >> n; }
inline i32v srlv(i32v a, i32v n) { return static_cast<i32v>(static_cast<uint32_t>(a) >> n); }
inline i32v andi(i32v a, i32v b) { return a & b; }
inline i32v widen(const uint8_t* p) { return *p; }
inline void add_squares(i32v& low, i32v&, bytev v) { low += v * v; }

struct pairv {
    int32_t a, b;
};
inline pairv pair(int16_t a, int16_t b) { return {a, b}; }
inline quad pair_dot(bytev a, bytev b, pairv m, i32v start) { return {{a * m.a + b * m.b + start}}; }
inline bytev narrow(quad q) { return static_cast<bytev>(q.v[0] < -128 ? -128 : q.v[0] > 127 ? 127 : q.v[0]); }
inline bytev narrow(quad q, int zero) {
    const int64_t v = int64_t{q.v[0]} + zero;
    return static_cast<bytev>(v < -128 ? -128 : v > 127 ? 127 : v);
}

struct sum16 {
    uint16_t v;
};
inline sum16 sum16_zero() { return {0}; }
inline sum16 add16(sum16 s, bytev v) { return {static_cast<uint16_t>(s.v + v)}; }
inline quad add_wide(quad q, sum16 s) { return {{q.v[0] + s.v}}; }
inline quad quad_zero() { return {{0}}; }

inline i64v set64(int64_t x) { return {x}; }
inline i64v add64(i64v a, i64v b) { return {a.v + b.v}; }
inline i64v sra64(i64v a, i64v n) { return {a.v >> n.v}; }
inline i64v mul32(i64v a, i64v b) { return {a.v * b.v}; }
inline i64v even(i32v a) { return {a}; }
inline i64v odd(i32v) { return {0}; }
inline i32v merge(i64v a, i64v) { return static_cast<i32v>(a.v); }

class Lookup {
  public:
    static constexpr bool kFast = false;  // a few instructions for a register of bytes
    explicit Lookup(const uint8_t* table) : table_(table) {}
    bytev operator()(bytev x) const { return table_[x]; }

  private:
    const uint8_t* table_;
};

}  // namespace simd
}  // namespace
