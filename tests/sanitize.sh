#!/usr/bin/env bash
# The kernels' tests with the native code under sanitizers, built in a scratch folder; the usual build is not touched.
#
#   tests/sanitize.sh                         address,undefined, then thread
#   tests/sanitize.sh address,undefined       one of them
#   TESTS="tests/test_fuzz.py" tests/sanitize.sh address,undefined
#
# The thread build runs its teams on std::thread: what libgomp does to synchronise is invisible to the sanitizer, which
# would report every parallel region. Python and torch are not instrumented, so leaks are not looked for.
# With address, the CUDA kernels run too, on the emulator: what they read and write of device memory is then checked.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}"
python="$(cd "$(dirname "$python")" && pwd)/$(basename "$python")"
PATH="$(dirname "$python"):$PATH"
# One thread and two, every ISA, every shape; the long ones under a sanitizer add minutes and no new code.
tests=${TESTS:-"tests/test_kernels.py tests/test_threads.py tests/test_narrow.py tests/test_binary.py tests/test_binary_conv.py
    tests/test_conv.py tests/test_depthwise.py tests/test_integer_ops.py"}
select=${SELECT:-"not 131071 and not 20000 and not 8200 and not fork and not thread_count and not gil and not every_float16 and not half_precision and not schedule1 and not schedule7 and not (emulated and extremes)"}

check() {
    local kind=$1 scratch status=0
    scratch=$(mktemp -d)
    trap "rm -rf '$scratch'" RETURN
    echo "== $kind: building =="
    cmake -S . -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DQKERNELS_SANITIZE="$kind" -DQKERNELS_CUDA=emulated \
        -DPython_EXECUTABLE="$python" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$scratch/qkernels" \
        -Dpybind11_DIR="$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')" >"$scratch/log"
    local targets=_native files=$tests
    if [[ $kind == *address* && -z ${TESTS:-} ]]; then
        targets="_native _cuda"
        files="$tests tests/test_cuda_emulated.py"
        export QKERNELS_EMULATED="$scratch/qkernels"
    fi
    # shellcheck disable=SC2086
    cmake --build "$scratch/build" --target $targets >>"$scratch/log" || { tail -30 "$scratch/log"; return 1; }
    cp -r tests "$scratch/"
    (cd qkernels && find . -type f ! -name '*.so' ! -path '*__pycache__*' -exec cp --parents {} "$scratch/qkernels/" \;)
    local libraries=libasan.so
    [ "$kind" = thread ] && libraries=libtsan.so
    echo "== $kind: testing =="
    (
        cd "$scratch"
        export LD_PRELOAD="$(gcc -print-file-name=$libraries):$(gcc -print-file-name=libstdc++.so.6)"
        export ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0:alloc_dealloc_mismatch=0:allocator_may_return_null=1
        export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
        export TSAN_OPTIONS="halt_on_error=0:exitcode=66:ignore_noninstrumented_modules=1:report_signal_unsafe=0"
        # shellcheck disable=SC2086
        "$python" -m pytest -q -x -s -p no:cacheprovider $files -k "$select"
    ) >"$scratch/output" 2>&1 || status=$?
    if [ $status -ne 0 ] || grep -qE "runtime error|ERROR: AddressSanitizer|WARNING: ThreadSanitizer" "$scratch/output"; then
        grep -vE "^seed |^\.*seed " "$scratch/output" | tail -80
        echo "== $kind: FAILED =="
        return 1
    fi
    grep -E "passed" "$scratch/output" | tail -1
    echo "== $kind: nothing found =="
}

for kind in ${1:-address,undefined thread}; do check "$kind"; done
