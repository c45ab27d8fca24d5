"""Weights in safetensors files.

A weight ``name`` is stored as the tensors ``name.<field>``, one for each portable array of its format. The
file's metadata has one key, "qkernels", a JSON object:

    {"version": 1, "weights": {name: {"format": "IntWeight", "version": 1, "bits": 8, "group_size": null,
                                      "shape": [N, K], "arrays": ["packed", "scale"]}}}

Which options there are beside the shape, here bits and group_size, is for each format to say (``OPTIONS``).
"""

import json
import os
import tempfile

import numpy as np

from ._arrays import as_kind
from .errors import ArgumentError, DTypeError, FormatError, UnsupportedError
from .formats import FORMATS, WeightFormat

VERSION = 1


def save(path, weights):
    """Write ``{name: weight}`` to a safetensors file. A file there is replaced once the new one is complete.

    Raises:
        DTypeError: weights is not a dict of names to weight formats.
        UnsupportedError: the package safetensors is not installed.
    """
    if not isinstance(weights, dict):
        raise DTypeError(f"save: weights is a {type(weights).__name__}; accepted: a dict {{name: weight}}.")
    tensors, described = {}, {}
    for name, w in weights.items():
        if not isinstance(name, str) or not isinstance(w, WeightFormat):
            raise DTypeError(
                f"save: weights[{name!r}] is a {type(w).__name__}; accepted: names (str) and weight formats, "
                "such as qkernels.IntWeight."
            )
        arrays = w.numpy().arrays()
        tensors.update({f"{name}.{field}": np.ascontiguousarray(a) for field, a in arrays.items()})
        described[name] = {
            "format": type(w).__name__,
            "version": w.version,
            **w.options(),
            "shape": list(w.shape),
            "arrays": list(arrays),
        }
    metadata = {"qkernels": json.dumps({"version": VERSION, "weights": described})}
    folder, file = os.path.split(os.path.abspath(os.fspath(path)))
    handle, partial = tempfile.mkstemp(dir=folder, prefix=file + ".")
    os.close(handle)
    try:
        _safetensors().numpy.save_file(tensors, partial, metadata)
        os.chmod(partial, 0o666 & ~_umask())
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def load(path, framework="numpy"):
    """Read ``{name: weight}`` from a file that ``save`` wrote.

    Args:
        framework: "numpy" or "torch", the kind of the weights' arrays.

    Raises:
        FileNotFoundError: no such file.
        FormatError: not such a file, or one whose contents contradict each other.
        UnsupportedError: a newer version, a format or option that this version lacks; safetensors missing.
    """
    if framework not in ("numpy", "torch"):
        raise ArgumentError(f"load: framework is {framework!r}; accepted: 'numpy', 'torch'.")
    like = None
    if framework == "torch":
        import torch

        like = torch.empty(0)
    safetensors = _safetensors()
    with open(path, "rb"):  # the usual error for a file that is missing or unreadable
        pass
    try:
        with safetensors.safe_open(path, framework="numpy") as f:
            header, names = json.loads((f.metadata() or {})["qkernels"]), set(f.keys())
            tensors = {name: f.get_tensor(name) for name in names}
    except Exception as e:
        raise FormatError(
            f"load: {path} is not a safetensors file with qkernels metadata ({type(e).__name__}: {e}); "
            "accepted: files that qkernels.save wrote."
        ) from e
    try:
        if header["version"] != VERSION:
            raise UnsupportedError(f"the file has version {header['version']!r}; accepted: {VERSION}.")
        weights = {name: _weight(name, d, tensors, like) for name, d in header["weights"].items()}
    except UnsupportedError as e:
        raise UnsupportedError(f"load: {path}: {e}") from e
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as e:
        raise FormatError(f"load: {path} contradicts itself: {type(e).__name__}: {e}") from e
    if tensors:
        raise FormatError(f"load: {path} has tensors that no weight claims: {', '.join(sorted(tensors))}.")
    return weights


def _weight(name, described, tensors, like):
    if (
        FORMATS.get(described["format"]) is None
        or described["version"] != FORMATS[described["format"]].version
    ):
        raise UnsupportedError(
            f"weight {name!r} is {described['format']!r} version {described['version']!r}; accepted: "
            + ", ".join(f"{f} version {c.version}" for f, c in FORMATS.items())
        )
    arrays = {field: tensors.pop(f"{name}.{field}") for field in described["arrays"]}
    arrays = {field: a if like is None else as_kind(a, like) for field, a in arrays.items()}
    kind = FORMATS[described["format"]]
    options = {name: described[name] for name in kind.OPTIONS}
    return kind(**arrays, **options, shape=tuple(described["shape"]))


def _safetensors():
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as e:
        raise UnsupportedError("save and load need the package safetensors; pip install safetensors.") from e
    return safetensors


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask
