"""Regression: one or several numbers per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from validate.tasks.base import (
    Metric,
    Outputs,
    Records,
    Weights,
    first_output,
    parse_labels,
    shown,
)

__all__ = ["Regression"]


def _root_mean(records: Records, weights: Weights) -> NDArray[np.float64]:
    return np.asarray(np.sqrt((weights @ records)[:, 0] / weights.sum(axis=1)), np.float64)


_METRICS = {
    "mae": Metric("mae", higher_is_better=False, is_rate=False),
    "rmse": Metric("rmse", higher_is_better=False, is_rate=False, aggregate=_root_mean),
}


class Regression:
    """Mean absolute error, or root mean squared error, of the first output, of any shape (batch, ...).

    A label is a number or an array with as many elements as the model gives for a sample. A sample's score is the mean
    absolute error over its elements, and its record for the RMSE the mean squared error, shape (batch, 1): the root is
    of the mean over all samples, so that the RMSE is no mean of roots.

    Examples:
        >>> outputs = {"y": np.array([[1.0], [4.0]])}
        >>> task = Regression("mae")
        >>> task.metric.value(task.scores(outputs, labels=[2.0, 6.0]))
        1.5
        >>> rmse = Regression("rmse")
        >>> round(rmse.metric.value(rmse.scores(outputs, labels=[2.0, 6.0])), 4)
        1.5811
    """

    def __init__(self, metric: Literal["mae", "rmse"] = "mae") -> None:
        self.name = "regression"
        self.metric = _METRICS[metric]

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return the error of each sample, in the labels' unit, or its square; NaN where the output is NaN."""
        values = _flat(outputs)
        if len(labels) != len(values):
            raise ValueError(f"{len(labels)} labels cannot be paired with {len(values)} outputs")
        wanted = np.array(parse_labels(labels, lambda label: _numbers(label, values.shape[1])))
        if self.metric.is_mean:
            return np.asarray(np.abs(values - wanted).mean(axis=1))
        return np.asarray(np.square(values - wanted).mean(axis=1, keepdims=True))

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared difference per sample."""
        return np.asarray(np.square(_flat(outputs) - _flat(reference)).mean(axis=1))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the values of each sample."""
        return list(_flat(outputs))


def _numbers(label: Any, number: int) -> NDArray[np.float64]:
    try:
        found = np.asarray(label, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise ValueError(f"labels must be numbers, but this one is {shown(label)}") from None
    if found.size != number:
        raise ValueError(f"labels of {found.size} numbers cannot be held against an output of {number}")
    if not np.isfinite(found).all():
        raise ValueError(f"this one is not finite: {shown(label)}")
    return found


def _flat(outputs: Outputs) -> NDArray[np.float64]:
    values = first_output(outputs)
    if values.ndim == 0:
        raise ValueError("regression needs an output with the batch on axis 0, but it is a scalar")
    return values.astype(np.float64).reshape(len(values), -1)
