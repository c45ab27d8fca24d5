"""Weight formats: how a compressed matrix ``(N, K)`` is stored. One file per format."""

from .base import WeightFormat
from .binary import BinaryWeight
from .codebook import CodebookWeight
from .float import FloatWeight
from .int import IntWeight
from .log import LogWeight
from .mixed import MixedIntWeight
from .power import PowerWeight, search_exponent
from .ternary import TernaryWeight

# Every format by its name: what files and modules hold.
FORMATS = {
    f.__name__: f
    for f in (
        BinaryWeight,
        CodebookWeight,
        FloatWeight,
        IntWeight,
        LogWeight,
        MixedIntWeight,
        PowerWeight,
        TernaryWeight,
    )
}

__all__ = [
    "FORMATS",
    "BinaryWeight",
    "CodebookWeight",
    "FloatWeight",
    "IntWeight",
    "LogWeight",
    "MixedIntWeight",
    "PowerWeight",
    "TernaryWeight",
    "WeightFormat",
    "search_exponent",
]
