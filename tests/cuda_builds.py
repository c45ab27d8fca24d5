"""Builds of the CUDA kernels for tests: with nvcc, and with the host compiler for the emulator. Both are kept in
build/, so that a second run builds only what changed.
"""

import ctypes
import functools
import importlib.util
import mmap
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pybind11
import pytest
import torch

from qkernels import cuda

ROOT = Path(__file__).resolve().parent.parent


def tool(name):
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def configuration(kind, folder):
    """The command that configures a build with QKERNELS_CUDA=kind."""
    if not (ROOT / "csrc" / "cuda").is_dir():
        pytest.skip("the sources of the CUDA kernels are not here")
    command = [
        tool("cmake"),
        "-S",
        ROOT,
        "-B",
        folder,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
    ]
    command += [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DQKERNELS_WERROR=ON",
        f"-DQKERNELS_CUDA={kind}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    paths = f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"
    return [*command, *paths]


def build(kind):
    """Configure and build _cuda with QKERNELS_CUDA=kind; the build folder.

    With "on" that of ``make``, where there is one: its objects are the same, and nvcc takes minutes.
    """
    folder, installed = ROOT / "build" / f"cuda-{kind}", ROOT / "build" / "editable"
    if kind == "on" and (installed / "CMakeCache.txt").exists():
        folder = installed
    steps = configuration(kind, folder), [tool("cmake"), "--build", folder, "--target", "_cuda", "-j", "2"]
    for command in steps:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    return folder


@functools.cache
def emulated():
    """The module _cuda whose kernels run on the host: device memory is host memory.

    It is built, unless QKERNELS_EMULATED is a folder that holds it (tests/sanitize.sh).
    """
    folder = os.environ.get("QKERNELS_EMULATED")
    (path,) = (Path(folder) if folder else build("emulated")).glob("_cuda*.so")
    # Not the name of the real module: pybind11 would give that one again.
    spec = importlib.util.spec_from_file_location("qkernels_emulated._cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.emulated
    return module


def guarded(array, where):
    """``cuda.upload`` for the emulator: what follows the array's memory cannot be touched."""
    source, size, page = torch.from_numpy(np.array(array)), array.nbytes, mmap.PAGESIZE
    room = max(-(-size // page), 1) * page
    memory = mmap.mmap(-1, room + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(start + room), ctypes.c_size_t(page), 0) == 0  # PROT_NONE
    tensor = torch.frombuffer(memory, dtype=torch.uint8, count=room)[room - size :]
    return tensor.view(source.dtype).reshape(source.shape).copy_(source)


def emulate(monkeypatch, schedule=0):
    """The emulated module, in the place of qkernels._cuda: blocks and threads run in the order of ``schedule``."""
    module = emulated()
    monkeypatch.setattr(cuda, "native", module)
    monkeypatch.setattr(cuda, "_known", {})
    module.set_schedule(schedule)
    module.force_float("any")
    monkeypatch.setattr(cuda, "upload", guarded)
    return module
