"""What several test files share."""

import numpy as np
import torch


def as_array(x):
    """NumPy array of an array or a torch tensor (bfloat16 as float32, which holds it exactly)."""
    if type(x).__module__.startswith("torch"):
        x = x.detach()
        return (x.float() if str(x.dtype) == "torch.bfloat16" else x).numpy()
    return np.asarray(x)


def assert_same(actual, expected, tolerance=None):
    """Equal shape and values; a failure prints the first bad index and both values.

    tolerance: None for the same dtype and bits (NaN equals NaN), else the largest accepted
    |actual - expected|, a number or an array.
    """
    kind = [type(x).__module__.split(".")[0] for x in (actual, expected)]
    if tolerance is None and kind[0] == kind[1]:
        assert actual.dtype == expected.dtype, f"dtype {actual.dtype}, expected {expected.dtype}"
    a, e = as_array(actual), as_array(expected)
    assert a.shape == e.shape, f"shape {a.shape}, expected {e.shape}"
    if tolerance is None:
        bad = ~((a == e) | ((a != a) & (e != e)))
    else:
        error = np.abs(a.astype(np.float64) - e.astype(np.float64))
        bad = ~(error <= tolerance)
    if bad.any():
        i = tuple(int(j) for j in np.argwhere(bad)[0])
        raise AssertionError(
            f"{int(bad.sum())} of {bad.size} values differ, first at {i}: {a[i]!r}, expected {e[i]!r}"
        )


def random_codes(rng, shape, dtype=np.int8):
    """Codes over the full range, both extremes among them where there is room."""
    info = np.iinfo(dtype)
    q = rng.integers(info.min, info.max + 1, shape).astype(dtype)
    if q.size >= 2:
        at = rng.choice(q.size, 2, replace=False)
        q.flat[at[0]], q.flat[at[1]] = info.min, info.max
    return q


def garbage(rng):
    """An array, tensor or other thing that a confused caller might pass."""
    dtypes = ["int8", "uint8", "int16", "int64", "float16", "float32", "float64", "complex64", "bool"]
    kind = rng.integers(8)
    shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
    if kind <= 4:
        with np.errstate(all="ignore"):
            a = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 45)).astype(rng.choice(dtypes))
        a = a if rng.random() < 0.8 or not a.size or a.dtype.kind != "f" else a * np.nan
        return a if kind <= 2 else torch.from_numpy(np.array(a))
    things = [None, 8, -1, 0.5, "text", [[1], [1, 2]], object(), {}, [], b"x", (2, 3), True, 2**70, slice(3)]
    things += [np.datetime64("2020"), np.array(["a"]), float("nan"), torch.zeros(2, 3).to_sparse()]
    things += [torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, dtype=torch.float8_e4m3fn)]
    return things[rng.integers(len(things))]
