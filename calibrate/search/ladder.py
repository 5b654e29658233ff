"""Search of the fastest plan that meets a target, over a ladder of plans. Knows no model, only a small protocol.

Layers are ranked once (`sensitivity.py`); a ladder of plans follows from the effects and from what each plan
costs. The samples that make the difference are those whose score INT8 changes, a few in a hundred of all: on them
alone, plans are screened at little cost, and what they let through is judged on all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

__all__ = ["Budget", "CostOf", "Found", "Layers", "Rung", "Tried", "Trier", "ladder", "search"]

_LITTLE = 1 / 64
"""Share of the effects of all layers that is hardly enough to miss a target."""
_AFTER_A_MISS = 1 / 4
"""Share of its effects that the plan after one that was judged and missed may leave."""

Layers = frozenset[str]
CostOf = Callable[[Layers], float]
"""Cost of the plan with these layers in float; lower is faster."""


@dataclass(frozen=True)
class Rung:
    """A plan on the ladder.

    Attributes:
        layers: those in float.
        remaining: sum of the effects of the others.
        cost: of the plan.
    """

    layers: Layers
    remaining: float
    cost: float


@dataclass(frozen=True)
class Tried:
    """What a trial showed.

    Attributes:
        meets: the target, on all judging samples.
        passes: what it took, in runs over all judging samples; below 1 where not all of them ran.
        seconds: what it took, also where it was read from a cache: a resumed search ends as one that ran through.
    """

    meets: bool
    passes: float
    seconds: float


@dataclass(frozen=True)
class Budget:
    """Where a search ends, whichever comes first.

    Attributes:
        passes: over all judging samples; what a trial that is stopped early did not run is left for others.
        minutes: of what went before, and of all screens and trials. Each begins only before they are over.
        seconds_before: what went before took.
    """

    passes: float
    minutes: float = np.inf
    seconds_before: float = 0.0


class Trier(Protocol):
    """Tries plans, given by their layers in float.

    Attributes:
        screen_passes: what a screen takes, in runs over all judging samples.
    """

    screen_passes: float

    def screen(self, layers: Layers) -> Tried:
        """Guess from the few judging samples that all layers in int8 change."""
        ...

    def judge(self, layers: Layers) -> Tried:
        """Try on all judging samples; a plan that is out of reach of the target may be stopped early."""
        ...


@dataclass
class Found:
    """What a search found; `layers` is None where no trial met the target."""

    layers: Layers | None = None
    cut: bool = False
    """The budget ended it before it had screened all that it would."""
    ended: str = ""
    tried: dict[Layers, Tried] = field(default_factory=dict)
    screened: dict[Layers, Tried] = field(default_factory=dict)

    @property
    def passes(self) -> float:
        """Runs over all judging samples, of all trials and screens."""
        return sum(tried.passes for tried in (*self.tried.values(), *self.screened.values()))


def ladder(effects: Mapping[str, float], cost: CostOf) -> list[Rung]:
    """Return plans with more and more layers in float, from none to all but one.

    Layers go in order of effect per cost; one whose way back costs nothing, as that of a lone int8 layer between float
    ones may, goes as soon as that is so. Where another rung has no more remaining effect and costs no more, a rung is
    left out.
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
        back = _with_free(back, effects, cost)
        if len(back) >= len(effects):
            break
        rungs.append(Rung(back, sum(e for other, e in effects.items() if other not in back), cost(back)))
    return [r for i, r in enumerate(rungs) if i == 0 or not any(o.cost <= r.cost for o in rungs[i + 1 :])]


def _with_free(back: Layers, effects: Mapping[str, float], cost: CostOf) -> Layers:
    """Return the layers with those whose way back makes the plan no slower."""
    price = cost(back)
    for layer in effects:
        if layer not in back and len(back) + 2 < len(effects):
            more = back | {layer}
            if (cheaper := cost(more)) <= price:
                back, price = more, cheaper
    return back


class _SpentError(Exception):
    """The budget is used up; the message says which."""


def search(rungs: Sequence[Rung], effects: Mapping[str, float], cost: CostOf, trier: Trier, budget: Budget) -> Found:
    """Return the cheapest plan that was judged to meet the target.

    The lowest rung that meets it, and the fewest layers of that rung, are found by screening: halving, as accuracy
    mostly grows with the layers in float; then a look further down, as it does not always; then each layer of it, the
    least harmful first, goes back to int8 if the screen still says so. Only what comes out of that is judged. Where
    it misses after all, the next one is a rung that leaves a quarter of its effects, or less.

    Args:
        rungs: what `ladder` returned; the first has no layer in float and is known to miss the target.
        effects: of all layers.
        cost: of a plan.
        trier: screens and judges plans.
        budget: of all that it does.
    """
    found = Found()

    def screened(layers: Layers) -> bool:
        """Raises _SpentError where that would leave no pass to judge."""
        if layers in found.tried:  # what was judged and missed is known better
            return found.tried[layers].meets
        if layers not in found.screened:
            try:
                _check(budget, found, trier.screen_passes)
            except _SpentError:
                found.cut = True
                raise
            found.screened[layers] = trier.screen(layers)
        return found.screened[layers].meets

    low = 0
    try:
        while low < len(rungs) - 1:
            _check(budget, found, 0.0)
            index = _lowest_rung(rungs, low, screened)
            layers = rungs[index].layers
            if not found.tried:  # a screen that was wrong once is not asked for more
                layers = _fewer(layers, effects, cost, screened)
            _check(budget, found, 0.0)  # screens took time
            found.tried[layers] = trier.judge(layers)
            if found.tried[layers].meets:
                found.layers = layers
                found.ended = "a plan met the target" + (
                    ", and the budget was too small to look for a faster one" if found.cut else ""
                )
                return found
            wanted = rungs[index].remaining * _AFTER_A_MISS
            above = range(index + 1, len(rungs))
            low = next((i for i in above if rungs[i].remaining <= wanted), len(rungs) - 1) - 1 if above else index
        found.ended = "no plan between all in int8 and all in float met the target"
        if len(rungs) == 1:
            found.ended = "a single layer has no plan between all in int8 and all in float"
    except _SpentError as error:
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
    except _SpentError:
        if high == len(rungs):  # nothing is known to be enough
            little = rungs[0].remaining * _LITTLE
            return next((i for i in range(low + 1, high) if rungs[i].remaining <= little), high - 1)
    return min(high, len(rungs) - 1)


def _fewer(layers: Layers, effects: Mapping[str, float], cost: CostOf, screened: Callable[[Layers], bool]) -> Layers:
    """Return the layers without those that may be int8 after all, as far as the screen tells."""
    try:
        for layer in sorted(layers, key=lambda name: (effects[name], name)):
            fewer = layers - {layer}
            if fewer and cost(fewer) < cost(layers) and screened(fewer):
                layers = fewer
    except _SpentError:
        pass  # what was found so far is good
    return layers


def _check(budget: Budget, found: Found, more: float) -> None:
    """Raise where the budget does not allow `more` passes and one to judge."""
    tried = [*found.tried.values(), *found.screened.values()]
    minutes = (budget.seconds_before + sum(one.seconds for one in tried)) / 60
    if found.passes + more + 1 > budget.passes + 1e-9:
        raise _SpentError("the budget of evaluations was used up")
    if minutes >= budget.minutes:
        raise _SpentError(f"the budget of {budget.minutes:g} minutes was used up")
