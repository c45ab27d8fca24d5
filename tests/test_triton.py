"""Triton kernels without a GPU: interpreted against the reference, and compiled for GPUs that are not there.

The interpreter must be chosen before Triton is imported, so what is interpreted runs in a process of its own.
"""

import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from qkernels.triton_kernels import device, linear_float, linear_int, nibbles, quantize, tune, tuned
from triton_builds import SHARED, build, instructions, resources

import qkernels as qk
from qkernels import registry

HERE = Path(__file__).resolve().parent
CPU = torch.device("cpu")
ARCHES = (80, 89, 90)


def test_interpreted_kernels():
    """What fails in there is printed here."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        *(str(HERE / name) for name in ("triton_interpreted.py", "triton_fused.py")),
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
    ]
    command += ["-o", "addopts="]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    print(done.stdout[-12000:], done.stderr[-4000:])
    assert done.returncode == 0
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


# ---- where there is no GPU ---------------------------------------------------------------------------------------


def test_rows_that_cannot_run_say_why(rng):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    w, x = qk.IntWeight.quantize(rng.standard_normal((4, 8))), torch.ones(2, 8)
    rows = [k for k in registry._table if k.backend == "triton"]
    assert {k.op for k in rows} == {
        "linear",
        "matmul_int",
        "linear_requant",
        "requantize",
        "quantize_activations",
    }
    assert not [k for k in registry.kernels(device="cuda") if k.backend == "triton"]
    reasons = qk.explain("linear", w, x, input_quant=qk.InputQuant()).reasons
    assert "x is on the CPU" in {reason for k, reason in reasons.items() if k.backend == "triton"}
    with pytest.raises(
        qk.UnsupportedError, match="torch sees no CUDA GPU, and TRITON_INTERPRET=1 is not set"
    ):
        qk.linear(x, w, input_quant=qk.InputQuant(), backend="triton")


# ---- tables ------------------------------------------------------------------------------------------------------


def test_tables_are_complete():
    files = sorted(tuned.FOLDER.glob("*.json"))
    assert {f"sm_{arch}.json" for arch in ARCHES} <= {f.name for f in files}
    for file in files:
        rows = tuned.json.loads(file.read_text())
        assert len(rows["source"]) > 20
        for kernel in tuned.KERNELS:
            limits = [row["most_m"] for row in rows[kernel]]
            assert limits[-1] is None and limits[:-1] == sorted(limits[:-1])
            assert all(set(tuned.KEYS) < set(row) for row in rows[kernel])
            assert all(("fuse" in row) == kernel.startswith("linear_int") for row in rows[kernel])


@pytest.mark.parametrize(
    "capability, arch", [((8, 0), 80), ((8, 6), 80), ((8, 9), 89), ((9, 0), 90), ((12, 0), 90)]
)
def test_an_unknown_gpu_takes_the_table_of_its_capability(capability, arch):
    assert tuned.table("a GPU without a table", capability)["device"] == f"sm_{arch}"


def test_splits():
    row = {"BN": 64, "BM": 16, "waves": 2, "most_splits": 8}
    assert tuned.splits_of(row, 1, 4096, 32, 132) == 4  # 64 tiles, 264 programs wanted
    assert tuned.splits_of(row, 1, 64, 32, 132) == 8
    assert tuned.splits_of(row, 1, 64, 3, 132) == 3
    assert tuned.splits_of(row, 512, 4096, 32, 132) == 1


# ---- compiled ----------------------------------------------------------------------------------------------------

N, K = 512, 1024


def int_weight(bits, group_size=None):
    codes = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (N, K)).astype(np.int8)
    return qk.IntWeight.pack(
        codes, np.ones((N, K // group_size if group_size else 1), np.float32), None, bits, group_size
    )


def power_weight(exponent, group_size=None):
    codes = np.random.default_rng(0).integers(-8, 8, (N, K))
    scale = np.ones((N, K // group_size if group_size else 1), np.float32)
    return qk.PowerWeight.pack(codes, scale, 4, exponent, group_size)


WEIGHTS = {
    "linear_int": [int_weight(8), int_weight(4), power_weight(0.5)],
    "linear_int_groups": [int_weight(4, 128), int_weight(4, 32), int_weight(8, 64)],
    "linear_float": [int_weight(4), int_weight(8), power_weight(0.7)],
    "linear_float_groups": [int_weight(4, 128), int_weight(4, 32), power_weight(0.5, 64)],
    "linear_float32": [int_weight(4, 128)],
}
CASES = [
    (name, arch, i)
    for arch in ARCHES
    for name in tuned.KERNELS
    for i in range(len(tuned.table("no name", divmod(arch, 10))[name]))
    if arch != 89 or i % 3 == 0  # its rows are sm_80's but for shared memory: the least and the largest
]


def row_of(name, arch, i):
    return tuned.table("no name", divmod(arch, 10))[name][i]


def built(name, arch, row, w, splits, out=torch.bfloat16, quant=None, x_dtype=torch.int8, m=None):
    """quant: by which the integer core quantizes x of x_dtype itself."""
    m = m or row["most_m"] or 4096
    options = {"num_warps": row["warps"], "num_stages": row["stages"]}
    core = "int" if "int" in name else "float"
    empty = {"device": CPU, "dtype": out}
    if core == "int":
        arrays = device.int_arrays(w, CPU)
        x = torch.empty((1, arrays.units.length), dtype=x_dtype).expand(m, -1)
        given = {"x_scale": torch.ones(1), "splits": splits, "quant": quant}
        given |= {"x_zero": (quant and quant.zero_point) or 0, "bias": torch.ones(N)}
        arguments = linear_int.arguments(x, arrays, torch.empty((1, N), **empty), row, "float", **given)
        kernel, options["enable_fp_fusion"] = linear_int.linear_kernel, False
    else:
        dtype = torch.float32 if name.endswith("32") else torch.bfloat16
        arrays = device.float_arrays(w, CPU, dtype)
        x = torch.empty((1, arrays.units.length), dtype=dtype).expand(m, -1)
        arguments = linear_float.arguments(x, arrays, torch.empty((1, N), **empty), row, splits=splits)
        kernel = linear_float.linear_kernel
    parts = torch.empty(1, dtype=torch.int32 if core == "int" else torch.float32)
    return build(kernel, {**arguments, "parts": parts, "pitch": K}, arch, **options)


def check(kernel, arch, wanted):
    assert kernel.metadata.shared <= SHARED[arch]
    used = resources(kernel)
    assert used["STACK"] == used["LOCAL"] == 0, f"registers are spilled: {used}"
    names = instructions(kernel)
    assert set(names) & set(wanted), f"none of {wanted} in {sorted(set(names))}"
    assert not {"LDL", "STL"} & set(names)


@pytest.mark.parametrize("name, arch, i", CASES, ids=lambda v: str(v))
def test_every_row_of_the_tables_compiles(name, arch, i):
    """For its GPU, without spills, within its shared memory, onto tensor cores."""
    row = row_of(name, arch, i)
    wanted = {"int": ("IMMA", "IGMMA"), "float": ("HMMA", "HGMMA"), "float32": ("FFMA",)}[name.split("_")[1]]
    wanted = wanted[1:] if arch == 90 and len(wanted) == 2 else wanted[:1]
    weights = WEIGHTS[name]
    kernel = built(name, arch, row, weights[i % len(weights)], min(row["most_splits"], 2))
    check(kernel, arch, wanted)


def zero_point_weight():
    """What asks for all that the fused kernel keeps: input scales, and sums of codes for zero points."""
    codes = np.random.default_rng(0).integers(-128, 128, (N, K)).astype(np.int8)
    return qk.IntWeight.pack(
        codes, np.ones((N, 1), np.float32), np.full((N, 1), 3), 8, None, np.ones(K, np.float32)
    )


FUSED = {  # an InputQuant, the activations' dtype, M (None: the row's largest), splits
    "token": (qk.InputQuant(), torch.bfloat16, 1, 2),
    "token unsigned": (qk.InputQuant(signed=False), torch.float32, None, 1),
    "static zero": (qk.InputQuant(granularity="tensor", scale=0.1, zero_point=3), torch.float32, None, 2),
}


@pytest.mark.parametrize("case", FUSED)
@pytest.mark.parametrize("name, arch, i", [c for c in CASES if row_of(*c).get("fuse")])
def test_every_fused_row_compiles(name, arch, i, case):
    """As above, with floats of up to 4 bytes in the pipeline; rounded as quantize.py rounds."""
    row = row_of(name, arch, i)
    quant, x_dtype, m, splits = FUSED[case]
    turn = list(FUSED).index(case)
    weights = [zero_point_weight(), *WEIGHTS[name]] if name == "linear_int" else WEIGHTS[name]
    w = weights[turn % len(weights)]
    kernel = built(name, arch, row, w, splits, quant=quant, x_dtype=x_dtype, m=m)
    check(kernel, arch, ("IGMMA",) if arch == 90 else ("IMMA",))
    ptx = kernel.asm["ptx"]
    assert "div.rn.f32" in ptx and "ftz" not in ptx and ("groups" in name or "fma.rn.f32" not in ptx)


# ---- the PTX in nibbles.py, executed instruction by instruction --------------------------------------------------


def words(values, dtype):
    """Numbers as a 32-bit register: four bytes or two halves."""
    return int.from_bytes(torch.tensor(values, dtype=dtype).view(torch.uint8).numpy().tobytes(), "little")


def halves(word, dtype):
    return torch.frombuffer(bytearray(struct.pack("<I", word)), dtype=dtype)


def execute(code, registers):
    """The instructions that nibbles.py uses. registers: {"$1": 32-bit integer ...}; returns $0."""
    mask = 0xFFFFFFFF

    def two(dtype):
        return lambda *args: words(two_of(dtype, *args).tolist(), dtype)

    def two_of(dtype, a, b, c=None):
        a, b = halves(a, dtype).double(), halves(b, dtype).double()
        return ((a + b) if c is None else a * b + halves(c, dtype).double()).to(dtype)

    def lop3(a, b, c, table):
        bits = ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1) for i in range(32))
        return sum((table >> n & 1) << i for i, n in enumerate(bits))

    operations = {
        "mov.b32": lambda a: a,
        "and.b32": lambda a, b: a & b,
        "xor.b32": lambda a, b: a ^ b,
        "add.u32": lambda a, b: (a + b) & mask,
        "shr.u32": lambda a, b: a >> b,
        "lop3.b32": lop3,
        "fma.rn.bf16x2": two(torch.bfloat16),
        "add.rn.f16x2": two(torch.float16),
    }
    for line in code.strip("{} ").split(";"):
        name, *rest = line.split(maxsplit=1) if line.strip() else ("",)
        if name in ("", ".reg"):
            continue
        target, *sources = [a.strip() for a in rest[0].split(",")]
        registers[target] = operations[name](
            *(registers[a] if a in registers else int(a, 0) for a in sources)
        )
    return registers["$0"]


@pytest.mark.parametrize("plane", [0, 1])
def test_ptx_of_nibble_codes(plane, rng):
    code = (nibbles.LOW_CODES, nibbles.HIGH_CODES)[plane].value
    for _ in range(300):
        b, s = rng.integers(0, 256, 4), rng.integers(0, 241, 4)  # s + 15 stays a byte
        found = execute(code, {"$1": words(b, torch.uint8), "$2": words(s, torch.uint8)})
        assert halves(found, torch.int8).tolist() == ((b >> 4 * plane & 15) + s - 128).tolist()


@pytest.mark.parametrize("plane", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_ptx_of_nibble_floats(plane, dtype, rng):
    code = getattr(nibbles, f"{'BF16' if dtype is torch.bfloat16 else 'FP16'}_{plane}").value
    for _ in range(300):
        b, zero = rng.integers(0, 65536, 2), rng.integers(-112, 129, 2)
        z = torch.from_numpy(-(zero + device.BIAS[dtype])).to(dtype)
        assert (z.long().numpy() == -(zero + device.BIAS[dtype])).all()  # exact
        registers = {"$1": int(b[0]) | int(b[1]) << 16, "$2": words(z.tolist(), dtype)}
        found = halves(execute(code, registers), dtype)
        assert found.tolist() == ((b >> 4 * plane & 15) - zero).tolist()


# ---- the other kernels, compiled ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize(
    "kernel", ["quantize token", "quantize tensor power", "requantize", "reduce", "reduce groups"]
)
def test_elementwise_kernels_compile(kernel, arch):
    f, i, b = torch.empty(1), torch.empty(1, dtype=torch.int32), torch.empty(1, dtype=torch.int8)
    if kernel.startswith("quantize"):
        names = ("static_scale", "zero", "lo", "hi", "largest")
        values = dict.fromkeys(names, 1.5) | dict.fromkeys(("M", "K", "SIZE", "PADDED", "LENGTH", "pitch"), K)
        values |= {
            "x": torch.empty(1, dtype=torch.bfloat16),
            "inverse": f,
            "amax": f,
            "codes": b,
            "scale": f,
        }
        values |= {
            "sums": i,
            "HAS_INPUT_SCALE": True,
            "SIGNED": True,
            "SHIFT": 0,
            "HAS_SUMS": True,
            "BLOCK": 1024,
        }
        power = kernel.endswith("power")
        values |= {"GRANULARITY": kernel.split()[1], "POWER": power, "SQUARE": power}
        made = build(quantize.quantize_kernel, values, arch, num_warps=4, enable_fp_fusion=False)
        ptx = made.asm["ptx"]
        assert (
            "div.rn.f32" in ptx and "ftz" not in ptx and "fma" not in ptx and ("sqrt.rn.f32" in ptx) == power
        )
    elif kernel == "requantize":
        values = {
            "acc": i,
            "out": b,
            "m": i,
            "shift": i,
            "scale": f,
            "zero": 3,
            "lo": -128,
            "hi": 127,
            "N": N,
            "pitch": N,
        }
        for rounding in ("single", "double", "float"):
            options = {"PER_CHANNEL": True, "ROUNDING": rounding, "BLOCK": 1024}
            made = build(
                quantize.requantize_kernel, values | options, arch, num_warps=4, enable_fp_fusion=False
            )
    else:
        w = int_weight(4, 128) if kernel.endswith("groups") else int_weight(8)
        row = {"BN": 64, "BM": 16, "tiles": 8}
        x, out = torch.empty((1, K), dtype=torch.int8), torch.empty((1, N), dtype=torch.bfloat16)
        given = linear_int.arguments(
            x, device.int_arrays(w, CPU), out, row, "float", x_scale=f, activation="gelu"
        )
        given |= {"parts": i, "PARTS": 4, "SCALES": 4}
        made = build(linear_int.reduce_kernel, given, arch, num_warps=8, enable_fp_fusion=False)
    used = resources(made)
    assert used["STACK"] == used["LOCAL"] == 0


# ---- tuning ------------------------------------------------------------------------------------------------------


def test_tune_writes_tables_like_those_that_are_shipped(capsys):
    shipped = (tuned.FOLDER / "sm_90.json").read_text()
    rows = tuned.json.loads(shipped)
    assert tune.text_of(rows["device"], rows["source"], rows) == shipped
    for m, _ in tune.CLASSES:
        assert len(list(tune.candidates(m, True))) > 5
        assert all(set(row) == set(tuned.KEYS) for row in tune.candidates(m, False))
    assert tune.budget([(2, True), (8, True), (16, False), (4, True), (32, True)]) == 8
    assert tune.budget([(2, False), (8, True)]) == 0
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            tune.main([])
        assert "no CUDA GPU" in capsys.readouterr().err
