"""Thresholds applied to comparisons: what is not within them, and what could not be computed, never passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from validate.exceptions import UsageError
from validate.layerwise.comparison import (
    Comparison,
    Execution,
    LayerDifference,
    QuantizedInput,
    RuntimeDifference,
    TensorDifference,
)
from validate.layerwise.thresholds import (
    Limits,
    Override,
    Thresholds,
    by_growth,
    by_isolated,
    judge,
)
from validate.settings import read_settings

WHERE = Execution(model="m", runtime="r", device="d")
NOTHING = Thresholds(accumulated=Limits(), isolated=Limits())


def difference(sqnr_db: float = 30.0, problem: str | None = None, **fields: Any) -> TensorDifference:
    values: dict[str, Any] = {
        "elements": 10,
        "sqnr_db": sqnr_db,
        "cosine": 0.999,
        "relative_l2": 0.03,
        "max_abs": 0.5,
        "mean_abs": 0.1,
        "match_share": 0.2,
        "reference_not_finite": 0,
        "other_not_finite": 0,
        "first_not_finite": None,
    }
    return TensorDifference(**values | fields, problem=problem)


def layer(name: str, depth: int = 0, **fields: Any) -> LayerDifference:
    values: dict[str, Any] = {
        "tensor": name,
        "candidate_tensor": name,
        "node": f"node_{name}",
        "op_type": "Conv",
        "depth": depth,
        "precision": "int8",
        "inputs": [],
        "quantized_inputs": [],
        "accumulated": difference(),
        "growth_db": 1.0,
        "isolated": difference(),
    }
    return LayerDifference(**values | fields)


def comparison(*layers: LayerDifference, samples: int = 8) -> Comparison:
    return Comparison(
        created="",
        command="",
        reference=WHERE,
        candidate=WHERE,
        samples=samples,
        passes=3,
        layers=list(layers),
        unpaired=[],
        environment={},
    )


@pytest.mark.parametrize("view", ["accumulated", "isolated"])
@pytest.mark.parametrize(
    ("limit", "field", "within", "beyond"),
    [
        ("min_sqnr_db", "sqnr_db", 20.0, 19.9),
        ("min_cosine", "cosine", 0.9, 0.89),
        ("max_relative_l2", "relative_l2", 0.1, 0.11),
        ("max_abs", "max_abs", 2.0, 2.1),
    ],
)
def test_a_limit_holds_to_the_value_and_nan_is_beyond_it(
    view: str, limit: str, field: str, within: float, beyond: float
) -> None:
    thresholds = NOTHING.model_copy(update={view: Limits(**{limit: within})})
    for value, passes in ((within, True), (beyond, False), (math.nan, False)):
        judgement = judge(comparison(layer("a", **{view: difference(**{field: value})})), thresholds)
        assert judgement.passed is passes
        assert (judgement.first == "a") is not passes


def test_growth_beyond_its_limit_fails() -> None:
    thresholds = NOTHING.model_copy(update={"accumulated": Limits(max_growth_db=10)})
    assert judge(comparison(layer("a", growth_db=10)), thresholds).passed
    judgement = judge(comparison(layer("a", growth_db=10.1)), thresholds)
    assert judgement.layers[0].failures == ["error grows by 10.1 dB over its inputs, more than 10"]


def test_nothing_compared_never_passes() -> None:
    assert not judge(comparison(), NOTHING).passed
    assert not judge(comparison(layer("a"), samples=0), NOTHING).passed


@pytest.mark.parametrize("view", ["accumulated", "isolated"])
def test_what_could_not_be_computed_never_passes(view: str) -> None:
    broken = layer("a", **{view: difference(math.nan, "shapes differ: (1,) and (2,)")})
    judgement = judge(comparison(broken), NOTHING)
    assert not judgement.passed
    assert judgement.layers[0].failures == [f"{view}: shapes differ: (1,) and (2,)"]


def test_the_last_override_that_matches_holds() -> None:
    loose, strict = Limits(min_sqnr_db=1), Limits(min_sqnr_db=50)
    thresholds = Thresholds(
        overrides=[Override(pattern="^node_", isolated=loose), Override(pattern="b$", isolated=strict)],
        isolated=Limits(min_sqnr_db=40),
    )
    judgement = judge(comparison(layer("a"), layer("b", 1), layer("c", 2)), thresholds)
    assert [verdict.tensor for verdict in judgement.layers] == ["b"]


def test_clipping_is_asked_of_every_quantized_input() -> None:
    inputs = [
        QuantizedInput(tensor=f"t{share}", scale=1, low=-128.5, high=127.5, clipped_share=share, amax=200)
        for share in (0.001, 0.2)
    ]
    quantized = comparison(layer("a", quantized_inputs=inputs))
    assert judge(quantized, NOTHING).passed
    judgement = judge(quantized, NOTHING.model_copy(update={"max_clipped_share": 0.1}))
    assert judgement.layers[0].failures == ["20.00% of its input t0.2 are clipped, more than 10.00%"]


@pytest.mark.parametrize(
    ("excess", "low", "problem", "passes"),
    [
        (5.0, 2.9, None, True),
        (5.0, 3.1, None, False),
        (5.0, math.nan, None, False),
        (0.0, 0.0, "shapes differ", False),
    ],
)
def test_a_runtime_is_judged_by_the_bound_of_its_excess(
    excess: float, low: float, problem: str | None, passes: bool
) -> None:
    runtime = RuntimeDifference(
        difference=difference(problem=problem), floor_db=30, excess_db=excess, excess_low_db=low
    )
    assert judge(comparison(layer("a", runtime=runtime)), NOTHING).passed is passes


def test_ranks_put_nan_first_and_keep_the_order_of_ties() -> None:
    layers = [
        layer("exact", 0, isolated=difference(math.inf), growth_db=0.0),
        layer("early", 1, isolated=difference(5), growth_db=3.0),
        layer("late", 2, isolated=difference(5), growth_db=3.0),
        layer("nan", 3, isolated=difference(math.nan, "NaN"), growth_db=math.inf),
        layer("unknown", 4, isolated=None, growth_db=None),
    ]
    assert [x.tensor for x in by_isolated(layers[::-1])] == ["nan", "early", "late", "exact"]
    assert [x.tensor for x in by_growth(layers[::-1])] == ["nan", "early", "late", "exact"]
    judgement = judge(comparison(*layers), NOTHING)
    assert (judgement.first, judgement.worst_isolated, judgement.worst_accumulated) == ("nan", "nan", "nan")


def test_thresholds_are_read_from_yaml_and_a_typo_is_named(tmp_path: Path) -> None:
    path = tmp_path / "strict.yaml"
    path.write_text("runtime: {max_excess_db: 1}\noverrides:\n  - {pattern: attention, isolated: {min_cosine: 0.9}}\n")
    thresholds = read_settings(Thresholds, path)
    assert thresholds.runtime.max_excess_db == 1 and thresholds.overrides[0].isolated.min_cosine == 0.9
    assert thresholds.isolated == Thresholds().isolated
    for text, said in (
        ("overrides:\n  - pattern: '['\n", "line 2: overrides.0.pattern"),
        ("isolated:\n  min_sqnr_dB: 3\n", "line 2: isolated.min_sqnr_dB is not a known key; did you mean min_sqnr_db"),
        ("isolated: {min_sqnr_db: .nan}\n", "line 1: isolated.min_sqnr_db"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=r"^[^\n]+$") as error:
            read_settings(Thresholds, path)
        assert said in str(error.value)
