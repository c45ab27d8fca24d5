#include "simd/avx512vnni.h"

#include "requant_vector.h"

#include "isa_table.h"

const qk::Kernels& qk::kernels_avx512vnni() {
    static const Kernels table = make_kernels("avx512vnni");
    return table;
}
