// What decoding one token needs between its linear layers.
#include "../cpu/decode.h"

#include "common.h"

void check_attention(int64_t pitch, int64_t length, int64_t heads, int64_t kv_heads, int64_t head) {
    if (kv_heads < 1 || heads < 1 || heads % kv_heads != 0 || head < 2 || head % 2 != 0 || length < 1 ||
        pitch < length * head)
        throw std::invalid_argument("decode_attention: heads or a stride is out of range");
}

void bind_decode(py::module_& m) {
    // x, residual (or 0) and out (rows, k), weight (k,): contiguous
    m.def("rms_norm",
          [](int isa, Address x, Address residual, Address weight, int64_t rows, int64_t k, float eps, Address out) {
              const qk::DecodeKernels& kernels = checked_decode_kernels(isa);
              present("rms_norm: x", x, rows * k);
              present("rms_norm: weight", weight, k);
              py::gil_scoped_release release;
              kernels.rms_norm(pointer<float>(x), pointer<float>(residual), pointer<float>(weight), rows, k, eps,
                               pointer<float>(out));
          });
    // x (rows, 2 n) -> out (rows, n), contiguous
    m.def("swiglu", [](int isa, Address x, int64_t rows, int64_t n, Address out) {
        const qk::DecodeKernels& kernels = checked_decode_kernels(isa);
        present("swiglu: gate_up", x, rows * n);
        py::gil_scoped_release release;
        kernels.swiglu(pointer<float>(x), rows, n, pointer<float>(out));
    });
    // store (2 kv_heads, length, head), pitch floats between its planes; the others contiguous
    m.def("decode_attention",
          [](int isa, Address qkv, Address turn, Address store, int64_t pitch, int64_t length, int64_t heads,
             int64_t kv_heads, int64_t head, int64_t position, Address out, int threads) {
              const qk::DecodeKernels& kernels = checked_decode_kernels(isa);
              check_attention(pitch, length, heads, kv_heads, head);
              if (position < 0 || position >= length)
                  throw std::invalid_argument("decode_attention: the position is out of range");
              present("decode_attention: qkv", qkv, 1);
              present("decode_attention: turn", turn, 1);
              present("decode_attention: store", store, 1);
              py::gil_scoped_release release;
              qk::decode_attention(kernels,
                                   {pointer<float>(qkv), pointer<float>(turn), pointer<float>(store), pitch, heads,
                                    kv_heads, head, position, pointer<float>(out), nullptr},
                                   threads);
          });
}
