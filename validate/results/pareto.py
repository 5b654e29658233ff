"""The Pareto front: models than which no other is both more accurate and faster."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from validate.results.run import Candidate, ParetoPoint, Reference
from validate.results.speed import Cost

__all__ = ["FLOAT", "CostKind", "cost_kind", "front", "pareto_points"]

FLOAT = "float reference"
"""Name of the point of the float model."""

CostKind = tuple[str, str, str]
"""Basis, unit and source of a cost."""


def cost_kind(cost: Cost) -> CostKind:
    """Return basis, unit and source of a cost: only costs that have all three in common can be compared.

    A measured millisecond and an estimated one are different quantities: an estimate leaves out what it does not know
    of, so that on one axis the model that was not measured would win. Estimates for two GPUs differ alike.

    Examples:
        >>> cost_kind(Cost(basis="estimate", value=1.5, unit="ms", source="roofline of an NVIDIA L4"))
        ('estimate', 'ms', 'roofline of an NVIDIA L4')
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

    Examples:
        >>> front(values=[0.76, 0.75, 0.70], costs=[4.0, 2.0, 3.0], higher_is_better=True).tolist()
        [True, True, False]
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
    reference_size: int | None = None,
) -> list[ParetoPoint]:
    """Return the float model and every candidate, the fastest first.

    Trials of fallback are not among them: their accuracy is of other samples, or of fewer.

    Where costs are not all of one kind (`cost_kind`), points are ordered and compared within each kind, that of the
    float model first. An exception here would throw away a run that is otherwise complete.

    Args:
        reference: the float model.
        reference_cost: what it costs.
        candidates: all of which were judged on all validation samples.
        reference_size: bytes of the float model's file.

    Examples:
        >>> from validate.results import Accuracy
        >>> top1 = Accuracy(metric="top1", higher_is_better=True, is_rate=True, value=0.76, n=500)
        >>> cost = Cost(basis="measured", value=4.0, unit="ms", source="NVIDIA L4")
        >>> [(point.name, point.on_front) for point in pareto_points(Reference(accuracy=top1, latency=None), cost, [])]
        [('float reference', True)]
    """
    accuracy = reference.accuracy
    points = [
        ParetoPoint(
            name=FLOAT,
            value=accuracy.value,
            drop=0.0,
            ci_low=0.0,
            ci_high=0.0,
            cost=reference_cost,
            latency_ms=reference.latency.p50_ms if reference.latency else None,
            size_bytes=reference_size,
            int8_mac_share=0.0,
            on_front=False,
        ),
        *map(_point, candidates),
    ]
    ordered: list[ParetoPoint] = []
    for kind in dict.fromkeys(cost_kind(point.cost) for point in points):
        alike = sorted((x for x in points if cost_kind(x.cost) == kind), key=lambda x: x.cost.value)
        best = front([x.value for x in alike], [x.cost.value for x in alike], accuracy.higher_is_better)
        ordered += [x.model_copy(update={"on_front": bool(is_best)}) for x, is_best in zip(alike, best, strict=True)]
    return ordered


def _point(candidate: Candidate) -> ParetoPoint:
    accuracy = candidate.accuracy
    return ParetoPoint(
        name=candidate.name,
        value=accuracy.value,
        drop=accuracy.drop,
        ci_low=accuracy.ci_low,
        ci_high=accuracy.ci_high,
        cost=candidate.cost,
        latency_ms=candidate.latency.p50_ms if candidate.latency else None,
        size_bytes=candidate.size_bytes,
        int8_mac_share=candidate.int8_mac_share,
        on_front=False,
    )
