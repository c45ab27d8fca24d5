"""Triton kernels compiled for a GPU that is not there: Triton and the tools in its wheel need no driver for that."""

import re
import subprocess
import tempfile

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}
SHARED = {80: 166912, 89: 101376, 90: 232448}  # bytes of shared memory that a program may have


def build(kernel, arguments, arch, **options):
    """A kernel compiled for the types and divisibilities that a launch with these arguments has."""
    signature, constants, attributes = {}, {}, {}
    for i, p in enumerate(kernel.params):
        value = arguments[p.name]
        aligned = False
        if p.is_constexpr:
            signature[p.name], constants[p.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[p.name], aligned = POINTERS[value.dtype], True
        elif isinstance(value, float):
            signature[p.name] = "fp32"
        else:
            signature[p.name], aligned = "i32", value % 16 == 0
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def _cuobjdump(built, *options):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(built.asm["cubin"])
        f.flush()
        command = [knobs.nvidia.cuobjdump.path, *options, f.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(built):
    """{"REG": registers a thread, "STACK": bytes of stack, "LOCAL": bytes of local memory ...}."""
    return {
        name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", _cuobjdump(built, "-res-usage"))
    }


def instructions(built):
    """The names of the machine instructions, in order."""
    return re.findall(r"\n\s+/\*[0-9a-f]{4}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_]+)", _cuobjdump(built, "-sass"))
