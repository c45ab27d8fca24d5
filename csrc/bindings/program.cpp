// A step of a network: calls bound to memory once, run one after the other by one call from Python.
#include <chrono>
#include <functional>
#include <tuple>
#include <vector>

#include "common.h"

namespace {

class Program {
  public:
    // x (m, k) and out (m, n), contiguous float32; `call` and what it stands on are kept alive.
    void linear(py::object call, Address x, int64_t m, Address bias, Address out) {
        const auto* linear = call.cast<const LinearCall*>();
        present("linear: x", x, m * linear->k());
        present("linear: the result", out, m * linear->n());
        keep_.push_back(std::move(call));
        steps_.push_back([=](int64_t, int threads) { return linear->run(x, m, linear->k(), bias, out, threads); });
    }
    void rms_norm(int isa, Address x, Address residual, Address weight, int64_t rows, int64_t k, float eps,
                  Address out) {
        const qk::DecodeKernels* kernels = &checked_decode_kernels(isa);
        present("rms_norm: x", x, rows * k);
        present("rms_norm: weight", weight, k);
        steps_.push_back([=](int64_t, int) {
            kernels->rms_norm(pointer<float>(x), pointer<float>(residual), pointer<float>(weight), rows, k, eps,
                              pointer<float>(out));
            return -1;
        });
    }
    void swiglu(int isa, Address x, int64_t rows, int64_t n, Address out) {
        const qk::DecodeKernels* kernels = &checked_decode_kernels(isa);
        present("swiglu: gate_up", x, rows * n);
        steps_.push_back([=](int64_t, int) {
            kernels->swiglu(pointer<float>(x), rows, n, pointer<float>(out));
            return -1;
        });
    }
    // turns (positions, heads + 2 kv_heads, head / 2, 2) of `turns` positions; the store as in decode_attention.
    void attention(int isa, Address qkv, Address turn, int64_t turns, Address store, int64_t pitch, int64_t length,
                   int64_t heads, int64_t kv_heads, int64_t head, Address out) {
        const qk::DecodeKernels* kernels = &checked_decode_kernels(isa);
        check_attention(pitch, length, heads, kv_heads, head);
        present("decode_attention: qkv", qkv, 1);
        present("decode_attention: turn", turn, 1);
        present("decode_attention: store", store, 1);
        positions_ = std::min(positions_, std::min(length, turns));
        steps_.push_back([=](int64_t position, int threads) {
            const float* turned = pointer<float>(turn) + position * (heads + 2 * kv_heads) * head;
            qk::decode_attention(*kernels,
                                 {pointer<float>(qkv), turned, pointer<float>(store), pitch, heads, kv_heads, head,
                                  position, pointer<float>(out), nullptr},
                                 threads);
            return -1;
        });
    }
    // (-1, -1), or the number of a step that refused a row, and the row.
    std::pair<int64_t, int64_t> run(int64_t position, int threads) const {
        return each(position, threads, [](size_t) {});
    }
    // The same, and the seconds that each step took.
    std::tuple<int64_t, int64_t, std::vector<double>> clock(int64_t position, int threads) const {
        using clock = std::chrono::steady_clock;
        std::vector<double> seconds(steps_.size());
        clock::time_point before = clock::now();
        const auto [step, row] = each(position, threads, [&](size_t i) {
            const clock::time_point now = clock::now();
            seconds[i] = std::chrono::duration<double>(now - before).count();
            before = now;
        });
        return {step, row, seconds};
    }
    int64_t size() const { return static_cast<int64_t>(steps_.size()); }
    int64_t positions() const { return positions_; }

  private:
    template <class Done>
    std::pair<int64_t, int64_t> each(int64_t position, int threads, Done done) const {
        if (position < 0 || position >= positions_)
            throw std::invalid_argument("the program has no position " + std::to_string(position));
        py::gil_scoped_release release;
        for (size_t i = 0; i < steps_.size(); ++i) {
            const int64_t row = steps_[i](position, threads);
            if (row >= 0) return {static_cast<int64_t>(i), row};
            done(i);
        }
        return {-1, -1};
    }

    std::vector<std::function<int64_t(int64_t position, int threads)>> steps_;
    std::vector<py::object> keep_;
    int64_t positions_ = INT64_MAX;  // that every step has
};

}  // namespace

void bind_program(py::module_& m) {
    py::class_<Program>(m, "Program", "Calls on fixed memory; qkernels.program checks and keeps that.")
        .def(py::init<>())
        .def("linear", &Program::linear)
        .def("rms_norm", &Program::rms_norm)
        .def("swiglu", &Program::swiglu)
        .def("attention", &Program::attention)
        .def("run", &Program::run)
        .def("clock", &Program::clock)
        .def_property_readonly("positions", &Program::positions)
        .def("__len__", &Program::size);
}
