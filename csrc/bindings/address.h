// What the files of bindings use, those of CUDA too. Arrays come as addresses with shapes; Python has checked dtypes
// and shapes, and everything that could reach outside a buffer is checked again here. The GIL is released while kernels
// run.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace py = pybind11;

using Address = uintptr_t;

template <class T>
T* pointer(Address a) {
    return reinterpret_cast<T*>(a);
}

// Tensors without memory (fake ones, zero ones, freed ones) have the address 0.
inline void present(const char* name, Address a, int64_t count) {
    if (a != 0 || count == 0) return;
    py::set_error(py::module_::import("qkernels.errors").attr("ArgumentError"),
                  (std::string(name) + " is a tensor without memory; accepted: one that holds numbers.").c_str());
    throw py::error_already_set();
}
