"""How sure can we be of a metric that is no mean of scores per sample? Paired intervals by resampling samples.

mAP, mIoU, rank correlation and perplexity are functions of all samples together. What is drawn at random is the
sample (image, line, pair of sentences), so that is what is resampled; what belongs to one sample (its detections, its
pixels, its tokens) stays together, since it is not independent. Both models are resampled with the same indices,
and the statistic is the difference of their metrics: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
section 8.3 (the unit of resampling) and 14.3 (BCa intervals). For means per sample see `validate.significance`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from validate.significance import Interval, paired_interval, projected_interval
from validate.tasks.base import Metric

__all__ = ["drop_interval", "projected_drop_interval", "value_interval"]

_MIN_SAMPLES = 30
"""Below this a bootstrap knows too little of the spread, and its intervals are too narrow."""
_MIN_DIFFERING = 3
"""Samples that must differ between two models: fewer say nothing of how far samples that were not seen may differ."""
_RESAMPLES = 4999
_SEED = 0  # the same records always give the same interval
_BATCH = 4_000_000
"""Weights that are held at a time."""

_UNKNOWN = Interval(-math.inf, math.inf, "none")


def drop_interval(
    metric: Metric, reference: NDArray[np.float64], candidate: NDArray[np.float64], confidence: float
) -> Interval:
    """Return the interval of `metric.drop`, whatever the metric.

    A mean gets `validate.significance.paired_interval` of its differences; an aggregate the BCa bootstrap over
    samples, drawn alike for both models, and stretched where fewer than 30 samples differ between them. With fewer than
    30 samples, with models that differ on fewer than 3, or with a metric that is not defined, it is (-inf, inf):
    nothing is known.

    Args:
        metric: of a task.
        reference: the task's records of the reference, shape (n,) or (n, k).
        candidate: those of the candidate, on the same samples in the same order.
        confidence: two-sided, in (0, 1).
    """
    if metric.is_mean:
        return paired_interval(metric.worsening(reference, candidate), confidence, metric.largest_difference)

    def drops(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return metric.worsening(metric.values(reference, weights), metric.values(candidate, weights))

    found = _bootstrap(drops, len(reference), confidence, "paired BCa bootstrap over samples")
    differing = int((reference != candidate).any(axis=1).sum())
    if differing < _MIN_DIFFERING or found.method == "none":
        return _UNKNOWN
    if differing >= _MIN_SAMPLES:
        return found
    stretch = _stretch(differing, confidence)
    drop = metric.drop(reference, candidate)
    low, high = drop - (drop - found.low) * stretch, drop + (found.high - drop) * stretch
    return Interval(low, high, f"{found.method}, stretched as few samples differ")


def projected_drop_interval(
    metric: Metric, reference: NDArray[np.float64], candidate: NDArray[np.float64], confidence: float, samples: int
) -> Interval:
    """Return the interval of the drop that `samples` samples like these would give; see `drop_interval`.

    Its width shrinks with the square root of the number of samples.
    """
    if metric.is_mean:
        worse = metric.worsening(reference, candidate)
        return projected_interval(worse, confidence, samples, metric.largest_difference)
    found, drop = drop_interval(metric, reference, candidate, confidence), metric.drop(reference, candidate)
    shrink = math.sqrt(len(reference) / samples) if samples else math.inf
    return Interval(drop - (drop - found.low) * shrink, drop + (found.high - drop) * shrink, found.method)


def value_interval(metric: Metric, records: NDArray[np.float64], confidence: float) -> Interval:
    """Return the interval of a metric's value for one model alone.

    Scores that are 0 or 1 get Wilson's interval (Wilson, "Probable inference", JASA 22 (1927)); all else the BCa
    bootstrap over samples; see `drop_interval`.
    """
    n = len(records)
    if metric.is_mean and n and np.isin(records, (0.0, 1.0)).all():
        found = stats.binomtest(int(records.sum()), n).proportion_ci(confidence, method="wilson")
        return Interval(float(found.low), float(found.high), "Wilson score")
    return _bootstrap(lambda weights: metric.values(records, weights), n, confidence, "BCa bootstrap over samples")


def _stretch(differing: int, confidence: float) -> float:
    """Return by how much an interval must be wider where few samples differ between the models, > 1.

    A bootstrap draws from what it has seen, and of three samples that differ it cannot tell that there might have been
    eight. So the interval is stretched by what the exact upper limit of a Poisson count (Garwood, Biometrika 28 (1936))
    is further away than the normal approximation's.
    """
    upper = float(stats.chi2.ppf(0.5 + confidence / 2, 2 * (differing + 1))) / 2
    return (upper - differing) / (float(stats.norm.ppf(0.5 + confidence / 2)) * math.sqrt(differing))


def _bootstrap(
    statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], n: int, confidence: float, method: str
) -> Interval:
    """Return the BCa interval of a statistic of weights, shape (b, n) to (b,)."""
    if n < _MIN_SAMPLES:
        return _UNKNOWN

    def of_indices(indices: NDArray[np.intp], axis: int = -1) -> Any:
        rows = indices.reshape(-1, indices.shape[-1])
        offsets = n * np.arange(len(rows))[:, None]
        counts = np.bincount((rows + offsets).ravel(), minlength=n * len(rows)).reshape(len(rows), n)
        return statistic(counts.astype(np.float64)).reshape(indices.shape[:-1])

    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        found = stats.bootstrap(
            (np.arange(n),), of_indices, vectorized=True, confidence_level=confidence, n_resamples=_RESAMPLES,
            method="BCa", rng=np.random.default_rng(_SEED), batch=max(1, _BATCH // n),
        ).confidence_interval  # fmt: skip
    low, high = float(found.low), float(found.high)
    return _UNKNOWN if math.isnan(low) or math.isnan(high) else Interval(low, high, method)
