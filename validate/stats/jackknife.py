"""Confidence intervals of metrics that are no mean of scores, from what each sample contributes.

mAP, mIoU, rank correlation and perplexity are functions of all samples together. What is drawn at random is the
sample (image, line, pair of sentences); what belongs to one sample (its detections, its pixels, its tokens) stays
together, since it is not independent. What a sample contributes is its pseudo-value ``n T - (n - 1) T_i``, with T_i the
metric without it (Quenouille and Tukey's jackknife; Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
section 11.5). Pseudo-values are nearly independent with mean T, so that they get the score interval of a mean: the
jackknife empirical likelihood (Jing, Yuan and Zhou, JASA 104 (2009)). How often it holds the truth, beside the
bootstrap that it was chosen over: docs/significance.md. For means per sample see `validate.stats.intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from validate.stats.intervals import Interval, paired_interval, projected_interval, score_interval
from validate.tasks import Metric, Records, Weights

__all__ = ["drop_interval", "drop_intervals", "projected_drop_interval", "value_interval"]

_FEWEST = 100
"""Samples below which pseudo-values say too little: at 60, up to thrice as many intervals as should miss the truth."""
_BATCH = 4_000_000
"""Weights that are held at a time."""
_METHOD = "score of jackknife pseudo-values"
_UNKNOWN = Interval(-math.inf, math.inf, "none")


def drop_interval(metric: Metric, reference: Records, candidate: Records, confidence: float) -> Interval:
    """Return the interval of `metric.drop` for one confidence; see `drop_intervals`.

    Examples:
        >>> from validate.tasks import Metric
        >>> reference, candidate = np.ones(200), np.repeat([0.0, 1.0], [6, 194])  # 6 of 200 answers became wrong
        >>> found = drop_interval(Metric("top1", higher_is_better=True, is_rate=True), reference, candidate, 0.95)
        >>> round(found.low, 4), round(found.high, 4)
        (0.0106, 0.0639)
    """
    return drop_intervals(metric, reference, candidate, [confidence])[0]


def drop_intervals(
    metric: Metric, reference: Records, candidate: Records, confidences: Sequence[float]
) -> list[Interval]:
    """Return the interval of `metric.drop` for each confidence, whatever the metric.

    A mean gets `paired_interval` of its differences; an aggregate the score interval of what each
    sample contributes to the drop. Where no record differs, an aggregate that is a rate gets the interval of a
    mean to which a sample contributes at most what one does to the reference. With fewer than 100 samples, or where
    the metric is not defined without one of them, it is (-inf, inf): nothing is known.

    Args:
        metric: of a task.
        reference: the task's records of the reference, shape (n,) or (n, k).
        candidate: those of the candidate, on the same samples in the same order.
        confidences: two-sided, in (0, 1).

    Examples:
        >>> from validate.tasks import Metric
        >>> reference, candidate = np.ones(200), np.repeat([0.0, 1.0], [6, 194])
        >>> top1 = Metric("top1", higher_is_better=True, is_rate=True)
        >>> [round(found.high, 4) for found in drop_intervals(top1, reference, candidate, [0.95, 0.99])]
        [0.0639, 0.0792]
    """
    if metric.is_mean:
        worse = metric.worsening(reference, candidate)
        return [paired_interval(worse, confidence, metric.largest_difference) for confidence in confidences]

    def drop(weights: Weights) -> NDArray[np.float64]:
        return metric.worsening(metric.values(reference, weights), metric.values(candidate, weights))

    if not np.array_equal(reference, candidate, equal_nan=True):
        values = _pseudo_values(drop, len(reference))
        return [_pseudo_value_interval(values, confidence) for confidence in confidences]
    if not metric.is_rate:
        return [_UNKNOWN for _ in confidences]
    contributions = _pseudo_values(lambda weights: metric.values(reference, weights), len(reference))
    if contributions.size < _FEWEST or not np.isfinite(contributions).all():
        return [_UNKNOWN for _ in confidences]
    bound, nothing = max(1.0, float(np.abs(contributions).max())), np.zeros(len(reference))
    return [Interval(*score_interval(nothing, confidence, bound), _METHOD) for confidence in confidences]


def projected_drop_interval(
    metric: Metric, reference: Records, candidate: Records, confidence: float, samples: int
) -> Interval:
    """Return the interval of the drop that `samples` samples like these would give; see `drop_interval`.

    Its width shrinks with the square root of the number of samples.

    Examples:
        >>> from validate.tasks import Metric
        >>> reference, candidate = np.ones(200), np.repeat([0.0, 1.0], [6, 194])
        >>> top1 = Metric("top1", higher_is_better=True, is_rate=True)
        >>> found = projected_drop_interval(top1, reference, candidate, 0.95, samples=2000)
        >>> round(found.low, 4), round(found.high, 4)
        (0.0234, 0.0384)
    """
    if metric.is_mean:
        worse = metric.worsening(reference, candidate)
        return projected_interval(worse, confidence, samples, metric.largest_difference)
    found, drop = drop_interval(metric, reference, candidate, confidence), metric.drop(reference, candidate)
    shrink = math.sqrt(len(reference) / samples) if samples else math.inf
    return Interval(drop - (drop - found.low) * shrink, drop + (found.high - drop) * shrink, found.method)


def value_interval(metric: Metric, records: Records, confidence: float) -> Interval:
    """Return the interval of a metric's value for one model alone.

    Scores that are 0 or 1 get Wilson's interval (Wilson, "Probable inference", JASA 22 (1927)); all else the score
    interval of what each sample contributes; see `drop_interval`.

    Examples:
        >>> from validate.tasks import Metric
        >>> top1 = Metric("top1", higher_is_better=True, is_rate=True)
        >>> found = value_interval(top1, np.repeat([0.0, 1.0], [10, 90]), confidence=0.95)
        >>> round(found.low, 4), round(found.high, 4), found.method
        (0.8256, 0.9448, 'Wilson score')
    """
    n = len(records)
    if metric.is_mean and n and np.isin(records, (0.0, 1.0)).all():
        found = stats.binomtest(int(records.sum()), n).proportion_ci(confidence, method="wilson")
        return Interval(float(found.low), float(found.high), "Wilson score")
    return _pseudo_value_interval(_pseudo_values(lambda weights: metric.values(records, weights), n), confidence)


def _pseudo_value_interval(values: NDArray[np.float64], confidence: float) -> Interval:
    """Return the score interval of what pseudo-values, shape (n,), are of."""
    if values.size < _FEWEST or not np.isfinite(values).all():
        return _UNKNOWN
    low, high = score_interval(values, confidence)
    return Interval(low, high, _METHOD) if math.isfinite(high - low) else _UNKNOWN


def _pseudo_values(statistic: Callable[[Weights], NDArray[np.float64]], n: int) -> NDArray[np.float64]:
    """Return what each sample contributes to a statistic of weights, shape (n,); around its value, which they share."""
    if n < 2:
        return np.empty(0)
    without = np.empty(n)
    step = max(1, _BATCH // n)
    for first in range(0, n, step):
        rows = np.arange(first, min(first + step, n))
        weights = np.ones((len(rows), n))
        weights[np.arange(len(rows)), rows] = 0
        without[rows] = statistic(weights)
    # Around the value itself and not around the jackknife's estimate, so that the interval is around what is shown.
    (value,) = statistic(np.ones((1, n)))
    return np.asarray(value + (n - 1) * (without.mean() - without), np.float64)
