"""Search of the fastest plan that meets a target, over a ladder of plans. Runs no model: a `PlanEvaluator` does.

Layers are ranked once (`sensitivity.py`); a ladder of plans follows from the effects and from the cost of each plan.
INT8 changes the scores of only a few samples in a hundred. Plans are screened on these alone, at little cost, and a
plan that passes the screen is judged on all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

__all__ = ["Budget", "CostOf", "Layers", "PlanEvaluator", "Rung", "SearchResult", "TrialResult", "ladder", "search"]

_NEGLIGIBLE_SHARE = 1 / 64
"""Share of the effects of all layers that is taken to be too small to miss a target."""
_SHARE_AFTER_MISS = 1 / 4
"""After a plan was judged and missed the target: the share of its remaining effects that the next plan may have."""

Layers = frozenset[str]
CostOf = Callable[[Layers], float]
"""Cost of the plan with these layers in float; lower is faster."""


@dataclass(frozen=True)
class Rung:
    """A plan on the ladder.

    Attributes:
        layers: names of the layers in float.
        remaining: sum of the effects of the layers in int8.
        cost: of the plan, in the unit of the cost function.
    """

    layers: Layers
    remaining: float
    cost: float


@dataclass(frozen=True)
class TrialResult:
    """Result of one screen or trial of a plan.

    Attributes:
        meets: whether the plan meets the target.
        passes: samples that were run, as a share of all judging samples; below 1 where not all of them ran.
        seconds: time that it took when it was computed. A result from the cache keeps it, so that a resumed search
            ends like one that was not interrupted.
    """

    meets: bool
    passes: float
    seconds: float


@dataclass(frozen=True)
class Budget:
    """Limits of a search; the first one that is reached ends it.

    Attributes:
        passes: runs over all judging samples. A trial that is stopped early uses only the part that it ran.
        minutes: time of the ranking, and of all screens and trials. None of them begins after that.
        seconds_before: time that the ranking took, in seconds.
    """

    passes: float
    minutes: float = np.inf
    seconds_before: float = 0.0


class PlanEvaluator(Protocol):
    """Evaluates plans against the target. A plan is given by its layers in float.

    Attributes:
        screen_passes: cost of a screen, in runs over all judging samples.
    """

    screen_passes: float

    def screen(self, layers: Layers) -> TrialResult:
        """Estimate whether a plan meets the target, from the few judging samples whose scores INT8 changes."""
        ...

    def judge(self, layers: Layers) -> TrialResult:
        """Evaluate a plan on all judging samples; may stop early where it can hardly meet the target any more."""
        ...


@dataclass
class SearchResult:
    """Result of a search.

    Attributes:
        layers: layers in float of the plan that met the target; None where no trial did.
        cut: whether the budget ended the search before all screens were done.
        ended: a sentence that says why the search ended.
        judged: result of every trial on all judging samples, by the layers in float.
        screened: result of every screen, by the layers in float.
    """

    layers: Layers | None = None
    cut: bool = False
    ended: str = ""
    judged: dict[Layers, TrialResult] = field(default_factory=dict)
    screened: dict[Layers, TrialResult] = field(default_factory=dict)

    @property
    def passes(self) -> float:
        """Runs over all judging samples, of all trials and screens."""
        return sum(tried.passes for tried in (*self.judged.values(), *self.screened.values()))


def ladder(effects: Mapping[str, float], cost: CostOf) -> list[Rung]:
    """Return plans with more and more layers in float, from none to at most all but one.

    Layers go to float in order of effect per added cost. A layer whose way back costs nothing, for example a single
    int8 layer between float ones, goes as soon as that is so. A rung is left out where a later one costs no more.

    Args:
        effects: task error of each layer alone in int8, by layer, >= 0; see `effects_of_layers`.
        cost: of a plan, from its layers in float.

    Examples:
        >>> rungs = ladder({"a": 8.0, "b": 1.0, "c": 0.5}, cost=lambda layers: 10.0 + len(layers))
        >>> [(sorted(rung.layers), rung.remaining, rung.cost) for rung in rungs]
        [([], 9.5, 10.0), (['a'], 1.5, 11.0), (['a', 'b'], 0.5, 12.0)]
    """
    nothing: Layers = frozenset()
    start = cost(nothing)
    single = {layer: cost(frozenset({layer})) - start for layer in effects}
    least = max(max(single.values(), default=0.0), 0.0) * 1e-6 + 1e-30
    order = sorted(effects, key=lambda layer: -effects[layer] / max(single[layer], least))
    rungs = [Rung(nothing, sum(effects.values()), start)]
    for layer in order:
        last = rungs[-1]
        if layer in last.layers:
            continue
        back = last.layers | {layer}
        back = _with_free_layers(back, effects, cost)
        if len(back) >= len(effects):
            break
        rungs.append(Rung(back, sum(e for other, e in effects.items() if other not in back), cost(back)))
    return [r for i, r in enumerate(rungs) if i == 0 or not any(o.cost <= r.cost for o in rungs[i + 1 :])]


def _with_free_layers(back: Layers, effects: Mapping[str, float], cost: CostOf) -> Layers:
    """Return the layers, and those that make the plan no slower when they are put back to float too."""
    price = cost(back)
    for layer in effects:
        if layer not in back and len(back) + 2 < len(effects):
            more = back | {layer}
            if (cheaper := cost(more)) <= price:
                back, price = more, cheaper
    return back


class _BudgetSpentError(Exception):
    """The budget is used up; the message says which."""


def search(
    rungs: Sequence[Rung], effects: Mapping[str, float], cost: CostOf, evaluator: PlanEvaluator, budget: Budget
) -> SearchResult:
    """Search the cheapest plan that meets the target.

    1. Bisection by screens finds the lowest rung that meets the target, as accuracy mostly grows with the layers in
       float; one more screen further down follows, as it does not always.
    2. Each layer of that rung, the least harmful first, goes to int8 again if the plan still passes the screen.
    3. The plan that results is judged on all samples. Where it misses, the search goes on from the first rung that has
       at most a quarter of its remaining effects.

    Args:
        rungs: what `ladder` returned; the first has no layer in float and is known to miss the target.
        effects: task error of each layer alone in int8, by layer.
        cost: of a plan, from its layers in float.
        evaluator: screens and judges plans.
        budget: limits of the whole search.

    Examples:
        >>> class NeedsLayerA:
        ...     screen_passes = 0.1
        ...     def screen(self, layers):
        ...         return TrialResult("a" in layers, passes=0.1, seconds=1.0)
        ...     def judge(self, layers):
        ...         return TrialResult("a" in layers, passes=1.0, seconds=9.0)
        >>> effects, cost = {"a": 8.0, "b": 1.0, "c": 0.5}, lambda layers: 10.0 + len(layers)
        >>> found = search(ladder(effects, cost), effects, cost, NeedsLayerA(), Budget(passes=3))
        >>> sorted(found.layers), found.ended
        (['a'], 'a plan met the target')
    """
    found = SearchResult()

    def screened(layers: Layers) -> bool:
        """Raises _BudgetSpentError where that would leave no pass to judge."""
        if layers in found.judged:  # what was judged and missed is known better
            return found.judged[layers].meets
        if layers not in found.screened:
            try:
                _require_budget(budget, found, evaluator.screen_passes)
            except _BudgetSpentError:
                found.cut = True
                raise
            found.screened[layers] = evaluator.screen(layers)
        return found.screened[layers].meets

    low = 0
    try:
        while low < len(rungs) - 1:
            _require_budget(budget, found, 0.0)
            index = _lowest_rung(rungs, low, screened)
            layers = rungs[index].layers
            if not found.judged:  # a screen that was wrong once is not asked for more
                layers = _without_needless_layers(layers, effects, cost, screened)
            _require_budget(budget, found, 0.0)  # screens took time
            found.judged[layers] = evaluator.judge(layers)
            if found.judged[layers].meets:
                found.layers = layers
                found.ended = "a plan met the target" + (
                    ", and the budget was too small to look for a faster one" if found.cut else ""
                )
                return found
            wanted = rungs[index].remaining * _SHARE_AFTER_MISS
            above = range(index + 1, len(rungs))
            low = next((i for i in above if rungs[i].remaining <= wanted), len(rungs) - 1) - 1 if above else index
        found.ended = "no plan between all in int8 and all in float met the target"
        if len(rungs) == 1:
            found.ended = "a single layer has no plan between all in int8 and all in float"
    except _BudgetSpentError as error:
        found.ended = str(error)
    return found


def _lowest_rung(rungs: Sequence[Rung], low: int, screened: Callable[[Layers], bool]) -> int:
    """Return the lowest rung above `low` that the screen lets through; the last one where it lets none."""
    missed, high = low, len(rungs)
    try:
        step = low + 1
        while high - low > 1:  # from below: most models need few layers back
            middle = min(step, high - 1) if high == len(rungs) else (low + high) // 2
            low, high = (low, middle) if screened(rungs[middle].layers) else (middle, high)
            step = 2 * middle
        if missed < high - 2 and high < len(rungs) and screened(rungs[high - 2].layers):
            high -= 2
    except _BudgetSpentError:
        if high == len(rungs):  # nothing is known to be enough
            little = rungs[0].remaining * _NEGLIGIBLE_SHARE
            return next((i for i in range(low + 1, high) if rungs[i].remaining <= little), high - 1)
    return min(high, len(rungs) - 1)


def _without_needless_layers(
    layers: Layers, effects: Mapping[str, float], cost: CostOf, screened: Callable[[Layers], bool]
) -> Layers:
    """Return the layers without those that may be int8 after all, as far as the screens tell."""
    try:
        for layer in sorted(layers, key=lambda name: (effects[name], name)):
            fewer = layers - {layer}
            if fewer and cost(fewer) < cost(layers) and screened(fewer):
                layers = fewer
    except _BudgetSpentError:
        pass  # what was found so far is good
    return layers


def _require_budget(budget: Budget, found: SearchResult, more: float) -> None:
    """Raise _BudgetSpentError where the budget does not allow `more` passes and one more to judge."""
    tried = [*found.judged.values(), *found.screened.values()]
    minutes = (budget.seconds_before + sum(one.seconds for one in tried)) / 60
    if found.passes + more + 1 > budget.passes + 1e-9:
        raise _BudgetSpentError("the budget of evaluations was used up")
    if minutes >= budget.minutes:
        raise _BudgetSpentError(f"the budget of {budget.minutes:g} minutes was used up")
