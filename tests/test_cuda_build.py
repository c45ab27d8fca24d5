"""What nvcc makes of the CUDA kernels, for every architecture: no spills, the instructions that each kernel is about.

Nothing here runs on a GPU. The disassemblers come with Triton, which torch brings.
"""

import functools
import os
import re
import shutil
import subprocess
from pathlib import Path

import cuda_builds
import pytest

ARCHITECTURES = ("sm_80", "sm_89", "sm_90a")


@pytest.fixture(scope="session")
def build():
    if shutil.which("nvcc") is None and "CUDACXX" not in os.environ:
        pytest.skip("nvcc is not installed")
    return cuda_builds.build("on")


def compiled(build):
    """(source, architecture, kernel, what ptxas says) of every kernel."""
    for log in sorted(build.rglob("*.cu.o.log")):
        for part in log.read_text().split("Compiling entry function ")[1:]:
            kernel, arch = re.match(r"'(\S+)' for '(\S+)'", part).groups()
            yield log.name.removesuffix(".cu.o.log"), arch, kernel, part


def test_every_architecture_is_built_without_spills(build):
    seen = {}
    for source, arch, kernel, says in compiled(build):
        seen.setdefault(source, set()).add(arch)
        where = (source, arch, kernel)
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in says, (where, says)
        registers = int(re.search(r"Used (\d+) registers", says).group(1))
        assert registers <= 255, where
    assert {
        "gemm",
        "quantize",
        "linear",
        "gemm_float",
        "gemv_float",
        "linear_float",
        "binary",
        "gemm_int4",
        "gemm_int4_skinny",
    } <= set(seen)
    for source, architectures in seen.items():
        wanted = {"sm_90a"} if source.endswith("_sm90a") else set(ARCHITECTURES)
        assert architectures == wanted, source


def test_no_warnings(build):
    """Among them: wgmma that the compiler had to serialise, setmaxnreg that it ignored."""
    logs = sorted(build.rglob("*.cu.o.log"))
    assert logs
    for log in logs:
        assert not re.search(r"warning|serializ|\bC7[0-9]{3}\b", log.read_text(), re.IGNORECASE), log.name


def test_the_library_needs_no_driver(build):
    (library,) = build.glob("_cuda*.so")
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    needed = subprocess.run([readelf, "-d", library], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed
    assert not re.search("libcuda|libcudart|libtorch|libc10", needed), needed


@pytest.mark.parametrize(
    "setting, compiler, succeeds, says",
    [
        ("auto", "no-nvcc", True, r"no CUDA kernels, because of this: no nvcc"),
        ("on", "no-nvcc", False, r"QKERNELS_CUDA=on, but no nvcc"),
        ("off", None, True, r"no CUDA kernels \(QKERNELS_CUDA=off\)"),
        ("maybe", None, False, r"QKERNELS_CUDA is maybe; accepted: auto, on, off"),
    ],
)
def test_settings(tmp_path, setting, compiler, succeeds, says):
    """One line says what was done and why; what was asked for and cannot be done is an error."""
    command, environment = cuda_builds.configuration(setting, tmp_path), {**os.environ}
    if compiler is not None:
        environment["CUDACXX"] = str(tmp_path / compiler)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode == 0) is succeeds, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "QKERNELS_CUDA" in line]
    assert len(lines) == 1 and re.search(says, lines[0]), done.stdout + done.stderr


def disassembler(name):
    triton = pytest.importorskip("triton", reason="cuobjdump comes with Triton, which is not installed")
    found = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not found.exists():
        pytest.skip(f"this Triton brings no {name}")
    return found


@functools.cache
def machine_code(build, source, arch):
    """{kernel: its SASS} of one source file."""
    (item,) = [p for p in build.rglob("*.cu.o") if p.name == f"{source}.cu.o"]
    command = [disassembler("cuobjdump"), "-sass", "-arch", arch, item]
    path = {**os.environ, "PATH": f"{disassembler('nvdisasm').parent}:{os.environ['PATH']}"}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=path).stdout
    parts = re.split(r"\n\s*Function : (\S+)\n", text)
    return dict(zip(parts[1::2], parts[2::2]))


def code_of(build, source, arch, kernel):
    found = {name: code for name, code in machine_code(build, source, arch).items() if kernel in name}
    assert found, (source, arch, kernel)
    return found


def counts(code, pattern):
    return len(re.findall(pattern, code))


# kernel -> instructions that it must have and must not have
EXPECTED = {
    ("gemm", "gemm_int8_tile"): (
        ("IMMA.16832.S8", r"LDGSTS.E.BYPASS.128", r"LDS.128"),
        ("LDL", "STL"),
    ),
    ("gemm", "gemm_int8_skinny"): (
        ("IMMA.16832.S8", r"LDG.E.NA.128"),
        ("LDL", "STL"),
    ),
    ("gemm_float", "gemm_float_tile"): (
        ("HMMA.16816.F32", r"LDGSTS.E.BYPASS.128", r"LDS.128", r"LOP3.LUT"),
        ("LDL", "STL"),
    ),
    ("gemm_int4", "gemm_int4_tiles"): (
        ("IMMA.16832.S8", r"LDGSTS.E.BYPASS.128", r"LDS.128", r"LDS.64"),
        ("LDL", "STL"),
    ),
    ("gemm_int4_skinny", "gemm_int4_rows"): (
        ("IMMA.16832.S8", r"LDG.E.NA.128", r"ATOMS.ADD", r"LDS.128"),
        ("LDL", "STL"),
    ),
    ("gemv_float", "OnTensorCores"): (
        ("HMMA.16816.F32", r"LDG.E.NA.128", r"LDG.E.128"),
        ("LDL", "STL"),
    ),
    ("gemv_float", "OnCudaCores"): ((r"LDG.E.NA.128", "FFMA", "SHFL.BFLY"), ("LDL", "STL", "HMMA")),
    ("binary", "gemm_int8_tile"): (
        ("BMMA.168256.AND.POPC", r"LDGSTS.E.BYPASS.128", r"LDS.128"),
        ("LDL", "STL", "IMMA"),
    ),
    ("binary", "gemm_int8_skinny"): (("BMMA.168256.AND.POPC", r"LDG.E.\S*128"), ("LDL", "STL")),
    ("binary", "sign_rows"): (("VOTE",), ("LDL", "STL")),
    ("quantize", "quantize_rows"): ((r"LDG.E.128", r"FRND|F2I"), ("LDL", "STL", "FFMA.FTZ")),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("source, kernel", EXPECTED, ids=str)
def test_instructions(build, source, kernel, arch):
    must, must_not = EXPECTED[source, kernel]
    for name, code in code_of(build, source, arch, kernel).items():
        for pattern in must:
            assert re.search(pattern, code), (arch, name, pattern)
        for pattern in must_not:
            assert not re.search(rf"\b{pattern}\b", code), (arch, name, pattern)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_loops_do_what_their_sizes_say(build, arch):
    """Products per instruction of memory: a tile of 64 x 64 a warp reads 16 16-byte vectors of shared memory for 64
    products, and the kernel for few tokens has its eight loads of weights in flight before the first product.
    """
    for name, code in code_of(build, "gemm", arch, "gemm_int8_tileILi128").items():
        assert counts(code, r"IMMA\.16832") == 64, (arch, name)
        assert counts(code, r"LDGSTS\.E\.BYPASS\.128") == 4 * 8, (arch, name)
        # Operands are brought together once (32 moves), not again for every product.
        assert counts(code[code.index("IMMA") : code.rindex("IMMA")], r"MOV|PRMT") <= 32, (arch, name)
    for name, code in code_of(build, "gemm", arch, "gemm_int8_skinnyILi1").items():
        before = code[: code.index("IMMA")]
        assert counts(before, r"LDG\.E\.\S*128") >= 8, (arch, name)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_loops_of_four_bits_do_what_their_sizes_say(build, arch):
    """A stage of the tiles: its products, what a thread copies, and nothing that divides; few tokens: two products a
    tile and column, eight tiles of codes on their way before the first.
    """
    for rows, columns, blocks in ((1, 2, 2), (1, 4, 2), (2, 4, 1), (2, 8, 1)):
        name = f"TileILi{rows}ELi{columns}ELi{blocks}E"
        for kernel, code in code_of(build, "gemm_int4", arch, "gemm_int4_tiles").items():
            if name not in kernel:
                continue
            assert counts(code, r"IMMA\.16832") == rows * columns * blocks * 2, (arch, kernel)
            first, last = code.index("IMMA"), code.rindex("IMMA")
            assert not re.search(r"LDGSTS|MUFU\.RCP|\bCALL", code[first:last]), (arch, kernel)
    for columns in (1, 2):
        for kernel, code in code_of(build, "gemm_int4_skinny", arch, f"ELi{columns}E").items():
            assert counts(code, r"IMMA\.16832") == 8 * 2 * columns, (arch, kernel)
            before = code[: code.index("IMMA")]
            assert counts(before, r"LDG\.E\.NA\.128") >= 8, (arch, kernel)


def loop_of(code, instruction, least):
    """The shortest loop with at least so many of an instruction: its instructions."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)
    index = {int(at, 16): i for i, (at, _) in enumerate(lines)}
    loops = []
    for i, (at, text) in enumerate(lines):
        target = re.search(r"BRA.*?0x([0-9a-f]+)", text)
        if target and int(target.group(1), 16) < int(at, 16):
            body = [t for _, t in lines[index[int(target.group(1), 16)] : i + 1]]
            if sum(instruction in t for t in body) >= least:
                loops.append(body)
    return min(loops, key=len)


@pytest.mark.parametrize("decoder, most", [("0", 170), ("1", 250)], ids=["integers", "table"])
def test_few_tokens_are_bound_by_bytes(build, decoder, most):
    """64 k of 32 channels are 1 KB of codes, for which an H100's memory takes as long as 284 instructions to issue; a
    scale is not converted, which waits for it, in the pass that loads it.
    """
    kernels = code_of(build, "gemv_float", "sm_90a", f"DecoderE{decoder}ENS1_13OnTensorCores")
    long = {name: code for name, code in kernels.items() if "ELi1EE" in name}
    assert len(kernels) == 6 and len(long) == 2
    for name, code in long.items():
        loop = loop_of(code, "HMMA", 8)
        print(f"{len(loop) / 3:.0f} instructions a KB of codes: {name}")
        assert sum("HMMA" in t for t in loop) == 3 * 8 and len(loop) <= 3 * most, (name, len(loop))
        first = next(i for i, t in enumerate(loop) if "LDG.E.CONSTANT" in t)
        loaded = re.search(r"LDG.E.CONSTANT (R\d+)", loop[first]).group(1)
        product = next(i for i, t in enumerate(loop) if i > first and "HMMA" in t)
        assert not any(re.search(rf"\b{loaded}\b", t) for t in loop[first + 1 : product]), name


def test_weights_are_loaded_before_the_wait_for_activations(build):
    """Kernels that overlap with the one before: when they wait for it, the first weights are on their way, and nothing
    else was read or written; and that one lets them start.
    """
    for name, code in code_of(build, "gemm", "sm_90a", "gemm_int8").items():
        before, after = code.split("ACQBULK")
        loads = counts(before, r"LDG\.E\.NA\.128" if "skinny" in name else r"LDGSTS\.E\.BYPASS\.128")
        assert loads == (8 if "skinny" in name else 3 * 4 if "ILi128" in name else 3 * 2), (name, loads)
        assert not re.search(r"\b(LDG\.E\.128|LDG\.E |STG|ATOMG|RED)", before), name
        assert "STG" in after
    for name, code in code_of(build, "gemm_int4_skinny", "sm_90a", "gemm_int4_rows").items():
        before, after = code.split("ACQBULK")
        assert counts(before, r"LDG\.E\.NA\.128") == 8 and "LDG.E.64" not in before, name
        assert not re.search(r"\b(STG|ATOMG|RED)", before) and "STG" in after, name
    for name, code in code_of(build, "gemm_int4", "sm_90a", "gemm_int4_tiles").items():
        before, after = code.split("ACQBULK")
        # of each stage a piece of the codes, scales, offsets, zero points
        assert counts(before, r"LDGSTS\.E\.BYPASS\.128") == 4 * (4 if "ELi2EEE" in name else 3), name
        assert not re.search(r"\b(LDG\.|STG|ATOMG|RED)", before) and "STG" in after, name
    for name, code in code_of(build, "gemv_float", "sm_90a", "OnTensorCores").items():
        before, after = code.split("ACQBULK")
        assert counts(before, r"LDG\.E\.NA\.128") == 6, name
        assert not re.search(r"\b(LDG\.E\.128|STG|ATOMG|RED)", before) and "STG" in after, name
    for source, kernel in (("quantize", "quantize_rows"), ("linear_float", "prepare_rows")):
        assert all("PREEXIT" in c for c in code_of(build, source, "sm_90a", kernel).values())
