#include "simd/scalar.h"

#include "requant_scalar.h"

#include "isa_table.h"

const qk::Kernels& qk::kernels_scalar() {
    static const Kernels table = make_kernels("scalar");
    return table;
}
