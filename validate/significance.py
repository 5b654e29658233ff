"""How sure can we be of a difference? Intervals for paired per-sample scores.

Reference and candidate see the same samples, so the interval is of the mean of per-sample differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

__all__ = ["Interval", "paired_interval", "projected_interval", "tango_interval"]

_MIN_BOOTSTRAP = 30
"""Below this a bootstrap knows too little of the spread, and its intervals are too narrow."""
_RESAMPLES = 9999
_SEED = 0  # the same scores always give the same interval


@dataclass(frozen=True)
class Interval:
    """A two-sided confidence interval of a mean difference, in the unit of the scores."""

    low: float
    high: float
    method: str


def paired_interval(differences: NDArray[np.floating[Any]], confidence: float) -> Interval:
    """Return the interval of the mean of paired differences, shape (n,).

    Differences of 0/1 scores (each -1, 0 or 1) get Tango's score interval, which stays honest where few or no
    samples differ; others get the BCa bootstrap. With NaN, with one sample or none, or with fewer than 30 samples
    for the bootstrap, the interval is (-inf, inf): nothing is known.

    Args:
        differences: one per sample.
        confidence: two-sided, in (0, 1).
    """
    values = np.asarray(differences, np.float64)
    if values.size < 2 or not np.isfinite(values).all():
        return Interval(-math.inf, math.inf, "none")
    if np.isin(values, (-1.0, 0.0, 1.0)).all():
        low, high = tango_interval(int((values == 1).sum()), int((values == -1).sum()), values.size, confidence)
        return Interval(low, high, "Tango score")
    if values.size < _MIN_BOOTSTRAP or np.ptp(values) == 0:  # a constant sample says nothing about its spread
        return Interval(-math.inf, math.inf, "none")
    result = stats.bootstrap(
        (values,), np.mean, confidence_level=confidence, n_resamples=_RESAMPLES, method="BCa",
        rng=np.random.default_rng(_SEED), batch=max(1, 10_000_000 // values.size),
    )  # fmt: skip
    low, high = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if math.isnan(low) or math.isnan(high):  # differences so small or so large that their cubes leave float64
        return Interval(-math.inf, math.inf, "none")
    return Interval(low, high, "BCa bootstrap")


def projected_interval(differences: NDArray[np.floating[Any]], confidence: float, samples: int) -> Interval:
    """Return the interval that `samples` samples would give if they were like these; see `paired_interval`.

    Tango's with all counts in proportion; the others' width shrinks with the square root of the number of samples.

    Args:
        differences: one per sample, shape (n,).
        confidence: two-sided, in (0, 1).
        samples: >= 1.
    """
    values = np.asarray(differences, np.float64)
    found = paired_interval(values, confidence)
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
