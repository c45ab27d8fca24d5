"""Decoding of one token between its linear layers, float32 in and out."""

import numpy as np


def rms_norm(x, weight, eps):
    """``x / sqrt(mean(x**2) + eps) * weight`` over the last axis (Zhang and Sennrich 2019): float32, squares too."""
    mean = np.sum(x * x, -1, keepdims=True) / np.float32(max(x.shape[-1], 1))
    return x / np.sqrt(mean + np.float32(eps)) * weight


def swiglu(gate_up):
    """``silu(gate) * up`` of (..., 2 n), gate its first half (Shazeer 2020); silu(x) = x / (1 + exp(-x)) in float64."""
    gate, up = np.split(gate_up.astype(np.float64), 2, -1)
    return (gate / (1 + np.exp(np.minimum(-gate, 700))) * up).astype(np.float32)


def turn_pairs(x, turn):
    """(H, head) as complex numbers of neighbours, times turn (H, head / 2, 2) (Su et al. 2021, eq. 34)."""
    a, b = x[:, ::2], x[:, 1::2]
    c, s = turn[..., 0], turn[..., 1]
    return np.stack((a * c - b * s, a * s + b * c), -1).reshape(x.shape)


def decode_attention(qkv, turn, store, position):
    """``softmax(q K^T / sqrt(head)) V`` over positions 0..position, whose key and value are first put into store.

    Args:
        qkv: float32 (1, (heads + 2 * kv_heads) * head). turn: (heads + 2 * kv_heads, head / 2, 2).
        store: (2 * kv_heads, length, head), keys then values; written at ``position``.

    Returns:
        float32 (1, heads * head).
    """
    kv_heads, head = len(store) // 2, store.shape[2]
    rows = qkv.reshape(-1, head)
    heads = len(rows) - 2 * kv_heads
    turned = turn_pairs(rows[:-kv_heads], turn[:-kv_heads])
    store[:, position] = np.concatenate((turned[heads:], rows[-kv_heads:]))
    k, v = np.split(store[:, : position + 1].astype(np.float64), 2)
    q = turned[:heads].reshape(kv_heads, -1, head)
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(head)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True) @ v).reshape(1, -1).astype(np.float32)
