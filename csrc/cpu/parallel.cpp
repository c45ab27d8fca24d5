// After a fork the child has one thread, while libgomp still counts on the pool of its parent: its next parallel region
// would wait for ever for threads that were not copied. So a forked child computes on the calling thread.
#include "parallel.h"

#include <pthread.h>

namespace qk {

namespace {

bool forked = false;  // written in the child before it can have a second thread
[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });

}  // namespace

int usable_threads(int asked) { return forked ? 1 : std::clamp(asked, 1, kMaxThreads); }

}  // namespace qk
