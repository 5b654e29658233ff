"""The target of a search: a largest drop of the metric, with a confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validate.stats import drop_interval, projected_drop_interval
from validate.tasks import Metric

__all__ = ["Target", "changed"]

_HOPELESS = 1.64
"""Standard errors by which a trial is beyond the target when it is stopped: one in twenty is stopped wrongly, which
costs the search a better plan and never makes a plan look good."""
_HOPELESS_CONFIDENCE = 0.9
"""The same, two-sided, of a metric that is no mean."""
_FEWEST = 30
"""Samples below which no trial is stopped, and nothing is screened."""
_CHANGED = 24
"""Changed samples by which plans are screened: more cost more, and hardly tell more."""


def changed(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the samples whose scores, or records, differ."""
    differ = ~np.isclose(reference, scores, rtol=1e-9, atol=1e-12, equal_nan=True)
    return np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))


@dataclass(frozen=True)
class Target:
    """At most this drop of the task's metric.

    What its methods are given are the scores, shape (n,), or records, shape (n, k), of both models on the first n
    judging samples.

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

    @property
    def key(self) -> dict[str, str | float | bool | None]:
        """All that the target's answers depend on, as JSON values that are the same in every process.

        The metric is known by its name: how it is computed is the task's, which evaluations are kept by anyhow.
        """
        return {
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "margin": self.margin,
            "confidence": self.confidence,
            "samples": self.samples,
        }

    def met(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Tell whether the target is met; on samples that are too few for an interval, by the drop itself."""
        if self.confidence is not None:
            interval = projected_drop_interval(self.metric, reference, scores, self.confidence, self.samples)
            if interval.method != "none":
                return interval.high < self.margin
        return self.metric.drop(reference, scores) <= self.margin + 1e-12

    def enough(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Tell whether the first samples hold enough that INT8 changes to screen other plans by them."""
        return len(scores) >= _FEWEST and len(changed(reference, scores)) >= _CHANGED

    def screened(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> int:
        """Return how many of the first samples to screen by: as many as hold so many changes, and no more."""
        which = changed(reference, scores)
        return len(scores) if len(which) < _CHANGED else max(int(which[_CHANGED - 1]) + 1, _FEWEST)

    def hopeless(self, reference: NDArray[np.float64], scores: NDArray[np.float64], total: int) -> bool:
        """Tell from the first of `total` samples whether the drop over all of them is hardly to come below the margin.

        The mean of n of N samples differs from that of all by a standard error of ``s * sqrt(1/n - 1/N)`` (Cochran,
        Sampling Techniques, 3rd ed., section 2.6). The largest difference is counted once more in s.
        """
        n = len(scores)
        if not _FEWEST <= n < total:
            return False
        if not self.metric.is_mean:
            return drop_interval(self.metric, reference, scores, _HOPELESS_CONFIDENCE).low > self.margin
        worse = self.metric.worsening(reference, scores)
        spread = np.sqrt((np.square(worse - worse.mean()).sum() + np.square(worse).max(initial=0)) / n)
        return bool(worse.mean() - _HOPELESS * spread * np.sqrt(1 / n - 1 / total) > self.margin)
