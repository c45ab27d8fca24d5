#!/usr/bin/env bash
# What a release needs, for real: the sdist builds a wheel by itself, and that one wheel works without torch and with
# each torch of TORCH, which are Python interpreters that have a torch and pytest. Nothing is rebuilt between them.
#
#   tests/wheelcheck.sh                                             this environment's torch
#   TORCH=".venv/bin/python /other/bin/python" tests/wheelcheck.sh  several
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
python="${PYTHON:-$([ -x .venv/bin/python ] && echo "$root/.venv/bin/python" || command -v python3)}"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
PATH="$(dirname "$python"):$PATH"

echo "== sdist =="
git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$scratch" 2>/dev/null || true
mkdir "$scratch/dist"
(cd "$scratch" && "$python" -c 'import setuptools.build_meta as b; print(b.build_sdist("dist"))' >sdist.log)
sdist=$(ls "$scratch"/dist/*.tar.gz)
tar tzf "$sdist" >"$scratch/listing"
for file in csrc/cpu/gemm.cpp csrc/bindings/module.cpp csrc/common/types.h CMakeLists.txt setup.py pyproject.toml LICENSE \
    README.md CHANGELOG.md triton_kernels/__init__.py triton_kernels/configs/sm_90.json qkernels/demo/page.html qkernels/demo/minilm/data/calibration.txt; do
    grep -q "/$file\$" "$scratch/listing" || { echo "the sdist lacks $file"; exit 1; }
done
if grep -E '\.(so|o|pyc)$' "$scratch/listing"; then
    echo "the sdist holds build products"
    exit 1
fi

echo "== wheel from the sdist alone =="
"$python" -m pip wheel --quiet --no-build-isolation --no-deps --no-index -w "$scratch/wheels" "$sdist"
wheel=$(ls "$scratch"/wheels/*.whl)
"$python" - "$wheel" <<'PYTHON'
import sys
import zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
for part in ("qkernels/_native.", "qkernels/triton_kernels/__init__.py", "qkernels/triton_kernels/configs/sm_90.json", "qkernels/demo/page.html",
    "qkernels/demo/minilm/data/calibration.txt", "qkernels/demo/efficientnet/model.py", "licenses/LICENSE"):
    assert any(part in n for n in names), f"the wheel lacks {part}"
foreign = [n for n in names if "libgomp" in n or n.startswith(("csrc", "tests", "triton_kernels"))]
assert not foreign, f"the wheel holds {foreign}"
print(sys.argv[1].rsplit("/", 1)[-1], len(names), "files")
PYTHON

check() { # interpreter, what it is called, modules to test
    local site="$scratch/site-$2"
    "$python" -m pip install --quiet --no-deps --no-index --target "$site" "$wheel"
    mkdir -p "$scratch/run-$2"
    cp -r tests CHANGELOG.md CMakeLists.txt pyproject.toml csrc "$scratch/run-$2/"
    echo "== $2 =="
    (cd "$scratch/run-$2" && shift 2 && PYTHONPATH="$site" "$@")
}

check "$python" none "$python" - <<'PYTHON'
import sys

sys.modules["torch"] = None  # importing it fails
import numpy as np

import qkernels as qk

W, x = np.random.default_rng(0).standard_normal((64, 96), np.float32), np.ones((5, 96), np.float32)
y = qk.linear(x, qk.IntWeight.quantize(W), input_quant=qk.InputQuant())
assert "site-none" in qk.__file__ and np.abs(y - x @ W.T).max() < 0.2 and qk.capabilities()["torch"] is None
print("no torch:", qk.__file__.rsplit("/", 2)[1], qk.__version__, "works")
PYTHON

number=0
for interpreter in ${TORCH:-$python}; do
    number=$((number + 1))
    check "$interpreter" "torch-$number" "$interpreter" -c \
        'import torch, qkernels as qk; assert "site-torch" in qk.__file__; print("torch", torch.__version__)'
    (cd "$scratch/run-torch-$number" && PYTHONPATH="$scratch/site-torch-$number" "$interpreter" -m pytest -q \
        -p no:cacheprovider tests/test_nn.py tests/test_torch_compile.py tests/test_threads.py tests/test_errors.py)
done
echo "wheelcheck: passed"
