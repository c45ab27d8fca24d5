// The loops that the dense cores share.
//
//   for each chunk of rows whose operands stay in L2
//     for each panel of 64 output channels (a thread's own range, then whatever others have left)
//       panel(index, first row, end)
//
// A panel is read from memory once: the first group of rows pulls it in, the others find it in L2.
#pragma once

#include <algorithm>

#include "../common/types.h"
#include "parallel.h"

namespace qk {

struct LoopShape {
    int64_t m, panels;
    int64_t row_bytes;     // of a row's operands
    int64_t weight_bytes;  // of the weight, as operands
    int64_t chunk;         // rows that are prepared and computed together, at most
    int64_t block = 1;     // rows that stay together; a part may then exceed a chunk by one
};

inline constexpr int64_t kRowBytes = 512 << 10;        // operands of rows that stay in L2 beside two panels
inline constexpr int64_t kSharedWeight = 1 << 20;      // a weight that every core may keep in its own L2
inline constexpr int64_t kPrepareTogether = 16 << 10;  // operands that one thread makes before two have met

// Threads that the work repays. A region costs a microsecond when the cores are free, and as much again until the other
// core has the activations, so each thread must find about six to do. What the work takes only needs to be right within
// a factor of two.
inline int threads_worth(double nanoseconds, int threads) {
    return static_cast<int>(std::clamp<double>(nanoseconds / 6000.0, 1.0, std::max(threads, 1)));
}

// Rows whose operands stay in L2.
inline int64_t rows_in_cache(int64_t row_bytes) {
    return std::max<int64_t>(48, kRowBytes / std::max<int64_t>(row_bytes, 1));
}

// Groups of rows of even size: 16 rows are 6 + 5 + 5, not 6 + 6 + 4. body(group, first row, count)
template <class Body>
void each_group(int64_t begin, int64_t end, int64_t groups, Body body) {
    int64_t row = begin;
    for (int64_t g = 0; g < groups; ++g) {
        const int rows = static_cast<int>((end - row + groups - g - 1) / (groups - g));
        body(g, row, rows);
        row += rows;
    }
}

// Rows are cut into parts of even size: a last part of a row or two would run another kernel than the others do, whose
// float sums round differently, and results would depend on the number of threads.
// prepare(begin, end) makes the operands of those rows; it runs before they are used, on any thread.
template <class Prepare, class Panel>
void over_panels(const LoopShape& s, int threads, Prepare prepare, Panel panel) {
    // A weight that each core's L2 holds: split the rows, so that codes never travel between cores and nothing waits.
    const bool by_rows = s.weight_bytes <= kSharedWeight && s.m >= 12 * threads;
    auto cut = [&](int64_t part, int64_t count) {
        return std::min(s.m, ceil_div(s.m, s.block) * part / count * s.block);
    };
    auto even = [&](int64_t m) { return ceil_div(m, std::max<int64_t>(1, ceil_div(m, s.chunk))); };
    if (threads == 1 || by_rows) {
        const int64_t rows = even(threads == 1 ? s.m : ceil_div(s.m, 2 * threads)), count = ceil_div(s.m, rows);
        parallel_for(threads, count, [&](int64_t unit) {
            const int64_t begin = cut(unit, count), end = cut(unit + 1, count);
            if (begin == end) return;
            prepare(begin, end);
            for (int64_t p = 0; p < s.panels; ++p) panel(p, begin, end);
        });
        return;
    }
    // Else split the panels, all rows over each, and the rows too where there are few panels.
    const int64_t wanted =
        std::min(ceil_div(4 * threads, std::max<int64_t>(s.panels, 1)), std::max<int64_t>(s.m / 12, 1));
    const int64_t rows = std::min(even(s.m), ceil_div(s.m, wanted));
    const bool together = s.m * s.row_bytes > kPrepareTogether;
    if (!together) prepare(0, s.m);
    const int64_t count = ceil_div(s.m, rows);
    WorkRanges preparations(ceil_div(s.m, 4), threads), units(s.panels * count, threads);
    on_threads(threads, [&](int thread) {
        if (together) {
            preparations.run(thread, [&](int64_t u) { prepare(u * 4, std::min(s.m, u * 4 + 4)); });
            team_barrier();
        }
        units.run(thread, [&](int64_t u) {
            const int64_t begin = cut(u / s.panels, count), end = cut(u / s.panels + 1, count);
            if (begin < end) panel(u % s.panels, begin, end);
        });
    });
}

// What memory is asked for ahead of its use: `most` cache lines for every four k steps, shared out over groups of rows.
struct Ahead {
    const char* from = nullptr;
    int64_t lines = 0, most = 0;  // of a group of rows; of all

    void over(int64_t groups) { lines = ceil_div(most, groups); }
    // For steps [first, first + args.steps) of the panel, as seen by group `group`.
    template <class Args>
    void request(Args& args, int64_t group, int64_t first_step) const {
        if (from == nullptr) return;
        args.lines = static_cast<int>(std::clamp<int64_t>(most - group * lines, 0, lines));
        args.ahead = from + (first_step / 4 * most + group * lines * (args.steps / 4)) * 64;
    }
};

}  // namespace qk
