"""int8 activations against weights of up to 4 bits with group-wise scales (W4A8) on CUDA: bit for bit the reference."""

import numpy as np

from . import cuda
from .cuda_float import INTEGERS, MAX_BITS, TABLE
from .formats.operand import integer_operand, why_no_integers

LONGEST = 65536  # of a group: 16 * code * uint8 summed over it stays in int32


def refuses_weight(request):
    """None, or why this kernel does not take the weight."""
    w = request.w
    reason = why_no_integers(w)
    if reason is not None:
        return reason
    if w.bits > MAX_BITS:
        return f"the weight has {w.bits} bits; this kernel takes up to {MAX_BITS}"
    if not w.is_grouped:
        return "the weight has no group-wise scales: that is for the int8 kernel"
    if w.group_size % 32 or w.group_size > LONGEST:
        return f"group_size is {w.group_size}; this kernel takes multiples of 32 up to {LONGEST}"
    if getattr(w, "zero_point", None) is not None:
        return "the weight has zero points; with groups this kernel takes symmetric codes"
    return None


def refuses_quant(request):
    """None, or why this kernel does not take the activations."""
    q = request.options["input_quant"]
    return cuda.refuses_quant(request) or (
        "input_quant has a zero point; with groups this kernel takes none" if q.zero_point else None
    )


def fragments(codes, decoder):
    """uint8 codes (n_pad, k_pad) as csrc/cuda/gemm_int4_layout.h has them: uint32 words, flat."""
    n_pad, k_pad = codes.shape
    # n = 16 tile + 8 high + g; k = 64 block + 32 half + 8 t + 4 q + byte
    parts = codes.reshape(n_pad // 16, 2, 8, k_pad // 64, 2, 4, 2, 4)
    # (tile, block, g, t, half, q, high, byte)
    parts = parts.transpose(0, 3, 2, 5, 4, 6, 1, 7).reshape(-1, 2, 4).astype(np.uint32)
    words = np.zeros(parts.shape[0], np.uint32)
    for high in range(2):
        for byte in range(4):
            c, j = parts[:, high, byte], 4 * high + byte
            if decoder == INTEGERS:
                words |= c << np.uint32(8 * byte + 4 * high)
            else:
                top = 2 * j + 1 if j < 4 else 2 * (j - 4)
                words |= (c & 7) << np.uint32(4 * j) | c >> 3 << np.uint32(4 * top + 3)
    return words


def int4_block(w):
    """The block of csrc/cuda/gemm_int4_layout.h, uint8, on the host, and what Int4Weight takes after its shape."""
    w = integer_operand(w.numpy())
    operands = w.codes()
    n, k = operands.shape
    if operands.min(initial=0) >= -8 and operands.max(initial=0) <= 7:
        decoder, table, codes = INTEGERS, np.zeros(16, np.int64), operands.astype(np.uint8) & 15
    else:
        table = np.zeros(16, np.int64)
        table[: len(w.table)] = w.table
        decoder, codes = TABLE, w.index
    flags = w.group_size, w.input_scale is not None
    layout = cuda.native.int4_layout(n, k, *flags)
    padded = np.zeros((layout["n_pad"], layout["k_pad"]), np.uint8)  # beyond K activations are 0
    padded[:n, :k] = codes
    scale = np.zeros((layout["n_pad"], layout["groups"]), np.float32)
    scale[:n] = np.broadcast_to(w.scale, (n, layout["groups"]))
    parts = {
        "codes": fragments(padded, decoder),
        "scale": scale.reshape(-1, 2, 8, layout["groups"]).transpose(0, 3, 2, 1),
    }
    if flags[1]:
        parts["inv_input"] = np.float32(1) / np.asarray(w.input_scale, np.float32)
    return cuda.block_of(layout, parts), (*flags, decoder, tuple(table.tolist()))


INT4 = cuda.Core(
    *("int4", "Int4Weight", int4_block, "linear_int"), given=cuda.INT8.given, numbers=cuda.int_numbers
)
