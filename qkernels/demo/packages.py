"""Packages whose files the demo reads."""

import importlib.util
from pathlib import Path


def installed(package):
    """The folder of an installed package, without importing it; None where there is none."""
    spec = importlib.util.find_spec(package)
    return None if spec is None or not spec.origin else Path(spec.origin).parent
