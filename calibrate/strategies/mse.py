"""MSE calibration: the threshold with the least expected squared quantization error."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from validate.number_formats import INT8, NumberFormat
from validate.stats import Statistics

__all__ = ["expected_errors", "mse"]

_COARSE, _FINE = 64, 32
"""Candidates of the first and of each refining sweep."""


def mse(statistics: Statistics, number_format: NumberFormat = INT8) -> float:
    """Return the threshold t that minimises ``E[(x - s clip(round(x / s), -127, 127))^2]`` with ``s = t / 127``.

    127 is the largest number of int8; of another format whose numbers are evenly spaced it is that one's.
    The expectation is over the histogram, every value standing at its bin's centre; rounding is half to even.
    The search is a sweep over (0, amax], refined twice around the best threshold. In the tensor's unit. Verified
    against a brute-force search in the tests.

    Args:
        statistics: of the tensor.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.append(np.linspace(-1, 1, 100_001), 4.0))  # one outlier
        >>> round(mse(statistics), 1)
        2.6
    """
    amax = statistics.amax
    counts, centres = _filled(statistics)
    if counts.size == 0:
        return amax
    step = amax / _COARSE
    thresholds = np.arange(1, _COARSE + 1) * step
    for _ in range(3):
        rounding, clipping = _errors(counts, centres, thresholds, number_format.largest)
        best = thresholds[np.argmin(rounding + clipping)]
        low, high = max(best - step, step / _FINE), min(best + step, amax)
        thresholds = np.linspace(low, high, _FINE)
        step = (high - low) / (_FINE - 1)
    return float(best)


def expected_errors(
    statistics: Statistics, thresholds: NDArray[np.float64], number_format: NumberFormat = INT8
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of squared errors by rounding, of |x| <= t, and by clipping, of |x| > t, for every threshold.

    Args:
        statistics: of at least one value.
        thresholds: positive, shape (n,), as are both results.
        number_format: what values are rounded to.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.array([0.5, 3.0]))
        >>> rounding, clipping = expected_errors(statistics, np.array([1.0, 4.0]))
        >>> rounding.round(3).tolist(), clipping.round(3).tolist()
        ([0.0, 0.0], [4.001, 0.0])
    """
    return _errors(*_filled(statistics), thresholds, number_format.largest)  # type: ignore[no-any-return]


def _filled(statistics: Statistics) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return counts and centres of the bins that hold values other than exact zeros."""
    counts = statistics.histogram().astype(np.float64)
    counts[0] -= statistics.zeros
    centres = ((np.arange(counts.size) + 0.5) * statistics.width).astype(np.float64)
    filled = counts > 0
    return counts[filled], centres[filled]


@numba.njit(cache=True)
def _errors(
    counts: NDArray[np.float64], centres: NDArray[np.float64], thresholds: NDArray[np.float64], largest: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rounding, clipping = np.zeros(thresholds.size), np.zeros(thresholds.size)
    for t in range(thresholds.size):
        scale = thresholds[t] / largest
        # Centres ascend; all that are beyond the threshold become it.
        rounded = np.searchsorted(centres, thresholds[t], side="right")
        total = 0.0
        for i in range(rounded):
            total += counts[i] * (centres[i] - np.rint(centres[i] / scale) * scale) ** 2
        rounding[t] = total
        total = 0.0
        for i in range(rounded, counts.size):
            total += counts[i] * (centres[i] - thresholds[t]) ** 2
        clipping[t] = total
    return rounding, clipping
