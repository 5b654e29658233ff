"""Percentile calibration: a fixed share of the values is clipped."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from calibrate.strategies.minmax import minmax
from validate.number_formats import INT8, NumberFormat
from validate.settings import Section
from validate.stats import Statistics

__all__ = ["PercentileStrategy", "percentile"]


class PercentileStrategy(Section):
    """Strategy that clips a fixed share of the values: those of |x| above a percentile, in (0, 100]."""

    percentile: float = Field(gt=0, le=100)

    def __call__(self, statistics: Statistics, number_format: NumberFormat = INT8) -> float:
        """Return the threshold, in the tensor's unit, whatever the format.

        A percentile of a mostly-zero tensor is 0, which is no scale: nothing is clipped then.
        """
        return percentile(statistics, self.percentile) or minmax(statistics)


def percentile(statistics: Statistics, percent: float) -> float:
    """Return the threshold t with `percent` of all |x| at or below it.

    Agrees with ``numpy.percentile(abs(x), percent)`` within one bin: linear between the two values next to the
    rank ``percent / 100 * (count - 1)``, each of which is known within its bin. Zeros and the largest |x| are
    exact, so the percentile of a mostly-zero tensor is 0 and 100 clips nothing.

    Args:
        statistics: of at least one value.
        percent: in (0, 100].

    Raises:
        ValueError: `percent` is out of range, or nothing was seen.

    Examples:
        >>> import numpy as np
        >>> from validate.stats import Statistics
        >>> statistics = Statistics()
        >>> statistics.update(np.arange(1001.0))
        >>> percentile(statistics, 100)
        1000.0
        >>> round(percentile(statistics, 99.9))
        999
    """
    if not 0 < percent <= 100:
        raise ValueError(f"a percentile lies above 0 and at most at 100, not at {percent}")
    if statistics.count == 0:
        raise ValueError("a percentile of no values is undefined")
    counts = statistics.histogram().copy()
    counts[0] -= statistics.zeros
    cumulative = statistics.zeros + np.cumsum(counts)
    last = statistics.count - 1

    def ranked(rank: int) -> float:
        """Return the |x| with `rank` values before it, as if the values of a bin stood evenly in it."""
        if rank < statistics.zeros:
            return 0.0
        if rank == last:
            return statistics.amax
        index = int(np.searchsorted(cumulative, rank, side="right"))
        before = int(cumulative[index] - counts[index])
        inside = (rank - before + 0.5) / int(counts[index])
        return min((index + inside) * statistics.width, statistics.amax)

    rank = percent / 100 * last
    below = math.floor(rank)
    low, high = ranked(below), ranked(min(below + 1, last))
    return low + (rank - below) * (high - low)
