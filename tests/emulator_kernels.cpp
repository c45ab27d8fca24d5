// Kernels for tests of the emulator itself: products whose operands come by ldmatrix, and one fault each.
// Compiled by tests/test_cuda_emulator.py with csrc/cuda/emulator/emulator.cpp.
#include "../csrc/cuda/ptx.h"
#include "../csrc/cuda/reduce.h"
#include "guarded.h"

using namespace qk::cuda;

namespace {

// d (16, 8) = a (16, 32 bytes) * b (8, 32 bytes)^T, both row-major with k innermost.
template <class D, class Mma>
void product(const char* a, const char* b, D* d, Mma mma) {
    char* shared = shared_memory();
    const int lane = threadIdx.x;
    cp_async_16(shared + lane * 16, a + lane * 16);
    if (lane < 16) cp_async_16(shared + 512 + lane * 16, b + lane * 16);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    uint32_t ra[4], rb[2];
    ldmatrix_x4(ra, shared + (lane % 16) * 32 + lane / 16 * 16);  // rows 0-7, 8-15, then the high halves
    ldmatrix_x2(rb, shared + 512 + (lane % 8) * 32 + lane / 8 % 2 * 16);
    D acc[4] = {};
    mma(acc, ra, rb);
    for (int i = 0; i < 4; ++i) d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = acc[i];
}

void product_s8(const char* a, const char* b, int32_t* d) { product(a, b, d, mma_s8); }
void product_s8u8(const char* a, const char* b, int32_t* d) { product(a, b, d, mma_s8u8); }
void product_b1(const char* a, const char* b, int32_t* d) { product(a, b, d, mma_b1_and); }
void product_f16(const char* a, const char* b, float* d) { product(a, b, d, mma_f16); }
void product_bf16(const char* a, const char* b, float* d) { product(a, b, d, mma_bf16); }

void transpose(const uint16_t* in, uint16_t* out) {  // (8, 32) of 16 bits, four matrices, each transposed
    char* shared = shared_memory();
    const int lane = threadIdx.x;
    std::memcpy(shared + lane * 16, reinterpret_cast<const char*>(in) + lane * 16, 16);
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4_trans(r, shared + (lane % 8) * 64 + lane / 8 * 16);
    for (int m = 0; m < 4; ++m)
        for (int i = 0; i < 2; ++i)
            out[m * 64 + lane / 4 * 8 + lane % 4 * 2 + i] = static_cast<uint16_t>(r[m] >> (16 * i));
}

void reduce(const int32_t* in, int32_t* out) {  // blocks of 96 threads
    const int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    auto* scratch = reinterpret_cast<int32_t*>(shared_memory());
    auto add = [](int32_t a, int32_t b) { return a + b; };
    const int32_t sum = block_reduce(in[at], scratch, 0, add);
    auto most = [](int32_t a, int32_t b) { return a > b ? a : b; };
    out[at] = sum - block_reduce(in[at], scratch, INT32_MIN, most);
}

// ---- faults
// ----------------------------------------------------------------------------------------------------------

void no_wait(const char* in, char* out) {
    char* shared = shared_memory();
    cp_async_16(shared + threadIdx.x * 16, in + threadIdx.x * 16);
    cp_async_commit();
    std::memcpy(out + threadIdx.x * 16, shared + threadIdx.x * 16, 16);
    cp_async_wait<0>();
}
void no_barrier(const char* in, char* out) {  // reads what the next thread copied
    char* shared = shared_memory();
    cp_async_16(shared + threadIdx.x * 16, in + threadIdx.x * 16);
    cp_async_commit();
    cp_async_wait<0>();
    std::memcpy(out + threadIdx.x * 16, shared + (threadIdx.x + 1) % 32 * 16, 16);
}
void unwritten(const char*, char* out) { std::memcpy(out + threadIdx.x * 16, shared_memory() + threadIdx.x * 16, 16); }
void misaligned(const char* in, char*) { cp_async_16(shared_memory() + threadIdx.x * 16 + 8, in); }
void not_committed(const char* in, char*) { cp_async_16(shared_memory() + threadIdx.x * 16, in); }
void outside(const char* in, char*) { cp_async_16(shared_memory() + 512, in); }
void writes_outside(const char*, char*) { shared_memory()[512 + threadIdx.x] = 1; }
void diverges(const char*, char*) {
    uint32_t r[4];
    if (threadIdx.x != 5) ldmatrix_x4(r, shared_memory());
}
void mixes(const char*, char*) {
    uint32_t r[4] = {};
    if (threadIdx.x < 16)
        ldmatrix_x4(r, shared_memory());
    else
        ldmatrix_x4_trans(r, shared_memory());
}
void half_barrier(const char*, char*) {
    if (threadIdx.x < 16)
        __syncthreads();
    else
        named_barrier(1, 32);
}
void wrong_lane(const char*, char*) {
    if (threadIdx.x < 16) __shfl_sync(0xffffu, 1, 20);
}

}  // namespace

extern "C" {
void set_schedule(uint64_t seed) { emulator::set_schedule(seed); }
const char* run_product(int kind, const char* a, const char* b, void* d) {
    return guarded([&] {
        auto* i = static_cast<int32_t*>(d);
        auto* f = static_cast<float*>(d);
        const dim3 one(1), warp(32);
        if (kind == 0) launch(product_s8, one, warp, 768, nullptr, a, b, i);
        if (kind == 1) launch(product_s8u8, one, warp, 768, nullptr, a, b, i);
        if (kind == 2) launch(product_b1, one, warp, 768, nullptr, a, b, i);
        if (kind == 3) launch(product_f16, one, warp, 768, nullptr, a, b, f);
        if (kind == 4) launch(product_bf16, one, warp, 768, nullptr, a, b, f);
    });
}
const char* run_transpose(const uint16_t* in, uint16_t* out) {
    return guarded([&] { launch(transpose, dim3(1), dim3(32), 512, nullptr, in, out); });
}
const char* run_reduce(const int32_t* in, int32_t* out, int blocks) {
    return guarded([&] { launch(reduce, dim3(static_cast<unsigned>(blocks)), dim3(96), 128, nullptr, in, out); });
}
const char* run_fault(const char* name, const char* in, char* out) {
    return guarded([&] {
        const std::pair<const char*, void (*)(const char*, char*)> faults[] = {{"no_wait", no_wait},
                                                                               {"no_barrier", no_barrier},
                                                                               {"unwritten", unwritten},
                                                                               {"misaligned", misaligned},
                                                                               {"not_committed", not_committed},
                                                                               {"outside", outside},
                                                                               {"writes_outside", writes_outside},
                                                                               {"diverges", diverges},
                                                                               {"mixes", mixes},
                                                                               {"half_barrier", half_barrier},
                                                                               {"wrong_lane", wrong_lane}};
        for (const auto& [known, kernel] : faults)
            if (std::strcmp(known, name) == 0) return launch(kernel, dim3(1), dim3(32), 512, nullptr, in, out);
        throw std::runtime_error("no such fault");
    });
}
}
