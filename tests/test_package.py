"""The package as it is installed: what it imports, what it links, what it says its version is."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import pytest
import tomllib

import qkernels as qk

ROOT = Path(__file__).resolve().parent.parent
NATIVE = Path(qk._native.__file__)


def python(code, **environment):
    """Standard output of a fresh interpreter that finds the same qkernels."""
    env = {**os.environ, "PYTHONPATH": str(Path(qk.__file__).parent.parent), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---- imports ---------------------------------------------------------------------------------------------


def test_import_needs_numpy_alone():
    heavy = ["torch", "safetensors", "rich", "typer", "matplotlib", "scipy", "tokenizers", "triton"]
    code = f"import qkernels, sys; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"


WITHOUT_TORCH = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "safetensors", "rich", "typer", "matplotlib", "scipy"):
            raise ImportError(name + " is blocked")

sys.meta_path.insert(0, Blocker())
import numpy as np
import qkernels as qk

rng = np.random.default_rng(0)
x, W = rng.standard_normal((9, 70), np.float32), rng.standard_normal((33, 70), np.float32)
for granularity in ("channel", "tensor"):
    for symmetric in (True, False):
        w = qk.IntWeight.quantize(W, granularity=granularity, symmetric=symmetric)
        for q in (qk.InputQuant(), qk.InputQuant(granularity="tensor", scale=0.03), None):
            y = qk.linear(x, w, bias=np.ones(33, np.float32), activation="relu", input_quant=q)
            assert type(y) is np.ndarray and y.dtype == np.float32
            assert abs(y - np.maximum(x @ W.T + 1, 0)).max() < 0.5, (granularity, symmetric, q)
codes, scale = qk.quantize_activations(x, qk.InputQuant())
acc = qk.matmul_int(codes, w)
assert acc.dtype == np.int32
r = qk.Requant.from_scale(1e-3)
assert (qk.requantize(acc, r) == qk.linear_requant(codes, w, r)).all()
assert qk.capabilities()["torch"] is None and qk.explain("linear", w, x, input_quant=qk.InputQuant()).chosen
with qk.force_isa("scalar"):
    assert (qk.matmul_int(codes, w) == acc).all()
for name in ("nn", "compress"):
    try:
        getattr(qk, name)
    except ImportError:
        pass
    else:
        raise AssertionError(name + " came without torch")
try:
    qk.save("/dev/null/weights.safetensors", {"w": w})
except (qk.UnsupportedError, OSError):
    pass
else:
    raise AssertionError("save without safetensors")
print("fine")
"""


def test_works_without_torch():
    assert python(WITHOUT_TORCH).endswith("fine")


def installed_version():
    try:
        return metadata.version("qkernels")
    except metadata.PackageNotFoundError:
        return None  # run from the source folder


def test_triton_kernels_are_a_subpackage():
    if installed_version() is None:
        pytest.skip("qkernels is not installed: triton_kernels becomes a subpackage then")
    import qkernels.triton_kernels

    assert "triton" in qkernels.triton_kernels.__doc__.lower()
    assert python("import qkernels.triton_kernels, sys; print('triton' in sys.modules)") == "False"


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "qkernels").rglob("__init__.py")}
    assert found <= set(listed)


def test_public_names():
    for name in qk.__all__:
        assert getattr(qk, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = qk.nonsense
    assert not hasattr(qk, "__wrapped__")


# ---- version ---------------------------------------------------------------------------------------------


def test_version_agrees_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", qk.__version__)
    entries = re.findall(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert entries[0] == qk.__version__
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in pyproject and "qkernels.version.__version__" in pyproject
    assert (installed_version() or qk.__version__) == qk.__version__ == qk.capabilities()["version"]


# ---- the extension ---------------------------------------------------------------------------------------


def output(*command):
    if shutil.which(command[0]) is None:
        pytest.fail(f"{command[0]} is needed (binutils, which a C++ compiler brings)")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_links_libgomp_and_nothing_of_torch():
    needed = re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", str(NATIVE)))
    assert "libgomp.so.1" in needed
    known = ("libgomp.", "libstdc++.", "libm.", "libgcc_s.", "libc.", "libpthread.", "ld-linux")
    sanitizers = ("libasan.", "libubsan.", "libtsan.")
    assert not [n for n in needed if not n.startswith((*known, *sanitizers))], needed
    assert not re.search("RPATH|RUNPATH", output("readelf", "-d", str(NATIVE)))


def test_no_torch_or_python_header_among_the_kernels():
    for file in (ROOT / "csrc").rglob("*.*"):
        includes = re.findall(r"#include\s*[<\"]([^>\"]+)", file.read_text())
        bad = {i for i in includes if re.match(r"(torch|ATen|c10|cuda|Python\.h|pybind11)", i)}
        allowed = {
            "bindings": ("pybind11/", "cuda_common.h"),
            "cuda": ("cuda.h", "cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h"),
        }.get(file.parent.name, ())
        bad = {i for i in bad if not i.startswith(allowed)}
        assert not bad, (file, bad)


def test_units_of_an_isa_export_nothing_that_others_could_pick_up(tmp_path):
    """A weak symbol (an inline function) compiled with AVX-512 could be the copy that all units are linked to."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert "-march=native" not in cmake.replace("never -march=native", "")
    flags = {}
    for isa, text in re.findall(r"set\(FLAGS_(\w+) ([^)]+)\)", cmake):
        flags[isa] = [
            o for word in text.split() for o in flags.get(word.strip("${}").removeprefix("FLAGS_"), [word])
        ]
    assert not any(option.startswith("-m") for option in flags.pop("scalar"))
    units = {f: f.stem.rpartition("_")[2] for f in (ROOT / "csrc/cpu").glob("*_a[vm]x*.cpp")}
    assert set(units.values()) == set(flags)

    def check(unit):
        source, isa = unit
        target = tmp_path / f"{source.stem}.o"
        options = [
            "-std=c++17",
            "-O1",  # emits at least what -O3 does, in half the time
            "-fPIC",
            "-fvisibility=hidden",
            "-ffp-contract=off",
            "-fno-math-errno",
        ]
        output(os.environ.get("CXX", "g++"), *options, *flags[isa], "-c", str(source), "-o", str(target))
        visible = [
            line.split(maxsplit=2)[2]
            for line in output("nm", "-gC", "--defined-only", str(target)).splitlines()
        ]
        names = [v for v in visible if not v.startswith("DW.ref.")]  # gcc's own, for exceptions
        assert names and all(re.fullmatch(rf"qk::\w*kernels_\w*{isa}\(\)", name) for name in names), visible

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(check, sorted(units.items())))
