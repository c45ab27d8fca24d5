// Threads. OpenMP through libgomp, the runtime that torch ships, so that both share one pool; the number of threads is
// an argument of every call. Work is split in contiguous ranges, so that a warm weight stays in the cache of the core
// that read it last time, and a thread that is done takes from the others, so that a core that is busy with another
// process delays its own range only at the join.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>

namespace qk {

inline constexpr int kMaxThreads = 256;

// What `asked` comes to: at most kMaxThreads, and 1 in a process that was forked (parallel.cpp).
int usable_threads(int asked);

class WorkRanges {
  public:
    WorkRanges(int64_t units, int threads) : threads_(std::min(threads, kMaxThreads)) {
        for (int t = 0; t < threads_; ++t) {
            ranges_[t].next.store(units * t / threads_, std::memory_order_relaxed);
            ranges_[t].end = units * (t + 1) / threads_;
        }
    }
    template <class Body>
    void run(int thread, Body body) {
        for (int i = 0; i < threads_; ++i) {
            Range& range = ranges_[(thread + i) % threads_];
            for (;;) {
                const int64_t unit = range.next.fetch_add(1, std::memory_order_relaxed);
                if (unit >= range.end) break;
                body(unit);
            }
        }
    }

  private:
    struct alignas(64) Range {
        std::atomic<int64_t> next;
        int64_t end;
    };
    int threads_;
    Range ranges_[kMaxThreads];
};

// body(thread) on `threads` threads, the caller among them; all of them may meet in team_barrier().
#if defined(__SANITIZE_THREAD__)
// The sanitizer does not see how libgomp synchronises, so for it plain threads stand in (parallel.cpp).
void team_barrier();
void on_std_threads(int threads, const std::function<void(int)>& body);

template <class Body>
void on_threads(int threads, Body body) {
    on_std_threads(usable_threads(threads), body);
}
#else
inline void team_barrier() {
#pragma omp barrier
}

template <class Body>
void on_threads(int threads, Body body) {
    threads = usable_threads(threads);
    if (threads == 1) {
        body(0);
        return;
    }
#pragma omp parallel num_threads(threads)
    body(omp_get_thread_num());
}
#endif

// Splits [0, units) over threads; one thread takes the plain loop.
template <class Body>
void parallel_for(int threads, int64_t units, Body body) {
    if (threads <= 1 || units <= 1) {
        for (int64_t u = 0; u < units; ++u) body(u);
        return;
    }
    WorkRanges ranges(units, threads);
    on_threads(threads, [&](int thread) { ranges.run(thread, body); });
}

}  // namespace qk
