// The instructions of ../ptx.h in plain C++.
#pragma once

#include "../../common/half.h"
#include "emulator.h"

namespace qk::cuda {

namespace emulator {

template <class D>
struct MmaLane {
    D (*d)[4];
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
};

// d[16][8] += a[16][K] * b[K][8], K elements of 32 / PER_K... read by at(register, index within it).
// PER: elements in a register. Each lane's registers are spread over the matrices and d is collected again.
template <int PER, class D, class Element, class ReadA, class ReadB, class Dot>
void mma(const char* kind, D (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], ReadA read_a, ReadB read_b,
         Dot dot) {
    constexpr int K = 8 * PER;
    MmaLane<D> mine{&d, &a, &b};
    warp_collective(kind, mine, [&](MmaLane<D>* const* lanes) {
        Element A[16][K], B[8][K];
        for (int l = 0; l < kWarp; ++l) {
            const int g = l / 4, t = l % 4;
            for (int r = 0; r < 4; ++r)
                for (int i = 0; i < PER; ++i)
                    A[g + r % 2 * 8][r / 2 * (K / 2) + t * PER + i] = read_a((*lanes[l]->a)[r], i);
            for (int r = 0; r < 2; ++r)
                for (int i = 0; i < PER; ++i) B[g][r * (K / 2) + t * PER + i] = read_b((*lanes[l]->b)[r], i);
        }
        for (int l = 0; l < kWarp; ++l) {
            const int g = l / 4, t = l % 4;
            for (int r = 0; r < 4; ++r) {
                D& out = (*lanes[l]->d)[r];
                out = dot(out, A[g + r / 2 * 8], B[2 * t + r % 2]);
            }
        }
    });
}

inline int32_t dot_int32(int32_t d, const int16_t* a, const int16_t* b) {  // wraps modulo 2^32 as the hardware
    uint32_t sum = static_cast<uint32_t>(d);
    for (int k = 0; k < 32; ++k) sum += static_cast<uint32_t>(int32_t{a[k]} * b[k]);
    return static_cast<int32_t>(sum);
}

// The hardware's order and rounding of these sums are not documented: float64, rounded once.
inline float dot_floats(float d, const float* a, const float* b) {
    double sum = d;
    for (int k = 0; k < 16; ++k) sum += static_cast<double>(a[k]) * b[k];
    return static_cast<float>(sum);
}

inline int32_t dot_bits(int32_t d, const uint32_t* a, const uint32_t* b) {
    for (int k = 0; k < 8; ++k) d += __builtin_popcount(a[k] & b[k]);
    return d;
}

inline auto int8_of() {
    return [](uint32_t r, int i) -> int16_t { return static_cast<int8_t>(r >> (8 * i)); };
}

template <int COUNT>
void ldmatrix(const char* kind, uint32_t* r, const void* row, bool trans) {
    struct Lane {
        uint32_t* r;
        const void* row;
    } mine{r, row};
    if (state.fiber->lane() < 8 * COUNT) {
        require_aligned(kind, row, 16);
        require_shared(kind, row, 16);
    }
    warp_collective(kind, mine, [&](Lane* const* lanes) {
        for (int m = 0; m < COUNT; ++m) {
            uint16_t tile[8][8];
            for (int i = 0; i < 8; ++i) std::memcpy(tile[i], lanes[8 * m + i]->row, 16);
            for (int l = 0; l < kWarp; ++l) {
                const int g = l / 4, t = l % 4;
                const uint16_t low = trans ? tile[2 * t][g] : tile[g][2 * t];
                const uint16_t high = trans ? tile[2 * t + 1][g] : tile[g][2 * t + 1];
                lanes[l]->r[m] = low | static_cast<uint32_t>(high) << 16;
            }
        }
    });
}

}  // namespace emulator

inline void mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::mma<4, int32_t, int16_t>("mma_s8", d, a, b, emulator::int8_of(), emulator::int8_of(),
                                       emulator::dot_int32);
}
inline void mma_s8u8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulator::mma<4, int32_t, int16_t>(
        "mma_s8u8", d, a, b, emulator::int8_of(),
        [](uint32_t r, int i) -> int16_t { return static_cast<uint8_t>(r >> (8 * i)); }, emulator::dot_int32);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    auto read = [](uint32_t r, int i) { return half_to_float(static_cast<uint16_t>(r >> (16 * i))); };
    emulator::mma<2, float, float>("mma_f16", d, a, b, read, read, emulator::dot_floats);
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    auto read = [](uint32_t r, int i) { return bfloat_to_float(static_cast<uint16_t>(r >> (16 * i))); };
    emulator::mma<2, float, float>("mma_bf16", d, a, b, read, read, emulator::dot_floats);
}
inline void mma_b1_and(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    auto read = [](uint32_t r, int) { return r; };
    emulator::mma<1, int32_t, uint32_t>("mma_b1_and", d, a, b, read, read, emulator::dot_bits);
}

inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { emulator::ldmatrix<4>("ldmatrix_x4", r, row, false); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    emulator::ldmatrix<4>("ldmatrix_x4_trans", r, row, true);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row) { emulator::ldmatrix<2>("ldmatrix_x2", r, row, false); }

inline void cp_async_16(void* to, const void* from, int bytes = 16) {
    emulator::require_aligned("cp_async_16", to, 16);
    emulator::require_shared("cp_async_16", to, 16);
    emulator::require_aligned("cp_async_16", from, 16);
    if (bytes < 0 || bytes > 16) emulator::fail("cp_async_16: " + std::to_string(bytes) + " bytes");
    std::memset(to, emulator::kPoison, 16);
    emulator::state.fiber->open.push_back({static_cast<char*>(to), static_cast<const char*>(from), bytes, 16});
}
inline void cp_async_commit() {
    emulator::Fiber& f = *emulator::state.fiber;
    f.groups.push_back(std::move(f.open));
    f.open.clear();
}
template <int N>
void cp_async_wait() {
    auto& groups = emulator::state.fiber->groups;
    while (groups.size() > static_cast<size_t>(N)) {
        for (const emulator::Copy& c : groups.front()) {
            std::memset(c.to, 0, static_cast<size_t>(c.size));
            std::memcpy(c.to, c.from, static_cast<size_t>(c.bytes));
        }
        groups.erase(groups.begin());
    }
}

inline uint4 load_stream(const void* p) {
    emulator::require_aligned("load_stream", p, 16);
    uint4 v;
    std::memcpy(&v, p, 16);
    return v;
}

inline uint32_t opaque_move(uint32_t a) { return a; }

inline void wait_for_previous() {}
inline void let_next_start() {}
inline void named_barrier(int id, int count) { emulator::barrier(id, count); }

}  // namespace qk::cuda
