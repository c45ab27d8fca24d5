"""Weight formats: how a compressed matrix ``(N, K)`` is stored. One file per format."""

from .base import WeightFormat
from .binary import BinaryWeight
from .int import IntWeight
from .mixed import MixedIntWeight
from .ternary import TernaryWeight

__all__ = ["BinaryWeight", "IntWeight", "MixedIntWeight", "TernaryWeight", "WeightFormat"]
