// For tests/test_cuda_wgmma.py, compiled with csrc/cuda/emulator/emulator.cpp and csrc/cuda/tensor_map.cu: index
// functions, one product of a warpgroup whose operands a bulk copy brings, a copy to both blocks of a cluster, and
// faults.
#include "../csrc/cuda/gemm_wgmma.h"
#include "../csrc/cuda/wgmma.h"
#include "guarded.h"

using namespace qk::cuda;

namespace {

std::string fault;
bool is(const char* name) { return fault == name; }

// d (64, 128) = a (64, 128 bytes) * b (128, 128 bytes)^T, by one warpgroup; then d is what it was plus the same again.
template <bool SIGNED>
void product(const TensorMap a_map, const TensorMap b_map, int32_t* d) {
    constexpr int kA = 64 * 128, kB = 128 * 128;
    char* shared = shared_memory();
    auto* barrier = reinterpret_cast<uint64_t*>(shared + kA + kB);
    const int thread = threadIdx.x;
    if (thread == 0 && !is("no_init")) {
        mbarrier_init(barrier, 1);
        mbarrier_init_fence();
    }
    __syncthreads();
    if (thread == 0) {
        mbarrier_arrive_expect(barrier, is("too_few_bytes") ? kA : kA + kB);
        copy_box(shared, a_map, barrier, 0, 0);
        copy_box(shared + kA + (is("misplaced") ? -128 : 0), b_map, barrier, 0, 0);
        if (is("arrives_twice")) mbarrier_arrive(barrier);
    }
    if (!is("no_barrier_wait")) mbarrier_wait(barrier, is("wrong_parity") ? 1 : 0);
    int32_t acc[64];
    for (int32_t& x : acc) x = 12345;
    for (int repeat = 0; repeat < 2; ++repeat) {
        if (!is("no_fence")) wgmma_fence();
        for (int s = 0; s < 4; ++s) {
            uint64_t a = operand_128(shared_address(shared) + s * 32, 1024);
            uint64_t b = operand_128(shared_address(shared + kA) + s * 32, 1024);
            if (is("wrong_stride")) b = operand_128(shared_address(shared + kA) + s * 32, 2048);
            if (is("no_swizzle")) a &= ~(uint64_t{3} << 62);
            if (is("swizzle_64")) a = (a & ~(uint64_t{3} << 62)) | uint64_t{2} << 62;
            if (is("atom_offset")) a |= uint64_t{1} << 49;
            if (is("stray_bits")) a |= uint64_t{1} << 14;
            if (is("threads_differ") && thread == 77) a += 2;
            if (is("no_descriptor")) a = b = 0;
            wgmma<SIGNED>(acc, a, b, repeat > 0 || s > 0);
            if (is("writes_accumulator") && s == 1) acc[3] = 1;
        }
        wgmma_commit();
        if (is("overwrites_operand") && thread == 0) shared[5] = static_cast<char>(shared[5] + 1);
        if (!is("no_wait")) wgmma_wait<0>();
        if (is("no_wait") && repeat == 1) {
            const int32_t seen = acc[0];
            wgmma_wait<0>();
            acc[0] = seen;
        }
    }
    const int row = thread / 32 * 16 + thread % 32 / 4;
    for (int i = 0; i < 64; ++i) d[(row + i % 4 / 2 * 8) * 128 + i / 4 * 8 + thread % 4 * 2 + i % 2] = acc[i];
}

// Blocks in pairs; each copies half of 128 rows of 128 bytes to both, and writes what it then has, without the swizzle.
void exchange(const TensorMap map, char* out) {
    constexpr int kRows = 64, kHalf = kRows * 128;
    char* shared = shared_memory();
    auto *full = reinterpret_cast<uint64_t*>(shared + 2 * kHalf), *read = full + 1;
    const int thread = threadIdx.x, rank = cluster_rank();
    const bool second = rank == 1;
    auto copy = [&](uint16_t blocks) {
        const int first = static_cast<int>(blockIdx.x) / 2 * 2 * kRows;
        copy_box_to(blocks, shared + rank * kHalf, map, full, 0, first + rank * kRows);
    };
    if (thread == 0 && !(is("no_init") && second)) {
        mbarrier_init(full, 1);
        mbarrier_init(read, 2);
        mbarrier_init_fence();
    }
    if (is("no_cluster_barrier") || (is("one_at_the_barrier") && second))
        __syncthreads();
    else
        cluster_barrier();
    if (thread == 0) {
        mbarrier_arrive_expect(full, is("too_few_bytes") ? kHalf : 2 * kHalf);
        copy(is("to_none") ? 0 : is("to_three") ? 7 : is("to_itself") ? 1 << rank : is("to_the_other") ? 2 >> rank : 3);
    }
    if (!(is("does_not_wait") && second)) mbarrier_wait(full, 0);
    for (int i = thread; i < 2 * kHalf; i += 32) out[blockIdx.x * 2 * kHalf + i] = shared[swizzle_128(i)];
    __syncthreads();
    if (thread < 2) mbarrier_arrive_at(read, is("no_such_block") ? 2 : thread);
    if (!is("ends_early")) mbarrier_wait(read, 0);
    if (is("late_copy") && second && thread == 0) copy(3);
    if (is("arrives_late") && second && thread == 0) mbarrier_arrive_at(read, 0);
}

}  // namespace

extern "C" {

void set_schedule(uint64_t seed) { emulator::set_schedule(seed); }

// a (a_rows, k bytes), b (b_rows, k bytes), rows 128 bytes apart; what is beyond is 0 to the copies.
const char* run_product(const char* name, bool is_signed, const void* a, const void* b, int a_rows, int b_rows, int k,
                        int32_t* d) {
    fault = name;
    return guarded([&] {
        auto map = [k](const void* base, int rows, uint32_t box) {
            return tensor_map({base, 2, {static_cast<uint64_t>(k), static_cast<uint64_t>(rows)}, {128}, {128, box}});
        };
        launch(is_signed ? product<true> : product<false>, dim3(1), dim3(128), 64 * 128 + 128 * 128 + 8, nullptr,
               map(a, a_rows, 64), map(b, b_rows, 128), d);
    });
}

// x (64 * blocks, 128); out (blocks, 128, 128).
const char* run_exchange(const char* name, const void* x, char* out, int blocks) {
    fault = name;
    return guarded([&] {
        const auto rows = static_cast<uint64_t>(64 * blocks);
        launch_kernel({false, 2}, exchange, dim3(static_cast<unsigned>(blocks)), dim3(32), 2 * 64 * 128 + 16, nullptr,
                      tensor_map({x, 2, {128, rows}, {128}, {128, 64}}), out);
    });
}

const char* make_map(const void* base, int rank, const uint64_t* sizes, const uint64_t* strides, const uint32_t* box) {
    return guarded([&] {
        ByteTensor t{base, rank, {}, {}, {}};
        for (int i = 0; i < rank && i < 4; ++i) {
            t.sizes[i] = sizes[i];
            t.box[i] = box[i];
            if (i > 0) t.strides[i - 1] = strides[i - 1];
        }
        tensor_map(t);
    });
}

// A weight tile of 16 channels x 128 k, two tiles of the layout, as a bulk copy leaves it; where wgmma reads
// (warpgroup, row of eight, k): found through the descriptor.
int w_byte(int channel, int k) {
    const auto offset = static_cast<uint32_t>(int8_offset(channel, k, 128));
    return static_cast<int>(swizzle_128(offset));
}
int wgmma_byte(int warpgroup, int row, int k) {
    const auto at =
        static_cast<uint32_t>(wgmma_w_offset(warpgroup, k / 32) + k % 32 + row / 8 * kWgmmaStrideW + row % 8 * 128);
    return static_cast<int>(swizzle_128(at));
}
int channel_of(int warpgroup, int row) { return wgmma_channel(warpgroup, row); }
int column_of(int channel) { return wgmma_column(channel); }
uint64_t descriptor(uint32_t address, uint32_t stride) { return operand_128(address, stride); }
void at_tile(int index, int n_tiles, int m_tiles, int group, int* out) {
    const TileAt t = tile_at(index, n_tiles, m_tiles, group);
    out[0] = t.n;
    out[1] = t.m;
}
int shared_bytes(int tokens) { return tokens == 256 ? WgmmaTile<256>::kShared : WgmmaTile<128>::kShared; }
int pitch() { return WgmmaTile<256>::kPitch; }
}
