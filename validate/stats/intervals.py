"""Confidence intervals of a difference, for paired per-sample scores.

Reference and candidate see the same samples, so the interval is of the mean of per-sample differences. How often these
intervals hold the truth, beside the bootstraps that they were chosen over: docs/significance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = [
    "POWER",
    "Interval",
    "paired_interval",
    "projected_interval",
    "samples_to_settle",
    "score_interval",
    "tango_interval",
]

POWER = 0.8
"""How often a study of `samples_to_settle` samples decides."""
_FEWEST = 10
"""Below this the mean of scores that are not 0/1 says too little of what was not seen."""
_UNSEEN = 4.5
"""How far beyond the largest difference seen in a direction an unseen one may be, where scores have no bound: so many
times the largest of all, over the number of samples that make the difference (see `_furthest`)."""
_UNSEEN_DIRECTION = 1.9
"""The same for a direction in which no difference was seen. Both were chosen on docs/significance.md's settings."""


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a mean difference, in the unit of the scores."""

    low: float
    high: float
    method: str


_NOTHING = Interval(-math.inf, math.inf, "none")


def paired_interval(differences: NDArray[np.floating[Any]], confidence: float, bound: float | None = None) -> Interval:
    """Return the interval of the mean of paired differences, shape (n,).

    Differences of 0/1 scores (`bound` is 1, and each is -1, 0 or 1) get Tango's score interval, others
    `score_interval`, which is the same idea for scores of any kind. Both hold their confidence where few samples
    differ. With NaN, with one sample or none, with fewer than 10 where scores are not 0/1, or where none differs and no
    bound says how much one could, the interval is (-inf, inf): nothing is known.

    Args:
        differences: one per sample.
        confidence: two-sided, in (0, 1).
        bound: the largest absolute difference that the scores allow: 1 for scores in [0, 1]. A bound that a difference
            exceeds is ignored.

    Examples:
        >>> differences = np.repeat([1.0, -1.0, 0.0], [6, 2, 192])  # of 200 answers 6 became wrong, 2 became right
        >>> found = paired_interval(differences, confidence=0.95, bound=1)
        >>> round(found.low, 4), round(found.high, 4), found.method
        (-0.0097, 0.0553, 'Tango score')
    """
    values = np.asarray(differences, np.float64)
    if values.size < 2 or not np.isfinite(values).all():
        return _NOTHING
    if bound == 1 and np.isin(values, (-1.0, 0.0, 1.0)).all():
        low, high = tango_interval(int((values == 1).sum()), int((values == -1).sum()), values.size, confidence)
        return Interval(low, high, "Tango score")
    if values.size < _FEWEST:
        return _NOTHING
    low, high = score_interval(values, confidence, bound)
    return Interval(low, high, "score of the mean") if math.isfinite(high - low) else _NOTHING


def projected_interval(
    differences: NDArray[np.floating[Any]], confidence: float, samples: int, bound: float | None = None
) -> Interval:
    """Return the interval that `samples` samples would give if they were like these; see `paired_interval`.

    Tango's with all counts in proportion; the others' width shrinks with the square root of the number of samples.

    Args:
        differences: one per sample, shape (n,).
        confidence: two-sided, in (0, 1).
        samples: >= 1.
        bound: see `paired_interval`.

    Examples:
        >>> differences = np.repeat([1.0, -1.0, 0.0], [6, 2, 192])
        >>> found = projected_interval(differences, confidence=0.95, samples=2000, bound=1)
        >>> round(found.low, 4), round(found.high, 4)
        (0.0115, 0.0293)
    """
    values = np.asarray(differences, np.float64)
    found = paired_interval(values, confidence, bound)
    if found.method == "none":
        return found
    more_samples = samples / values.size
    if found.method == "Tango score":
        more, fewer = ((values == sign).sum() * more_samples for sign in (1, -1))
        return Interval(*tango_interval(float(more), float(fewer), samples, confidence), found.method)
    mean, shrink = float(values.mean()), math.sqrt(1 / more_samples)
    return Interval(mean - (mean - found.low) * shrink, mean + (found.high - mean) * shrink, found.method)


def tango_interval(more: float, fewer: float, n: int, confidence: float) -> tuple[float, float]:
    """Return Tango's score interval of a difference of paired proportions, within [-1, 1].

    Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17 (1998), sections 2 and 3.

    Args:
        more: pairs with difference +1; a fraction of one where a study is projected.
        fewer: pairs with difference -1.
        n: all pairs, >= 1.
        confidence: two-sided, in (0, 1).

    Examples:
        >>> low, high = tango_interval(more=1, fewer=7, n=21, confidence=0.95)
        >>> round(low, 3), round(high, 3)
        (-0.517, -0.026)
    """
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    estimate = (more - fewer) / n

    def score(delta: float) -> float:
        # Maximum likelihood of the probability of -1, under a true difference of `delta` (Tango, section 2).
        a, b = 2.0 * n, -more - fewer + (2 * n - more + fewer) * delta
        c = -fewer * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = n * (2 * q + delta * (1 - delta))
        return (more - fewer - n * delta) / math.sqrt(variance) if variance > 0 else 0.0

    tiny = 1e-12
    low, high = -1.0, 1.0
    if score(-1.0 + tiny) > z:
        low = optimize.brentq(lambda d: score(d) - z, -1.0 + tiny, estimate - tiny if estimate > -1 else estimate)
    if score(1.0 - tiny) < -z:
        high = optimize.brentq(lambda d: score(d) + z, estimate + tiny if estimate < 1 else estimate, 1.0 - tiny)
    return float(low), float(high)


def score_interval(
    differences: NDArray[np.float64], confidence: float, bound: float | None = None
) -> tuple[float, float]:
    """Return the score interval of a mean: all means that the differences do not refute.

    Tango's idea with the empirical likelihood (Owen, "Empirical Likelihood", 2001, sections 2.4 and 2.9) in place of
    the trinomial one: a mean d is kept where n (mean - d)^2 <= t^2 V(d), with V(d) the variance of the likeliest
    distribution that has the mean d, and t Student's quantile. That distribution lies on the values that were seen and
    on one unseen value in either direction, as Tango's lies on -1 and 1 whether they were seen or not. How far out that
    one is: `_UNSEEN`, and never beyond `bound`. With 0/1 scores, unseen values of -1 and 1 and the normal quantile for
    t it is Tango's interval.

    Where all differences are zero and there is no bound, it is (-inf, inf).

    Args:
        differences: shape (n,), finite, n >= 2.
        confidence: two-sided, in (0, 1).
        bound: see `paired_interval`.

    Examples:
        >>> low, high = score_interval(np.linspace(-0.1, 0.3, 100), confidence=0.95)
        >>> round(low, 3), round(high, 3)
        (0.077, 0.123)
    """
    quantile = float(stats.t.ppf(0.5 + confidence / 2, differences.size - 1))
    largest = float(np.abs(differences).max())
    unit = largest or 1.0  # squares of what is very small or very large would leave float64
    limit = bound / unit if bound is not None and largest <= bound else math.inf
    ends = [
        _upper_end(values, _furthest(values, limit), quantile) for values in (-differences / unit, differences / unit)
    ]
    return -ends[0] * unit, ends[1] * unit


def _furthest(values: NDArray[np.float64], limit: float) -> float:
    """Return the largest value that the interval reckons with; the largest |value| is 1.

    It is the bound, if there is one: on 200 samples that all changed a little, one in a hundred that is ruined is
    not seen in 13% of the studies, as with 0/1 scores. Without a bound it is what was seen, and further out the fewer
    samples make the difference: ``(sum |x|)^2 / sum x^2``, which counts k samples that differ alike as k, and noise on
    all others hardly. With two, nearly nothing is known of the third.
    """
    if math.isfinite(limit) or np.ptp(values) == 0:  # of equal values, nothing is known of the spread
        return limit
    seen = max(float(values.max()), 0.0)
    making = float(np.abs(values).sum()) ** 2 / float(np.square(values).sum())
    return seen + (_UNSEEN if seen > 0 else _UNSEEN_DIRECTION) / making


def _upper_end(values: NDArray[np.float64], furthest: float, quantile: float) -> float:
    """Return the largest mean d that is kept.

    The likeliest weights are 1 / (n (1 + l (x - d))) with l from the mean (Owen, section 2.9). As d grows, l falls
    until the unseen value gets weight too; from there on V(d) = (furthest - d) (d - mean), and the end is the
    mean with quantile^2 more samples at `furthest`.
    """
    if math.isinf(furthest):
        return furthest
    n, mean = values.size, float(values.mean())
    end = (n * mean + quantile**2 * furthest) / (n + quantile**2)
    room = furthest - values
    if furthest == mean or (room.min() > 0 and furthest - end <= 1 / float(np.mean(1 / room))):
        return end
    lowest = float(values.min())
    position = (values - lowest) / (furthest - lowest)  # in [0, 1]

    def excess(tilt: float) -> float:
        tilted, variance = _tilted(values, position, tilt)
        return float(math.sqrt(n) * (tilted - mean) - quantile * math.sqrt(variance))

    most = 1 - 1e-12
    if excess(most) <= 0:  # the two cases meet here
        return end
    return _tilted(values, position, float(optimize.brentq(excess, 0.0, most)))[0]


def _tilted(values: NDArray[np.float64], position: NDArray[np.float64], tilt: float) -> tuple[float, float]:
    """Return mean and variance under weights in proportion to 1 / (1 - tilt position)."""
    weights = 1 / (1 - tilt * position)
    weights /= weights.sum()
    mean = float(weights @ values)
    return mean, float(weights @ np.square(values - mean))


def samples_to_settle(n: int, distance: float, arm: float, deviation: float | None, confidence: float) -> int:
    """Return how many samples let a study decide with a probability of 0.8, if the true drop is the one that was seen.

    The arm a of a score interval obeys n a^2 = z^2 (s^2 + c a - a^2), with s the deviation of the differences and c
    what unseen differences add (Wilson's equation; Tango's and `score_interval`'s are close to it). The arm that was
    seen gives c; n is then the number of samples with which the arm and the 0.8 quantile of the mean add up to the
    distance.

    Args:
        n: samples of this study.
        distance: between drop and margin, > 0.
        arm: from the drop to the end of the interval on the margin's side, > 0 and finite.
        deviation: standard deviation of the differences; None where it is not known; c is then taken as 0.
        confidence: of the interval, two-sided.

    Examples:
        >>> samples_to_settle(n=200, distance=0.005, arm=0.02, deviation=0.15, confidence=0.95)
        6663
    """
    z, power = float(stats.norm.ppf(0.5 + confidence / 2)), float(stats.norm.ppf(POWER))
    arm /= distance  # squares of what is very large would leave float64
    spread = (n + z**2) * arm**2 / z**2  # s^2 + c a
    variance = spread if deviation is None else min(deviation / distance, math.sqrt(spread)) ** 2
    unseen = (spread - variance) / arm

    def too_wide(samples: float) -> float:
        half = z**2 * unseen / (2 * (samples + z**2))
        expected = half + math.sqrt(half**2 + z**2 * variance / (samples + z**2))
        return expected + power * math.sqrt(variance / samples) - 1

    most = 2.0 * n
    while too_wide(most) > 0:
        most *= 2
    return math.ceil(optimize.brentq(too_wide, n, most, rtol=1e-9)) + 1 if too_wide(n) > 0 else n + 1
