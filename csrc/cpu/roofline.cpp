// Peaks are loops of sixteen independent instructions on registers, written in assembly so that no compiler can move or
// drop them: throughput is all they measure. The functions run only after a CPUID check.
#include "roofline.h"

#include <cpuid.h>
#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace qk {

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

#define QK_CLOBBER                                                                                                 \
    "rcx", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", \
        "xmm12", "xmm13", "xmm14", "xmm15"
#define QK_16(f)                                                                                                  \
    f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7") f("8") f("9") f("10") f("11") f("12") f("13") f("14") \
        f("15")
#define QK_8(f) f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7")
// The operands never change and start at zero: no denormals, no power-hungry toggling beyond real use.
#define QK_LOOP(name, zero, body)                                                                                    \
    void name(int64_t n) {                                                                                           \
        __asm__ volatile(zero "mov %0, %%rcx\n1:\n" body "dec %%rcx\njnz 1b\nvzeroupper\n" : : "r"(n) : QK_CLOBBER); \
    }
#define QK_ZERO(r) "vpxor %%xmm" r ", %%xmm" r ", %%xmm" r "\n"
#define QK_DPBUSD(r) "vpdpbusd %%zmm31, %%zmm30, %%zmm" r "\n"
#define QK_DPBF16(r) "vdpbf16ps %%zmm31, %%zmm30, %%zmm" r "\n"
#define QK_FMA512(r) "vfmadd231ps %%zmm31, %%zmm30, %%zmm" r "\n"
#define QK_FMA256(r) "vfmadd231ps %%ymm15, %%ymm14, %%ymm" r "\n"
#define QK_MADD(r) "vpmaddwd %%ymm15, %%ymm14, %%ymm13\nvpaddd %%ymm13, %%ymm" r ", %%ymm" r "\n"
#define QK_POP(r) \
    "vpxorq %%zmm31, %%zmm30, %%zmm16\nvpopcntq %%zmm16, %%zmm17\nvpaddq %%zmm17, %%zmm" r ", %%zmm" r "\n"

QK_LOOP(loop_dpbusd, QK_16(QK_ZERO) "vpxorq %%zmm30, %%zmm30, %%zmm30\nvpxorq %%zmm31, %%zmm31, %%zmm31\n",
        QK_16(QK_DPBUSD))
QK_LOOP(loop_dpbf16, QK_16(QK_ZERO) "vpxorq %%zmm30, %%zmm30, %%zmm30\nvpxorq %%zmm31, %%zmm31, %%zmm31\n",
        QK_16(QK_DPBF16))
QK_LOOP(loop_fma512, QK_16(QK_ZERO) "vpxorq %%zmm30, %%zmm30, %%zmm30\nvpxorq %%zmm31, %%zmm31, %%zmm31\n",
        QK_16(QK_FMA512))
QK_LOOP(loop_pop512, QK_16(QK_ZERO) "vpxorq %%zmm30, %%zmm30, %%zmm30\nvpxorq %%zmm31, %%zmm31, %%zmm31\n",
        QK_16(QK_POP))
// Twelve chains of FMA: two pipes with a latency of four or five, and registers 14 and 15 hold the operands
#define QK_12(f) f("0") f("1") f("2") f("3") f("4") f("5") f("6") f("7") f("8") f("9") f("10") f("11")
QK_LOOP(loop_fma256, QK_16(QK_ZERO), QK_12(QK_FMA256))
QK_LOOP(loop_madd256, QK_16(QK_ZERO), QK_8(QK_MADD))

// Sixteen products of tiles on four sums. Tile data counts as in use, and is saved at every switch, until it is
// released.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16};
};
#define QK_TDP(r) "tdpbf16ps %%tmm5, %%tmm4, %%tmm" r "\n"
#define QK_4_TDP QK_TDP("0") QK_TDP("1") QK_TDP("2") QK_TDP("3")
void loop_tiles(int64_t n) {
    static const TileConfig config;
    __asm__ volatile("ldtilecfg %1\nmov %0, %%rcx\n1:\n" QK_4_TDP QK_4_TDP QK_4_TDP QK_4_TDP
                     "dec %%rcx\njnz 1b\ntilerelease\n"
                     :
                     : "r"(n), "m"(config)
                     : "rcx", "cc");
}

struct Loop {
    void (*run)(int64_t);
    double macs;  // multiply-accumulates in one trip
};
constexpr Loop kLoops[] = {
    {loop_dpbusd, 16 * 64.0}, {loop_madd256, 8 * 16.0},  {loop_dpbf16, 16 * 32.0},  {loop_fma512, 16 * 16.0},
    {loop_fma256, 12 * 8.0},  {loop_pop512, 16 * 512.0}, {loop_tiles, 16 * 8192.0},
};

bool cpuid7(unsigned leaf, int reg, int bit) {
    unsigned r[4] = {};
    return __get_cpuid_count(7, leaf, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}

__attribute__((target("avx512f"))) int64_t read_block512(const char* p, int64_t bytes) {
    using v = long long __attribute__((vector_size(64), aligned(64)));
    v s0{}, s1{}, s2{}, s3{};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        const v* q = reinterpret_cast<const v*>(p + i);
        s0 += q[0];
        s1 += q[1];
        s2 += q[2];
        s3 += q[3];
    }
    s0 += s1 + s2 + s3;
    int64_t sum = 0;
    for (int i = 0; i < 8; ++i) sum += s0[i];
    return sum;
}

int64_t read_block(const char* p, int64_t bytes) {
    const auto* q = reinterpret_cast<const int64_t*>(p);
    int64_t s[4] = {};
    for (int64_t i = 0; i + 32 <= bytes; i += 32, q += 4)
        for (int j = 0; j < 4; ++j) s[j] += q[j];
    return s[0] + s[1] + s[2] + s[3];
}

}  // namespace

bool has_avx512() { return supported(Isa::avx512vnni) && !kEmulated; }  // what is here is assembly

bool peak_supported(Peak kind) {
    switch (kind) {
        case Peak::int8_avx512vnni:
        case Peak::fp32_avx512: return has_avx512();
        case Peak::int8_avx2:
        case Peak::fp32_avx2: return supported(Isa::avx2);
        case Peak::bf16_avx512: return has_avx512() && cpuid7(1, 0, 5);
        case Peak::bf16_amx: return supported(Isa::amxbf16) && !kEmulated;
        case Peak::binary_avx512: return has_avx512() && cpuid7(0, 2, 14);
        default: return false;
    }
}

double measure_peak(Peak kind, int threads, double milliseconds) {
    if (!peak_supported(kind)) return 0.0;
    const Loop& loop = kLoops[static_cast<int>(kind)];
    std::vector<double> rates(std::max(threads, 1), 0.0);
    on_threads(threads, [&](int thread) {
        constexpr int64_t kTrips = 2000;  // some ten to a hundred microseconds
        int64_t trips = 0;
        const double start = now();
        double elapsed = 0;
        while ((elapsed = now() - start) < milliseconds * 1e-3) {
            loop.run(kTrips);
            trips += kTrips;
        }
        rates[thread] = trips * loop.macs / elapsed * 1e-9;
    });
    double total = 0;
    for (double r : rates) total += r;
    return total;
}

double measure_read_bandwidth(int64_t bytes, int threads, int repeats) {
    threads = usable_threads(threads);
    const int64_t part = bytes / threads / 4096 * 4096;
    if (part == 0) return 0.0;
    constexpr int64_t kHugePage = 2 << 20;  // as the blocks of weights have: qkernels/memory.py
    const int64_t size = round_up(part * threads, kHugePage);
    char* data = static_cast<char*>(std::aligned_alloc(kHugePage, size));
    if (data == nullptr) return 0.0;
    madvise(data, size, MADV_HUGEPAGE);  // where that fails, ordinary pages do
    auto* read = has_avx512() ? read_block512 : read_block;
    double best = 0.0;
    std::atomic<int64_t> sink{0};
    on_threads(threads, [&](int t) { std::memset(data + t * part, 1, part); });  // first touch by the reader
    for (int r = 0; r < repeats; ++r) {
        const double start = now();
        on_threads(threads, [&](int t) { sink += read(data + t * part, part); });
        best = std::max(best, part * threads / (now() - start) * 1e-9);
    }
    std::free(data);
    return best;
}

double measure_fork_join(int threads, int repeats) {
    std::vector<double> us;
    std::atomic<int> sink{0};
    for (int r = 0; r < repeats; ++r) {
        const double start = now();
        on_threads(threads, [&](int t) { sink.fetch_add(t, std::memory_order_relaxed); });
        us.push_back((now() - start) * 1e6);
    }
    std::sort(us.begin(), us.end());
    return us.empty() ? 0.0 : us[us.size() / 2];
}

double core_ghz() {
    constexpr int64_t kAdds = 1000000;
    int64_t x = 1;
    const double start = now();
    for (int64_t i = 0; i < kAdds; i += 8)
        __asm__ volatile(
            "add %1, %0\nadd %1, %0\nadd %1, %0\nadd %1, %0\nadd %1, %0\nadd %1, %0\nadd %1, %0\nadd %1, %0"
            : "+r"(x)
            : "r"(i));
    return kAdds / (now() - start) * 1e-9;
}

}  // namespace qk
