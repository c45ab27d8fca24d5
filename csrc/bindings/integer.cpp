// Integer-only operations on 8-bit codes.
#include "../cpu/integer.h"

#include <cstring>
#include <vector>

#include "common.h"

namespace {

const qk::IntegerKernels& checked(int isa) {
    checked_isa(isa);
    return qk::integer_kernels(static_cast<qk::Isa>(isa));
}

void require(bool condition, const char* what) {
    if (!condition) throw std::invalid_argument(std::string(what) + " is out of range");
}

int8_t code(int v) {
    require(v >= -128 && v <= 127, "a code's limit");
    return static_cast<int8_t>(v);
}

struct Averages {
    std::vector<qk::Average> list;
    int64_t column_divisors;

    // (multiplier, start, shift, narrow) for each pair of divisors
    Averages(const std::vector<std::tuple<int64_t, int64_t, int, bool>>& entries, int64_t columns, bool in_signed,
             bool out_signed, int lo, int hi)
        : column_divisors(columns) {
        for (const auto& [multiplier, start, shift, narrow] : entries) {
            require(multiplier >= 0 && multiplier < (int64_t{1} << 31) && shift >= 0 && shift < (narrow ? 31 : 63) &&
                        (!narrow || std::abs(start) < (int64_t{1} << 31)),
                    "an average");
            list.push_back({multiplier, start, shift, narrow, static_cast<uint8_t>(in_signed ? 0x80 : 0),
                            static_cast<uint8_t>(out_signed ? 0 : 0x80), code(lo), code(hi)});
        }
        require(columns > 0 && list.size() % columns == 0, "the number of averages");
    }
};

struct Exponentials {
    qk::ExpTable table;
    int64_t multiplier;
    int shift;

    Exponentials(Address values, int64_t multiplier, int shift) : multiplier(multiplier), shift(shift) {
        require(multiplier >= 0 && multiplier < (int64_t{1} << 31) && shift >= 0 && shift < 63, "an exponent's scale");
        std::memcpy(table.value, pointer<void>(values), sizeof table.value);
        require(table.value[0] >= (1u << 16) && table.value[0] < (1u << 23), "an exponential");
        for (int d = 0; d < 256; ++d) {
            require(table.value[d] <= table.value[0], "an exponential");
            for (int p = 0; p < 3; ++p) table.plane[p][d] = static_cast<uint8_t>(table.value[d] >> (16 - 8 * p));
        }
    }
};

// (address, outputs) of start, count and divisor one after the other
qk::PoolSide side(Address arrays, int64_t outputs, int64_t size, int64_t step) {
    const auto* a = pointer<int64_t>(arrays);
    return {a, a + outputs, a + 2 * outputs, size, step, outputs};
}

qk::Pool checked_pool(Address x, int64_t images, int64_t channels, const qk::PoolSide& rows,
                      const qk::PoolSide& columns, Address out, int64_t row_divisors, int64_t column_divisors) {
    present("pooling: q", x, images * channels * rows.size * columns.size);
    require(rows.valid(row_divisors) && columns.valid(column_divisors), "a pooling window");
    return {pointer<uint8_t>(x), images, channels, rows, columns, pointer<uint8_t>(out)};
}

qk::DType code_type(int type) {
    require(type >= 3 && type <= 5, "a dtype number");
    return static_cast<qk::DType>(type);
}

}  // namespace

void bind_integer(py::module_& m) {
    py::class_<qk::AddCodes>(m, "AddCodes")
        .def(py::init([](int multiplier_a, int multiplier_b, int start, int shift, bool a_signed, bool b_signed,
                         bool out_signed, int lo, int hi) {
            require(std::abs(multiplier_a) < 32768 && std::abs(multiplier_b) < 32768 && shift >= 0 && shift <= 22 &&
                        std::abs(int64_t{start}) < (int64_t{1} << 30) + (1 << 24),
                    "a number of AddCodes");
            auto flip = [](bool flips) { return static_cast<uint8_t>(flips ? 0x80 : 0); };
            return qk::AddCodes{static_cast<int16_t>(multiplier_a),
                                static_cast<int16_t>(multiplier_b),
                                start,
                                shift,
                                flip(a_signed),
                                flip(b_signed),
                                flip(!out_signed),
                                code(lo),
                                code(hi)};
        }));
    m.def("add_codes", [](int isa, Address a, Address b, int64_t n, const qk::AddCodes& p, Address out, int threads) {
        const auto& kernels = checked(isa);
        present("add_requant: a", a, n);
        present("add_requant: b", b, n);
        py::gil_scoped_release release;
        qk::add_codes(kernels, pointer<uint8_t>(a), pointer<uint8_t>(b), n, p, pointer<uint8_t>(out), threads);
    });
    // table: 256 bytes by the byte of a code
    m.def("lookup_rows", [](int isa, Address x, int64_t rows, int64_t n, int64_t ldx, const py::bytes& table,
                            Address out, int64_t ldo, int threads) {
        const auto& kernels = checked(isa);
        present("lookup_int8: q", x, rows * n);
        const std::string_view bytes = table;
        require(bytes.size() == 256, "a table's length");
        py::gil_scoped_release release;
        qk::lookup_rows(kernels, pointer<uint8_t>(x), rows, n, ldx, reinterpret_cast<const uint8_t*>(bytes.data()),
                        pointer<uint8_t>(out), ldo, threads);
    });
    m.def("copy_rows", [](Address x, int64_t rows, int64_t n, int64_t ldx, Address out, int64_t ldo) {
        present("concat_requant: xs", x, rows * n);
        py::gil_scoped_release release;
        for (int64_t r = 0; r < rows; ++r) std::memcpy(pointer<char>(out) + r * ldo, pointer<char>(x) + r * ldx, n);
    });
    m.def("max_pool_codes", [](int isa, Address x, bool is_signed, int64_t images, int64_t channels, int64_t height,
                               int64_t width, Address rows, int64_t row_outputs, int64_t row_step, Address columns,
                               int64_t column_outputs, int64_t column_step, Address out, int threads) {
        const auto& kernels = checked(isa);
        const qk::Pool p = checked_pool(x, images, channels, side(rows, row_outputs, height, row_step),
                                        side(columns, column_outputs, width, column_step), out, INT64_MAX, INT64_MAX);
        py::gil_scoped_release release;
        qk::max_pool(kernels, p, is_signed, threads);
    });
    py::class_<Averages>(m, "Averages")
        .def(py::init<const std::vector<std::tuple<int64_t, int64_t, int, bool>>&, int64_t, bool, bool, int, int>());
    m.def("avg_pool_codes", [](int isa, Address x, int64_t images, int64_t channels, int64_t height, int64_t width,
                               Address rows, int64_t row_outputs, Address columns, int64_t column_outputs,
                               const Averages& averages, Address out, int threads) {
        const auto& kernels = checked(isa);
        const int64_t divisors = averages.column_divisors;
        const qk::Pool p = checked_pool(x, images, channels, side(rows, row_outputs, height, 1),
                                        side(columns, column_outputs, width, 1), out,
                                        static_cast<int64_t>(averages.list.size()) / divisors, divisors);
        py::gil_scoped_release release;
        qk::avg_pool(kernels, p, averages.list.data(), divisors, threads);
    });
    py::class_<Exponentials>(m, "Exponentials").def(py::init<Address, int64_t, int>());
    m.def("softmax_codes", [](int isa, Address x, int type, int64_t rows, int64_t n, int64_t ldx, const Exponentials& e,
                              Address out, bool out_signed, int threads) {
        const auto& kernels = checked(isa);
        const qk::DType dtype = code_type(type);
        present("softmax_int: q", x, rows * n);
        require(n <= (1 << 24), "a row's length");
        if (rows == 0 || n == 0) return;
        py::gil_scoped_release release;
        qk::softmax_codes(kernels, pointer<void>(x), dtype, rows, n, ldx, e.table, e.multiplier, e.shift,
                          pointer<uint8_t>(out), out_signed ? 0x80 : 0, threads);
    });
    m.def("layer_norm_codes", [](int isa, Address x, int type, int64_t rows, int64_t n, int64_t ldx, Address weight,
                                 Address bias, int shift, int64_t eps, bool out_signed, int lo, int hi, Address out,
                                 int threads) {
        const auto& kernels = checked(isa);
        const qk::DType dtype = code_type(type);
        present("layer_norm_int: q", x, rows * n);
        require(n <= (1 << 15) && shift >= 1 && shift <= 18 && eps >= 0 && eps <= (int64_t{1} << 60), "a layer norm");
        if (rows == 0 || n == 0) return;
        py::gil_scoped_release release;
        qk::layer_norm_codes(kernels, pointer<void>(x), dtype, rows, n, ldx,
                             {pointer<int32_t>(weight), pointer<int32_t>(bias), shift, eps,
                              static_cast<uint8_t>(out_signed ? 0 : 0x80), code(lo), code(hi)},
                             pointer<uint8_t>(out), threads);
    });
    m.def("requantize", [](int isa, Address acc, int64_t rows, int64_t n, int64_t ld_acc, const RequantArrays& r,
                           Address out, int threads) {
        const auto& kernels = checked(isa);
        present("requantize: acc", acc, rows * n);
        const bool is_signed = r.hi < 128;  // bytes of 0 to 127 are the same either way
        const int offset = is_signed ? 0 : 128;
        const qk::RequantColumns columns{pointer<int32_t>(r.multiplier),
                                         pointer<int32_t>(r.shift),
                                         pointer<float>(r.scale),
                                         r.zero_point - offset,
                                         code(r.lo - offset),
                                         code(r.hi - offset),
                                         static_cast<uint8_t>(is_signed ? 0 : 0x80)};
        py::gil_scoped_release release;
        qk::requantize(kernels, pointer<int32_t>(acc), rows, n, ld_acc, columns, static_cast<qk::Rounding>(r.rounding),
                       pointer<uint8_t>(out), threads);
    });
}
