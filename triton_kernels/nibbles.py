"""Nibbles of bytes to operands of the tensor cores, four bytes at a time.

Triton computes on one byte a register, which costs four instructions an operand. Written in PTX on the four bytes that a
register holds, it is one or less, and that decides whether decoding keeps up with memory. The interpreter, which
has no PTX, runs the plain form beside it, which says the same of one byte; tests/test_triton.py executes the PTX below,
instruction by instruction, against it.
"""

import triton
import triton.language as tl

from . import is_interpreted

ASM = tl.constexpr(not is_interpreted())

# int8: (nibble + s) ^ 128, no carry between bytes since sums stay below 256.
_CODES = "and.b32 t, t, 0x0F0F0F0F; add.u32 t, t, $2; xor.b32 $0, t, 0x80808080; }"
LOW_CODES = tl.constexpr("{ .reg .b32 t; mov.b32 t, $1; " + _CODES)
HIGH_CODES = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 4; " + _CODES)
# Two bytes become two halves 0x4300 | nibble (bfloat16: 128 + nibble) or 0x6400 | nibble (float16: 1024 + nibble).
_SPREAD = "prmt.b32 u, t, 0, 0x4342; prmt.b32 t, t, 0, 0x4140; "
_BITS = "lop3.b32 t, t, 0x000F000F, {0}, 0xEA; lop3.b32 u, u, 0x000F000F, {0}, 0xEA; "
_BF16 = (
    _SPREAD + _BITS.format("0x43004300") + "xor.b32 $0, $3, 0x80008000; xor.b32 $1, $4, 0x80008000; "
    "mov.b32 one, 0x3F803F80; fma.rn.bf16x2 $0, t, one, $0; fma.rn.bf16x2 $1, u, one, $1; }"
)
_FP16 = _SPREAD + _BITS.format("0x64006400") + "sub.rn.f16x2 $0, t, $3; sub.rn.f16x2 $1, u, $4; }"
LOW_BF16 = tl.constexpr("{ .reg .b32 t, u, one; mov.b32 t, $2; " + _BF16)
HIGH_BF16 = tl.constexpr("{ .reg .b32 t, u, one; shr.u32 t, $2, 4; " + _BF16)
LOW_FP16 = tl.constexpr("{ .reg .b32 t, u; mov.b32 t, $2; " + _FP16)
HIGH_FP16 = tl.constexpr("{ .reg .b32 t, u; shr.u32 t, $2, 4; " + _FP16)


@triton.jit
def nibble(b, HIGH: tl.constexpr):
    """The high or the low nibbles of bytes, uint8."""
    return (b >> 4) if HIGH else (b & 15)


@triton.jit
def nibble_codes(b, s, HIGH: tl.constexpr):
    """``nibble + s - 128`` as int8; s uint8, with no sum above 255."""
    if ASM:
        PTX: tl.constexpr = HIGH_CODES if HIGH else LOW_CODES
        w = tl.inline_asm_elementwise(PTX, "=r,r,r", [b, s], dtype=tl.int8, is_pure=True, pack=4)
    else:
        w = ((nibble(b, HIGH) + s) ^ 128).to(tl.int8, bitcast=True)
    return w


@triton.jit
def nibble_floats(b, z, HIGH: tl.constexpr, DTYPE: tl.constexpr):
    """``nibble + BIAS - z`` as DTYPE, exact; z of DTYPE, BIAS 128 for bfloat16, 1024 for float16, 0 for float32."""
    if DTYPE == tl.float32:
        w = nibble(b, HIGH).to(tl.float32) - z
    elif not ASM:
        BIAS: tl.constexpr = 128.0 if DTYPE == tl.bfloat16 else 1024.0
        w = ((nibble(b, HIGH).to(tl.float32) + BIAS) - z.to(tl.float32)).to(DTYPE)
    elif DTYPE == tl.bfloat16:
        PTX_B: tl.constexpr = HIGH_BF16 if HIGH else LOW_BF16
        w = tl.inline_asm_elementwise(PTX_B, "=&r,=&r,r,r,r", [b, z], dtype=tl.bfloat16, is_pure=True, pack=4)
    else:
        PTX_H: tl.constexpr = HIGH_FP16 if HIGH else LOW_FP16
        w = tl.inline_asm_elementwise(PTX_H, "=&r,=&r,r,r,r", [b, z], dtype=tl.float16, is_pure=True, pack=4)
    return w
