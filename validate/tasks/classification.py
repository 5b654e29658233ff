"""Classification: one label out of many per sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from validate.tasks.base import (
    Metric,
    Outputs,
    first_output,
    log_probability_error,
    parse_labels,
    shown,
)

__all__ = ["Classification"]


class Classification:
    """Top-k accuracy of the first output, logits or probabilities of shape (batch, classes).

    A label is the index of its class.

    Examples:
        >>> task = Classification(top_k=1)
        >>> outputs = {"logits": np.array([[0.1, 2.0, 0.3], [3.0, 0.2, 0.1]])}
        >>> task.scores(outputs, labels=[1, 2]).tolist()
        [1.0, 0.0]
        >>> task.answers(outputs)
        [1, 0]
    """

    def __init__(self, top_k: int = 1) -> None:
        self.name = "classification"
        self.top_k = top_k
        self.metric = Metric(f"top{top_k}", higher_is_better=True, is_rate=True)

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return 1.0 where the label is among the k highest, else 0.0; 0.0 where any logit is NaN."""
        logits = _first(outputs)
        if len(labels) != len(logits):
            raise ValueError(f"{len(labels)} labels cannot be paired with an output of shape {logits.shape}")
        wanted = np.array(parse_labels(labels, lambda label: _index(label, logits.shape[1])))
        if self.top_k >= logits.shape[1]:
            raise ValueError(f"top_k is {self.top_k}, but the model has only {logits.shape[1]} classes")
        best = np.argsort(-logits, axis=1, kind="stable")[:, : self.top_k]
        hit: NDArray[np.bool_] = (best == wanted[:, None]).any(axis=1) & ~np.isnan(logits).any(axis=1)
        return hit.astype(np.float64)

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the mean squared error of the log-probabilities per sample."""
        return log_probability_error(log_softmax(_first(outputs), axis=1), log_softmax(_first(reference), axis=1))

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the class with the highest logit of each sample."""
        return [int(best) for best in np.argmax(_first(outputs), axis=1)]


def _index(label: Any, classes: int) -> int:
    index = np.asarray(label)
    if index.ndim or not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"labels must be class indices, but this one is {shown(label)}")
    if not 0 <= index < classes:
        raise ValueError(f"label {index} is outside the model's {classes} classes")
    return int(index)


def _first(outputs: Outputs) -> NDArray[np.float64]:
    logits = first_output(outputs).astype(np.float64)
    if logits.ndim != 2:
        raise ValueError(f"classification needs an output of shape (batch, classes), but it is {logits.shape}")
    return logits
