// The scheduler of the emulator: fibers with stacks of their own, switched by hand (x86-64, System V).
#include "emulator.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <random>
#include <unordered_map>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// Saves the callee's registers on the old stack and its pointer in *from, then goes on with the stack `to`.
extern "C" void qk_switch_fiber(void** from, void* to);
asm(R"(
.text
.globl qk_switch_fiber
.type qk_switch_fiber, @function
qk_switch_fiber:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size qk_switch_fiber, .-qk_switch_fiber
)");

namespace qk::cuda::emulator {

State state;

namespace {

constexpr size_t kStack = 256 << 10, kCanary = 4096, kMostThreads = 1024, kMostShared = 228 << 10;
constexpr size_t kMostCluster = 8, kMostFibers = 2 * kMostThreads, kBlockMemory = kMostShared + 2 * kCanary;

void* scheduler_stack;
const std::function<void()>* body;
std::string error;
uint64_t schedule = 0;
std::unordered_map<uint64_t, std::unique_ptr<Meeting>> meetings;
std::mutex one_launch;

char* stacks() {  // a page that faults below each
    static char* memory = [] {
        void* m = mmap(nullptr, kStack * kMostFibers, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (m == MAP_FAILED) throw std::bad_alloc();
        for (size_t i = 0; i < kMostFibers; ++i) mprotect(static_cast<char*>(m) + i * kStack, 4096, PROT_NONE);
        return static_cast<char*>(m);
    }();
    return memory;
}

void to_scheduler() { qk_switch_fiber(&state.fiber->stack_pointer, scheduler_stack); }

void fiber_main() {
    try {
        (*body)();
        if (!state.fiber->open.empty()) fail("a thread ends with a copy that was never committed");
        if (!state.fiber->accumulators.empty()) fail("a thread ends with a product that was never waited for");
    } catch (const std::exception& e) {
        if (error.empty()) error = e.what();
    }
    state.fiber->done = true;
    --state.fiber->home->alive;
    to_scheduler();
    __builtin_unreachable();
}

void prepare(int number) {  // of the cluster's fibers
    const dim3 b = state.block;
    const auto i = static_cast<unsigned>(number % static_cast<int>(state.threads));
    Fiber& f = state.fibers[number];
    f = Fiber{};
    f.home = &state.blocks[number / state.threads];
    f.index = static_cast<int>(i);
    f.thread = dim3(i % b.x, i / b.x % b.y, i / (b.x * b.y));
#ifdef __SANITIZE_ADDRESS__  // frames of the fiber before, which never returned
    __asan_unpoison_memory_region(stacks() + (number + 1) * kStack - kStack / 4, kStack / 4);
#endif
    // As after a call: the address to return to, then the six registers; the stack is 8 off a multiple of 16.
    auto* top = reinterpret_cast<void**>(stacks() + (number + 1) * kStack) - 1;
    *--top = reinterpret_cast<void*>(&fiber_main);
    for (int r = 0; r < 6; ++r) *--top = nullptr;
    f.stack_pointer = top;
}

int alive() {
    int count = 0;
    for (const Block& b : state.blocks) count += b.alive;
    return count;
}

std::string name_of(const Fiber& f) {
    const dim3 b = f.home->index;
    return "block " + std::to_string(b.x) + " " + std::to_string(b.y) + " " + std::to_string(b.z) + ", thread " +
           std::to_string(f.index);
}

// Lets each of these threads go on to where it waits next; whether any could.
bool pass(const int* from, const int* to) {
    bool moved = false;
    for (; from < to; ++from) {
        Fiber& f = state.fibers[*from];
        state.fiber = &f;
        state.here = f.home;
        if (f.done || (f.ready && !f.ready())) continue;
        f.ready = nullptr;
        moved = true;
        qk_switch_fiber(&scheduler_stack, f.stack_pointer);
        if (!error.empty()) return false;
    }
    return moved;
}

void run_cluster(std::mt19937_64& random) {
    const int threads = static_cast<int>(state.fibers.size()), block = static_cast<int>(state.threads);
    for (int i = 0; i < threads; ++i) prepare(i);
    meetings.clear();
    state.cluster_meeting = Meeting{};
    state.bulk.clear();
    std::vector<int> order(threads);
    for (int i = 0; i < threads; ++i) order[i] = schedule == 1 ? threads - 1 - i : i;
    while (alive() > 0) {
        bool moved = false;
        if (schedule > 1) {
            std::shuffle(order.begin(), order.end(), random);
            moved = pass(order.data(), order.data() + threads);
        } else {  // a block goes as far as it can before the next one starts
            for (int i = 0; i < threads; i += block)
                while (pass(&order[i], &order[i] + block)) moved = true;
        }
        if (!error.empty()) return;
        if (moved) continue;
        for (const Fiber& f : state.fibers)
            if (!f.done) {
                error = name_of(f) + " waits forever at " + f.waits_for + "; " + std::to_string(alive()) + " of " +
                        std::to_string(threads) + " threads are left";
                return;
            }
    }
}

}  // namespace

void fail(const std::string& what) {
    const std::string where = state.fiber == nullptr ? "" : " (" + name_of(*state.fiber) + ")";
    throw std::runtime_error("emulated kernel: " + what + where);
}

Meeting& meeting(uint64_t key) {
    auto& found = meetings[key | static_cast<uint64_t>(state.here->rank) << 60];
    if (!found) found = std::make_unique<Meeting>();
    return *found;
}

void wait_until(const char* what, std::function<bool()> ready) {
    Fiber& f = *state.fiber;
    f.waits_for = what;
    f.ready = std::move(ready);
    to_scheduler();
}

namespace {

template <class Count>
void barrier_of(Meeting& m, const char* what, Count count) {
    const uint64_t generation = m.generation;
    ++m.arrived;
    // Whoever looks first when enough are there opens it; threads that have returned count as arrived.
    auto open = [&m, generation, count] {
        if (m.generation == generation && m.arrived >= count()) {
            m.arrived = 0;
            ++m.generation;
        }
        return m.generation != generation;
    };
    if (!open()) wait_until(what, open);
}

}  // namespace

void barrier(int id, int count) {
    barrier_of(meeting(uint64_t{4} << 40 | static_cast<uint64_t>(id)), "a barrier",
               [count] { return count < 0 ? state.here->alive : count; });
}

void cluster_barrier() { barrier_of(state.cluster_meeting, "the cluster's barrier", alive); }

void require_aligned(const char* what, const void* address, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
        fail(std::string(what) + ": an address is not aligned to " + std::to_string(bytes) + " bytes");
}

void require_shared(const char* what, const void* address, size_t bytes) {
    const auto* p = static_cast<const char*>(address);
    const char* shared = state.here->shared;
    if (p < shared || p + bytes > shared + state.shared_bytes)
        fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at " + std::to_string(p - shared) + " of " +
             std::to_string(state.shared_bytes) + " bytes of shared memory");
}

void set_schedule(uint64_t seed) { schedule = seed; }

namespace {

// What is wrong after all threads of a cluster have returned.
std::string fault_at_the_end() {
    auto spoiled = [](const char* p, size_t n) {
        return std::any_of(p, p + n, [](char c) { return static_cast<unsigned char>(c) != kPoison; });
    };
    for (const Block& b : state.blocks)
        if (spoiled(b.shared - kCanary, kCanary) || spoiled(b.shared + state.shared_bytes, kCanary))
            return "emulated kernel: a write outside of the block's shared memory";
    if (!state.bulk.empty()) return "emulated kernel: a block ends before a bulk copy that nobody waited for";
    return "";
}

}  // namespace

void run(dim3 grid, dim3 block, unsigned cluster, size_t shared_bytes, const std::function<void()>& kernel) {
    std::lock_guard<std::mutex> hold(one_launch);
    const size_t threads = size_t{block.x} * block.y * block.z;
    if (threads == 0 || threads > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 ||
        grid.z > 65535 || shared_bytes > kMostShared - 1024)
        throw std::runtime_error("emulated kernel: a launch with a size that no device takes");
    if (cluster == 0 || cluster > kMostCluster || grid.x % cluster != 0)
        throw std::runtime_error("emulated kernel: a launch with clusters that no device takes");
    if (cluster * threads > kMostFibers) throw std::runtime_error("emulated kernel: more threads than it has fibers");
    static char* memory = static_cast<char*>(std::aligned_alloc(4096, kMostCluster * kBlockMemory));
    state = State{};
    state.grid = grid;
    state.block = block;
    state.threads = threads;
    state.fibers.resize(cluster * threads);
    state.shared_bytes = shared_bytes;
    body = &kernel;
    error.clear();
    std::mt19937_64 random(schedule);
    for (unsigned z = 0; z < grid.z; ++z)
        for (unsigned y = 0; y < grid.y; ++y)
            for (unsigned x = 0; x < grid.x; x += cluster) {
                state.blocks.clear();
                for (unsigned rank = 0; rank < cluster; ++rank) {
                    char* own = memory + rank * kBlockMemory;
                    std::memset(own, kPoison, kCanary + shared_bytes + kCanary);
                    state.blocks.push_back({dim3(x + rank, y, z), rank, own + kCanary, static_cast<int>(threads)});
                }
                run_cluster(random);
                state.fiber = nullptr;
                if (error.empty()) error = fault_at_the_end();
                if (!error.empty()) throw std::runtime_error(error);
            }
}

}  // namespace qk::cuda::emulator
