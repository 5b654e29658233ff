"""Minmax calibration: the largest magnitude is the threshold, so that nothing is clipped."""

from __future__ import annotations

from validate.number_formats import INT8, NumberFormat
from validate.stats import Statistics

__all__ = ["minmax"]


def minmax(statistics: Statistics, number_format: NumberFormat = INT8) -> float:
    """Return the largest |x| seen, in the tensor's unit, whatever the format.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.append(np.linspace(-1, 1, 100_001), 4.0))  # one outlier
        >>> minmax(statistics)
        4.0
    """
    return statistics.amax
