"""A fixed share of the values is clipped."""

from __future__ import annotations

import numpy as np

from calibrate.statistics import Statistics

__all__ = ["percentile"]


def percentile(statistics: Statistics, percent: float) -> float:
    """Return the threshold t with `percent` of all |x| at or below it.

    Agrees with ``numpy.percentile(abs(x), percent)`` within one bin: linear inside the bin in which the
    cumulative count reaches the rank ``percent / 100 * (count - 1)``.

    Args:
        statistics: of at least one value.
        percent: in (0, 100].

    Raises:
        ValueError: `percent` is out of range, or nothing was seen.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"a percentile lies above 0 and at most at 100, not at {percent}")
    if statistics.count == 0:
        raise ValueError("a percentile of no values is undefined")
    counts = statistics.histogram()
    cumulative = np.cumsum(counts)
    rank = percent / 100 * (statistics.count - 1)
    index = int(np.searchsorted(cumulative, rank, side="right"))
    index = min(index, counts.size - 1)
    before = int(cumulative[index]) - int(counts[index])
    inside = (rank - before) / counts[index] if counts[index] else 0.0
    return min((index + float(inside)) * statistics.width, statistics.amax)
