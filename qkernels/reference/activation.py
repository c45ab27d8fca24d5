"""Activation functions, float32 to float32: computed in float64, rounded once."""

import math

import numpy as np

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def relu(x):
    """max(x, 0)"""
    return np.maximum(x, np.float32(0))


def relu6(x):
    """min(max(x, 0), 6)"""
    return np.clip(x, np.float32(0), np.float32(6))


def gelu(x):
    """x * Phi(x) = x/2 * erfc(-x / sqrt(2)): the exact form, not the tanh one."""
    x = x.astype(np.float64)
    return (0.5 * x * _erfc(x * -math.sqrt(0.5))).astype(np.float32)


def silu(x):
    """x / (1 + exp(-x))"""
    x = x.astype(np.float64)
    with np.errstate(over="ignore"):
        return (x / (1.0 + np.exp(-x))).astype(np.float32)


ACTIVATIONS = {"relu": relu, "relu6": relu6, "gelu": gelu, "silu": silu}


def apply_activation(y, activation):
    """``y`` itself for None."""
    return y if activation is None else ACTIVATIONS[activation](y)
