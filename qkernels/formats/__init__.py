"""Weight formats: how a compressed matrix ``(N, K)`` is stored. One file per format."""

from .base import WeightFormat
from .binary import BinaryWeight
from .int import IntWeight
from .mixed import MixedIntWeight
from .power import PowerWeight, search_exponent
from .ternary import TernaryWeight

__all__ = [
    "BinaryWeight",
    "IntWeight",
    "MixedIntWeight",
    "PowerWeight",
    "TernaryWeight",
    "WeightFormat",
    "search_exponent",
]
