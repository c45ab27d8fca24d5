// Loops that are gone when gcc assigns registers.
#pragma once

#include <utility>

namespace {

// Lambdas here say __attribute__((always_inline)): the [[gnu::always_inline]] of the standard belongs to their type,
// and gcc ignores it. body(0), body(1) ... body(N - 1) with the index a constant: an array of accumulators stays in
// registers only if no index of it is ever a variable, and gcc unrolls ordinary loops after it has decided that.
template <int... I, class Body>
[[gnu::always_inline]] inline void unroll(std::integer_sequence<int, I...>, [[maybe_unused]] Body body) {
    (body(std::integral_constant<int, I>{}), ...);
}
template <int N, class Body>
[[gnu::always_inline]] inline void unroll(Body body) {
    unroll(std::make_integer_sequence<int, N>{}, body);
}

}  // namespace
