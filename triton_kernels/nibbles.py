"""Nibbles of words to operands of the tensor cores, as many at a time as a register holds.

Triton computes on one byte a register, which costs four instructions an operand. Written in PTX on whole registers, it
is one to one and a half, and that decides whether decoding keeps up with memory. The interpreter, which has no PTX,
runs the plain form beside it, which says the same of one word; tests/test_triton.py executes the PTX below against it.
"""

import triton
import triton.language as tl

from qkernels.triton_backend import is_interpreted

ASM = tl.constexpr(not is_interpreted())

# Four bytes to four int8: (nibble + s) ^ 128, no carry between bytes since sums stay below 256.
_CODES = "and.b32 t, t, 0x0F0F0F0F; add.u32 t, t, $2; xor.b32 $0, t, 0x80808080; }"
LOW_CODES = tl.constexpr("{ .reg .b32 t; mov.b32 t, $1; " + _CODES)
HIGH_CODES = tl.constexpr("{ .reg .b32 t; shr.u32 t, $1, 4; " + _CODES)

# Two words to two floats: 0x4300 | nibble is bfloat16 128 + nibble, 0x6400 | nibble is float16 1024 + nibble; then + z.
_HEAD = "{{ .reg .b32 t, one; shr.u32 t, $1, {}; lop3.b32 t, t, 0x000F000F, "
_BF16 = _HEAD + "0x43004300, 0xEA; mov.b32 one, 0x3F803F80; fma.rn.bf16x2 $0, t, one, $2; }}"
_FP16 = _HEAD + "0x64006400, 0xEA; add.rn.f16x2 $0, t, $2; }}"
BF16_0, BF16_1, BF16_2, BF16_3 = (tl.constexpr(_BF16.format(4 * p)) for p in range(4))
FP16_0, FP16_1, FP16_2, FP16_3 = (tl.constexpr(_FP16.format(4 * p)) for p in range(4))


@triton.jit
def nibble(b, PLANE: tl.constexpr):
    """Bits 4 PLANE ... 4 PLANE + 3 of words."""
    return (b >> (4 * PLANE)) & 15


@triton.jit
def nibble_codes(b, s, PLANE: tl.constexpr):
    """``nibble + s - 128`` of bytes as int8; s uint8, with no sum above 255."""
    if ASM:
        PTX: tl.constexpr = HIGH_CODES if PLANE == 1 else LOW_CODES
        w = tl.inline_asm_elementwise(PTX, "=r,r,r", [b, s], dtype=tl.int8, is_pure=True, pack=4)
    else:
        w = ((nibble(b, PLANE) + s) ^ 128).to(tl.int8, bitcast=True)
    return w


@triton.jit
def nibble_floats(b, z, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    """``nibble + BIAS + z`` of int16 words as DTYPE, exact; z of DTYPE, BIAS 128 (bfloat16), 1024 (float16) or 0."""
    if tl.float32 == DTYPE:
        w = nibble(b, PLANE).to(tl.float32) + z
    elif not ASM:
        BIAS: tl.constexpr = 128.0 if tl.bfloat16 == DTYPE else 1024.0
        w = ((nibble(b, PLANE).to(tl.float32) + BIAS) + z.to(tl.float32)).to(DTYPE)
    elif tl.bfloat16 == DTYPE:
        PTX_B: tl.constexpr = (
            BF16_0 if PLANE == 0 else BF16_1 if PLANE == 1 else BF16_2 if PLANE == 2 else BF16_3
        )
        w = tl.inline_asm_elementwise(PTX_B, "=r,r,r", [b, z], dtype=tl.bfloat16, is_pure=True, pack=2)
    else:
        PTX_H: tl.constexpr = (
            FP16_0 if PLANE == 0 else FP16_1 if PLANE == 1 else FP16_2 if PLANE == 2 else FP16_3
        )
        w = tl.inline_asm_elementwise(PTX_H, "=r,r,r", [b, z], dtype=tl.float16, is_pure=True, pack=2)
    return w
