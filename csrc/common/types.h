// Names shared by every kernel and by the bindings. No dependency beyond the language.
#pragma once

#include <cstddef>
#include <cstdint>

// On functions that kernels call too.
#ifdef __CUDACC__
#define QK_HD __host__ __device__
#else
#define QK_HD
#endif

namespace qk {

enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, i8 = 3, u8 = 4, i32 = 5 };
enum class Activation : int { none = 0, relu = 1, relu6 = 2, gelu = 3, silu = 4 };
enum class Rounding : int { single = 0, double_ = 1, float_ = 2 };

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

QK_HD inline constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}
QK_HD inline constexpr int64_t ceil_div(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

// Where the parts of a block of memory lie: one after the other from `at` on, each at a multiple of `alignment`.
class Places {
  public:
    explicit constexpr Places(int64_t alignment, int64_t at = 0) : alignment_(alignment), at_(at) {}
    constexpr int64_t operator()(int64_t bytes) {
        const int64_t here = total();
        at_ = here + bytes;
        return here;
    }
    constexpr int64_t total() const { return round_up(at_, alignment_); }

  private:
    int64_t alignment_, at_;
};

}  // namespace qk
