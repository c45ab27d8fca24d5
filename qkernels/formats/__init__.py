"""Weight formats: how a compressed matrix ``(N, K)`` is stored. One file per format."""

from .base import WeightFormat
from .int import IntWeight
from .mixed import MixedIntWeight

__all__ = ["IntWeight", "MixedIntWeight", "WeightFormat"]
