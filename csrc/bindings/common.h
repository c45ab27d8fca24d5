// What the bindings of the CPU kernels use.
#pragma once

#include "../cpu/decode.h"
#include "../cpu/kernels.h"
#include "address.h"

inline qk::Isa checked_number(int isa) {
    if (isa < 0 || isa >= qk::kIsaCount || !qk::supported(static_cast<qk::Isa>(isa)))
        throw std::invalid_argument("this machine does not support ISA number " + std::to_string(isa));
    return static_cast<qk::Isa>(isa);
}
inline const qk::Kernels& checked_isa(int isa) { return qk::kernels(checked_number(isa)); }
inline const qk::DecodeKernels& checked_decode_kernels(int isa) { return qk::decode_kernels(checked_number(isa)); }

// max|code - zero_point| over all codes that a weight's widths can hold: gemm.cpp.
int64_t code_extreme(const qk::GemmView& w);

// A prepacked weight: the block's owner is kept alive, its header is checked once. View is GemmView, FloatView ...
template <class View>
class Packed {
  public:
    // what: of the weight, as the error names it; made_by: the function that makes such blocks.
    Packed(Address data, int64_t bytes, py::object owner, const char* what, const char* made_by, int64_t alignment = 8)
        : view_(checked(data, bytes, what, made_by, alignment)), owner_(std::move(owner)) {}
    const View& view() const { return view_; }

  private:
    static const void* checked(Address data, int64_t bytes, const char* what, const char* made_by, int64_t alignment) {
        if (data % alignment != 0 || !View::valid(pointer<void>(data), bytes))
            throw std::invalid_argument(std::string("not a prepacked ") + what + " (" + std::to_string(bytes) +
                                        " bytes): make it with " + made_by + " and do not change it");
        return pointer<void>(data);
    }
    View view_;
    py::object owner_;
};

// linear(x, w) with everything that does not change between calls. Alive as long as the Python object that it is of.
class LinearCall {
  public:
    virtual ~LinearCall() = default;
    virtual int64_t n() const = 0;
    virtual int64_t k() const = 0;
    // x (m, k), row pitch ldx -> out (m, n), contiguous. Returns the number of a refused row, or -1. Needs no GIL.
    virtual int64_t run(Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) const = 0;

    // The same for a call from Python.
    int64_t checked(Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) const {
        present("linear: x", x, m * k());
        present("linear: the result", out, m * n());
        py::gil_scoped_release release;
        return run(x, m, ldx, bias, out, threads);
    }
};

// decode.cpp
void check_attention(int64_t pitch, int64_t length, int64_t heads, int64_t kv_heads, int64_t head);

struct RequantArrays {
    Address multiplier, shift, scale;  // n values each, already one per channel
    int rounding, zero_point, lo, hi;

    qk::Epilogue epilogue() const {
        qk::Epilogue e;
        e.multiplier = pointer<int32_t>(multiplier);
        e.shift = pointer<int32_t>(shift);
        e.requant_scale = pointer<float>(scale);
        e.out_zero = zero_point;
        e.lo = lo;
        e.hi = hi;
        return e;
    }
};

void bind_machine(py::module_& m);      // machine.cpp
void bind_elementwise(py::module_& m);  // elementwise.cpp
void bind_gemm(py::module_& m);         // gemm.cpp
void bind_gemm_float(py::module_& m);   // gemm_float.cpp
void bind_integer(py::module_& m);      // integer.cpp
void bind_binary(py::module_& m);       // binary.cpp
void bind_conv(py::module_& m);         // conv.cpp
void bind_decode(py::module_& m);       // decode.cpp
void bind_program(py::module_& m);      // program.cpp
