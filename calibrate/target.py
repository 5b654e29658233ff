"""What a search for a plan has to reach."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validate.aggregate import drop_interval, projected_drop_interval
from validate.tasks.base import Metric

__all__ = ["Target"]

_HOPELESS = 0.99
"""Confidence with which a trial is beyond the target when it is stopped early."""
_FEWEST = 30
"""Samples below which no trial is stopped."""


@dataclass(frozen=True)
class Target:
    """At most this drop of the task's metric.

    Attributes:
        metric: of the task.
        margin: in the metric's unit.
        confidence: of the two-sided interval of the drop that has to lie below it; None: the drop itself has to.
        samples: on how many samples the interval is to be of: those of the verdict, which may be more than judge.
    """

    metric: Metric
    margin: float
    confidence: float | None
    samples: int

    def met(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Tell from the scores, or records, of both models on all judging samples."""
        if self.confidence is None:
            return self.metric.drop(reference, scores) <= self.margin
        interval = projected_drop_interval(self.metric, reference, scores, self.confidence, self.samples)
        return interval.high < self.margin

    def hopeless(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Tell from those on the first samples whether it is hardly to be met."""
        if len(scores) < _FEWEST:
            return False
        return drop_interval(self.metric, reference, scores, _HOPELESS).low > self.margin
