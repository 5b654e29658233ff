"""Every strategy against a slow float64 reference that is written from its definition, not from its code."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from calibrate.strategies.entropy import entropy
from calibrate.strategies.minmax import minmax
from calibrate.strategies.mse import mse
from calibrate.strategies.percentile import percentile
from validate.stats.histograms import Statistics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# The first example of a process compiles.
exhaustive = settings(deadline=None, max_examples=150)

_SAMPLERS: dict[str, Callable[[np.random.Generator, int], Float64]] = {
    "laplace": lambda random, n: random.laplace(size=n),
    "gaussian": lambda random, n: random.normal(size=n),
    "half-gaussian": lambda random, n: np.maximum(random.normal(size=n), 0),
    "uniform": lambda random, n: random.uniform(-1, 1, n),
    "student-t": lambda random, n: random.standard_t(2, n),
}
DISTRIBUTIONS = sorted(_SAMPLERS)
PERCENTS = [1e-9, 0.1, 25.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.9999, 100.0]
STRATEGIES: dict[str, Callable[[Statistics], float]] = {
    "minmax": minmax,
    "entropy": entropy,
    "mse": mse,
    **{f"percentile-{p:g}": functools.partial(percentile, percent=p) for p in (90.0, 99.99, 100.0)},
}


@functools.cache
def sample(distribution: str, n: int = 20_000, seed: int = 0) -> Float32:
    x = _SAMPLERS[distribution](np.random.default_rng(seed), n).astype(np.float32)
    x.flags.writeable = False
    return x


def of(x: Float32 | list[float]) -> Statistics:
    statistics = Statistics()
    statistics.update(np.asarray(x, np.float32))
    return statistics


# --- minmax ---


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_minmax_clips_nothing(distribution: str) -> None:
    x = sample(distribution)
    assert minmax(of(x)) == np.abs(x).max()


# --- percentile ---


@pytest.mark.parametrize("n", [2, 3, 101, 20_000])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_percentile_is_numpys_within_a_bin(distribution: str, n: int) -> None:
    x = sample(distribution)[:n]
    statistics = of(x)
    for percent in PERCENTS:
        truth = np.percentile(np.abs(x, dtype=np.float64), percent)
        assert percentile(statistics, percent) == pytest.approx(truth, abs=statistics.width, rel=0), percent


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32) | st.just(0.0), min_size=1, max_size=30),
    st.floats(0, 100, exclude_min=True),
)
@example([1.0, 1000.0], 50.0)  # numpy is half way, hundreds of bins from both
@exhaustive
def test_percentile_of_few_values_is_numpys_within_a_bin(numbers: list[float], percent: float) -> None:
    statistics = of(numbers)
    truth = np.percentile(np.abs(numbers), percent)
    found = percentile(statistics, percent)
    assert found == pytest.approx(truth, abs=statistics.width * (1 + 1e-9), rel=1e-12)
    assert found <= statistics.amax


def test_percentile_of_a_mostly_zero_tensor_is_zero() -> None:
    x = np.zeros(10_000, np.float32)
    x[:3] = [1.0, -4.0, 2.0]
    assert percentile(of(x), 99.9) == 0.0
    assert percentile(of(x), 100) == 4.0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_percentile_never_falls(distribution: str) -> None:
    statistics = of(sample(distribution))
    thresholds = [percentile(statistics, p) for p in np.linspace(0.01, 100, 997)]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == statistics.amax


@pytest.mark.parametrize("percent", [0.0, -1.0, 100.000001, math.nan, math.inf])
def test_percentile_refuses_what_is_no_percentage(percent: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most at 100"):
        percentile(of([1.0]), percent)


def test_percentile_of_nothing_is_undefined() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile(Statistics(), 99.0)


# --- entropy ---

LEVELS, BINS = 128, 2048


def divergences(x: Float32) -> tuple[Float64, float]:
    """Return KL(P || Q) by number of bins (inf below 128), and the bin width: the slides' procedure, literally."""
    magnitudes = np.abs(x[x != 0], dtype=np.float64)
    width = 2.0 ** (math.frexp(magnitudes.max())[1] - 11)  # the least power of two with amax < 2048 widths
    histogram = np.bincount((magnitudes / width).astype(np.int64))
    assert BINS / 2 < histogram.size <= BINS
    result = np.full(histogram.size + 1, np.inf)
    for i in range(LEVELS, histogram.size + 1):
        p = histogram[:i].astype(np.float64)
        p[i - 1] += histogram[i:].sum()
        edges = np.arange(LEVELS + 1) * i // LEVELS
        mass = np.add.reduceat(histogram[:i], edges[:-1])
        filled = np.add.reduceat((p > 0).astype(np.int64), edges[:-1])
        q = np.where(p > 0, np.repeat(mass / np.maximum(filled, 1), np.diff(edges)), 0.0)
        if q.any():
            result[i] = stats.entropy(p, q)  # of the normalised distributions; inf where only Q is 0
    return result, width


def assert_least_divergence(x: Float32) -> Float64:
    found, statistics = entropy(of(x)), of(x)
    kl, width = divergences(x)
    chosen = kl.size - 1 if found == statistics.amax else round(found / width)
    assert found in (statistics.amax, chosen * width)
    assert kl[chosen] == pytest.approx(kl.min(), abs=1e-10), f"{chosen} bins, but {kl.argmin()} diverge less"
    return kl


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entropy_loses_least_information(distribution: str) -> None:
    kl = assert_least_divergence(sample(distribution, 4_000))
    assert np.ptp(kl[np.isfinite(kl)]) > 1e-4  # candidates do differ: the comparison decides something


@pytest.mark.parametrize("exponent", range(-1, 3))
def test_entropy_where_the_range_starts_in_another_half_of_an_octave(exponent: int) -> None:
    """The number of bins depends on where the largest value is between two powers of two."""
    x = sample("laplace", 2_000)
    assert_least_divergence((x * np.float32(1.19**exponent / np.abs(x).max())).astype(np.float32))


def test_entropy_of_a_histogram_with_gaps() -> None:
    """Few values: many levels are empty, and a candidate's last bin may hold outliers alone."""
    assert_least_divergence(sample("student-t", 60))
    assert_least_divergence(np.linspace(0.1, 1, 23, dtype=np.float32))
    assert_least_divergence(np.append(sample("gaussian", 300), np.float32(30)))


def test_entropy_may_choose_the_narrowest_candidate() -> None:
    """128 uneven bins and few outliers: every wider candidate averages bins or has no mass for the outliers."""
    random = np.random.default_rng(0)
    bulk = np.repeat(np.arange(LEVELS) + 0.5, random.integers(1, 1000, LEVELS)) / 2
    x = np.append(bulk, [1000.0, 1001.0]).astype(np.float32)
    assert divergences(x)[0].argmin() == LEVELS
    assert_least_divergence(x)
    assert entropy(of(x)) == 64.0


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_entropy_ignores_zeros(distribution: str) -> None:
    x = sample(distribution)
    with_zeros = np.concatenate([x, np.zeros(1_000_000, np.float32), np.full(10, -0.0, np.float32)])
    assert entropy(of(with_zeros)) == entropy(of(x))


def test_entropy_clips_a_heavy_tail() -> None:
    assert entropy(of(sample("student-t"))) < 0.5 * minmax(of(sample("student-t")))


# --- mse ---


def squared_error(x: NDArray[np.floating], threshold: float, weights: Float64 | None = None) -> float:
    """Return the mean squared error of symmetric int8 quantization of the samples themselves."""
    scale = threshold / 127
    x = x.astype(np.float64)
    return float(np.average((x - scale * np.clip(np.rint(x / scale), -127, 127)) ** 2, weights=weights))


def least_error(x: NDArray[np.floating], weights: Float64 | None = None) -> float:
    amax = float(np.abs(x).max())
    grid = np.concatenate([np.geomspace(amax / 4096, amax, 400), np.linspace(amax / 8, amax, 600)])
    return min(squared_error(x, t, weights) for t in grid)


@pytest.mark.parametrize("n", [100, 10_000])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_has_least_error(distribution: str, n: int) -> None:
    x = sample(distribution, n)
    assert squared_error(x, mse(of(x))) <= 1.01 * least_error(x)


def test_mse_has_less_error_than_minmax_on_a_heavy_tail() -> None:
    """Guards the test above: a strategy that clips nothing would fail it."""
    x = sample("laplace")
    assert squared_error(x, minmax(of(x))) > 1.05 * least_error(x)


@pytest.mark.parametrize("outlier", [30.0, 100.0, 300.0])
def test_mse_finds_an_optimum_far_below_the_range(outlier: float) -> None:
    """Twenty million Gaussian values and one outlier: the best threshold is a small share of the range."""
    x = sample("gaussian")
    statistics = of(x)
    for _ in range(10):
        statistics = statistics.merge(statistics)
    statistics.update(np.array([outlier], np.float32))
    weights = np.append(np.full(x.size, 1024.0), 1.0)
    found = mse(statistics)
    assert found < 0.5 * outlier
    values = np.append(x, np.float32(outlier))
    assert squared_error(values, found, weights) <= 1.02 * least_error(values, weights)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_mse_ignores_zeros(distribution: str) -> None:
    """A billion of them: were they at their bin's centre, a threshold that clips all else would be best."""
    zeros = of([0.0] * 2**20)
    for _ in range(10):
        zeros = zeros.merge(zeros)
    x = of(sample(distribution, 200))
    assert mse(x.merge(zeros)) == mse(x)


# --- what all have in common ---


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_threshold_is_within_the_range_and_has_the_tensors_unit(distribution: str, name: str) -> None:
    x, strategy = sample(distribution), STRATEGIES[name]
    threshold = strategy(of(x))
    assert 0 < threshold <= minmax(of(x))
    assert strategy(of(-x)) == threshold
    for power in (-60, -1, 1, 60):
        assert strategy(of(np.ldexp(x, power))) == math.ldexp(threshold, power)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.3, 6.0, -1.7e-40, 3e38])
@pytest.mark.parametrize("count", [1, 1000])
def test_a_constant_keeps_its_value(name: str, value: float, count: int) -> None:
    statistics = of([value] * count)
    threshold = STRATEGIES[name](statistics)
    magnitude = float(np.abs(np.float32(value)))
    assert threshold <= magnitude
    assert threshold == pytest.approx(magnitude, rel=1 / 4000)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("numbers", [[0.0], [-0.0], [0.0] * 1000])
def test_all_zeros_have_no_range(name: str, numbers: list[float]) -> None:
    assert STRATEGIES[name](of(numbers)) == 0.0


@pytest.mark.parametrize("strategy", [minmax, entropy, mse])
def test_nothing_seen_has_no_range(strategy: Callable[[Statistics], float]) -> None:
    assert strategy(Statistics()) == 0.0


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_does_not_change_the_statistics(name: str) -> None:
    statistics = of(np.append(sample("laplace"), np.zeros(100, np.float32)))
    before = (statistics.minimum, statistics.maximum, statistics.count, statistics.zeros, statistics.bins.tobytes())
    first, second = STRATEGIES[name](statistics), STRATEGIES[name](statistics)
    assert first == second
    assert before == (
        statistics.minimum,
        statistics.maximum,
        statistics.count,
        statistics.zeros,
        statistics.bins.tobytes(),
    )
