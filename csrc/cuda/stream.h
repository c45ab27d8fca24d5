// A CUDA stream, for files that do without CUDA's headers (bindings, launch declarations), and how kernels start.
#pragma once

struct CUstream_st;

namespace qk::cuda {
using Stream = CUstream_st*;  // what cudaStream_t is; the number that torch's stream.cuda_stream gives

// overlap: the kernel may start while the one before it in the stream ends (sm_90); it must call wait_for_previous().
// cluster: neighbouring blocks (x) that run at the same time and reach each other's shared memory (sm_90, wgmma.h); the
// grid is a multiple of it.
struct Start {
    bool overlap = false;
    unsigned cluster = 1;
};

}  // namespace qk::cuda
