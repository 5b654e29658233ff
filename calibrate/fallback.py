"""Puts layers back to float until the policy is met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import accumulate

from calibrate.plan import Precision, QuantizationPlan

__all__ = ["fallback_plans"]

_REDUCTION = 8
"""By how much each trial cuts the error that the layers left in int8 add up to."""


def fallback_plans(
    plan: QuantizationPlan, effects: Mapping[str, float], precision: Precision, max_trials: int
) -> Iterator[tuple[QuantizationPlan, list[str]]]:
    """Yield plans with more and more of the worst layers in `precision`, and those layers, worst first.

    The first puts back as many layers as it takes for the remaining effects to sum to an eighth of all, the next
    to a sixty-fourth, and so on. So it is quick where few layers do the harm and where many do. The caller
    stops at the first plan that meets the policy; it ends after `max_trials`, or where no layer would be left in
    int8: that is the float model, and no answer to whether INT8 may be released.

    Args:
        effects: of every int8 layer on the task's error, worst first.
    """
    # A layer whose error is not finite goes first, and must not make all others look like nothing.
    broken = sum(not math.isfinite(effect) for effect in effects.values())
    layers, removed = list(effects), list(accumulate(list(effects.values())[broken:]))
    total, count = removed[-1] if removed else 0.0, 0
    for trial in range(1, max_trials + 1):
        enough = total * (1 - _REDUCTION**-trial)
        reached = broken + next((k for k, sum_so_far in enumerate(removed, 1) if sum_so_far >= enough), 0)
        last, count = count, min(max(count + 1, reached), len(layers) - 1)
        if count <= last:
            return
        back = layers[:count]
        yield plan.with_layers(frozenset(back), precision, f"{plan.name}+{count}{precision}"), back
