"""Intervals against the definition that they implement, against published numbers, and against simulation."""

from __future__ import annotations

import functools
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from validate.stats.intervals import Interval, paired_interval, samples_to_settle, score_interval, tango_interval

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
            more,
            fewer,
            n,
        )


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


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[3] / "benchmarks/interval_coverage.py"
    spec = importlib.util.spec_from_file_location("coverage_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()


def test_the_settings_are_the_twelve_of_the_documentation() -> None:
    table = (Path(__file__).parents[3] / "docs/significance.md").read_text(encoding="utf-8")
    assert len(benchmark.SETTINGS) == 12
    for setting in benchmark.SETTINGS:
        assert f"| {setting.name} | {setting.n:,} |" in table


@pytest.mark.slow
@pytest.mark.parametrize("setting", benchmark.SETTINGS, ids=lambda s: f"{s.name}, n={s.n}")
def test_coverage(setting: object) -> None:
    """95% intervals hold the truth in 93 to 97% of 2,000 studies, and hardly ever let a model at the margin through."""
    found, _ = benchmark.coverage(setting)
    assert 0.93 <= found.held <= 0.97
    assert found.below <= 0.035  # 2.5% nominal, and 0.35% of noise


@pytest.mark.parametrize("setting", benchmark.SETTINGS, ids=lambda s: f"{s.name}, n={s.n}")
def test_the_settings_have_the_mean_that_they_say(setting: object) -> None:
    drawn = setting.studies(4000)  # type: ignore[attr-defined]
    assert abs(drawn.mean() - setting.drop) < 4 * drawn.std() / math.sqrt(drawn.size)  # type: ignore[attr-defined]


# --- how many samples would settle it ---


@pytest.mark.parametrize(
    ("n", "margin", "confidence", "pilot", "bound"),
    [
        (100, 0.03, 0.95, lambda r, n: r.choice([1.0, -1.0, 0.0], n, p=[0.02, 0.01, 0.97]), 1.0),
        (100, 0.02, 0.95, lambda r, n: r.choice([1.0, 0.0], n, p=[0.05, 0.95]), 1.0),  # ends in NO-GO
        (40, 0.02, 0.975, lambda r, n: np.zeros(n), 1.0),
        (50, 0.3, 0.95, lambda r, n: r.normal(0, 1, n), None),
        (60, 0.4, 0.975, lambda r, n: r.exponential(size=n) - 0.8, None),
        (100, 0.05, 0.95, lambda r, n: np.where(r.random(n) < 0.05, r.random(n), 0.0), 1.0),
    ],
)
def test_so_many_samples_do_settle_it(n: int, margin: float, confidence: float, pilot, bound: float | None) -> None:  # type: ignore[no-untyped-def]
    """Studies of the size that an open one asks for, drawn from what that one saw: four of five decide."""
    random, decided = np.random.default_rng(11), []
    while len(decided) < 25:
        seen = pilot(random, n)
        low, high = bounds(paired_interval(seen, confidence, bound))
        drop = float(seen.mean())
        if not low <= margin <= high or abs(margin - drop) < 0.1 * margin:
            continue
        arm = high - drop if drop < margin else drop - low
        needed = samples_to_settle(n, abs(margin - drop), arm, float(seen.std()), confidence)
        assert needed > n
        again = [paired_interval(random.choice(seen, needed), confidence, bound) for _ in range(25)]
        decided.append(np.mean([i.high < margin if drop < margin else i.low > margin for i in again]))
    assert 0.7 <= np.mean(decided) <= 1.0
    if seen.any():
        assert np.mean(decided) <= 0.95  # and it does not ask for far too many


def test_fewer_samples_would_not_settle_it() -> None:
    """Half of what is asked for decides much less often."""
    random = np.random.default_rng(3)
    seen = random.normal(0, 1, 60)
    seen -= seen.mean()
    interval = paired_interval(seen, 0.95)
    needed = samples_to_settle(60, 0.2, interval.high, float(seen.std()), 0.95)
    studies = random.choice(seen, (300, needed // 2))
    assert np.mean([paired_interval(x, 0.95).high < 0.2 for x in studies]) < 0.65


# --- paired_interval: which method, and what it cannot know ---


@pytest.mark.parametrize("counts", [(0, 0, 2), (3, 1, 50), (5, 0, 5), (2, 2, 4)])
def test_binary_scores_get_tangos_interval(counts: tuple[int, int, int]) -> None:
    differences = outcomes(*counts)
    interval = paired_interval(np.random.default_rng(0).permutation(differences), 0.9, bound=1)
    assert bounds(interval) == tango(*counts, 0.9)
    assert interval.method == "Tango score"


@pytest.mark.parametrize("counts", [(0, 0, 500), (3, 1, 500), (40, 3, 900), (200, 200, 1000), (900, 50, 1000)])
def test_the_score_of_the_mean_is_tangos_where_scores_are_binary(counts: tuple[int, int, int]) -> None:
    """But for Student's quantile, and for the unseen value that lies at the bound in Tango's."""
    confidence = 0.95
    normal = float(2 * stats.t.cdf(z_of(confidence), counts[2] - 1) - 1)  # whose t quantile is that z
    differences = outcomes(*counts)
    if all(counts[:2]) or not any(counts[:2]):
        assert score_interval(differences, normal, 1.0) == pytest.approx(tango(*counts, confidence), abs=1e-9)


def test_the_score_of_the_mean_inverts_the_test_that_it_is_defined_by() -> None:
    """The likeliest weights of a mean by a general optimizer; the ends are where the test rejects."""
    from scipy import optimize

    random = np.random.default_rng(8)
    x = np.where(random.random(40) < 0.3, random.random(40) - 0.2, 0.0)
    low, high = score_interval(x, 0.95)
    support = np.unique(np.r_[x, x.max() + 4.5 * np.abs(x).max() * np.square(x).sum() / np.abs(x).sum() ** 2])
    counts = np.array([(x == v).sum() for v in support], float)

    def statistic(mean: float) -> float:
        found = optimize.minimize(
            lambda w: -counts @ np.log(np.maximum(w, 1e-300)),
            (counts + 0.5) / (counts + 0.5).sum(),
            method="SLSQP",
            bounds=[(1e-12, 1)] * len(support),
            options={"maxiter": 1000, "ftol": 1e-13},
            constraints=[
                {"type": "eq", "fun": lambda w: w.sum() - 1},
                {"type": "eq", "fun": lambda w: w @ support - mean},
            ],
        )
        return float(math.sqrt(len(x)) * (mean - x.mean()) / math.sqrt(found.x @ (support - mean) ** 2))

    assert low < x.mean() < high
    assert statistic(high) == pytest.approx(stats.t.ppf(0.975, len(x) - 1), rel=2e-3)
    assert statistic(0.98 * high) < stats.t.ppf(0.975, len(x) - 1) < statistic(1.02 * high)


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_real_scores_agree_with_students_t(confidence: float) -> None:
    x = np.random.default_rng(7).normal(0.02, 0.1, 3000)
    interval = paired_interval(x, confidence)
    expected = stats.ttest_1samp(x, 0).confidence_interval(confidence)
    half = (expected.high - expected.low) / 2
    assert interval.method == "score of the mean"
    assert bounds(interval) == pytest.approx((expected.low, expected.high), abs=0.05 * half)


@pytest.mark.parametrize("n", [100, 500])
def test_real_scores_that_are_skewed_agree_with_the_studentized_bootstrap(n: int) -> None:
    random = np.random.default_rng(4)
    x = random.exponential(size=n)
    draws = random.choice(x, (10_000, n))
    t = (draws.mean(axis=1) - x.mean()) / draws.std(axis=1)
    expected = x.mean() - x.std() * np.quantile(t, [0.975, 0.025])
    assert bounds(paired_interval(x, 0.95)) == pytest.approx(tuple(expected), abs=0.1 * (expected[1] - expected[0]))


def test_real_scores_that_are_skewed_get_a_skewed_interval() -> None:
    """Few samples that lose much: the true drop may be far above the mean, not as far below it."""
    x = np.random.default_rng(1).exponential(size=60) ** 2
    interval = paired_interval(x, 0.95)
    assert interval.high - x.mean() > 1.2 * (x.mean() - interval.low)


_real = st.lists(st.sampled_from([0.0, 0.1, -0.25, 0.75, 0.5]) | st.floats(-1, 1), min_size=10, max_size=40)


@given(_real, st.sampled_from([None, 1.0, 2.0]))
@settings(deadline=None, max_examples=200)
def test_real_scores_are_judged_alike_in_both_directions(differences: list[float], bound: float | None) -> None:
    x = np.array(differences)
    low, high = bounds(paired_interval(x, 0.95, bound))
    assert bounds(paired_interval(-x, 0.95, bound)) == pytest.approx((-high, -low), abs=1e-12)
    assert low <= x.mean() <= high
    if bound is not None:
        assert -bound <= low
        assert high <= bound


@pytest.mark.parametrize(("bound", "most"), [(1.0, 0.025), (None, 0.2)])
def test_noise_on_all_samples_does_not_hide_that_some_may_be_ruined(bound: float | None, most: float) -> None:
    """One in a hundred loses a half; the others change by a thousandth. Where none of 200 was seen (13% of the
    studies), only a bound can know of it; where some were seen, both do."""
    random = np.random.default_rng(6)
    ruined = random.random((1000, 200)) < 0.01
    studies = random.normal(0, 0.001, (1000, 200)) + 0.5 * ruined
    missed = np.array([paired_interval(x, 0.95, bound).high < 0.005 for x in studies])
    assert missed.mean() <= most
    assert missed[ruined.any(axis=1)].mean() <= 0.025


def test_what_few_samples_show_is_stretched() -> None:
    """One drop of 0.1 in 200 samples does not rule out one of 1."""
    one = np.zeros(200)
    one[3] = 0.1
    many = np.where(np.arange(200) % 10 == 0, 0.1, 0.0)
    assert paired_interval(one, 0.95).high > 20 * one.mean()
    assert paired_interval(many, 0.95).high < 2.5 * many.mean()
    assert paired_interval(one, 0.95, bound=0.15).high < 0.5 * paired_interval(one, 0.95).high


def test_scores_that_all_stay_the_same_are_judged_in_their_own_unit() -> None:
    zeros = np.zeros(300)
    quantile = stats.t.ppf(0.975, 299) ** 2
    for bound in (0.5, 100.0):
        expected = bound * quantile / (300 + quantile)
        assert bounds(paired_interval(zeros, 0.95, bound)) == pytest.approx((-expected, expected))
    assert bounds(paired_interval(zeros, 0.95)) == NOTHING_KNOWN


def test_a_bound_that_a_difference_exceeds_is_none() -> None:
    x = np.random.default_rng(0).normal(0, 2, 50)
    assert paired_interval(x, 0.95, bound=1.0) == paired_interval(x, 0.95)


@pytest.mark.parametrize("scale", [1e-200, 1e-6, 1.0, 1e6, 1e200])
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
        [],
        [0.0],
        [1.0],
        [0.3],
        [0.25] * 10,
        [-2.0] * 10,
        [math.nan, 0.0, 1.0],
        [0.1, math.nan],
        [math.inf, 0.5, 0.25],
        [-math.inf, 0.0, 1.0],
        [0.1 * i for i in range(9)],
    ],
    ids=str,
)
def test_where_nothing_is_known_the_interval_is_infinite(differences: list[float]) -> None:
    assert bounds(paired_interval(np.array(differences), 0.95)) == NOTHING_KNOWN


@given(st.lists(st.sampled_from([0.0, 0.1, -0.25, 1.0, 0.5]), max_size=12))
@settings(deadline=None, max_examples=40)
def test_no_interval_is_undefined(differences: list[float]) -> None:
    low, high = bounds(paired_interval(np.array(differences), 0.95))
    assert low <= high  # and so neither is NaN
    if math.isfinite(low):
        assert low - 1e-12 <= np.mean(differences) <= high + 1e-12
