"""Thresholds with the least squared error over samples, and rounding to a format's numbers, of plain arrays."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["channel_thresholds", "rounded", "tensor_threshold"]

_FRACTIONS = np.linspace(0.1, 1, 31)
"""Thresholds that are tried, as shares of the largest |x|."""

_VALUES = 1 << 17
"""How many values of a tensor its threshold is found on."""

_VALUES_OF_A_CHANNEL = 1 << 13


def channel_thresholds(values: NDArray[np.float32], largest: float) -> NDArray[np.float64]:
    """Return for every row the threshold with the least squared error, shape (rows,); 0 of zeros alone.

    Args:
        values: (rows, n).
        largest: number of the format, 127 in int8.

    Examples:
        >>> channel_thresholds(np.float32([[0, 0, 0], [1, 127, -3]]), 127).tolist()
        [0.0, 127.0]
    """
    step = max(1, values.shape[1] // _VALUES_OF_A_CHANNEL)
    return _thresholds(np.ascontiguousarray(values[:, ::step], np.float32), _FRACTIONS, largest)  # type: ignore[no-any-return]


def tensor_threshold(values: NDArray[np.float32], largest: float) -> float:
    """Return the threshold with the least squared error of all values; 0 of zeros alone."""
    step = max(1, values.size // _VALUES)
    # An odd step, so that it is no multiple of the number of columns, and all of them are seen.
    flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)[:, :: step | 1]
    return float(_thresholds(np.ascontiguousarray(flat), _FRACTIONS, largest)[0])


def rounded(values: NDArray[np.float32], threshold: float, largest: float) -> NDArray[np.float32]:
    """Return values rounded to ``threshold / largest`` and clipped to the threshold; as they are where it is 0.

    Examples:
        >>> rounded(np.float32([0.4, 300]), 127.0, 127).tolist()
        [0.0, 127.0]
    """
    if threshold == 0:
        return values
    scale = np.float32(threshold / largest)
    codes: NDArray[np.float32] = np.clip(np.rint(values / scale), -largest, largest).astype(np.float32)
    return codes * scale


@numba.njit(cache=True)
def _thresholds(values: NDArray[np.float32], fractions: NDArray[np.float64], largest: float) -> NDArray[np.float64]:
    found = np.zeros(values.shape[0])
    for row in range(values.shape[0]):
        top = np.float32(0)
        for value in values[row]:
            top = max(top, np.abs(value))
        least = np.float32(np.inf)
        for fraction in fractions:
            scale = np.float32(top * fraction / largest)
            if scale == 0:
                continue
            inverse, bound, error = np.float32(1) / scale, np.float32(largest), np.float32(0)
            for value in values[row]:
                code = np.rint(value * inverse)
                code = min(max(code, -bound), bound)
                error += (value - code * scale) ** 2
            if error < least:
                least, found[row] = error, top * fraction
    return found
