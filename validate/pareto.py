"""Which models are worth having: those than which no other is both more accurate and faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from validate.results import Candidate, Cost, ParetoPoint, Reference, Trial

__all__ = ["FLOAT", "CostKind", "cost_kind", "front", "pareto_points"]

FLOAT = "float reference"
"""Name of the point of the float model."""

CostKind = tuple[str, str, str]
"""Basis, unit and source of a cost."""


def cost_kind(cost: Cost) -> CostKind:
    """Return what two costs must have in common to be compared.

    A measured millisecond and an estimated one are different quantities: an estimate leaves out what it does not
    know of, so that on one axis the model that was not measured would win. Estimates for two GPUs differ alike.
    """
    return cost.basis, cost.unit, cost.source


def front(values: ArrayLike, costs: ArrayLike, higher_is_better: bool) -> NDArray[np.bool_]:
    """Return which points are on the Pareto front.

    A point is on it where no other is at least as good in both and better in one, so equal points are on it
    together. One that has a NaN is not on it, and keeps no other off it.

    Args:
        values: of the metric, shape (n,).
        costs: shape (n,); lower is better.
        higher_is_better: the direction of the metric.

    Returns:
        Shape (n,).
    """
    cost = np.asarray(costs, np.float64)
    loss = np.asarray(values, np.float64) * (-1.0 if higher_is_better else 1.0)
    # [i, j]: j against i. Quadratic, which is nothing for the models of one run.
    no_worse = (loss <= loss[:, None]) & (cost <= cost[:, None])
    better = (loss < loss[:, None]) | (cost < cost[:, None])
    on_front: NDArray[np.bool_] = ~(no_worse & better).any(axis=1) & ~np.isnan(loss) & ~np.isnan(cost)
    return on_front


def pareto_points(
    reference: Reference,
    reference_cost: Cost,
    candidates: Sequence[Candidate],
    trials: Sequence[Trial] = (),
    trial_mac_shares: Mapping[str, float] | None = None,
    reference_size: int | None = None,
) -> list[ParetoPoint]:
    """Return the float model and every plan that was judged on all samples, the fastest first.

    A trial that was stopped early has the accuracy of other samples than the rest, and is no point. A plan that was
    both a trial and a candidate is one point, the candidate's, of which more is known.

    Where costs are not all of one kind (`cost_kind`), points are ordered, and held against each other, within each
    kind alone, that of the float model first. An error would throw away a run that is otherwise complete.

    Args:
        reference: the float model.
        reference_cost: what it costs.
        candidates: all of which were judged on all samples.
        trials: of fallback.
        trial_mac_shares: by plan hash, the share of multiply-accumulates in int8 of every trial that is a point.
        reference_size: bytes of the float model's file.
    """
    seen = {candidate.plan_hash for candidate in candidates}
    shares = trial_mac_shares or {}
    accuracy = reference.accuracy
    points = [
        ParetoPoint(
            name=FLOAT, value=accuracy.value, drop=0.0, ci_low=0.0, ci_high=0.0, cost=reference_cost,
            latency_ms=reference.latency.p50_ms if reference.latency else None, size_bytes=reference_size,
            int8_mac_share=0.0, on_front=False,
        ),
        *(_point(c, c.int8_mac_share, c.latency.p50_ms if c.latency else None, c.size_bytes) for c in candidates),
    ]  # fmt: skip
    for trial in trials:
        if not trial.stopped_early and trial.plan_hash not in seen:
            seen.add(trial.plan_hash)
            points.append(_point(trial, shares[trial.plan_hash], None, None))
    ordered: list[ParetoPoint] = []
    for kind in dict.fromkeys(cost_kind(point.cost) for point in points):
        alike = sorted((x for x in points if cost_kind(x.cost) == kind), key=lambda x: x.cost.value)
        best = front([x.value for x in alike], [x.cost.value for x in alike], accuracy.higher_is_better)
        ordered += [x.model_copy(update={"on_front": bool(is_best)}) for x, is_best in zip(alike, best, strict=True)]
    return ordered


def _point(judged: Candidate | Trial, mac_share: float, latency_ms: float | None, size: int | None) -> ParetoPoint:
    accuracy = judged.accuracy
    return ParetoPoint(
        name=judged.name, value=accuracy.value, drop=accuracy.drop, ci_low=accuracy.ci_low, ci_high=accuracy.ci_high,
        cost=judged.cost, latency_ms=latency_ms, size_bytes=size, int8_mac_share=mac_share, on_front=False,
    )  # fmt: skip
