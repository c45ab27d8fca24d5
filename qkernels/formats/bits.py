"""Rows of b-bit codes as bitstreams: the packing that every format with narrow codes shares."""

import numpy as np


def row_bytes(k, bits):
    """Bytes of a row of k codes: each row starts at a byte."""
    return (k * bits + 7) // 8


def pack_rows(u, bits):
    """Unsigned codes (N, K), below 2**bits, to uint8 (N, ceil(K * bits / 8)).

    Code k takes bits k * bits ... k * bits + bits - 1 of its row, least significant first; the bits past K are 0.
    """
    n, k = u.shape
    u = np.ascontiguousarray(u, np.uint8)
    if bits == 8:
        return u
    if 8 % bits:
        planes = np.unpackbits(u[:, :, None], axis=2, count=bits, bitorder="little")
        return np.packbits(planes.reshape(n, k * bits), axis=1, bitorder="little")
    per = 8 // bits  # whole codes in a byte
    padded = np.zeros((n, row_bytes(k, bits) * per), np.uint8)
    padded[:, :k] = u
    out = np.zeros((n, row_bytes(k, bits)), np.uint8)
    for i in range(per):
        out |= padded[:, i::per] << np.uint8(i * bits)
    return out


def unpack_rows(packed, k, bits):
    """The inverse of pack_rows: uint8 (N, K)."""
    n = packed.shape[0]
    if bits == 8:
        return packed
    if 8 % bits:
        planes = np.unpackbits(packed, axis=1, count=k * bits, bitorder="little").reshape(n, k, bits)
        return np.packbits(planes, axis=2, bitorder="little").reshape(n, k)
    per = 8 // bits
    out = np.empty((n, packed.shape[1] * per), np.uint8)
    for i in range(per):
        out[:, i::per] = packed >> np.uint8(i * bits) & np.uint8(2**bits - 1)
    return out[:, :k]


def to_signed(u, bits):
    """Two's complement codes int8 from their low ``bits`` bits."""
    half = np.int8(-128) if bits == 8 else np.int8(2 ** (bits - 1))
    return u.view(np.int8) if bits == 8 else (u.view(np.int8) ^ half) - half


def to_unsigned(codes, bits):
    """The low ``bits`` bits of two's complement codes, uint8; with 8 bits on the same memory."""
    return codes.view(np.uint8) if bits == 8 else codes.view(np.uint8) & np.uint8(2**bits - 1)
