"""The protocol of a task: per-sample scores, errors, and the metric made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Aggregate",
    "Answering",
    "ClassRecords",
    "CountsLabels",
    "LabelError",
    "Metric",
    "Outputs",
    "ReadsInputs",
    "Records",
    "Task",
    "Weights",
    "first_output",
    "log_probability_error",
    "parse_labels",
    "ratio_of_sums",
    "shown",
]

Outputs = Mapping[str, NDArray[Any]]
"""Model outputs by name, batch on axis 0."""

Records = NDArray[np.float64]
"""What a metric needs to know of each sample, shape (n,) or (n, k)."""

Weights = NDArray[np.float64]
"""How often each sample counts, shape (b, n): whole numbers >= 0. Row by row another weighing of the same samples."""

Aggregate = Callable[[Records, Weights], NDArray[np.float64]]
"""Records (n, k) and weights (b, n) to values (b,).

A weight of 2 gives what the sample twice would. Only a metric that depends on the order of equal scores, as COCO's mAP
does, may differ a little: doubles lie side by side here, and elsewhere after all that score the same.
"""


@dataclass(frozen=True, eq=False)
class ClassRecords:
    """The part of the records that is of one class.

    Attributes:
        name: of the class.
        concerned: which samples have anything of it, a label or an answer, bool of shape (n,).
        records: as the metric's, without what is of other classes, shape (n, k); the metric of them is that of the
            class.
    """

    name: str
    concerned: NDArray[np.bool_]
    records: Records


@dataclass(frozen=True)
class Metric:
    """What a task measures. The direction is part of the type, so that no ranking can get it wrong.

    A metric is the mean of one score per sample, or, where the field defines it otherwise (mAP, mIoU, Spearman,
    perplexity), a function of a record per sample: `aggregate`. Such a function is no mean over samples, so that its
    interval is made of the metric without each sample in turn (the jackknife). An aggregate takes weights for that
    reason: it sorts the records once for all of them. See `validate.stats.jackknife`.

    Attributes:
        name: the metric's usual name.
        higher_is_better: the direction.
        is_rate: a share in [0, 1], shown to people in percent. (A character error rate can be above 1.)
        aggregate: None for a mean.
        per_class: for an aggregate that is made of classes, the records of each class; always all classes, in their
            order.
        is_agreement: the labels are the reference model's answers, so that it is agreement with it and not accuracy.

    Examples:
        >>> top1 = Metric("top1", higher_is_better=True, is_rate=True)
        >>> top1.value(np.array([1.0, 1.0, 0.0, 1.0]))
        0.75
        >>> top1.drop(np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0]))
        0.25
        >>> mae = Metric("mae", higher_is_better=False, is_rate=False)
        >>> mae.drop(np.array([0.5, 0.5]), np.array([0.75, 0.5]))  # an error that grows is a drop as well
        0.125
    """

    name: str
    higher_is_better: bool
    is_rate: bool
    aggregate: Aggregate | None = None
    per_class: Callable[[Records], Iterator[ClassRecords]] | None = None
    is_agreement: bool = False

    @property
    def best(self) -> float | None:
        """The best value there is: 1 of a rate, 0 of an error. None where higher is better without a known end."""
        if not self.higher_is_better:
            return 0.0
        return 1.0 if self.is_rate else None

    @property
    def is_mean(self) -> bool:
        """Whether the value is the mean of one score per sample."""
        return self.aggregate is None

    def value(self, records: Records) -> float:
        """Return the metric over all samples; NaN where it is not defined, as of no samples.

        Args:
            records: what the task returned, shape (n,) for a mean, else (n, k).
        """
        return float(self.values(records, np.ones((1, len(records))))[0]) if len(records) else float("nan")

    def values(self, records: Records, weights: Weights) -> NDArray[np.float64]:
        """Return the metric for every weighing of the samples, shape (b,)."""
        if self.aggregate is not None:
            return self.aggregate(records, weights)
        return np.asarray(weights @ records / weights.sum(axis=1), np.float64)

    def drop(self, reference: Records, candidate: Records) -> float:
        """Return how much worse the candidate is on the same samples; positive is worse, whatever the metric."""
        if self.is_mean:  # the mean of differences, as the interval has it
            return float(self.worsening(reference, candidate).mean()) if len(reference) else float("nan")
        gain = self.value(candidate) - self.value(reference)
        return -gain if self.higher_is_better else gain

    def each(self, records: Records) -> NDArray[np.float64]:
        """Return the metric of every sample alone, shape (n,); NaN where it is not defined for one sample."""
        if self.is_mean:
            return records
        return np.concatenate([self.values(row[None], np.ones((1, 1))) for row in records] or [np.empty(0)])

    @property
    def largest_difference(self) -> float | None:
        """How much two scores of a sample can differ at most; None where there is no such bound."""
        return 1.0 if self.is_rate else None

    def worsening(self, reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how much worse the candidate scores; positive is worse, whatever the metric.

        Args:
            reference: scores of a mean metric, shape (n,), or values of any metric.
            candidate: the same of the candidate.
        """
        return reference - candidate if self.higher_is_better else candidate - reference


@runtime_checkable
class Task(Protocol):
    """Turns outputs and labels into numbers for each sample, of which `metric` makes one number."""

    name: str
    metric: Metric

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return what the metric needs of each sample: a score, shape (batch,), or a record, shape (batch, k).

        Raises ValueError where the outputs or a label cannot be used; a LabelError says which label.
        """
        ...

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return per sample how far outputs are from the reference model's, shape (batch,); 0 where equal.

        Needs no labels, is smooth where scores are steps, and so ranks candidates on few samples.
        """
        ...


@runtime_checkable
class Answering(Protocol):
    """A task that can take a model's answers as labels. Where there are none, it measures agreement with a model.

    Held against its own answers a model must get the metric's best value. With a loss it does not: the model gives the
    class that it answers a probability below 1, so that a candidate that gives it more would score better than the
    model itself.
    """

    def answers(self, outputs: Outputs) -> list[Any]:
        """Return the model's answer for each sample, as a label that `scores` takes."""
        ...


@runtime_checkable
class CountsLabels(Protocol):
    """A task whose records count the labels of each class, so that a class without labels can be reported."""

    def label_counts(self, records: Records) -> NDArray[np.float64]:
        """Return how often each class is in the labels of all samples, shape (classes,)."""
        ...


@runtime_checkable
class ReadsInputs(Protocol):
    """A task that needs some of the model's inputs, such as a mask of padding; `scores` finds them among outputs."""

    inputs: tuple[str, ...]
    """Names of inputs. One that the model does not have is left out."""


class LabelError(ValueError):
    """A label that cannot be used.

    Attributes:
        place: index of its sample in the batch, from 0.
    """

    def __init__(self, place: int, message: str) -> None:
        super().__init__(message)
        self.place = place


Parsed = TypeVar("Parsed")


def parse_labels(labels: Sequence[Any], parse: Callable[[Any], Parsed]) -> list[Parsed]:
    """Parse each label. Where `parse` raises ValueError, raise a LabelError that says which label it was.

    Examples:
        >>> parse_labels(["1", "2"], int)
        [1, 2]
        >>> try:
        ...     parse_labels(["1", "two"], int)
        ... except LabelError as error:
        ...     print(error.place, error)
        1 invalid literal for int() with base 10: 'two'
    """
    parsed = []
    for place, label in enumerate(labels):
        try:
            parsed.append(parse(label))
        except ValueError as error:
            raise LabelError(place, str(error)) from error
    return parsed


def shown(label: Any) -> str:
    """Return the first 80 characters of a label's repr, for an error message.

    Examples:
        >>> shown({"bbox": [1, 2]})
        "{'bbox': [1, 2]}"
    """
    return " ".join(repr(label).split())[:80]


def first_output(outputs: Outputs) -> NDArray[Any]:
    """Return the model's first output.

    Examples:
        >>> first_output({"logits": np.array([[0.5, 1.5]]), "features": np.zeros((1, 8))}).tolist()
        [[0.5, 1.5]]
    """
    return np.asarray(next(iter(outputs.values())))


def log_probability_error(log_p: NDArray[np.floating[Any]], log_q: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the mean squared difference of two log-probabilities per sample, shape (batch,).

    Both have shape (batch, ..., classes). Log-probabilities are floored at -20 (2e-9), below which no
    decision depends on them. Chosen over KL because it is nearly additive over layers: the
    errors of the layers of PP-OCRv4 one by one added up to 0.00824 and jointly made 0.00823; KL: 0.239 and 0.109.

    Examples:
        >>> p, q = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([[0.25, 0.75], [1.0, 0.0]])
        >>> with np.errstate(divide="ignore"):
        ...     log_probability_error(np.log(p), np.log(q)).round(4).tolist()
        [0.3224, 0.0]
    """
    difference = np.maximum(log_p, -20.0) - np.maximum(log_q, -20.0)
    error: NDArray[np.float64] = np.square(difference, dtype=np.float64).reshape(len(difference), -1).mean(axis=1)
    return error


def ratio_of_sums(records: Records, weights: Weights) -> NDArray[np.float64]:
    """Return the sum of the first column over that of the second, shape (b,); NaN where that is 0. An `Aggregate`.

    A rate per token, character or pixel is such a ratio: the sample is the unit that is weighted, not the token.

    Examples:
        >>> edits_and_characters = np.array([[1.0, 10.0], [0.0, 30.0]])
        >>> ratio_of_sums(edits_and_characters, np.array([[1.0, 1.0], [2.0, 0.0]])).tolist()
        [0.025, 0.1]
    """
    above, below = np.asarray(weights @ records).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
