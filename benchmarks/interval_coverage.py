"""How often the intervals of `validate.stats.intervals` hold the truth, in simulated studies: docs/significance.md.

    python benchmarks/interval_coverage.py                  # 2,000 studies in each setting; a minute
    python benchmarks/interval_coverage.py --bootstrap      # beside scipy's BCa bootstrap; ten minutes

A study draws n paired differences (reference minus candidate; positive is a drop) from a distribution whose mean is
known, and computes the 95% interval of the mean. `missed below` is how often the upper end is below the true drop:
with a margin of just that drop it is a false GO, and should happen in 2.5% of the studies. `missed above` is how often
the lower end is above it, a false NO-GO.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
Float64 = NDArray[np.float64]
CONFIDENCE, STUDIES = 0.95, 2000
_RESAMPLES, _CHUNK = 999, 50  # of scipy's bootstrap: studies at once


@dataclass(frozen=True)
class Setting:
    """What a study draws.

    Attributes:
        name: of the setting.
        n: samples of a study.
        draw: takes a generator and a shape.
        drop: the mean of what it draws.
        bound: the largest absolute difference, where the scores have one.
        studies: how many.
    """

    name: str
    n: int
    draw: Callable[[np.random.Generator, tuple[int, int]], Float64]
    drop: float
    bound: float | None = None

    def studies(self, count: int = STUDIES) -> Float64:
        """Return the differences of all studies, shape (count, n); the same every time."""
        return self.draw(np.random.default_rng([len(self.name), self.n]), (count, self.n))


def _proportions(lost: float, won: float) -> Callable[[np.random.Generator, tuple[int, int]], Float64]:
    """0/1 scores: so many samples are right in float only, and so many in int8 only."""
    return lambda rng, shape: rng.choice([1.0, -1.0, 0.0], shape, p=[lost, won, 1 - lost - won])


def _sparse(
    share: float, draw: Callable[[np.random.Generator, tuple[int, int]], Float64]
) -> Callable[[np.random.Generator, tuple[int, int]], Float64]:
    """Zero, but for a share of the samples."""
    return lambda rng, shape: np.where(rng.random(shape) < share, draw(rng, shape), 0.0)


def _noisy(share: float) -> Callable[[np.random.Generator, tuple[int, int]], Float64]:
    """Scores that all change by a thousandth, and of which a share loses a half."""
    return lambda rng, shape: rng.normal(0, 0.001, shape) + 0.5 * (rng.random(shape) < share)


def _exponential(rng: np.random.Generator, shape: tuple[int, int]) -> Float64:
    return rng.exponential(size=shape)


def _uniform(rng: np.random.Generator, shape: tuple[int, int]) -> Float64:
    return rng.random(shape)


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Float64:
    return rng.normal(0.1, 1, shape)


SETTINGS = [
    Setting("0/1, 10% lost, 5% won", 50, _proportions(0.1, 0.05), 0.05, 1),
    Setting("0/1, 2% lost, 2% won", 200, _proportions(0.02, 0.02), 0.0, 1),
    Setting("0/1, 1.5% lost, 0.5% won", 400, _proportions(0.015, 0.005), 0.01, 1),
    Setting("0/1, 1% lost, 0.5% won", 2000, _proportions(0.01, 0.005), 0.005, 1),
    Setting("normal", 30, _normal, 0.1),
    Setting("normal", 1000, _normal, 0.1),
    Setting("skewed: exponential", 50, _exponential, 1.0),
    Setting("skewed: lognormal, sigma 0.7", 100, lambda rng, s: rng.lognormal(0, 0.7, s), float(np.exp(0.245))),
    Setting("20% non-zero: uniform", 100, _sparse(0.2, _uniform), 0.1),
    Setting("5% non-zero: exponential", 400, _sparse(0.05, _exponential), 0.05),
    Setting("1% non-zero: uniform", 200, _sparse(0.01, _uniform), 0.005),
    Setting("1% non-zero: exponential", 1000, _sparse(0.01, _exponential), 0.01),
]
"""Those that 95% intervals should hold the truth of in 93 to 97% of the studies."""

HARDER = [
    Setting("normal", 10, _normal, 0.1),
    Setting("skewed: exponential", 20, _exponential, 1.0),
    Setting("skewed: lognormal, sigma 1", 200, lambda rng, s: rng.lognormal(0, 1, s), float(np.exp(0.5))),
    Setting("heavy tails: Student's t, 3 degrees", 100, lambda rng, s: rng.standard_t(3, s), 0.0),
    Setting("0.5% non-zero: uniform", 400, _sparse(0.005, _uniform), 0.0025),
    Setting("1% non-zero: exponential", 400, _sparse(0.01, _exponential), 0.01),
    Setting("1% non-zero: lognormal, sigma 1", 1000, _sparse(0.01, lambda r, s: r.lognormal(0, 1, s)), 0.01648721),
    Setting("2% non-zero: uniform - 0.3", 200, _sparse(0.02, lambda r, s: r.random(s) - 0.3), 0.004),
    Setting("2% non-zero: exponential - 0.7", 400, _sparse(0.02, lambda r, s: r.exponential(size=s) - 0.7), 0.006),
    Setting("noise, and 1% lose 0.5", 200, _noisy(0.01), 0.005),
    Setting("noise, and 1% lose 0.5, bound 1", 200, _noisy(0.01), 0.005, 1),
    Setting("noise, and 3% lose 0.5", 200, _noisy(0.03), 0.015),
    Setting("noise, and 3% lose 0.5, bound 1", 200, _noisy(0.03), 0.015, 1),
    Setting("20% non-zero: uniform, bound 1", 100, _sparse(0.2, _uniform), 0.1, 1),
    Setting("1% non-zero: uniform, bound 1", 200, _sparse(0.01, _uniform), 0.005, 1),
]
"""Harder ones, to see where it ends."""


@dataclass(frozen=True)
class Coverage:
    """Shares of the studies, in [0, 1]."""

    below: float
    above: float

    @property
    def held(self) -> float:
        """Share of the studies whose interval holds the truth."""
        return 1 - self.below - self.above

    @classmethod
    def of(cls, intervals: Float64, truth: float) -> Coverage:
        """Return how often intervals, shape (studies, 2), miss the truth on which side."""
        slack = 1e-12 * max(abs(truth), 1)
        return cls(float((intervals[:, 1] < truth - slack).mean()), float((intervals[:, 0] > truth + slack).mean()))


def coverage(setting: Setting, studies: int = STUDIES) -> tuple[Coverage, float]:
    """Return how often `paired_interval` holds the truth, and the median width of the intervals."""
    from validate.stats import paired_interval

    found = [paired_interval(x, CONFIDENCE, setting.bound) for x in setting.studies(studies)]
    intervals = np.array([[interval.low, interval.high] for interval in found])
    return Coverage.of(intervals, setting.drop), float(np.median(intervals[:, 1] - intervals[:, 0]))


def bootstrap_coverage(setting: Setting, studies: int = STUDIES) -> tuple[Coverage, float]:
    """Return the same of scipy's BCa bootstrap; a study without a difference is taken to hold the truth."""
    from scipy import stats

    drawn, parts = setting.studies(studies), []
    for first in range(0, len(drawn), _CHUNK):
        result = stats.bootstrap(
            (drawn[first : first + _CHUNK],),
            np.mean,
            axis=1,
            confidence_level=CONFIDENCE,
            n_resamples=_RESAMPLES,
            method="BCa",
            batch=100,
            rng=np.random.default_rng(first),
        )
        parts.append(np.c_[result.confidence_interval.low, result.confidence_interval.high])
    intervals = np.concatenate(parts)
    width = float(np.nanmedian(intervals[:, 1] - intervals[:, 0]))
    return Coverage.of(np.nan_to_num(intervals, nan=setting.drop), setting.drop), width


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bootstrap", action="store_true", help="beside scipy's BCa bootstrap")
    parser.add_argument("--studies", type=int, default=STUDIES)
    options = parser.parse_args()
    methods = [coverage, *([bootstrap_coverage] if options.bootstrap else [])]
    head = " | ".join(["held", "missed below", "missed above", "median width"] * len(methods))
    for settings in (SETTINGS, HARDER):
        print(f"\n| setting | n | {head} |\n| --- | ---: |{' ---: |' * 4 * len(methods)}")
        for setting in settings:
            cells = []
            for method in methods:
                found, width = method(setting, options.studies)
                cells += [f"{100 * x:.1f}" for x in (found.held, found.below, found.above)] + [f"{width:.2g}"]
            print(f"| {setting.name} | {setting.n:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
