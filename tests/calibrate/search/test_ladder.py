"""The search against models whose best plan is known, by brute force or because it was planted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from calibrate.search.ladder import Budget, Layers, TrialResult, ladder, search
from calibrate.search.sensitivity import effects_of_layers, ranking_samples


@dataclass
class Model:
    """One on which every layer in int8 costs some accuracy, and more where two ruined ones meet.

    Screens see a part of the samples: `optimism` is by how much they underestimate a drop.
    """

    harm: dict[str, float]
    margin: float
    optimism: float = 0.0
    screen_passes: float = 0.05
    judged: list[Layers] = field(default_factory=list)

    def drop(self, back: Layers) -> float:
        left = [harm for name, harm in self.harm.items() if name not in back]
        return sum(left) + 0.5 * max(left, default=0.0) * (len(left) > 1)

    def screen(self, layers: Layers) -> TrialResult:
        return TrialResult(self.drop(layers) - self.optimism <= self.margin, self.screen_passes, 1.0)

    def judge(self, layers: Layers) -> TrialResult:
        self.judged.append(layers)
        return TrialResult(self.drop(layers) <= self.margin, 1.0, 60.0)

    def cost(self, back: Layers) -> float:
        return len(self.harm) + len(back)

    def fewest(self) -> int:
        names = list(self.harm)
        for count in range(1, len(names)):
            if any(self.drop(frozenset(back)) <= self.margin for back in itertools.combinations(names, count)):
                return count
        raise AssertionError("no plan meets the target")


def found_by(model: Model, budget: Budget, effects: dict[str, float] | None = None) -> Layers | None:
    effects = effects or dict(sorted(model.harm.items(), key=lambda item: -item[1]))
    return search(ladder(effects, model.cost), effects, model.cost, model, budget).layers


@pytest.mark.parametrize("seed", range(30))
def test_it_finds_as_few_layers_as_trying_all_subsets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harm = {f"layer{i}": float(x) for i, x in enumerate(rng.lognormal(0, 2, 9))}
    model = Model(harm, margin=float(rng.uniform(0.02, 0.5)) * sum(harm.values()))
    if model.drop(frozenset()) <= model.margin:
        pytest.skip("all int8 meets the target")
    back = found_by(model, Budget(math.inf))
    assert back is not None and len(back) == model.fewest()
    assert len(model.judged) == 1


@pytest.mark.parametrize("seed", range(10))
def test_a_ranking_with_errors_is_mended_by_taking_layers_back_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    harm = dict.fromkeys((f"layer{i}" for i in range(60)), 1e-4) | {"bad0": 1.0, "bad1": 1.0, "bad2": 1.0}
    wrong = {name: float(rng.uniform(0.5, 1)) for name in rng.choice(list(harm)[:60], 4, replace=False)}
    effects = dict(sorted((harm | wrong).items(), key=lambda item: -item[1]))
    assert found_by(Model(harm, margin=0.1), Budget(3.0), effects) == {"bad0", "bad1", "bad2"}


def test_planted_layers_are_found_at_the_price_that_the_issue_names() -> None:
    harm = dict.fromkeys((f"layer{i}" for i in range(120)), 1e-5) | {"p": 0.5, "q": 0.3, "r": 0.2}
    model = Model(harm, margin=0.01)
    effects = dict(sorted(harm.items(), key=lambda item: -item[1]))
    found = search(ladder(effects, model.cost), effects, model.cost, model, Budget(3.0))
    assert found.layers == {"p", "q", "r"}
    assert found.passes <= 3.0


def test_what_the_screen_lets_through_is_never_taken_at_its_word() -> None:
    harm = {f"layer{i}": 2.0**-i for i in range(20)}
    model = Model(harm, margin=0.05, optimism=0.3)
    back = found_by(model, Budget(5.0))
    assert back is not None and model.drop(back) <= model.margin
    assert len(model.judged) > 1


@pytest.mark.parametrize("passes", [0.0, 0.99, 1.0, 1.5, 2.0, 3.0])
def test_it_never_takes_more_than_its_budget(passes: float) -> None:
    harm = {f"layer{i}": 1.0 for i in range(30)}
    model = Model(harm, margin=0.5, optimism=3.0, screen_passes=0.2)
    effects = dict(harm)
    found = search(ladder(effects, model.cost), effects, model.cost, model, Budget(passes))
    assert found.passes <= passes + 1e-9
    assert len(model.judged) == (passes >= 1)  # and the screen takes what is over, to choose what is judged
    assert passes >= 1 or found.ended == "the budget of evaluations was used up"


def test_minutes_end_it_too_and_the_sentence_says_so() -> None:
    harm = {f"layer{i}": 1.0 for i in range(30)}
    model = Model(harm, margin=0.5, optimism=50.0)
    effects = dict(harm)
    found = search(ladder(effects, model.cost), effects, model.cost, model, Budget(math.inf, minutes=2.0))
    assert len(model.judged) == 2
    assert found.ended == "the budget of 2 minutes was used up"


def test_what_went_before_takes_minutes_too() -> None:
    model = Model({f"layer{i}": 1.0 for i in range(30)}, margin=0.5)
    found = search(
        ladder(model.harm, model.cost), model.harm, model.cost, model, Budget(math.inf, minutes=2.0, seconds_before=120)
    )
    assert not model.judged and not found.screened
    assert found.ended == "the budget of 2 minutes was used up"


def test_no_trial_begins_when_screens_took_all_the_minutes() -> None:
    model = Model({f"layer{i}": 1.0 for i in range(30)}, margin=0.5)
    found = search(ladder(model.harm, model.cost), model.harm, model.cost, model, Budget(math.inf, minutes=2.5 / 60))
    assert len(found.screened) == 3  # of a second each
    assert not model.judged
    assert found.ended == "the budget of 0.0416667 minutes was used up"


def test_a_layer_that_breaks_the_model_goes_first_and_hides_no_other() -> None:
    harm = {"a": math.inf, "b": 0.5, "c": 1e-6, "d": 1e-6, "e": 1e-6}
    assert found_by(Model(harm, margin=0.01), Budget(math.inf)) == {"a", "b"}


def test_a_target_out_of_reach_is_no_plan_and_says_so() -> None:
    harm = {"a": 1.0, "b": 1.0, "c": 1.0}
    model = Model(harm, margin=0.0)
    found = search(ladder(harm, model.cost), harm, model.cost, model, Budget(math.inf))
    assert found.layers is None
    assert found.ended == "no plan between all in int8 and all in float met the target"


def test_a_single_layer_has_nothing_to_try() -> None:
    model = Model({"a": 1.0}, margin=0.5)
    found = search(ladder(model.harm, model.cost), model.harm, model.cost, model, Budget(math.inf))
    assert found.layers is None and not model.judged
    assert found.ended == "a single layer has no plan between all in int8 and all in float"


@pytest.mark.parametrize("layers", range(2, 8))
def test_some_layer_always_stays_in_int8(layers: int) -> None:
    effects = {f"layer{i}": 1.0 for i in range(layers)}
    rungs = ladder(effects, lambda back: layers + len(back))
    assert [len(rung.layers) for rung in rungs] == list(range(layers))
    assert [rung.remaining for rung in rungs] == [float(layers - k) for k in range(layers)]


def test_layers_go_by_what_they_do_for_what_they_cost() -> None:
    effects = {"dear": 1.0, "cheap": 0.9, "idle": 0.01}
    price = {"dear": 10.0, "cheap": 1.0, "idle": 1.0}
    rungs = ladder(effects, lambda back: sum(price[name] for name in back))
    assert [rung.layers for rung in rungs] == [set(), {"cheap"}, {"cheap", "dear"}]


def test_a_lone_int8_layer_whose_way_back_costs_nothing_goes_with_its_neighbours() -> None:
    effects = {"first": 1.0, "lone": 1e-9, "last": 0.5, "other": 0.1, "more": 0.1}

    def cost(back: Layers) -> float:  # between two float layers, an int8 one pays for two reformats
        return 5.0 + len(back - {"lone"}) + ({"first", "last"} <= back) * (0.0 if "lone" in back else 1.0)

    assert {"first", "last", "lone"} in [rung.layers for rung in ladder(effects, cost)]


def test_the_effect_of_a_layer_is_the_geometric_mean_of_its_errors_alone() -> None:
    errors = {"a": [1e-4, 1.0], "b": [0.02, 0.02], "c": [math.nan, 1e-3], "d": [0.0, 0.0]}
    effects = effects_of_layers(list(errors), lambda layer, sample: errors[layer][sample], range(2))
    assert list(effects) == ["c", "b", "a", "d"]
    assert effects["c"] == math.inf
    assert effects["a"] == pytest.approx(0.01)
    assert effects["b"] == pytest.approx(0.02)


@pytest.mark.parametrize(("layers", "pool"), [(1, 1), (3, 64), (51, 64), (94, 64), (150, 64), (150, 200), (400, 64)])
def test_ranking_takes_few_samples_spread_over_the_pool(layers: int, pool: int) -> None:
    chosen = ranking_samples(layers, pool)
    assert 1 <= len(chosen) <= 4
    assert chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < pool
    if (layers + 1) <= 4 * pool:
        assert (layers + 1) * len(chosen) <= 4 * pool
