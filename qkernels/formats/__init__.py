"""Weight formats: how a compressed matrix ``(N, K)`` is stored. One file per format."""

from .base import WeightFormat
from .int import IntWeight

__all__ = ["IntWeight", "WeightFormat"]
