// The only file that knows Python. Arrays come as addresses with shapes; Python has checked dtypes and shapes, and
// everything that could reach outside a buffer is checked again here. The GIL is released while kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "../cpu/gemm.h"
#include "../cpu/kernels.h"
#include "../cpu/quantize.h"
#include "../cpu/roofline.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

template <class T>
T* pointer(Address a) {
    return reinterpret_cast<T*>(a);
}

const qk::Kernels& checked_isa(int isa) {
    if (isa < 0 || isa >= qk::kIsaCount || !qk::supported(static_cast<qk::Isa>(isa)))
        throw std::invalid_argument("this machine does not support ISA number " + std::to_string(isa));
    return qk::kernels(static_cast<qk::Isa>(isa));
}

// Tensors without memory (fake ones, zero ones, freed ones) have the address 0.
void present(const char* name, Address a, int64_t count) {
    if (a != 0 || count == 0) return;
    py::set_error(py::module_::import("qkernels.errors").attr("ArgumentError"),
                  (std::string(name) + " is a tensor without memory; accepted: one that holds numbers.").c_str());
    throw py::error_already_set();
}

// A prepacked weight: the block's owner is kept alive, its header is checked once.
class PackedInt8 {
  public:
    PackedInt8(Address data, int64_t bytes, py::object owner) : view_(check(data, bytes)), owner_(std::move(owner)) {}
    const qk::Int8View& view() const { return view_; }

  private:
    static const void* check(Address data, int64_t bytes) {
        if (data % 8 != 0 || !qk::Int8View::valid(pointer<void>(data), bytes))
            throw std::invalid_argument("not a prepacked int8 weight (" + std::to_string(bytes) +
                                        " bytes): make it with prepack and do not change it");
        return pointer<void>(data);
    }
    qk::Int8View view_;
    py::object owner_;
};

// What Python has checked for its own calls; the torch operator takes any numbers from a graph.
void check_linear(const qk::Int8View& w, const qk::InputQuant& q) {
    const qk::Int8Header& h = *w.header;
    if (q.mode == qk::InputMode::channel && h.has_input_scale == 0)
        throw std::invalid_argument("LinearInt8: per-channel activations need a weight with input_scale");
    const bool is_static = q.mode == qk::InputMode::static_tensor;
    const int lo = is_static && q.is_signed ? -128 : 0, hi = !is_static ? 0 : q.is_signed ? 127 : 255;
    if (q.zero_point < lo || q.zero_point > hi || !(q.scale >= 0x1p-126f && q.scale <= 0x1p126f))
        throw std::invalid_argument("LinearInt8: scale or zero_point is out of range");
    int64_t extreme = 128;  // max|code - zero_point|
    for (int64_t n = 0; h.has_zero_point && n < h.n; ++n)
        extreme = std::max(extreme, std::max(int64_t{127} - w.zero_point()[n], int64_t{128} + w.zero_point()[n]));
    const int x_extreme =
        q.is_signed ? std::max(128 + q.zero_point, 127 - q.zero_point) : std::max(q.zero_point, 255 - q.zero_point);
    if (h.k * x_extreme * extreme > INT32_MAX)
        throw std::invalid_argument("LinearInt8: K = " + std::to_string(h.k) + " could overflow the accumulator");
}

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

void bind_int8(py::module_& m) {
    m.def("int8_packed_bytes", [](int64_t n, int64_t k, bool zero_point, bool input_scale) {
        return qk::int8_layout(n, k, zero_point, input_scale).total_bytes;
    });
    m.def("int8_prepack", [](Address codes, int64_t n, int64_t k, Address scale, int64_t scale_step, Address zero_point,
                             int64_t zero_step, Address input_scale, Address out, int64_t out_bytes) {
        if (n < 0 || k < 0 || qk::int8_layout(n, k, zero_point != 0, input_scale != 0).total_bytes > out_bytes)
            throw std::invalid_argument("int8_prepack: the output buffer is too small");
        py::gil_scoped_release release;
        qk::int8_prepack(pointer<int8_t>(codes), n, k, pointer<float>(scale), scale_step, pointer<int16_t>(zero_point),
                         zero_step, pointer<float>(input_scale), pointer<void>(out));
    });

    py::class_<PackedInt8>(m, "PackedInt8", "A checked view of a prepacked int8 weight.")
        .def(py::init<Address, int64_t, py::object>(), py::arg("data"), py::arg("bytes"), py::arg("owner"))
        .def_property_readonly(
            "shape", [](const PackedInt8& p) { return py::make_tuple(p.view().header->n, p.view().header->k); })
        .def_property_readonly("has_zero_point",
                               [](const PackedInt8& p) { return p.view().header->has_zero_point != 0; })
        .def_property_readonly("has_input_scale",
                               [](const PackedInt8& p) { return p.view().header->has_input_scale != 0; })
        // x (m, k) codes, row pitch ldx -> out (m, n) int32, contiguous
        .def("matmul",
             [](const PackedInt8& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx, int x_zero,
                Address out, int threads) {
                 const qk::Kernels& kernels = checked_isa(isa);
                 present("matmul_int: xq", x, m * p.view().header->k);
                 py::gil_scoped_release release;
                 qk::Epilogue e;
                 e.out = pointer<void>(out);
                 e.ldo = p.view().header->n;
                 qk::int8_gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e,
                                     kernels.store_i32, threads);
             })
        .def("matmul_requant", [](const PackedInt8& p, int isa, Address x, bool is_signed, int64_t m, int64_t ldx,
                                  int x_zero, const RequantArrays& r, Address bias, Address out, int threads) {
            const qk::Kernels& kernels = checked_isa(isa);
            present("linear_requant: xq", x, m * p.view().header->k);
            py::gil_scoped_release release;
            qk::Epilogue e = r.epilogue();
            e.out = pointer<void>(out);
            e.ldo = p.view().header->n;
            e.bias_i32 = pointer<int32_t>(bias);
            e.out_bytes = 1;
            qk::int8_gemm_codes(kernels, pointer<uint8_t>(x), is_signed, m, ldx, x_zero, p.view(), e,
                                kernels.store_byte[r.rounding], threads);
        });

    // linear with integer activations: everything that does not change between calls is held here, so that a call
    // from Python passes six integers.
    struct LinearInt8 {
        const PackedInt8* packed;
        py::object keep;
        const qk::Kernels* isa;
        qk::InputQuant quant;
        qk::DType x_type;
        int out_type;
        qk::Activation activation;
    };
    py::class_<LinearInt8>(m, "LinearInt8", "linear(x, int8 weight) with quantized activations, ready to run.")
        .def(py::init([](py::object packed, int isa, int mode, bool is_signed, float scale, int zero_point, int x_type,
                         int out_type, int activation) {
            const auto& p = packed.cast<const PackedInt8&>();
            if (mode < 0 || mode > 3 || x_type < 0 || x_type > 2 || out_type < 0 || out_type > 2 || activation < 0 ||
                activation > 4)
                throw std::invalid_argument("LinearInt8: a mode, dtype or activation number is out of range");
            const qk::InputQuant quant{static_cast<qk::InputMode>(mode), is_signed, scale, zero_point};
            check_linear(p.view(), quant);
            return LinearInt8{&p,
                              packed,
                              &checked_isa(isa),
                              quant,
                              static_cast<qk::DType>(x_type),
                              out_type,
                              static_cast<qk::Activation>(activation)};
        }))
        // Returns the number of a row with a non-finite value, or -1.
        .def("run", [](const LinearInt8& l, Address x, int64_t m, int64_t ldx, Address bias, Address out, int threads) {
            const qk::Int8View& w = l.packed->view();
            present("linear: x", x, m * w.header->k);
            present("linear: the result", out, m * w.header->n);
            py::gil_scoped_release release;
            qk::Epilogue e;
            e.out = pointer<void>(out);
            e.ldo = w.header->n;
            e.out_bytes = l.out_type == 0 ? 4 : 2;
            e.w_scale = w.scale();
            e.bias = pointer<float>(bias);
            e.activation = l.activation;
            return qk::int8_gemm_float(*l.isa, pointer<void>(x), l.x_type, m, ldx, l.quant, w, e,
                                       l.isa->store_float[l.out_type], threads);
        });
}

void bind_elementwise(py::module_& m) {
    py::class_<RequantArrays>(m, "RequantArrays")
        .def(py::init(
            [](Address multiplier, Address shift, Address scale, int rounding, int zero_point, int lo, int hi) {
                if (rounding < 0 || rounding > 2) throw std::invalid_argument("RequantArrays: rounding is 0, 1 or 2");
                return RequantArrays{multiplier, shift, scale, rounding, zero_point, lo, hi};
            }));
    m.def("requantize", [](int isa, Address acc, int64_t rows, int64_t n, int64_t ld_acc, const RequantArrays& r,
                           Address out, int threads) {
        const qk::Kernels& kernels = checked_isa(isa);
        present("requantize: acc", acc, rows * n);
        py::gil_scoped_release release;
        qk::Epilogue e = r.epilogue();
        e.out = pointer<void>(out);
        e.ldo = n;
        qk::requantize(kernels, pointer<int32_t>(acc), rows, n, ld_acc, e, static_cast<qk::Rounding>(r.rounding),
                       threads);
    });
    m.def("quantize_activations",
          [](int isa, Address x, int x_type, int64_t rows, int64_t k, int64_t ldx, int mode, bool is_signed,
             float scale, int zero_point, Address inv_k, Address codes, Address scales, int threads) {
              const qk::Kernels& kernels = checked_isa(isa);
              if (x_type < 0 || x_type > 2 || mode < 0 || mode > 3 || (mode == 3 && inv_k == 0))
                  throw std::invalid_argument("quantize_activations: a mode or dtype number is out of range");
              present("quantize_activations: x", x, rows * k);
              py::gil_scoped_release release;
              return qk::quantize_activations(kernels, pointer<void>(x), static_cast<qk::DType>(x_type), rows, k, ldx,
                                              {static_cast<qk::InputMode>(mode), is_signed, scale, zero_point},
                                              pointer<float>(inv_k), pointer<uint8_t>(codes), pointer<float>(scales),
                                              threads);
          });
}

void bind_machine(py::module_& m) {
    m.def("isas", [] {
        py::dict d;
        for (int i = 0; i < qk::kIsaCount; ++i) {
            static const char* names[] = {"scalar", "avx2", "avx512vnni"};
            d[names[i]] = py::make_tuple(i, qk::supported(static_cast<qk::Isa>(i)));
        }
        return d;
    });
    m.def("best_isa", [] { return static_cast<int>(qk::best_isa()); });
    m.def("peak_names", [] {  // in the order of their numbers; those this machine can run
        static const char* names[] = {"int8 avx512vnni", "int8 avx2", "bf16 avx512",
                                      "fp32 avx512",     "fp32 avx2", "binary avx512"};
        py::dict d;
        for (int i = 0; i < static_cast<int>(qk::Peak::kCount); ++i)
            if (qk::peak_supported(static_cast<qk::Peak>(i))) d[names[i]] = i;
        return d;
    });
    m.def(
        "measure_peak",
        [](int kind, int threads, double milliseconds) {
            if (kind < 0 || kind >= static_cast<int>(qk::Peak::kCount))
                throw std::invalid_argument("measure_peak: unknown kind");
            py::gil_scoped_release release;
            return qk::measure_peak(static_cast<qk::Peak>(kind), threads, milliseconds);
        },
        py::arg("kind"), py::arg("threads") = 1, py::arg("milliseconds") = 50.0);
    m.def("measure_read_bandwidth", &qk::measure_read_bandwidth, py::arg("bytes"), py::arg("threads") = 1,
          py::arg("repeats") = 5, py::call_guard<py::gil_scoped_release>());
    m.def("measure_fork_join", &qk::measure_fork_join, py::arg("threads"), py::arg("repeats") = 1000,
          py::call_guard<py::gil_scoped_release>());
    m.def("core_ghz", &qk::core_ghz);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native kernels of qkernels. Private: qkernels.ops checks what reaches it.";
    bind_machine(m);
    bind_elementwise(m);
    bind_int8(m);
}
