#!/usr/bin/env bash
# Everything that needs a GPU, on a bare machine with nvcc, torch, pytest, numpy, pybind11, cmake, ninja and no network:
#   bench/gpu.sh [build] [test] [bench] [compile] [triton] [sanitize]      all of them by default, in this order
# The first three take about 10 minutes on 16 cores (an estimate: it has never run), the others as long again.
# A step that fails does not stop the next; the exit status says whether one did. OUT: where results go.
# COMMIT: what is measured, where the tree has no .git.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
OUT=${OUT:-bench/results}
steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build test bench compile triton sanitize)
mkdir -p "$OUT"
failed=()

step() {
    echo "== $1"
    local name=$1
    shift
    local began=$SECONDS
    "$@" || failed+=("$name")
    echo "== $name: $((SECONDS - began)) s"
}

build() { # editable, so that tests and benchmarks import this tree
    QKERNELS_CUDA=${QKERNELS_CUDA:-on} "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index \
        --no-build-isolation --no-deps --editable . &&
        "$PYTHON" -c "
import qkernels as qk
state = qk.capabilities()['cuda']
print(state)
assert state['available']"
}

tests() { # the CUDA rows; what nvcc made of them
    "$PYTHON" -m pytest -q -rs tests/test_gpu.py tests/test_cuda_build.py -k "not triton and not operator and not emulator"
}

triton() { # compiled as they are called, which takes most of the time
    "$PYTHON" -m pytest -q -rs tests/test_gpu.py -k "triton and not operator" && "$PYTHON" -m pytest -q tests/test_triton*.py
}

compiled() { # opcheck, torch.compile
    "$PYTHON" -m pytest -q -rs tests/test_gpu.py -k "operator and not emulator"
}

# Of small shapes, each allocation on its own, so that memcheck sees where it ends.
sanitizer() {
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed"; return 1; }
    local select="not emulator and (wgmma or cuda-sm and (IntWeight or requantize or quantize_activations))" extra=()
    [ "$1" = memcheck ] && extra=(--report-api-errors no) # torch asks for symbols that a driver may lack
    QKERNELS_GPU_SHAPES=small PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 \
        "${extra[@]}" --print-limit 20 "$PYTHON" -m pytest -q -x tests/test_gpu.py -k "$select"
}

for name in "${steps[@]}"; do
    case $name in
        build) step build build ;;
        test) step test tests ;;
        triton) step triton triton ;;
        compile) step compile compiled ;;
        sanitize)
            step memcheck sanitizer memcheck
            step racecheck sanitizer racecheck
            ;;
        bench) step bench "$PYTHON" bench/gpu.py --out "$OUT" ${BENCH:-} ;;
        *)
            echo "no step $name; there are: build test bench compile triton sanitize"
            exit 2
            ;;
    esac
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}"
    exit 1
fi
echo "all steps passed"
