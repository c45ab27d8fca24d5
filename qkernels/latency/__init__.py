"""Measuring a machine and the kernels on it."""
