// A CUDA stream, for files that do without CUDA's headers (bindings, launch declarations).
#pragma once

struct CUstream_st;

namespace qk::cuda {
using Stream = CUstream_st*;  // what cudaStream_t is; the number that torch's stream.cuda_stream gives
}
