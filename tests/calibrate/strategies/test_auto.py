"""`auto` against its criterion computed by brute force, and how far scales had settled against known answers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from calibrate.graph.placement import Layer, Placement
from calibrate.observation.streaming import Observation
from calibrate.plan.origin import Origin
from calibrate.plan.quantization_plan import QuantizationRules
from calibrate.strategies.auto import auto
from calibrate.strategies.entropy import entropy
from calibrate.strategies.minmax import minmax
from calibrate.strategies.mse import mse
from calibrate.strategies.percentile import PercentileStrategy, percentile
from calibrate.strategies.planning import Settling, make_plan, scale_changes
from calibrate.strategies.registry import Strategy
from validate.stats.histograms import Statistics

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

_SAMPLERS: dict[str, Callable[[np.random.Generator, int], Float64]] = {
    "laplace": lambda random, n: random.laplace(size=n),
    "half-gaussian": lambda random, n: np.maximum(random.normal(size=n), 0),
    "uniform": lambda random, n: random.uniform(-1, 1, n),
    "student-t": lambda random, n: random.standard_t(2, n),
    "lognormal": lambda random, n: random.lognormal(sigma=2, size=n),
    "outlier": lambda random, n: np.append(random.normal(size=n - 1), 1000.0),
}
DISTRIBUTIONS = sorted(_SAMPLERS)
PERCENTS = (99.9, 99.99, 99.999)


@functools.cache
def sample(distribution: str, n: int = 20_000, seed: int = 0) -> Float32:
    x = _SAMPLERS[distribution](np.random.default_rng(seed), n).astype(np.float32)
    x.flags.writeable = False
    return x


def of(x: Float32 | list[float]) -> Statistics:
    statistics = Statistics()
    statistics.update(np.asarray(x, np.float32))
    return statistics


def thresholds(statistics: Statistics) -> dict[str, float]:
    """Return what all other strategies choose."""
    found = {"minmax": minmax(statistics), "entropy": entropy(statistics), "mse": mse(statistics)}
    return found | {f"{percent}": percentile(statistics, percent) for percent in PERCENTS}


def criterion(x: Float64, threshold: float, clipping: float = 2.0) -> float:
    """Return R + 2 C: sums over values that are rounded, |x| <= t, and that are clipped."""
    magnitudes = np.abs(x)
    scale = threshold / 127
    inside = magnitudes[magnitudes <= threshold]
    beyond = magnitudes[magnitudes > threshold]
    return float(((inside - np.rint(inside / scale) * scale) ** 2).sum() + clipping * ((beyond - threshold) ** 2).sum())


def centred(x: Float32) -> Float64:
    """Return |x| without the zeros, every value at the middle of its bin, as a histogram knows it."""
    magnitudes = np.abs(x[x != 0], dtype=np.float64)
    width = 2.0 ** (math.frexp(magnitudes.max())[1] - 13)
    return (np.floor(magnitudes / width) + 0.5) * width


# auto


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [50, 1_000, 100_000])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_auto_is_the_best_of_all_strategies_by_its_criterion(distribution: str, n: int, seed: int) -> None:
    x = sample(distribution, n, seed)
    statistics = of(x)
    candidates = [t for t in thresholds(statistics).values() if t > 0]
    found = auto(statistics)
    assert found in candidates
    values = centred(x)
    assert criterion(values, found) <= min(criterion(values, t) for t in candidates) * (1 + 1e-9)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_auto_is_the_best_on_the_values_themselves_too(distribution: str) -> None:
    """The histogram loses no more than a percent of the criterion."""
    x = sample(distribution)
    statistics, values = of(x), x.astype(np.float64)
    least = min(criterion(values, t) for t in thresholds(statistics).values())
    assert criterion(values, auto(statistics)) <= 1.01 * least


def test_clipping_counts_twice() -> None:
    """With equal weights `mse` would win everywhere; for some tensors another strategy clips less and does."""
    chosen = {}
    for distribution in DISTRIBUTIONS:
        for seed in range(10):
            x = sample(distribution, 1_000, seed)
            found, plain = auto(of(x)), mse(of(x))
            once = {t: criterion(centred(x), t, 1.0) for t in (found, plain)}
            twice = {t: criterion(centred(x), t, 2.0) for t in (found, plain)}
            if found != plain:
                chosen[distribution, seed] = found / plain
                assert twice[found] < twice[plain]
                assert once[found] >= once[plain]
    assert chosen  # the weight decides something
    assert all(ratio > 1 for ratio in chosen.values())


def test_auto_does_not_give_up_its_tensor_for_one_outlier() -> None:
    """Ten million Gaussian values and one of 100: not to clip it costs all others their resolution."""
    statistics = of(sample("laplace"))
    for _ in range(9):
        statistics = statistics.merge(statistics)
    statistics.update(np.array([100.0], np.float32))
    assert 3 < auto(statistics) < 50


@pytest.mark.parametrize("doublings", [2, 30])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_zeros_are_no_part_of_the_criterion(distribution: str, doublings: int) -> None:
    """Percentiles move, and with a trillion zeros are 0; the errors of all other values stay what they are."""
    x = sample(distribution, 1_000)
    zeros = of([0.0] * 1_000)
    for _ in range(doublings):
        zeros = zeros.merge(zeros)
    statistics = of(x).merge(zeros)
    least = min(criterion(centred(x), t) for t in thresholds(statistics).values() if t > 0)
    assert criterion(centred(x), auto(statistics)) <= least * (1 + 1e-9)


def test_auto_of_a_mostly_zero_tensor_is_positive() -> None:
    """Every percentile of it is 0, which is no threshold."""
    x = np.zeros(1_000_000, np.float32)
    x[0] = 4.0
    assert [percentile(of(x), p) for p in PERCENTS] == [0.0, 0.0, 0.0]
    assert auto(of(x)) == pytest.approx(4.0, rel=1e-3)


@pytest.mark.parametrize("statistics", [Statistics(), of([0.0]), of([-0.0] * 100)])
def test_nothing_or_zeros_alone_have_no_range(statistics: Statistics) -> None:
    assert auto(statistics) == 0.0


@pytest.mark.parametrize("power", [-60, -1, 1, 60])
def test_the_threshold_has_the_tensors_unit(power: int) -> None:
    x = sample("laplace")
    assert auto(of(np.ldexp(x, power))) == math.ldexp(auto(of(x)), power)
    assert auto(of(-x)) == auto(of(x))


# Settling


def halves(ranges: dict[str, tuple[float | None, float | None]]) -> Observation:
    """Return what saw tensors up to these values in the one half and in the other; None is not computed at all."""
    first, second = (
        {name: Statistics() if (most := pair[i]) is None else of([0.0, most]) for name, pair in ranges.items()}
        for i in range(2)
    )
    return Observation((first, second))


def settling(observation: Observation, strategy: Strategy = "minmax") -> Settling:
    """Return the settling of the plan with one layer for every tensor."""
    layers = [Layer(f"layer {t}", "Conv", t, f"{t}.weight", 0, f"{t}.out") for t in observation.halves[0]]
    placement = Placement(tuple(layers), (), (), {}, frozenset())
    plan = make_plan(strategy, observation.statistics, placement, Origin(model_sha256="m"), QuantizationRules())
    return scale_changes(plan, strategy, observation)


@pytest.mark.parametrize("strategy", ["minmax", "entropy", "mse", PercentileStrategy(percentile=100)])
def test_scales_of_the_same_values_again_do_not_change(strategy: Strategy) -> None:
    x = sample("laplace", 1_000)
    half = {"a": of(x), "b": of(2 * x), "c": of(np.maximum(x, 0))}
    found = settling(Observation((half, half)), strategy)
    assert (found.median, found.most, found.worst) == (0.0, 0.0, 0.0)
    assert found.settled


def test_a_tensor_that_changes_is_named() -> None:
    """The scale of b doubles from half of the samples to all, so that half of them gave 50 % less."""
    found = settling(halves({"a": (1.0, 1.0), "b": (1.0, 2.0), "c": (4.0, 0.5), "d": (2.0, 1.0)}))
    assert (found.median, found.worst, found.tensor) == (0.0, 0.5, "b")
    assert found.most == pytest.approx(0.35)  # of 0, 0, 0, 0.5 at index 0.9 * 3 = 2.7
    assert not found.settled
    assert str(found) == (
        "from half of the samples to all, one scale in ten still changed by more than 35% "
        "(median 0.0%, most 50% at tensor b)"
    )


@pytest.mark.parametrize("doubled", [0, 1, 2, 3, 4, 11])
def test_one_tensor_in_ten_may_change(doubled: int) -> None:
    """Of 21 tensors, two are fewer than one in ten and three are more."""
    found = settling(halves({f"t{i}": (1.0, 2.0 if i < doubled else 1.0) for i in range(21)}))
    assert found.most == (0.5 if doubled > 2 else 0.0)
    assert found.settled == (doubled <= 2)
    assert (found.median, found.worst) == (0.5 if doubled > 10 else 0.0, 0.5 if doubled else 0.0)


@pytest.mark.parametrize(("growth", "settled"), [(1.05, True), (1.11, True), (1.12, False)])
def test_a_change_of_a_tenth_is_settled(growth: float, settled: bool) -> None:
    """1 of 1.11 is 9.9 % less and 1 of 1.12 is 10.7 % less."""
    found = settling(halves({"a": (1.0, growth), "b": (3.0, 3.0 * growth)}))
    assert found.median == pytest.approx(1 - 1 / growth, rel=1e-6)
    assert found.settled is settled


def test_a_scale_that_falls_with_more_samples_has_changed_too() -> None:
    """The median of half of the samples is 3, and of all 2."""
    observation = Observation(({"a": of([3.0] * 10)}, {"a": of([1.0] * 10 + [2.0])}))
    found = settling(observation, PercentileStrategy(percentile=50))
    assert found.worst == pytest.approx(0.5, abs=2 * observation.statistics["a"].width)


def test_a_tensor_without_a_scale_does_not_count() -> None:
    found = settling(halves({"zero": (0.0, 0.0), "never": (None, None), "a": (1.0, 1.0), "b": (1.0, 2.0)}))
    assert (found.median, found.worst, found.tensor) == (0.25, 0.5, "b")


@pytest.mark.parametrize("missing", [None, 0.0])
def test_a_tensor_that_half_of_the_samples_never_reached_changed_by_all_of_it(missing: float | None) -> None:
    found = settling(halves({"rare": (missing, 2.0), "a": (1.0, 1.0)}))
    assert (found.worst, found.tensor) == (1.0, "rare")


@pytest.mark.parametrize("strategy", ["minmax", "entropy", "mse", "auto"])
def test_one_batch_alone_says_nothing(strategy: Strategy) -> None:
    found = settling(halves({"a": (1.0, None), "b": (2.0, None)}), strategy)
    assert math.isnan(found.median) and math.isnan(found.most) and math.isnan(found.worst)
    assert not found.settled
    assert str(found) == "all samples are in one batch, so that it is not known if the scales had settled"
