"""The target of a search: a largest drop of the metric, with a confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from validate.stats import drop_interval, projected_drop_interval
from validate.tasks import Metric

__all__ = ["Target", "changed"]

_FUTILITY_ERRORS = 1.64
"""Standard errors by which the drop so far is beyond the target when a trial is stopped. One in twenty is stopped
wrongly: the search may miss a faster plan by that, but no plan looks better than it is."""
_FUTILITY_CONFIDENCE = 0.9
"""The same as a two-sided confidence, for a metric that is no mean over samples."""
_FEWEST = 30
"""Samples below which no trial is stopped, and nothing is screened."""
_CHANGED = 24
"""Changed samples by which plans are screened: more cost more, and hardly tell more."""


def changed(reference: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the indices of the samples whose scores, or records, differ.

    Args:
        reference: scores, shape (n,), or records, shape (n, k), of the float model.
        scores: of another model, of the same shape.

    Examples:
        >>> import numpy as np
        >>> changed(np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 1.0, 1.0, 0.0])).tolist()
        [1, 3]
    """
    differ = ~np.isclose(reference, scores, rtol=1e-9, atol=1e-12, equal_nan=True)
    return np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))


@dataclass(frozen=True)
class Target:
    """The largest drop of the task's metric that a search accepts, and with which confidence.

    All methods take the scores, shape (n,), or records, shape (n, k), of both models on the first n judging samples.

    Attributes:
        metric: of the task.
        margin: largest drop, in the metric's unit.
        confidence: of the two-sided interval of the drop that must lie below the margin; None: the drop itself must.
        samples: number of samples that the interval is projected to: those of the verdict, which may be more.

    Examples:
        >>> import numpy as np
        >>> from validate.tasks import Metric
        >>> accuracy = Metric("accuracy", higher_is_better=True, is_rate=True)
        >>> target = Target(accuracy, margin=0.02, confidence=None, samples=100)
        >>> target.met(np.ones(100), np.repeat([1.0, 0.0], [99, 1]))
        True
        >>> target.met(np.ones(100), np.repeat([1.0, 0.0], [95, 5]))
        False
    """

    metric: Metric
    margin: float
    confidence: float | None
    samples: int

    @property
    def key(self) -> dict[str, str | float | bool | None]:
        """Key for the cache of evaluations: all that the results depend on, as JSON values.

        The metric's name stands for how it is computed, since the cache's own key holds the task.
        """
        return {
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "margin": self.margin,
            "confidence": self.confidence,
            "samples": self.samples,
        }

    def met(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Return whether the target is met; by the drop itself where the samples are too few for an interval."""
        if self.confidence is not None:
            interval = projected_drop_interval(self.metric, reference, scores, self.confidence, self.samples)
            if interval.method != "none":
                return interval.high < self.margin
        return self.metric.drop(reference, scores) <= self.margin + 1e-12

    def can_screen(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> bool:
        """Return whether INT8 changes enough of the first samples to screen other plans by them."""
        return len(scores) >= _FEWEST and len(changed(reference, scores)) >= _CHANGED

    def screening_size(self, reference: NDArray[np.float64], scores: NDArray[np.float64]) -> int:
        """Return how many of the first samples to screen by: the fewest that hold enough changed scores."""
        which = changed(reference, scores)
        return len(scores) if len(which) < _CHANGED else max(int(which[_CHANGED - 1]) + 1, _FEWEST)

    def is_futile(self, reference: NDArray[np.float64], scores: NDArray[np.float64], total: int) -> bool:
        """Return whether the drop over all `total` samples can hardly come below the margin, by the first n of them.

        The mean of n of N samples differs from that of all by a standard error of ``s * sqrt(1/n - 1/N)`` (Cochran,
        Sampling Techniques, 3rd ed., section 2.6). The largest difference is counted once more in s.
        """
        n = len(scores)
        if not _FEWEST <= n < total:
            return False
        if not self.metric.is_mean:
            return drop_interval(self.metric, reference, scores, _FUTILITY_CONFIDENCE).low > self.margin
        worse = self.metric.worsening(reference, scores)
        spread = np.sqrt((np.square(worse - worse.mean()).sum() + np.square(worse).max(initial=0)) / n)
        return bool(worse.mean() - _FUTILITY_ERRORS * spread * np.sqrt(1 / n - 1 / total) > self.margin)
