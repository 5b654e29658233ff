"""Minmax calibration: the largest magnitude is the threshold, so that nothing is clipped."""

from __future__ import annotations

from validate.stats import Statistics

__all__ = ["minmax"]


def minmax(statistics: Statistics) -> float:
    """Return the largest |x| seen, in the tensor's unit."""
    return statistics.amax
