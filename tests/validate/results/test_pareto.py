"""The front against its definition, point by point."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from validate.results import (
    Accuracy,
    BuildResult,
    Candidate,
    CandidateAccuracy,
    Cost,
    NodeCounts,
    ParetoPoint,
    Reference,
)
from validate.results.pareto import FLOAT, front, pareto_points

# Few different numbers, so that ties are the rule.
NUMBERS = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, math.nan, math.inf])
COSTS = st.sampled_from([0.0, 1.0, 2.0, 3.0, math.inf])


def _dominates(other: tuple[float, float], one: tuple[float, float], higher: bool) -> bool:
    (value, cost), (own_value, own_cost) = other, one
    more_accurate = value > own_value if higher else value < own_value
    as_accurate = more_accurate or value == own_value
    return as_accurate and cost <= own_cost and (more_accurate or cost < own_cost)


@given(st.lists(st.tuples(NUMBERS, COSTS), max_size=12), st.booleans())
def test_front_is_what_no_other_dominates(points: list[tuple[float, float]], higher: bool) -> None:
    values, costs = [value for value, _ in points], [cost for _, cost in points]
    expected = [
        not math.isnan(value) and not any(_dominates(other, (value, cost), higher) for other in points)
        for value, cost in points
    ]
    assert front(values, costs, higher).tolist() == expected


def test_direction_of_the_metric_counts() -> None:
    assert front([0.9, 0.8, 0.95], [1.0, 2.0, 3.0], True).tolist() == [True, False, True]
    assert front([0.9, 0.8, 0.95], [1.0, 2.0, 3.0], False).tolist() == [True, True, False]


def test_a_cost_that_is_unknown_is_not_on_the_front() -> None:
    assert front([0.9, 0.8], [math.nan, 2.0], True).tolist() == [False, True]


Basis = Literal["measured", "estimate", "multiply-accumulates"]


def _cost(value: float, basis: Basis = "estimate", source: str = "roofline of an NVIDIA L4") -> Cost:
    return Cost(basis=basis, value=value, unit="ms", source=source)


def _accuracy(value: float) -> CandidateAccuracy:
    return CandidateAccuracy(
        metric="top1",
        higher_is_better=True,
        is_rate=True,
        value=value,
        n=100,
        drop=0.9 - value,
        ci_low=0.89 - value,
        ci_high=0.91 - value,
        confidence=0.95,
        method="m",
    )


def _candidate(name: str, value: float, cost: Cost) -> Candidate:
    return Candidate(
        name=name,
        strategy=name,
        plan=f"plans/{name}.json",
        plan_hash=f"hash of {name}",
        float_layers=[],
        selection_error=None,
        accuracy=_accuracy(value),
        latency=None,
        cost=cost,
        int8_mac_share=0.75,
        nodes=NodeCounts(int8=3, fp16=1, fp32=0),
        size_bytes=1000,
        tensorrt_build=BuildResult(ok=None, backend=None, version=None, message=""),
        layers=[],
    )


REFERENCE = Reference(
    accuracy=Accuracy(metric="top1", higher_is_better=True, is_rate=True, value=0.9, n=100), latency=None
)


def _by_name(points: list[ParetoPoint]) -> dict[str, ParetoPoint]:
    assert len({point.name for point in points}) == len(points)
    return {point.name: point for point in points}


def test_points_are_the_float_model_and_every_candidate_the_fastest_first() -> None:
    candidates = [
        _candidate("slow and bad", 0.7, _cost(3)),
        _candidate("fast", 0.8, _cost(1)),
        _candidate("between", 0.85, _cost(2)),
    ]
    points = pareto_points(REFERENCE, _cost(4), candidates, 4000)
    assert [point.name for point in points] == ["fast", "between", "slow and bad", FLOAT]
    assert [point.on_front for point in points] == [True, True, False, True]
    named = _by_name(points)
    assert (named["fast"].int8_mac_share, named[FLOAT].int8_mac_share) == (0.75, 0)
    assert (named["fast"].size_bytes, named[FLOAT].size_bytes) == (1000, 4000)
    assert named["between"].drop == pytest.approx(0.05)


def test_a_value_that_is_not_a_number_is_a_point_off_the_front() -> None:
    points = _by_name(pareto_points(REFERENCE, _cost(4), [_candidate("broken", math.nan, _cost(1))]))
    assert not points["broken"].on_front
    assert points[FLOAT].on_front


@pytest.mark.parametrize(
    "other", [_cost(3, "measured"), _cost(3, source="roofline of an NVIDIA H100")], ids=["basis", "source"]
)
def test_costs_that_are_known_in_different_ways_do_not_compare(other: Cost) -> None:
    candidates = [_candidate("of another kind", 0.5, other), _candidate("alike", 0.9, _cost(2))]
    points = pareto_points(REFERENCE, _cost(4), candidates)
    assert [(point.name, point.on_front) for point in points] == [
        ("alike", True),
        (FLOAT, False),
        ("of another kind", True),  # slower and worse than "alike" by numbers that mean something else
    ]
