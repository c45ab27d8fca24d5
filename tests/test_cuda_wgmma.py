"""int8 on wgmma (csrc/cuda/gemm_int8_sm90a.cu) without a GPU: its index functions, the emulator's asynchronous
instructions and the faults that they find, the whole kernel with its pipeline against the reference, mutants of it, and
what nvcc makes of it.
"""

import ctypes
import re
import shutil
import subprocess

import cuda_builds
import numpy as np
import pytest
import torch
from helpers import assert_same, random_codes
from test_cuda_build import build, code_of, compiled, counts  # noqa: F401 (build is a fixture)
from test_cuda_emulated import QUANTS, activations, check_linear_requant, poisoned_free_list, weight
from test_cuda_emulator import address, aligned

import qkernels as qk
from qkernels import cuda

SCHEDULES = [0, 1, 7]
FLAGS = ["-std=c++17", "-O1", "-DQK_EMULATE", "-Wno-unknown-pragmas", "-shared", "-fPIC"]
EMULATOR = ["csrc/cuda/emulator/emulator.cpp", "-x", "c++", "csrc/cuda/tensor_map.cu"]

# M, K, N: one; edges everywhere and one short stage; several tiles a block, the ring goes round in a tile and over its
# end; both widths of tiles, with whole tiles and with edges
SHAPES = [
    (1, 1, 1),
    (5, 65, 17),
    (130, 200, 258),
    (257, 64, 129),
    (300, 1300, 300),
    (520, 256, 512),
    (700, 100, 700),
]


# ---- index functions ------------------------------------------------------------------------------------------


def compile_library(folder, *sources):
    compiler = shutil.which("g++")
    if compiler is None or not (cuda_builds.ROOT / EMULATOR[0]).exists():
        pytest.skip("no g++, or no sources")
    path = folder / "kernels.so"
    subprocess.run([compiler, *FLAGS, *sources, "-o", path], cwd=cuda_builds.ROOT, check=True)
    return ctypes.CDLL(path)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    lib = compile_library(tmp_path_factory.mktemp("wgmma"), "tests/wgmma_kernels.cpp", *EMULATOR)
    lib.run_product.restype = lib.run_exchange.restype = lib.make_map.restype = ctypes.c_char_p
    lib.descriptor.restype = ctypes.c_uint64
    return lib


def test_operands_are_where_the_copy_leaves_them(library):
    """For every row and k of both warpgroups, the byte that wgmma reads is the byte of that channel and k."""
    seen = np.zeros(128, int)
    for warpgroup in range(2):
        for row in range(64):
            channel = library.channel_of(warpgroup, row)
            seen[channel] += 1
            for k in range(128):
                panel = channel // 16 * 2048
                assert library.wgmma_byte(warpgroup, row, k) == panel + library.w_byte(channel % 16, k)
    assert (seen == 1).all()


def test_columns_are_a_permutation_without_bank_conflicts(library):
    columns = [library.column_of(c) for c in range(128)]
    assert sorted(columns) == list(range(128))
    for quad in range(32):  # a thread's four channels are two pairs of neighbouring words
        a, b, c, d = columns[4 * quad : 4 * quad + 4]
        assert (c, d) == (a + 1, b + 1) and a == 2 * quad and b == 64 + 2 * quad
    for warpgroup in range(2):
        for warp in range(4):
            banks = {
                (2 * t * library.pitch() + columns[library.channel_of(warpgroup, 16 * warp + g)]) % 32
                for g in range(8)
                for t in range(4)
            }
            assert len(banks) == 32


@pytest.mark.parametrize("address_of", [0, 1024, 0x38000, 1024 + 96])
@pytest.mark.parametrize("stride", [1024, 2048])
def test_descriptors(library, address_of, stride):
    d = library.descriptor(address_of, stride)
    assert (d & 0x3FFF) << 4 == address_of & 0x3FFFF
    assert (d >> 32 & 0x3FFF) << 4 == stride
    assert d >> 62 == 1
    assert d & ~(0x3FFF | 0x3FFF << 32 | 3 << 62) == 0


def test_every_tile_has_one_turn(library):
    out = (ctypes.c_int * 2)()
    for n_tiles in (1, 5, 16, 33):
        for m_tiles in (1, 3, 17):
            for group in (8, 16):
                got = set()
                for i in range(n_tiles * m_tiles):
                    library.at_tile(i, n_tiles, m_tiles, group, out)
                    got.add(tuple(out))
                assert got == {(n, m) for n in range(n_tiles) for m in range(m_tiles)}


def test_a_block_fits_into_a_multiprocessor(library):
    for tokens in (128, 256):
        assert library.shared_bytes(tokens) <= 227 * 1024


# ---- the emulator's instructions ------------------------------------------------------------------------------


def run_product(library, fault, rng, signed=True, a_rows=64, b_rows=128, k=128):
    """d and what it should be, or the emulator's error."""
    a, b = (aligned(rng.integers(-128, 128, (rows, 128)).astype(np.int8)) for rows in (64, 128))
    d = np.full((64, 128), 77, np.int32)
    options = fault.encode(), signed, address(a), address(b), a_rows, b_rows, k
    error = library.run_product(*options, address(d)).decode()
    a[a_rows:], b[b_rows:], a[:, k:], b[:, k:] = 0, 0, 0, 0
    x = b if signed else b.view(np.uint8)
    return error or (d, 2 * (a.astype(np.int64) @ x.astype(np.int64).T).astype(np.int32))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("edges", [(64, 128, 128), (13, 100, 77), (1, 1, 1)], ids=str)
def test_product(library, schedule, signed, edges, rng):
    library.set_schedule(ctypes.c_uint64(schedule))
    assert_same(*run_product(library, "", rng, signed, *edges))


@pytest.mark.parametrize(
    "fault, says",
    [
        ("no_init", "a barrier that is not initialised"),
        ("arrives_twice", "more threads arrive"),
        ("misplaced", "not at the start of a swizzle's atom"),
        ("wrong_parity", "ends before a bulk copy"),
        ("no_barrier_wait", "ends before a bulk copy"),
        ("too_few_bytes", "phase ends before all copies"),
        ("no_fence", "without a wgmma_fence"),
        ("atom_offset", "offset of the swizzle's atom"),
        ("stray_bits", "bits that mean nothing"),
        ("wrong_stride", "of shared memory"),
        ("threads_differ", "disagree"),
        ("no_descriptor", "of shared memory"),
        ("writes_accumulator", "an accumulator was written"),
        ("overwrites_operand", "an operand changed"),
    ],
)
def test_faults_are_errors(library, fault, says, rng):
    library.set_schedule(ctypes.c_uint64(0))
    error = run_product(library, fault, rng)
    assert isinstance(error, str) and re.search(says, error), error


@pytest.mark.parametrize("fault", ["no_swizzle", "swizzle_64", "no_wait"])
def test_faults_change_results(library, fault, rng):
    library.set_schedule(ctypes.c_uint64(0))
    got = run_product(library, fault, rng)
    assert isinstance(got, str) or not np.array_equal(*got)


@pytest.mark.parametrize(
    "change, says",
    [
        ({}, ""),
        ({"rank": 1}, "dimensions"),
        ({"rank": 5}, "dimensions"),
        ({"offset": 8}, "address"),
        ({"box": (64, 8)}, "as wide as the swizzle"),
        ({"box": (128, 257)}, "size of the box"),
        ({"sizes": (128, 0)}, "a size is out of range"),
        ({"sizes": (128, 2**32 + 1)}, "a size is out of range"),
        ({"strides": (136,)}, "not a multiple of 16"),
        ({"strides": (2**40,)}, "a stride is out of range"),
    ],
)
def test_maps_that_the_hardware_does_not_take(library, change, says, rng):
    base = aligned(np.zeros(4096, np.uint8))
    values = {"rank": 2, "offset": 0, "sizes": (128, 8), "strides": (128,), "box": (128, 8), **change}
    error = library.make_map(
        ctypes.c_void_p(base.ctypes.data + values["offset"]),
        values["rank"],
        (ctypes.c_uint64 * 5)(*values["sizes"]),
        (ctypes.c_uint64 * 4)(*values["strides"]),
        (ctypes.c_uint32 * 5)(*values["box"]),
    ).decode()
    assert (says in error) if says else error == ""


# ---- the kernel -----------------------------------------------------------------------------------------------


@pytest.fixture(params=SCHEDULES, ids=lambda s: f"schedule{s}")
def native(request, monkeypatch):
    module = cuda_builds.emulate(monkeypatch, request.param)
    module.force_gemm("wgmma")
    yield module
    module.force_gemm("any")


def test_plans(native):
    """Which kernel a shape takes, with the 132 multiprocessors of an H100; tiles and clusters: test_cuda_cluster.py."""
    native.force_gemm("any")

    def plan(m, n, k, has_wgmma=True):
        return native.plan_gemm(m, n, k, 132, has_wgmma)

    assert plan(4096, 4096, 4096)[0] == plan(512, 4096, 4096)[0] == "wgmma"
    assert plan(64, 14336, 4096)[0] == "tile"
    assert plan(16, 4096, 4096)[0] == "skinny"
    assert plan(128, 4096, 4096)[0] == "tile"  # 32 tiles: less than half of the multiprocessors
    assert plan(4096, 4096, 4096, False)[0] == "tile"
    assert plan(4096, 4096, 0)[0] == "tile"
    native.force_gemm("mma")
    assert plan(4096, 4096, 4096)[0] == "tile"
    with pytest.raises(ValueError, match="accepted: any, mma, wgmma"):
        native.force_gemm("tensor")


@pytest.mark.parametrize("shape", [(5, 65, 17), (130, 200, 258), (300, 1300, 300)], ids=str)
@pytest.mark.parametrize("quant", QUANTS)
def test_linear(native, shape, quant, rng):
    m, k, n = shape
    w = weight(rng, n, k, zero_point="unsigned" in quant, input_scale=quant in ("channel", "tensor"))
    x, bias = activations(rng, m, k), rng.standard_normal(n).astype(np.float32)
    q = QUANTS[quant](w.input_scale)
    for b, activation in ((None, None), (bias, "relu6")):
        poisoned_free_list()
        tensor = None if b is None else torch.from_numpy(b)
        y = qk.linear(torch.from_numpy(x), w, tensor, activation, input_quant=q, backend="cuda")
        assert_same(y.numpy(), qk.reference.linear_int(x, w, q, b, activation))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_equals_the_other_kernel(native, activation, dtype, rng):
    """Bit for bit, for what has a tolerance against the reference too."""
    w, x = weight(rng, 268, 136), torch.from_numpy(activations(rng, 140, 136)).clamp(-9, 9)
    x, bias = x.to(getattr(torch, dtype)), torch.from_numpy(rng.standard_normal(268).astype(np.float32))
    results = []
    for kernel in ("wgmma", "mma"):
        native.force_gemm(kernel)
        poisoned_free_list()
        results.append(qk.linear(x, w, bias, activation, input_quant=qk.InputQuant(), backend="cuda"))
    assert results[0].dtype == x.dtype
    assert_same(results[0].float().numpy(), results[1].float().numpy())


@pytest.mark.parametrize("shape", [(5, 65, 17), (130, 200, 258), (257, 384, 256)], ids=str)
@pytest.mark.parametrize("rounding", ["single", "double", "float"])
def test_linear_requant(native, shape, rounding, rng):
    check_linear_requant(shape, rounding, rng)


def test_strides(native, rng):
    """Rows that the copy engine reads where they are, and rows that need a copy."""
    w = weight(rng, 140, 192)
    views = {
        "rows apart": random_codes(rng, (70, 256))[:, :192],
        "rows apart, unaligned": random_codes(rng, (70, 201))[:, :192],
        "starts unaligned": random_codes(rng, (70, 256))[:, 3:195],
        "transposed": random_codes(rng, (192, 70)).T,
        "batch": random_codes(rng, (2, 35, 192)),
    }
    tensors = [torch.from_numpy(x) for x in views.values()]
    tensors.append(torch.from_numpy(random_codes(rng, (1, 192))).expand(70, 192))  # a pitch of 0
    for x in tensors:
        y = qk.matmul_int(x, w, backend="cuda")
        expected = x.numpy().astype(np.int64) @ w.codes().astype(np.int64).T
        assert_same(y.numpy(), expected.astype(np.int32))


@pytest.mark.parametrize("native", [0], indirect=True)
@pytest.mark.parametrize("x_code, w_code", [(-128, -128), (-128, 127)])
def test_extremes(native, x_code, w_code):
    k = 131071
    w = qk.IntWeight.pack(np.full((3, k), w_code, np.int8), 1.0)
    x = torch.full((2, k), x_code, dtype=torch.int8)
    assert (qk.matmul_int(x, w, backend="cuda") == k * x_code * w_code).all()


# ---- mutants: the kernel with one thing wrong -----------------------------------------------------------------

REFILL = "                mbarrier_wait(empty + ring.stage, "
MUTANTS = {
    "no wait for a full stage": ("mbarrier_wait(full + ring.stage, ring.phase);", ""),
    "no wait for an empty stage": (REFILL + "ring.phase ^ 1);", ""),
    "wrong phase": (REFILL + "ring.phase ^ 1);", REFILL + "ring.phase);"),
    "stage released too early": ("wgmma_wait<1>();", ""),
    "results not waited for": ("wgmma_wait<0>();", ""),
    "no fence": ("wgmma_fence();", ""),
    "last stage not released": ("hold(acc);\n        release(before);", "hold(acc);"),
    "wrong stride of w": ("kWgmmaStrideW)", "1024)"),
    "wrong step of k": ("wgmma_x_offset(s)", "64 * (s % 2)"),
    "old sums": ("step > 0 || s > 0", "true"),
    "no barrier of the consumers": ("named_barrier(kResultsBarrier, kConsumers);", ""),
    "one buffer": ("buffer ^= 1;", ""),
    "no registers taken by some": (
        "take_registers<kConsumerRegisters>();",
        "if (threadIdx.x % 2) take_registers<kConsumerRegisters>();",
    ),
    "too few bytes": (
        "mbarrier_arrive_expect(full + s, T::kStage);",
        "mbarrier_arrive_expect(full + s, T::kW);",
    ),
    "barrier of too few warps": ("empty + s, CLUSTER * kConsumerWarps", "empty + s, 1"),
    # pairs
    "barrier of one block's warps": ("empty + s, CLUSTER * kConsumerWarps", "empty + s, kConsumerWarps"),
    "no cluster barrier at the start": ("cluster_barrier();", "__syncthreads();"),
    "ends while others arrive": (
        "s = 0; s < T::kStages; ++s, ring",
        "s = T::kStages; s < T::kStages; ++s, ring",
    ),
    "released only in this block": (
        "mbarrier_arrive_at(empty + stage, lane)",
        "mbarrier_arrive_at(empty + stage, walk.rank)",
    ),
    "released only in the other": ("if (lane < CLUSTER) mbarrier", "if (lane == 1 - walk.rank) mbarrier"),
    "copies to itself": ("(1 << CLUSTER) - 1", "1 << walk.rank"),
    "copies to the first": ("(1 << CLUSTER) - 1", "1"),
    "copies to a third": ("(1 << CLUSTER) - 1", "7"),
    "no multicast": ("copy_box_to((1 << CLUSTER) - 1, ", "copy_box("),
    "both halves at one place": ("T::kW + walk.rank * kPart * T::kDepth", "T::kW"),
    "one half twice": ("t.m * TOKENS + walk.rank * kPart", "t.m * TOKENS"),
    "halves exchanged": ("t.m * TOKENS + walk.rank * kPart", "t.m * TOKENS + (1 - walk.rank) * kPart"),
    "each copies all": ("TOKENS / CLUSTER}", "TOKENS}"),
    "expects its own copies": (
        "expect(full + ring.stage, T::kStage)",
        "expect(full + ring.stage, T::kW + T::kX / CLUSTER)",
    ),
    "the same channels": ("t.n * CLUSTER + rank", "t.n * CLUSTER"),
    "each its own walk": ("blockIdx.x) / CLUSTER", "blockIdx.x)"),
    "walks side by side": (
        "walk.tiles; tile += walk.stride) {\n        const TileAt t = walk.at(tile);\n#pragma",
        "walk.tiles - walk.rank; tile += walk.stride) {\n        const TileAt t = walk.at(tile);\n#pragma",
    ),
}
DRIVER = """
#include <type_traits>
#include "../common/fixed_point.h"
#include "activation.h"
#include "convert.h"
#include "epilogue_kernel.h"
#include "gemm.h"
#include "gemm_wgmma.h"
#include "wgmma.h"
%s
extern "C" void set_schedule(uint64_t seed) { qk::cuda::emulator::set_schedule(seed); }
extern "C" const char* run(int mutant, const void* w, const void* x, int m, int n, int k, int* out) {
    using namespace qk::cuda;
    static std::string message;
    message.clear();
    GemmInt8 g;
    g.n = n;
    g.n_pad = qk::round_up(n, 16);
    g.k_pad = g.ldx = k;
    g.m = m;
    g.x = static_cast<const uint8_t*>(x);
    g.epilogue.out = out;
    g.epilogue.ldo = g.epilogue.n = n;
    g.epilogue.out_type = qk::DType::i32;
    const GemmPlan plan{GemmKernel::wgmma, 128, 128, 1, qk::ceil_div(n, 128) * qk::ceil_div(m, 128), 2, 2};
    try {
        const TensorMap map = mutant0::int8_tensor_map(w, g.n_pad, g.k_pad);
        g.w_map = &map;
        switch (mutant) { %s }
    } catch (const std::exception& e) {
        message = e.what();
    }
    return message.c_str();
}
"""


@pytest.fixture(scope="module")
def mutants(tmp_path_factory):
    """One library with the kernel as it is and each mutant of it, in a namespace of its own."""
    source = (cuda_builds.ROOT / "csrc/cuda/gemm_int8_sm90a.cu").read_text()
    # One width is enough, and blocks in pairs, which have everything that one alone has.
    source = re.sub(r"#include.*\n", "", source)
    source = source.replace("launch_tile<TOKENS, 1>", "launch_tile<TOKENS, 2>")
    source = source.replace("launch_tokens<256>", "launch_tokens<128>")
    source = source.replace(
        "gemm_int8_wgmma<TOKENS, CLUSTER, false>", "gemm_int8_wgmma<TOKENS, CLUSTER, true>"
    )
    copies = [source]
    for old, new in MUTANTS.values():
        assert source.count(old) == 1, old
        copies.append(source.replace(old, new))
    # Not wrong: clusters of four.
    copies.append(
        source.replace("launch_tile<TOKENS, 2>", "launch_tile<TOKENS, 4>").replace("plan.blocks", "4")
    )
    text = "".join(
        c.replace("namespace qk::cuda {", f"namespace qk::cuda::mutant{i} {{") for i, c in enumerate(copies)
    )
    cases = "".join(
        f"case {i}: mutant{i}::gemm_int8_wgmma(g, plan, false, nullptr); break;" for i in range(len(copies))
    )
    folder = tmp_path_factory.mktemp("mutants")
    (folder / "mutants.cpp").write_text(DRIVER % (text, cases))
    flags = ("-O0", "-w", "-Icsrc/cuda")
    lib = compile_library(folder, *flags, str(folder / "mutants.cpp"), *EMULATOR)
    lib.run.restype = ctypes.c_char_p
    return lib


def run_mutant(library, number, schedule, rng):
    """One pair, two tiles of seven stages each: the ring goes round. d and what it should be, or an error."""
    m, n, k = 200, 168, 832
    w, x = random_codes(rng, (n, k)), aligned(random_codes(rng, (m, k)))
    out = np.full((m, n), -1, np.int32)
    library.set_schedule(ctypes.c_uint64(schedule))
    tiles = aligned(cuda.int8_tiles(w, 176, k))
    error = library.run(number, address(tiles), address(x), m, n, k, address(out)).decode()
    return error or (out, x.astype(np.int32) @ w.astype(np.int32).T)


@pytest.mark.parametrize("number", [0, 1 + len(MUTANTS)], ids=["pairs", "fours"])
def test_the_kernel_itself_is_right(mutants, number, rng):
    for schedule in SCHEDULES:
        got = run_mutant(mutants, number, schedule, rng)
        assert not isinstance(got, str), got
        assert_same(*got)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_found(mutants, name, rng):
    """In one of the orders of threads at least: an error of the emulator, or a wrong result."""
    for schedule in SCHEDULES:
        got = run_mutant(mutants, 1 + list(MUTANTS).index(name), schedule, rng)
        if isinstance(got, str) or not np.array_equal(*got):
            return
    raise AssertionError(f"{name}: nothing shows")


# ---- machine code ---------------------------------------------------------------------------------------------


def test_machine_code(build):  # noqa: F811
    """The instructions of the pipeline, as many as its sizes say, in every instance; nothing is in local memory."""
    for signed, types in ((1, "S8.S8"), (0, "S8.U8")):
        for tokens in (128, 256):
            for cluster in (1, 2):
                name = f"gemm_int8_wgmmaILi{tokens}ELi{cluster}ELb{signed}"
                (code,) = code_of(build, "gemm_int8_sm90a", "sm_90a", name).values()
                assert counts(code, rf"IGMMA\.64x{tokens}x32\.{types} ") == 4, name
                assert counts(code, r"UTMALDG\.4D ") == 2 and counts(code, r"UTMALDG\.2D") == 1, name
                # Activations go to both blocks of a pair, and its stages are released in both, without a fence of all
                # memory, which what the tensor cores have read does not need.
                pair = int(cluster == 2)
                assert counts(code, r"UTMALDG\.2D\.MULTICAST ") == pair, name
                assert counts(code, r"SYNCS\.ARRIVE\.TRANS64\.RED\.A1T0 RZ") == 2 * pair, name
                assert counts(code, "UCGABAR_ARV") == counts(code, "UCGABAR_WAIT") == pair, name
                assert "MEMBAR.ALL.GPU" not in code and counts(code, r"CCTL\.IVALL") <= pair, name
                assert counts(code, r"USETMAXREG\.TRY_ALLOC\.CTAPOOL UP\d+, 0xf0") == 1, name
                assert counts(code, r"USETMAXREG\.DEALLOC\.CTAPOOL 0x18") == 1, name
                assert counts(code, r"WARPGROUP\.DEPBAR\.LE gsb0, 0x1") == 1, name
                assert counts(code, r"SYNCS\.PHASECHK\.TRANS64\.TRYWAIT") >= 2, name
                assert not re.search(r"\b(LDL|STL|IMMA)\b", code), name
                # Between the products of a stage there is nothing but descriptors: no register is copied.
                first, last = code.index("IGMMA"), code.rindex("IGMMA")
                loop = code[first:last]
                assert counts(loop, r"\bMOV R|WARPGROUP|SYNCS|\bLD|\bST") == 0, name


def test_registers(build):  # noqa: F811
    """The cap at entry is what 384 threads of one block can have; setmaxnreg moves registers from there."""
    found = [says for source, _, _, says in compiled(build) if source == "gemm_int8_sm90a"]
    assert len(found) == 8
    for says in found:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in says
        assert int(re.search(r"Used (\d+) registers", says).group(1)) <= 168
    assert 128 * (24 + 2 * 240) <= 65536
