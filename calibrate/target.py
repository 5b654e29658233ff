"""What a search for a plan has to reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validate.significance import projected_interval

__all__ = ["Target"]

_HOPELESS = 1.64
"""Standard errors by which a trial is beyond the target when it is stopped: one in twenty is stopped wrongly, which
costs the search a better plan and never makes a plan look good."""
_FEWEST = 30
"""Samples below which no trial is stopped, and nothing is screened."""
_CHANGED = 24
"""Changed samples by which plans are screened: more cost more, and hardly tell more."""


@dataclass(frozen=True)
class Target:
    """At most this drop of the task's metric.

    Attributes:
        margin: in the metric's unit.
        confidence: of the two-sided interval of the drop that has to lie below it; None: the drop itself has to.
        samples: on how many samples the interval is to be of: those of the verdict, which may be more than judge.
    """

    margin: float
    confidence: float | None
    samples: int

    def met(self, worse: NDArray[np.float64]) -> bool:
        """Tell from how much worse each judging sample is, shape (n,)."""
        if self.confidence is None:
            return bool(worse.mean() <= self.margin)
        return bool(projected_interval(worse, self.confidence, self.samples).high < self.margin)

    def enough(self, worse: NDArray[np.float64]) -> bool:
        """Tell whether the first samples hold enough that INT8 changes to screen other plans by them."""
        return worse.size >= _FEWEST and int((worse != 0).sum()) >= _CHANGED

    def hopeless(self, worse: NDArray[np.float64], total: int) -> bool:
        """Tell from the first of `total` samples whether the mean over all of them is hardly to come below the margin.

        The mean of n of N samples differs from that of all by a standard error of ``s * sqrt(1/n - 1/N)`` (Cochran,
        Sampling Techniques, 3rd ed., section 2.6). The largest difference is counted once more in s.
        """
        n = worse.size
        if not _FEWEST <= n < total:
            return False
        deviation = np.sqrt((np.square(worse - worse.mean()).sum() + np.square(worse).max(initial=0)) / n)
        return bool(worse.mean() - _HOPELESS * deviation * np.sqrt(1 / n - 1 / total) > self.margin)
