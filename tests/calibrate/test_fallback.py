"""Layers go back to float in the order of the harm that they do, and never all of them."""

import math

import numpy as np
import pytest

from calibrate.config import PercentileStrategy
from calibrate.fallback import fallback_plans
from calibrate.origin import Origin
from calibrate.plan import QuantizationPlan
from calibrate.planning import strategy_name
from calibrate.sensitivity import rank_layers


def plan_of(layers: int) -> QuantizationPlan:
    names = [f"layer{i}" for i in range(layers)]
    return QuantizationPlan(
        name="mse", strategy="mse", origin=Origin(model_sha256="0"), scales={}, layers=dict.fromkeys(names, "int8"),
        float_precision="fp32",
    )  # fmt: skip


def counts(effects: list[float], max_trials: int = 10) -> list[int]:
    plan = plan_of(len(effects))
    named = dict(zip(plan.layers, effects, strict=True))
    trials = list(fallback_plans(plan, named, "fp16", max_trials))
    for trial, back in trials:
        assert back == list(named)[: len(back)]
        assert {name for name, precision in trial.layers.items() if precision == "fp16"} == set(back)
    return [len(back) for _, back in trials]


def test_each_trial_leaves_an_eighth_of_the_error() -> None:
    assert counts([0.9, 0.05, 0.04, 0.008, 0.002, 0.001], max_trials=2) == [1, 3]
    assert counts([1.0] * 64, max_trials=1) == [56]


@pytest.mark.parametrize("layers", range(2, 8))
def test_some_layer_always_stays_in_int8(layers: int) -> None:
    tried = counts([1.0] * layers)
    assert tried
    assert max(tried) == layers - 1
    assert tried == sorted(set(tried))


def test_one_layer_has_no_mixed_plan() -> None:
    assert counts([1.0]) == []
    assert counts([]) == []


def test_a_layer_that_breaks_the_model_goes_first_and_hides_no_other() -> None:
    assert counts([math.inf, math.inf, 0.9, 0.05, 0.01], max_trials=1) == [3]


def test_the_effect_of_a_layer_is_the_error_with_it_alone_in_int8() -> None:
    harm = {"layer0": 0.1, "layer1": 3.0, "layer2": 0.5}

    def errors_of(plan: QuantizationPlan) -> np.ndarray:
        (alone,) = plan.int8_layers
        return np.array([harm[alone], 3 * harm[alone]])

    assert rank_layers(plan_of(3), errors_of) == pytest.approx({"layer1": 6.0, "layer2": 1.0, "layer0": 0.2})
    assert list(rank_layers(plan_of(3), errors_of)) == ["layer1", "layer2", "layer0"]


def test_no_two_percentiles_share_a_name() -> None:
    percents = [100, 99.99999, 99.99995, 99.9999, 99.999, 99.0, 99]
    names = [strategy_name(PercentileStrategy(percentile=percent)) for percent in percents]
    assert names == [
        "percentile-100", "percentile-99.99999", "percentile-99.99995", "percentile-99.9999", "percentile-99.999",
        "percentile-99", "percentile-99",
    ]  # fmt: skip
