"""int8 activations against weights of up to 4 bits (W4A8) on CUDA: bit for bit the reference."""

import numpy as np

from . import cuda
from ._arrays import is_half, reciprocal
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
    if not w.is_grouped and request.m > cuda.FEW:
        tokens = f"x has {request.m} tokens, the weight no group-wise scales"
        return f"{tokens}: above {cuda.FEW} that is for the int8 kernel"
    group = w.group_size if w.is_grouped else w.matrix_shape[1]
    if group > LONGEST:
        return f"a scale is for {group} codes; this kernel takes up to {LONGEST}"
    return None


def positions(k, group):
    """Where element k of a row lies: int64 (k,). Groups take multiples of 32; 0: none."""
    i = np.arange(k)
    return i if group == 0 else i // group * (-(-group // 32) * 32) + i % group


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
    group = w.group_size if w.is_grouped else 0
    shape = (n, -(-k // group) if group else 1)
    scale = np.broadcast_to(w.scale, shape).astype(np.float32)
    half = is_half(scale)
    zero = None if w.zero_point is None else np.broadcast_to(w.zero_point, shape).astype(np.int64)
    flags = group, half, zero is not None, w.input_scale is not None
    layout = cuda.native.int4_layout(n, k, *flags)
    n_pad = layout["n_pad"]

    def per_tile(values):  # (N, G) as [tile][group][16]
        padded = np.zeros((n_pad, shape[1]), values.dtype)
        padded[:n] = values
        return padded.reshape(n_pad // 16, 16, shape[1]).transpose(0, 2, 1)

    padded = np.zeros((n_pad, layout["k_pad"]), np.uint8)  # where no element is, activations are 0
    padded[:n, positions(k, group)] = codes
    starts = np.arange(0, k, group) if group else np.arange(min(k, 1))
    offset = np.zeros(shape, np.int64)
    if k:
        offset[:] = np.add.reduceat(operands, starts, axis=1, dtype=np.int64)
        offset -= 0 if zero is None else zero * np.diff(starts, append=k)
    parts = {
        "codes": fragments(padded, decoder),
        "scale": per_tile(scale.astype(np.float16) if half else scale),
        "offset": per_tile(offset.astype(np.int32)),
    }
    if zero is not None:
        parts["zero"] = per_tile(zero.astype(np.int8))
    if w.input_scale is not None:
        parts["inv_input"] = reciprocal(w.input_scale)
    return cuda.block_of(layout, parts), (*flags, decoder, tuple(table.tolist()))


INT4 = cuda.Core(
    *("int4", "Int4Weight", int4_block, "linear_int"), given=cuda.INT8.given, numbers=cuda.int_numbers
)
