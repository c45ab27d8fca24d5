// Which instruction sets this machine has: CPUID, and XCR0 for what the operating system saves. The one place that
// decides; kernels never ask.
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels.h"

namespace qk {

namespace {

constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;  // CPUID 7.0, EDX; not in every cpuid.h

// Linux saves the 8 KB of tile data only for processes that have asked (its Documentation/arch/x86/xstate.rst); threads
// and children inherit the answer. It refuses where a thread's alternate signal stack is too small for them.
bool tiles_permitted() {
#if defined(__linux__) && defined(__x86_64__)
    constexpr int kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
    return false;
#endif
}

struct Features {
    bool avx2 = false, avx512vnni = false, avx512vpopcntdq = false, avx512bf16 = false, amxbf16 = false;

    Features() {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool osxsave = c & bit_OSXSAVE, fma = c & bit_FMA, f16c = c & bit_F16C;
        if (!osxsave) return;
        unsigned lo = 0, hi = 0;
        __asm__("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
        const bool ymm = (lo & 0x06) == 0x06, zmm = (lo & 0xe6) == 0xe6;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        avx2 = ymm && fma && f16c && (b & bit_AVX2);
        if (kEmulated) {
            avx512vnni = avx512vpopcntdq = avx512bf16 = amxbf16 = avx2;
            return;
        }
        const unsigned base = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
        avx512vnni = avx2 && zmm && (b & base) == base && (c & bit_AVX512VNNI);
        // Every processor with the one has the other (Ice Lake, Zen 4 and later); a hypervisor may hide either.
        avx512vpopcntdq = avx512vnni && (c & bit_AVX512VPOPCNTDQ) && (c & bit_AVX512VBMI);
        const bool amx = (lo & 0x60000) == 0x60000 && (d & kAmxBf16) && (d & kAmxTile);
        if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
        avx512bf16 = avx512vpopcntdq && (a & bit_AVX512BF16);
        amxbf16 = avx512bf16 && amx && tiles_permitted();
    }
};

const Features& features() {
    static const Features f;
    return f;
}

}  // namespace

bool supported(Isa isa) {
    switch (isa) {
        case Isa::scalar: return true;
        case Isa::avx2: return features().avx2;
        case Isa::avx512vnni: return features().avx512vnni;
        case Isa::avx512vpopcntdq: return features().avx512vpopcntdq;
        case Isa::avx512bf16: return features().avx512bf16;
        case Isa::amxbf16: return features().amxbf16;
    }
    return false;
}

Isa best_isa() {
    int best = kIsaCount - 1;
    while (!supported(static_cast<Isa>(best))) --best;
    return static_cast<Isa>(best);
}

const Kernels& kernels(Isa isa) {
    switch (isa) {
        case Isa::amxbf16:
        case Isa::avx512bf16:
        case Isa::avx512vpopcntdq:
        case Isa::avx512vnni: return kernels_avx512vnni();
        case Isa::avx2: return kernels_avx2();
        default: return kernels_scalar();
    }
}

}  // namespace qk
