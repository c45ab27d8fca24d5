// The instructions of ../wgmma.h in plain C++, from the PTX ISA: "mbarrier", "cp.async.bulk.tensor", "Asynchronous
// Warpgroup Level Matrix Instructions". What is asynchronous happens as late as it may: a copy when somebody waits for
// its barrier, a product when its warp waits for its group.
#pragma once

#include <algorithm>

#include "emulator.h"

namespace qk::cuda {

inline constexpr uint32_t kSharedBase = 1024;  // addresses in shared memory, as on sm_90, do not start at 0

inline uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(static_cast<const char*>(p) - emulator::state.here->shared) + kSharedBase;
}

namespace emulator {

inline char* at_address(const char* what, uint32_t address, size_t bytes) {
    char* p = state.here->shared + address - kSharedBase;
    require_shared(what, p, bytes);
    return p;
}

// ---- barriers ------------------------------------------------------------------------------------------------------
// Its 64 bits.
struct MbarrierBits {
    uint64_t phase : 1, count : 11, threads : 11;  // threads of a phase, those still to arrive
    int64_t bytes : 22;                            // still to arrive
    uint64_t mark : 19;                            // what an initialised barrier has, and memory by chance has not
};
static_assert(sizeof(MbarrierBits) == 8);
inline constexpr unsigned kMbarrierMark = 0x51ab5;

inline MbarrierBits load_barrier(const char* what, const uint64_t* barrier) {
    require_aligned(what, barrier, 8);
    require_shared(what, barrier, 8);
    MbarrierBits b;
    std::memcpy(&b, barrier, 8);
    if (b.mark != kMbarrierMark) fail(std::string(what) + ": a barrier that is not initialised");
    return b;
}

inline void store_barrier(uint64_t* barrier, MbarrierBits b) {
    if (b.threads == 0 && b.bytes == 0) {
        for (const Bulk& copy : state.bulk)
            if (copy.barrier == barrier) fail("an mbarrier's phase ends before all copies that count at it");
        b.phase ^= 1;
        b.threads = b.count;
    }
    std::memcpy(barrier, &b, 8);
}

inline void arrive(const char* what, uint64_t* barrier, int bytes) {
    MbarrierBits b = load_barrier(what, barrier);
    if (b.threads == 0) fail(std::string(what) + ": more threads arrive than the barrier has");
    --b.threads;
    if (b.bytes + bytes >= 1 << 20) fail(std::string(what) + ": more bytes than a barrier counts");
    b.bytes += bytes;
    store_barrier(barrier, b);
}

inline void complete_bytes(uint64_t* barrier, int bytes) {
    MbarrierBits b = load_barrier("a bulk copy", barrier);
    if (b.bytes - bytes <= -(1 << 20)) fail("a bulk copy: more bytes than a barrier counts");
    b.bytes -= bytes;
    store_barrier(barrier, b);
}

// ---- tensor maps and copies
// ------------------------------------------------------------------------------------------
inline TensorMap encode(const ByteTensor& tensor) {
    static_assert(sizeof(ByteTensor) <= sizeof(TensorMap));
    TensorMap map{};
    std::memcpy(&map, &tensor, sizeof(tensor));
    return map;
}

inline ByteTensor decode(const TensorMap& map, int rank) {
    require_aligned("a tensor map", &map, 128);
    ByteTensor t;
    std::memcpy(&t, &map, sizeof(t));
    if (t.rank != rank) fail("copy_box: the map has " + std::to_string(t.rank) + " dimensions");
    for (int i = rank; i < 4; ++i) t.sizes[i] = t.box[i] = 1;
    return t;
}

inline void copy_box(char* to, const ByteTensor& t, uint64_t* barrier, const int (&origin)[4]) {
    constexpr const char* kWhat = "copy_box";
    const size_t bytes = size_t{t.box[0]} * t.box[1] * t.box[2] * t.box[3];
    const uint32_t address = shared_address(to);
    require_shared(kWhat, to, bytes);
    if (address % 1024 != 0) fail("copy_box: the address is not at the start of a swizzle's atom");
    load_barrier(kWhat, barrier);
    std::memset(to, kPoison, bytes);
    const int at[4] = {origin[0], origin[1], origin[2], origin[3]};
    auto carry_out = [=] {
        uint32_t line = address;
        for (uint32_t i3 = 0; i3 < t.box[3]; ++i3)
            for (uint32_t i2 = 0; i2 < t.box[2]; ++i2)
                for (uint32_t i1 = 0; i1 < t.box[1]; ++i1, line += 128)
                    for (uint32_t i0 = 0; i0 < 128; ++i0) {
                        const int64_t c[4] = {int64_t{at[0]} + i0, int64_t{at[1]} + i1, int64_t{at[2]} + i2,
                                              int64_t{at[3]} + i3};
                        bool inside = true;
                        int64_t offset = c[0];
                        for (int i = 0; i < 4; ++i) {
                            inside = inside && c[i] >= 0 && static_cast<uint64_t>(c[i]) < t.sizes[i];
                            if (i > 0 && i < t.rank) offset += c[i] * static_cast<int64_t>(t.strides[i - 1]);
                        }
                        // 16 bytes of a line change places with others of the line, by the line's number.
                        const uint32_t chunk = (i0 / 16) ^ (line / 128 % 8);
                        *at_address(kWhat, line + chunk * 16 + i0 % 16, 1) =
                            inside ? static_cast<const char*>(t.base)[offset] : 0;
                    }
        complete_bytes(barrier, static_cast<int>(bytes));
    };
    state.bulk.push_back({barrier, carry_out});
}

// The same in each block of the mask: its memory and its barrier at those places.
inline void copy_box_to(uint16_t mask, char* to, const ByteTensor& t, uint64_t* barrier, const int (&origin)[4]) {
    if (mask == 0) fail("copy_box: goes to no block");
    for (unsigned rank = 0; rank < 16; ++rank)
        if (mask >> rank & 1)
            in_block("copy_box", rank, to, [&](char* there) {
                copy_box(there, t, reinterpret_cast<uint64_t*>(there + (reinterpret_cast<char*>(barrier) - to)),
                         origin);
            });
}

inline void carry_out_copies(const uint64_t* barrier) {
    for (size_t i = 0; i < state.bulk.size();) {
        if (state.bulk[i].barrier != barrier) {
            ++i;
            continue;
        }
        const Bulk one = std::move(state.bulk[i]);
        state.bulk.erase(state.bulk.begin() + static_cast<std::ptrdiff_t>(i));
        one.carry_out();
    }
}

// ---- products
// -------------------------------------------------------------------------------------------------------- 32 bytes of
// row `row` of an operand.
inline void load_operand(uint64_t descriptor, int row, char* to) {
    constexpr const char* kWhat = "wgmma: an operand";
    if ((descriptor & 0x3ff1c000c000c000u) != 0) fail("wgmma: a descriptor has bits that mean nothing");
    const auto field = [descriptor](int from) { return static_cast<uint32_t>(descriptor >> from & 0x3fff) << 4; };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    if ((descriptor >> 49 & 7) != 0) fail("wgmma: an offset of the swizzle's atom, which the emulator does not know");
    // A row of an atom has 16 (no swizzle), 128, 64 or 32 bytes; it is swizzled by address bits from 7 on.
    const int mode = static_cast<int>(descriptor >> 62);
    const uint32_t width = mode == 0 ? 16 : 256u >> mode;
    for (uint32_t chunk = 0; chunk < 2; ++chunk) {
        uint32_t address = start + static_cast<uint32_t>(row) / 8 * stride + static_cast<uint32_t>(row) % 8 * width;
        if (mode == 0) {
            address += chunk * leading;
        } else {
            if (start / width % 8 != 0) fail("wgmma: an operand does not start with the first row of a swizzle's atom");
            if (start % width + chunk * 16 >= width) fail("wgmma: an operand leaves its rows");
            address += chunk * 16;
            address ^= (address >> 7 & (width / 16 - 1)) << 4;
        }
        std::memcpy(to + chunk * 16, at_address(kWhat, address, 16), 16);
    }
}

inline uint64_t hash_operands(const Product& p) {
    uint64_t hash = 14695981039346656037u;
    char bytes[32];
    for (int row = 0; row < 64 + p.columns; ++row) {
        load_operand(row < 64 ? p.a : p.b, row < 64 ? row : row - 64, bytes);
        for (char c : bytes) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211u;
    }
    return hash;
}

inline bool all_poison(const int32_t* d, int count) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(d);
    return std::all_of(bytes, bytes + count * 4, [](unsigned char c) { return c == kPoison; });
}

// The fragment of a thread of a warpgroup.
inline void multiply(const Product& p, int thread, std::vector<int32_t>& d) {
    const int row = thread / 32 * 16 + thread % 32 / 4;
    char a[2][32], b[32];
    load_operand(p.a, row, a[0]);
    load_operand(p.a, row + 8, a[1]);
    for (int column = 0; column < p.columns; ++column) {
        if (column % 8 / 2 != thread % 4) continue;
        load_operand(p.b, column, b);
        for (int half = 0; half < 2; ++half) {
            uint32_t sum = 0;
            for (int k = 0; k < 32; ++k) {
                const int x = p.is_signed ? static_cast<int8_t>(b[k]) : static_cast<uint8_t>(b[k]);
                sum += static_cast<uint32_t>(static_cast<int8_t>(a[half][k]) * x);
            }
            int32_t& out = d[static_cast<size_t>(column / 8 * 4 + half * 2 + column % 2)];
            out = static_cast<int32_t>((p.accumulate ? static_cast<uint32_t>(out) : 0u) + sum);
        }
    }
}

inline void issue(Product p) {
    Fiber& f = *state.fiber;
    if (f.index % 128 == 0 && state.threads < static_cast<size_t>(f.index) + 128)
        fail("wgmma: the block has no whole warpgroup here");
    warpgroup_collective("wgmma", p, [](Product* const* threads) {
        const uint64_t hash = hash_operands(*threads[0]);
        for (int i = 0; i < 128; ++i) {
            const Product &one = *threads[i], &first = *threads[0];
            if (one.a != first.a || one.b != first.b || one.accumulate != first.accumulate)
                fail("wgmma: threads of a warpgroup disagree about it");
            threads[i]->operands = hash;
        }
    });
    const int count = p.columns / 2;
    auto pending = f.accumulators.find(p.d);
    if (pending == f.accumulators.end()) {
        if (!f.fenced) fail("wgmma: registers are used without a wgmma_fence");
        f.accumulators[p.d].assign(p.d, p.d + count);
    } else if (!all_poison(p.d, count)) {
        fail("wgmma: an accumulator was written while a product was on its way");
    }
    std::memset(p.d, kPoison, static_cast<size_t>(count) * 4);
    f.products.push_back(p);
}

inline void carry_out_products(Fiber& f) {
    for (const Product& p : f.product_groups.front()) {
        if (!all_poison(p.d, p.columns / 2)) fail("wgmma: an accumulator was written while a product was on its way");
        multiply(p, f.index % 128, f.accumulators[p.d]);
    }
    f.product_groups.erase(f.product_groups.begin());
}

inline void wait_products(size_t pending) {
    // A warp waits as one: operands may be overwritten as soon as one of its threads says so.
    Fiber* mine = state.fiber;
    warp_collective("wgmma_wait", *mine, [pending](Fiber* const* lanes) {
        while (lanes[0]->product_groups.size() > pending) {
            for (const Product& p : lanes[0]->product_groups.front())
                if (hash_operands(p) != p.operands) fail("wgmma: an operand changed while a product was on its way");
            for (int l = 0; l < kWarp; ++l) carry_out_products(*lanes[l]);
        }
        for (int l = 0; l < kWarp; ++l) {
            Fiber& f = *lanes[l];
            for (auto it = f.accumulators.begin(); it != f.accumulators.end();) {
                bool busy = false;
                for (const auto& group : f.product_groups)
                    for (const Product& p : group) busy = busy || p.d == it->first;
                for (const Product& p : f.products) busy = busy || p.d == it->first;
                if (busy) {
                    ++it;
                    continue;
                }
                std::copy(it->second.begin(), it->second.end(), it->first);
                it = f.accumulators.erase(it);
                f.fenced = false;
            }
        }
    });
}

}  // namespace emulator

inline void mbarrier_init(uint64_t* barrier, int count) {
    emulator::require_aligned("mbarrier_init", barrier, 8);
    emulator::require_shared("mbarrier_init", barrier, 8);
    if (count < 1 || count > 1024) emulator::fail("mbarrier_init: " + std::to_string(count) + " threads");
    emulator::MbarrierBits b{};
    b.count = b.threads = static_cast<uint64_t>(count) & 0x7ff;
    b.mark = emulator::kMbarrierMark;
    std::memcpy(barrier, &b, 8);
}
inline void mbarrier_init_fence() {}
inline void mbarrier_arrive(uint64_t* barrier) { emulator::arrive("mbarrier_arrive", barrier, 0); }
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
    emulator::arrive("mbarrier_arrive_expect", barrier, bytes);
}
inline void mbarrier_arrive_at(uint64_t* barrier, int rank) {
    emulator::in_block("mbarrier_arrive_at", static_cast<unsigned>(rank), barrier,
                       [](uint64_t* there) { emulator::arrive("mbarrier_arrive_at", there, 0); });
}
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    auto ended = [barrier, parity] {
        auto open = [barrier, parity] { return emulator::load_barrier("mbarrier_wait", barrier).phase != parity; };
        if (open()) return true;
        emulator::carry_out_copies(barrier);
        return open();
    };
    if (!ended()) emulator::wait_until("an mbarrier", ended);
}

inline int cluster_rank() { return static_cast<int>(emulator::state.here->rank); }
inline void cluster_barrier() { emulator::cluster_barrier(); }

inline void copy_box(void* to, const TensorMap& map, uint64_t* barrier, int x0, int x1) {
    emulator::copy_box(static_cast<char*>(to), emulator::decode(map, 2), barrier, {x0, x1, 0, 0});
}
inline void copy_box(void* to, const TensorMap& map, uint64_t* barrier, int x0, int x1, int x2, int x3) {
    emulator::copy_box(static_cast<char*>(to), emulator::decode(map, 4), barrier, {x0, x1, x2, x3});
}
inline void copy_box_to(uint16_t blocks, void* to, const TensorMap& map, uint64_t* barrier, int x0, int x1) {
    emulator::copy_box_to(blocks, static_cast<char*>(to), emulator::decode(map, 2), barrier, {x0, x1, 0, 0});
}
inline void prefetch_map(const TensorMap&) {}

template <int COUNT>
void keep_registers() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0);
    int none = 0;
    emulator::warpgroup_collective("keep_registers", none, [](int* const*) {});
}
template <int COUNT>
void take_registers() {
    static_assert(COUNT >= 24 && COUNT <= 256 && COUNT % 8 == 0);
    int none = 0;
    emulator::warpgroup_collective("take_registers", none, [](int* const*) {});
}

inline void wgmma_fence() { emulator::state.fiber->fenced = true; }
inline void wgmma_commit() {
    emulator::Fiber& f = *emulator::state.fiber;
    f.product_groups.push_back(std::move(f.products));
    f.products.clear();
}
template <int PENDING>
void wgmma_wait() {
    emulator::wait_products(PENDING);
}
template <int COUNT>
void hold(int32_t (&)[COUNT]) {}

template <bool SIGNED, int COUNT>
void wgmma(int32_t (&d)[COUNT], uint64_t a, uint64_t b, bool accumulate) {
    static_assert(COUNT == 64 || COUNT == 128, "those of ../wgmma.h");
    emulator::issue({d, 2 * COUNT, a, b, SIGNED, accumulate, 0});
}

}  // namespace qk::cuda
