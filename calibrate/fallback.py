"""Searches the fastest plan that meets a target, by putting layers back to float. Sees a small protocol, no framework.

Layers are ranked once (`calibrate.sensitivity`); a ladder of plans follows from the effects and from what each plan
costs; a handful of trials find the lowest rung that meets the target. Accuracy is not monotone along the ladder, so
that neighbours are checked, and a backward pass takes layers back to int8 one at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Budget", "CostOf", "Found", "Layers", "Rung", "Tried", "ladder", "search"]

_STEP = 8.0
"""By how much the first trial, and each one after a miss, cuts the effects that the layers left in int8 add up to."""

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
        passes: what it took, in runs over all judging samples; below 1 where it was stopped early.
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
        minutes: of trials.
    """

    passes: float
    minutes: float = np.inf


@dataclass
class Found:
    """What a search found; `layers` is None where no trial met the target."""

    layers: Layers | None = None
    cost: float = np.inf
    ended: str = ""
    tried: dict[Layers, Tried] = field(default_factory=dict)

    @property
    def passes(self) -> float:
        """Runs over all judging samples, over all trials."""
        return sum(tried.passes for tried in self.tried.values())


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
    return [r for i, r in enumerate(rungs) if not any(o.cost <= r.cost for o in rungs[i + 1 :])]


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


def search(
    rungs: Sequence[Rung], effects: Mapping[str, float], cost: CostOf, judge: Callable[[Layers], Tried], budget: Budget
) -> Found:
    """Return the cheapest plan that met the target in a trial.

    Args:
        rungs: what `ladder` returned; the first has no layer in float and is known to miss the target.
        effects: of all layers.
        cost: of a plan.
        judge: tries a plan.
        budget: of all trials.
    """
    found = Found()
    started = found.tried

    def meets(layers: Layers) -> bool:
        if layers not in started:
            _check(budget, found)
            started[layers] = judge(layers)
            if started[layers].meets and (price := cost(layers)) < found.cost:
                found.layers, found.cost = layers, price
        return started[layers].meets

    try:
        low, high = 0, len(rungs)  # the highest rung that missed, and the lowest that met the target
        while high - low > 1:
            middle = _next_rung(rungs, low, high)
            if meets(rungs[middle].layers):
                high = middle
            else:
                low = middle
        if found.layers is None:
            found.ended = "no plan with a layer in int8 met the target"
            return found
        if low > 1:  # accuracy is not monotone: a neighbour below a miss may meet the target
            meets(rungs[low - 1].layers)
        _backward(found, effects, cost, meets)
        found.ended = "no layer can go back to int8 without missing the target"
    except _SpentError as error:
        found.ended = str(error)
    return found


def _next_rung(rungs: Sequence[Rung], low: int, high: int) -> int:
    """Return the rung to try between two: halfway in the logarithm of the remaining effects."""
    remaining = np.array([rung.remaining for rung in rungs])
    if not np.isfinite(remaining[low]):  # layers that break the model go first
        finite = int(np.argmax(np.isfinite(remaining)))
        if low < finite < high:
            return finite
    if high == len(rungs):
        wanted = remaining[low] / _STEP
    else:
        wanted = np.sqrt(max(remaining[low], 1e-300) * max(remaining[high], 1e-300))
    inside = np.arange(low + 1, high)
    reached = inside[remaining[inside] <= wanted]
    return int(reached[0]) if reached.size and (high == len(rungs) or reached[0] < high) else int(inside[-1])


def _backward(found: Found, effects: Mapping[str, float], cost: CostOf, meets: Callable[[Layers], bool]) -> None:
    """Take layers of the best plan back to int8, those first that cost most for what they do, while that holds."""
    assert found.layers is not None
    for layer in sorted(found.layers, key=lambda name: (effects[name], name)):
        fewer = found.layers - {layer}
        if fewer and cost(fewer) < found.cost:
            meets(fewer)


def _check(budget: Budget, found: Found) -> None:
    minutes = sum(tried.seconds for tried in found.tried.values()) / 60
    if found.passes + 1 > budget.passes + 1e-9:  # the next trial may take a whole pass
        raise _SpentError(f"the budget of {budget.passes:g} runs over the judging samples was used up")
    if minutes >= budget.minutes:
        raise _SpentError(f"the budget of {budget.minutes:g} minutes was used up")
