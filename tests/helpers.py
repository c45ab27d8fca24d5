"""What several test files share."""

import numpy as np


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
