"""Intervals against the definition that they implement, against published numbers, and against simulation."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from validate.significance import Interval, paired_interval, tango_interval

Float64 = NDArray[np.float64]

NOTHING_KNOWN = (-math.inf, math.inf)
tango = functools.cache(tango_interval)


def bounds(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def z_of(confidence: float) -> float:
    return float(stats.norm.isf((1 - confidence) / 2))


def outcomes(more: int, fewer: int, n: int) -> Float64:
    return np.repeat([1.0, -1.0, 0.0], [more, fewer, n - more - fewer])


# --- Tango's interval: all differences that the score test accepts ---


def score_statistic(more: int, fewer: int, n: int, delta: Float64) -> Float64:
    """Return the score test's z of H0: P(+1) - P(-1) = delta, from the constrained maximum of the likelihood.

    Given P(-1) = q, the trinomial log-likelihood is concave in q with P(+1) = q + delta; its maximum is found by
    bisecting the slope. The variance is the trinomial one of the difference, at that maximum.
    """
    low, high = np.maximum(0.0, -delta), (1 - delta) / 2
    for _ in range(60):
        q = (low + high) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            slope = np.where(more > 0, more / (q + delta), 0.0) + np.where(fewer > 0, fewer / q, 0.0)
            equal = n - more - fewer
            slope = slope - np.where(equal > 0, 2 * equal / (1 - 2 * q - delta), 0.0)
        low, high = np.where(slope > 0, q, low), np.where(slope > 0, high, q)
    q = (low + high) / 2
    variance = n * (2 * q + delta - delta**2)
    difference = more - fewer - n * delta
    return np.where(np.abs(difference) < 1e-12 * n, 0.0, difference / np.sqrt(np.maximum(variance, 1e-300)))


def inverted(more: int, fewer: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the least and the greatest difference that the test does not reject."""
    z, estimate = z_of(confidence), (more - fewer) / n
    grid = np.unique(np.concatenate([np.linspace(-1, 1, 1001)[1:-1], [estimate]]))
    accepted = np.abs(score_statistic(more, fewer, n, grid)) <= z
    inside = np.flatnonzero(accepted)
    assert accepted[inside[0] : inside[-1] + 1].all(), "the accepted differences are not an interval"
    kept = grid[inside[[0, -1]]]
    rejected = np.array([-1.0, *grid, 1.0])[[inside[0], inside[-1] + 2]]
    for _ in range(3):  # look closer, between the last difference that is kept and the first that is not
        closer = np.linspace(kept, rejected, 201)[1:-1]
        accepted = np.abs(score_statistic(more, fewer, n, closer)) <= z
        for end in (0, 1):
            steps = int(accepted[:, end].sum())
            ladder = [kept[end], *closer[:, end], rejected[end]]
            kept[end], rejected[end] = ladder[steps], ladder[steps + 1]
    return float(kept[0]), float(kept[1])


_TABLES = [
    (more, fewer, n)
    for n in (1, 2, 5, 10, 30, 100, 400)
    for more in sorted({0, 1, 2, n // 10, n // 3, n})
    for fewer in sorted({0, 1, 3, n // 20, n // 2, n})
    if more + fewer <= n
]


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_tango_inverts_the_score_test(confidence: float) -> None:
    for more, fewer, n in _TABLES:
        assert tango(more, fewer, n, confidence) == pytest.approx(inverted(more, fewer, n, confidence), abs=2e-7), (
            more, fewer, n,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("more", "fewer", "n", "confidence", "published", "digits"),
    [
        # Airway reactivity (Bentur et al.), in Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014).
        (1, 7, 21, 0.95, (-0.517, -0.026), 3),
        # R's PropCIs::scoreci.mp(25, 28, 618, 0.90), which estimates (second - first) / n.
        (28, 25, 618, 0.90, (-0.0148, 0.0247), 4),
    ],
)
def test_tango_gives_published_numbers(
    more: int, fewer: int, n: int, confidence: float, published: tuple[float, float], digits: int
) -> None:
    assert tuple(round(v, digits) for v in tango(more, fewer, n, confidence)) == published


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.9999])
@pytest.mark.parametrize("n", [1, 2, 10, 100, 5000, 10**6])
def test_tango_without_a_discordant_pair(n: int, confidence: float) -> None:
    bound = z_of(confidence) ** 2 / (n + z_of(confidence) ** 2)
    assert tango(0, 0, n, confidence) == pytest.approx((-bound, bound), rel=1e-6)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.9999])
@pytest.mark.parametrize("n", [1, 2, 10, 100, 5000])
def test_tango_where_all_pairs_are_discordant_in_one_direction(n: int, confidence: float) -> None:
    """The statistic is then ``sqrt(n (1 - d) / (1 + d))``."""
    bound = (n - z_of(confidence) ** 2) / (n + z_of(confidence) ** 2)
    assert tango(n, 0, n, confidence) == pytest.approx((bound, 1.0), abs=1e-9)
    assert tango(0, n, n, confidence) == pytest.approx((-1.0, -bound), abs=1e-9)


_counts = st.integers(1, 500).flatmap(
    lambda n: st.tuples(st.integers(0, n), st.floats(0, 1), st.just(n)).map(
        lambda t: (t[0], int((t[2] - t[0]) * t[1]), t[2])
    )
)


@given(_counts, st.floats(0.5, 0.9999))
@settings(deadline=None, max_examples=300)
def test_tango_is_symmetric_and_holds_the_estimate(counts: tuple[int, int, int], confidence: float) -> None:
    more, fewer, n = counts
    low, high = tango(more, fewer, n, confidence)
    assert -1 <= low <= (more - fewer) / n <= high <= 1
    assert low < high
    assert tango(fewer, more, n, confidence) == pytest.approx((-high, -low), abs=1e-9)


@given(_counts, st.floats(0.5, 0.99), st.floats(0.001, 0.009))
@settings(deadline=None, max_examples=300)
def test_tango_widens_with_confidence(counts: tuple[int, int, int], confidence: float, step: float) -> None:
    narrow, wide = tango(*counts, confidence), tango(*counts, confidence + step)
    assert wide[0] < narrow[0] or narrow[0] == -1
    assert wide[1] > narrow[1] or narrow[1] == 1


@given(_counts)
@settings(deadline=None, max_examples=100)
def test_tango_narrows_with_more_of_the_same(counts: tuple[int, int, int]) -> None:
    few, many = tango(*counts, 0.95), tango(*(4 * c for c in counts), 0.95)
    assert many[1] - many[0] < few[1] - few[0]


# --- honesty, simulated ---

STUDIES = 2000


@pytest.mark.parametrize(
    ("n", "more", "fewer"),
    [(50, 0.1, 0.1), (100, 0.1, 0.02), (200, 0.02, 0.02), (400, 0.02, 0.01), (400, 0.005, 0.005), (1000, 0.01, 0.005)],
)
def test_coverage_of_binary_scores(n: int, more: float, fewer: float) -> None:
    """A 95% interval of 0/1 scores holds the true difference in 93 to 97.5% of studies, also where few differ."""
    random = np.random.default_rng(n)
    studies = random.multinomial(n, [more, fewer, 1 - more - fewer], STUDIES).tolist()
    intervals = [tango(a, b, n, 0.95) for a, b, _ in studies]
    covered = np.mean([low <= more - fewer <= high for low, high in intervals])
    assert 0.93 <= covered <= 0.975
    missed_a_drop = np.mean([high < more - fewer for _, high in intervals])
    assert missed_a_drop <= 0.035  # 2.5% nominal: how often a model at the margin would be let through


# --- paired_interval: which method, and what it cannot know ---


@pytest.mark.parametrize("counts", [(0, 0, 2), (3, 1, 50), (5, 0, 5), (2, 2, 4)])
def test_binary_scores_get_tangos_interval(counts: tuple[int, int, int]) -> None:
    differences = outcomes(*counts)
    interval = paired_interval(np.random.default_rng(0).permutation(differences), 0.9)
    assert bounds(interval) == tango(*counts, 0.9)
    assert interval.method == "Tango score"


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_real_scores_agree_with_students_t(confidence: float) -> None:
    x = np.random.default_rng(7).normal(0.02, 0.1, 3000)
    interval = paired_interval(x, confidence)
    expected = stats.ttest_1samp(x, 0).confidence_interval(confidence)
    half = (expected.high - expected.low) / 2
    assert interval.method == "BCa bootstrap"
    assert bounds(interval) == pytest.approx((expected.low, expected.high), abs=0.05 * half)


def test_real_scores_that_are_skewed_get_a_skewed_interval() -> None:
    """Few samples that lose much: the true drop may be far above the mean, not as far below it."""
    x = np.random.default_rng(1).exponential(size=60) ** 2
    interval = paired_interval(x, 0.95)
    assert interval.high - x.mean() > 1.2 * (x.mean() - interval.low)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_real_scores_keep_their_unit(scale: float) -> None:
    x = np.random.default_rng(2).normal(0.3, 1, 50)
    expected = [scale * v for v in bounds(paired_interval(x, 0.95))]
    assert bounds(paired_interval(scale * x, 0.95)) == pytest.approx(expected, rel=1e-9)


def test_the_same_scores_always_give_the_same_interval() -> None:
    x = np.random.default_rng(3).normal(size=40)
    assert paired_interval(x, 0.95) == paired_interval(x.copy(), 0.95)


def test_real_scores_widen_with_confidence() -> None:
    x = np.random.default_rng(4).normal(size=40)
    intervals = [paired_interval(x, c) for c in (0.6, 0.8, 0.9, 0.95, 0.99, 0.999)]
    widths = [i.high - i.low for i in intervals]
    assert widths == sorted(widths)
    assert widths[0] < 0.5 * widths[-1]


@pytest.mark.parametrize(
    "differences",
    [
        [], [0.0], [1.0], [0.3], [0.25] * 10, [-2.0] * 10,
        [math.nan, 0.0, 1.0], [0.1, math.nan], [math.inf, 0.5, 0.25], [-math.inf, 0.0, 1.0],
        [1e-300, 2e-300, 4e-300], [1e300, -1e300, 3e300],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # scipy's, of overflow
def test_where_nothing_is_known_the_interval_is_infinite(differences: list[float]) -> None:
    assert bounds(paired_interval(np.array(differences), 0.95)) == NOTHING_KNOWN


@given(st.lists(st.sampled_from([0.0, 0.1, -0.25, 1.0, 0.5]), max_size=12))
@settings(deadline=None, max_examples=40)
@pytest.mark.filterwarnings("ignore")
def test_no_interval_is_undefined(differences: list[float]) -> None:
    low, high = bounds(paired_interval(np.array(differences), 0.95))
    assert low <= high  # and so neither is NaN
    if math.isfinite(low):
        assert low - 1e-12 <= np.mean(differences) <= high + 1e-12
