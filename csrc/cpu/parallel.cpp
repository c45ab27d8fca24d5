// After a fork the child has one thread, while libgomp still counts on the pool of its parent: its next parallel region
// would wait for ever for threads that were not copied. So a forked child computes on the calling thread.
#include "parallel.h"

#include <pthread.h>

#include <thread>
#include <vector>

namespace qk {

namespace {

bool forked = false;  // written in the child before it can have a second thread
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int usable_threads(int asked) { return forked ? 1 : std::clamp(asked, 1, kMaxThreads); }

#if defined(__SANITIZE_THREAD__)
namespace {

thread_local pthread_barrier_t* team = nullptr;

}  // namespace

void team_barrier() {
    if (team != nullptr) pthread_barrier_wait(team);
}

void on_std_threads(int threads, const std::function<void(int)>& body) {
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, nullptr, threads);
    auto run = [&](int thread) {
        team = &barrier;
        body(thread);
        team = nullptr;
    };
    std::vector<std::thread> others;
    for (int t = 1; t < threads; ++t) others.emplace_back(run, t);
    run(0);
    for (auto& other : others) other.join();
    pthread_barrier_destroy(&barrier);
}
#endif

}  // namespace qk
