"""What a search for a plan has to reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validate.significance import paired_interval, projected_interval

__all__ = ["Target"]

_HOPELESS = 0.99
"""Confidence with which a trial is beyond the target when it is stopped early."""
_FEWEST = 30
"""Samples below which no trial is stopped."""


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

    def hopeless(self, worse: NDArray[np.float64]) -> bool:
        """Tell from the first samples whether it is hardly to be met."""
        return worse.size >= _FEWEST and bool(paired_interval(worse, _HOPELESS).low > self.margin)
