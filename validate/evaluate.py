"""Runs a model over a split and scores every sample."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.aggregate import drop_interval
from validate.backends.base import Runnable
from validate.data import Batch
from validate.exceptions import JobError
from validate.results import Accuracy, CandidateAccuracy
from validate.tasks.agreement import outputs_for
from validate.tasks.base import Metric, Outputs, Task

__all__ = ["OutputStore", "accuracy", "candidate_accuracy", "evaluate", "reference_errors"]

OnBatch = Callable[[int], None]
"""Called with the number of samples just done; drives progress bars."""


class OutputStore:
    """The reference's outputs on the selection samples, kept on disk, so that it runs over them only once."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="calibrate-")
        self._files: list[Path] = []
        self._names: list[str] = []

    def append(self, outputs: Outputs) -> None:
        """Add one batch of outputs."""
        path = Path(self._folder.name) / f"{len(self._files)}.npz"
        np.savez(path, *outputs.values())
        self._names = list(outputs)
        self._files.append(path)

    def __iter__(self) -> Iterator[Outputs]:
        for path in self._files:
            with np.load(path, allow_pickle=False) as arrays:
                yield dict(zip(self._names, arrays.values(), strict=True))


def evaluate(model: Runnable, task: Task, batches: Iterable[Batch], on_batch: OnBatch) -> NDArray[np.float64]:
    """Return the task's score of every sample, shape (n,), or its record, shape (n, k).

    Raises JobError where a label cannot be used.
    """
    scores: list[NDArray[np.float64]] = []
    for batch in batches:
        outputs = outputs_for(task, model.run(batch.inputs), batch.inputs)
        width = 1 if task.metric.is_mean else 2
        scores.append(_per_sample(task, batch, partial(task.scores, outputs, batch.labels), width))
        on_batch(len(batch))
    return np.concatenate(scores)


def reference_errors(
    model: Runnable, task: Task, batches: Iterable[Batch], reference: Iterable[Outputs], on_batch: OnBatch
) -> NDArray[np.float64]:
    """Return the task's error against the stored reference outputs of every sample, shape (n,).

    A sample whose outputs are not finite has an infinite error, so that it can never look good.
    `reference` may hold more batches than are asked for, never fewer.
    """
    errors: list[NDArray[np.float64]] = []
    stored = iter(reference)
    for batch in batches:
        rows = min(len(array) for array in batch.inputs.values())  # a sample may be several
        expected = {name: array[:rows] for name, array in next(stored).items()}
        outputs = model.run(batch.inputs)
        errors.append(_per_sample(task, batch, partial(task.errors, outputs, expected), 1))
        on_batch(len(batch))
    values = np.concatenate(errors)
    return np.where(np.isnan(values), np.inf, values)


def _per_sample(
    task: Task, batch: Batch, call: Callable[[], NDArray[np.float64]], dimensions: int
) -> NDArray[np.float64]:
    """Return what the task says of each sample. Raises JobError where it cannot, or says less or more."""
    where = f"task {task.name} cannot score sample {batch.first} and following"
    try:
        values = np.asarray(call(), np.float64)
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    if values.ndim != dimensions or len(values) != len(batch):
        wanted = "one number" if dimensions == 1 else "one record"
        raise JobError(f"{where}: it gives shape {values.shape} for {len(batch)} samples, not {wanted} for each")
    return values


def accuracy(metric: Metric, scores: NDArray[np.float64]) -> Accuracy:
    """Return the metric over all scores or records."""
    return Accuracy(
        metric=metric.name, higher_is_better=metric.higher_is_better, is_rate=metric.is_rate,
        is_agreement=metric.is_agreement, value=metric.value(scores), n=len(scores),
    )  # fmt: skip


def candidate_accuracy(
    metric: Metric, reference: NDArray[np.float64], scores: NDArray[np.float64], confidence: float
) -> CandidateAccuracy:
    """Return the metric of a candidate with its drop against the reference, paired sample by sample."""
    if reference.shape != scores.shape:
        raise JobError(f"{len(reference)} samples of the reference cannot be paired with {len(scores)}")
    interval = drop_interval(metric, reference, scores, confidence)
    summary: dict[str, Any] = accuracy(metric, scores).model_dump()
    return CandidateAccuracy(
        **summary, drop=metric.drop(reference, scores), ci_low=interval.low, ci_high=interval.high,
        confidence=confidence, method=interval.method,
    )  # fmt: skip
