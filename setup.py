"""Build of the native extension: CMake with ninja, driven by setuptools.

Environment: CMAKE_ARGS, more arguments for CMake; QKERNELS_SANITIZE, address, undefined or thread; QKERNELS_CUDA,
auto (the default), on or off: whether the CUDA kernels are built (cmake/cuda.cmake); QKERNELS_WERROR, warnings are
errors; QKERNELS_BUILD_DIR, where objects are kept, so that the next build makes only what changed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds _native, and _cuda beside it, into the place where setuptools looks for them."""

    def build_extension(self, ext):
        if ext.name.endswith("_cuda"):  # built with _native, if at all
            return
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(os.environ.get("QKERNELS_BUILD_DIR") or self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            _tool("cmake"),
            "-S",
            str(ROOT),
            "-B",
            str(build),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        ]
        if _has("ninja"):
            configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={_tool('ninja')}"]
        if os.environ.get("QKERNELS_SANITIZE"):
            configure.append(f"-DQKERNELS_SANITIZE={os.environ['QKERNELS_SANITIZE']}")
        configure.append(f"-DQKERNELS_CUDA={os.environ.get('QKERNELS_CUDA') or 'auto'}")
        configure += os.environ.get("CMAKE_ARGS", "").split()
        for folder in {target.parent, ROOT / "qkernels"} if self.editable_mode else {target.parent}:
            for old in folder.glob("_cuda*.so"):  # of a build with another setting
                old.unlink()
        subprocess.run(configure, check=True)
        subprocess.run([_tool("cmake"), "--build", str(build), "--target", "_native", "_cuda"], check=True)


def _beside_python(name):
    return shutil.which(name, path=str(Path(sys.executable).parent))


def _has(name):
    return bool(_beside_python(name) or shutil.which(name))


def _tool(name):
    """A program from this environment's own packages, else from PATH."""
    found = _beside_python(name) or shutil.which(name)
    if found is None:
        sys.exit(f"qkernels needs {name} to build: pip install {name}")
    return found


EXTENSIONS = [
    Extension("qkernels._native", sources=[]),
    Extension("qkernels._cuda", sources=[], optional=True),
]
setup(ext_modules=EXTENSIONS, cmdclass={"build_ext": CMakeBuild})
