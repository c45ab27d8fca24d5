"""The float core on CUDA: weights of up to 4 bits, integers or one table, against float activations.

Products are of float16 where x is float16, and of bfloat16 where it is bfloat16 or float32, as on a CPU that multiplies
it (float16 x whose table would leave float16's range, too). ``compute_dtype="float32"`` multiplies float32, on CUDA
cores.
"""

import functools

import numpy as np

from . import cuda
from ._arrays import is_half, reciprocal
from .cpu import FLOATS

MAX_BITS = 4
INTEGERS, TABLE = 0, 1  # Decoder of csrc/cuda/gemm_float_layout.h


def refuses_weight(request):
    """None, or why the float core does not take the weight."""
    return weight_reason(request.w)


def weight_reason(w):
    if w.bits > MAX_BITS:
        return f"the weight has {w.bits} bits; this core takes up to {MAX_BITS}"
    if _tables(w) > 1:
        return "the weight has a table for each row or group; this core takes one"
    return None


def _tables(w):
    return w.numpy().codebook.shape[0] if hasattr(w, "codebook") else 1


def refuses_options(request):
    """None, or why the float core does not take the call."""
    if request.options["input_quant"] is not None:
        return "input_quant is given: the float core takes float activations"
    return None


def decoder_of(table):
    """(decoder, what a code of a Lookup is stored as, the 16 entries): csrc/cuda/gemm_float_layout.h."""
    entries = np.zeros(16, np.float32)
    entries[: len(table)] = table
    if (entries == np.rint(entries)).all() and entries.min() >= -8 and entries.max() <= 7:
        return INTEGERS, (entries[: len(table)].astype(np.int64) + 8).astype(np.uint8), entries
    return TABLE, np.arange(len(table), dtype=np.uint8), entries


def half_holds(table):
    """Whether float16 has the range of a table: rounding an entry to it loses no more than a normal number does."""
    size = np.abs(table[table != 0])
    return not size.size or (size.max() <= 65504 and size.min() >= 2.0**-14)


@functools.lru_cache(maxsize=256)
def _half_holds(table):
    return half_holds(np.array(table))


def fragments(codes, decoder):
    """uint8 codes at positions, (n_pad, k_pad), as words of csrc/cuda/gemm_float_layout.h: uint32, flat."""
    n_pad, k_pad = codes.shape
    # n = 16 tile + 8 high + g; position = 64 block + 32 half + 8 t + 4 step + 2 register + element
    parts = codes.reshape(n_pad // 16, 2, 8, k_pad // 64, 2, 4, 2, 2, 2)
    # (tile, block, g, t, half, step, register of B, high, element); register of A: 2 * that of B + high
    parts = parts.transpose(0, 3, 2, 5, 4, 6, 7, 1, 8).reshape(-1, 4, 2).astype(np.uint32)
    words = np.zeros(parts.shape[0], np.uint32)
    for r in range(4):
        for i in range(2):
            c = parts[:, r, i]
            if decoder == INTEGERS:
                words |= c << np.uint32(4 * (r + 4 * i))
            else:
                j = 2 * r + i
                high = 2 * j + 1 if j < 4 else 2 * (j - 4)
                words |= (c & 7) << np.uint32(4 * j) | c >> 3 << np.uint32(4 * high + 3)
    return words


def positions(k, group):
    """Where element k of a row lies: int64 (k,)."""
    i = np.arange(k)
    if group == 0:
        return i
    padded = 16 if group <= 16 else 32 if group <= 32 else -(-group // 64) * 64
    g, j = i // group, i % group
    return g * padded + j if padded > 16 else g // 2 * 32 + j // 4 * 8 + g % 2 * 4 + j % 4


def float_block(w):
    """The block of csrc/cuda/gemm_float_layout.h of a weight, uint8, on the host, and what a native FloatWeight takes
    after its shape."""
    q = w.numpy().lookup()
    n, k = q.index.shape
    decoder, stored, table = decoder_of(q.table[0])
    shape = (n, q.groups)
    scale = np.broadcast_to(q.scale, shape).astype(np.float32)
    half = is_half(scale)
    group = q.group_size if q.is_grouped else 0
    flags = group, half, q.offset is not None, q.input_scale is not None
    layout = cuda.native.float_layout(n, k, *flags)
    n_pad, k_pad = layout["n_pad"], layout["k_pad"]

    def per_tile(values):  # (N, G) as [tile][group][g][high]
        padded = np.zeros((n_pad, shape[1]), values.dtype)
        padded[:n] = values
        return padded.reshape(n_pad // 16, 2, 8, shape[1]).transpose(0, 3, 2, 1)

    padded = np.full((n_pad, k_pad), 8 if decoder == INTEGERS else 0, np.uint8)
    padded[:n, positions(k, group)] = stored[q.index]
    parts = {
        "codes": fragments(padded, decoder),
        "scale": per_tile(scale.astype(np.float16) if half else scale),
    }
    if q.offset is not None:
        parts["offset"] = per_tile(np.broadcast_to(q.offset, shape).astype(np.float32))
    if q.input_scale is not None:
        parts["inv_input"] = reciprocal(q.input_scale)
    return cuda.block_of(layout, parts), (*flags, decoder, tuple(table.tolist()))


def compute_name(x_name, compute_dtype, half):
    """What is multiplied."""
    if compute_dtype is not None:
        return compute_dtype
    return "float16" if x_name == "float16" and half else "bfloat16"


def float_numbers(facts, x_name, compute_dtype):
    """The number of what is multiplied."""
    return (FLOATS[compute_name(x_name, compute_dtype, _half_holds(facts[-1]))],)


FLOAT = cuda.Core(
    *("float", "FloatWeight", float_block, "linear_float"),
    given=lambda options: (options["compute_dtype"],),
    numbers=float_numbers,
    sized_by=1,
)
