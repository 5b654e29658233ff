"""Scores of a model on samples, its metric, and the paired drop against a reference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.backends import Runnable
from validate.data import Batch
from validate.exceptions import JobError
from validate.results import Accuracy, Basis, CandidateAccuracy
from validate.stats import drop_interval
from validate.tasks import Agreement, LabelError, Metric, Outputs, Task, outputs_for

__all__ = [
    "OutputStore",
    "accuracy",
    "batch_scores",
    "candidate_accuracy",
    "evaluate",
    "reference_errors",
    "stored_scores",
]

OnBatch = Callable[[int], None]
"""Called with the number of samples just done; drives progress bars."""


class OutputStore:
    """Outputs of the reference on the selection samples, in temporary files, so that it runs over them only once.

    Examples:
        >>> store = OutputStore()
        >>> store.append({"logits": np.array([[0.25, 0.75]])})
        >>> [outputs["logits"].tolist() for outputs in store]
        [[[0.25, 0.75]]]
    """

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


def evaluate(
    model: Runnable, task: Task, batches: Iterable[Batch], on_batch: OnBatch, is_reference: bool = False
) -> NDArray[np.float64]:
    """Return the task's score of every sample, shape (n,), or its record, shape (n, k).

    Without labels, evaluate the reference first: its answers are the labels of the other models.

    Raises JobError where a label cannot be used.

    Examples:
        >>> from onnx import parser
        >>> from validate.backends import OnnxRuntimeModel
        >>> from validate.tasks import Classification
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N, 2] x) => (float[N, 2] y) {y = Neg(x)}'
        >>> model = OnnxRuntimeModel(parser.parse_model(text).SerializeToString())
        >>> batch = Batch({"x": np.array([[1.0, 2.0], [3.0, 0.0]])}, labels=[0, 0], contents=[b"a", b"b"], first=0)
        >>> evaluate(model, Classification(), [batch], on_batch=lambda samples: None).tolist()
        [1.0, 0.0]
    """
    scores: list[NDArray[np.float64]] = []
    for batch in batches:
        scores.append(batch_scores(task, batch, model.run(batch.inputs), is_reference))
        on_batch(len(batch))
    return np.concatenate(scores)


def stored_scores(task: Task, batches: Iterable[Batch], outputs: Iterable[Outputs]) -> NDArray[np.float64]:
    """Return the task's score, or record, of every sample from the reference's stored outputs; see `evaluate`.

    Examples:
        >>> from validate.tasks import Classification
        >>> batch = Batch({"x": np.zeros((2, 4))}, labels=[1, 0], contents=[b"a", b"b"], first=0)
        >>> stored_scores(Classification(), [batch], [{"logits": np.array([[0.0, 1.0], [0.0, 1.0]])}]).tolist()
        [1.0, 0.0]
    """
    return np.concatenate([batch_scores(task, *both, is_reference=True) for both in zip(batches, outputs, strict=True)])


def reference_errors(
    model: Runnable, task: Task, batches: Iterable[Batch], reference: Iterable[Outputs], on_batch: OnBatch
) -> NDArray[np.float64]:
    """Return the task's error of every sample against the reference's stored outputs, shape (n,).

    A sample whose outputs are not finite has an infinite error, so that it never ranks as good.

    Examples:
        >>> from onnx import parser
        >>> from validate.backends import OnnxRuntimeModel
        >>> from validate.tasks import Regression
        >>> text = '<ir_version: 8, opset_import: ["": 17]> g (float[N] x) => (float[N] y) {y = Neg(x)}'
        >>> model = OnnxRuntimeModel(parser.parse_model(text).SerializeToString())
        >>> batch = Batch({"x": np.array([1.0, 2.0])}, labels=[None, None], contents=[b"a", b"b"], first=0)
        >>> reference = [{"y": np.array([-1.0, -2.5])}]
        >>> reference_errors(model, Regression(), [batch], reference, on_batch=lambda samples: None).tolist()
        [0.0, 0.25]
    """
    errors: list[NDArray[np.float64]] = []
    for batch, expected in zip(batches, reference, strict=True):
        outputs = model.run(batch.inputs)
        errors.append(_per_sample(task, batch, partial(task.errors, outputs, expected), 1))
        on_batch(len(batch))
    values = np.concatenate(errors)
    return np.where(np.isnan(values), np.inf, values)


def batch_scores(task: Task, batch: Batch, outputs: Outputs, is_reference: bool) -> NDArray[np.float64]:
    """Return the task's scores, or records, of the samples of one batch; see `evaluate`.

    Examples:
        >>> from validate.tasks import Classification
        >>> batch = Batch({"x": np.zeros((2, 4))}, labels=[1, 0], contents=[b"a", b"b"], first=0)
        >>> outputs = {"logits": np.array([[0.0, 1.0], [0.0, 1.0]])}
        >>> batch_scores(Classification(), batch, outputs, is_reference=False).tolist()
        [1.0, 0.0]
    """
    outputs = outputs_for(task, outputs, batch.inputs)
    labels: Sequence[Any] = batch.labels
    if isinstance(task, Agreement):
        labels = batch.contents
        if is_reference:
            task.learn(outputs, labels)
    return _per_sample(task, batch, partial(task.scores, outputs, labels), 1 if task.metric.is_mean else 2)


def _per_sample(
    task: Task, batch: Batch, call: Callable[[], NDArray[np.float64]], dimensions: int
) -> NDArray[np.float64]:
    """Return what the task says of each sample. Raises JobError where it cannot, or says less or more."""
    where = f"task {task.name} cannot score sample {batch.first} and following"
    try:
        values = np.asarray(call(), np.float64)
    except LabelError as error:
        raise JobError(
            f"task {task.name} cannot use the label of sample {batch.first + error.place}: {error}"
        ) from error
    except ValueError as error:
        raise JobError(f"{where}: {error}") from error
    except Exception as error:  # it may be the user's code: anything may come out of it
        raise JobError(f"{where}: {type(error).__name__}: {error}") from error
    if values.ndim != dimensions or len(values) != len(batch):
        wanted = "one number" if dimensions == 1 else "one record"
        raise JobError(f"{where}: it gives shape {values.shape} for {len(batch)} samples, not {wanted} for each")
    return values


def accuracy(metric: Metric, scores: NDArray[np.float64], basis: Basis | None = None) -> Accuracy:
    """Return the metric's value over all scores, shape (n,), or records, shape (n, k), as a record.

    `basis` says what gave the scores; None for the float model.

    Examples:
        >>> found = accuracy(Metric("top1", higher_is_better=True, is_rate=True), np.array([1.0, 1.0, 0.0, 1.0]))
        >>> found.value, found.n
        (0.75, 4)
    """
    return Accuracy(
        metric=metric.name,
        higher_is_better=metric.higher_is_better,
        is_rate=metric.is_rate,
        is_agreement=metric.is_agreement,
        basis=basis,
        value=metric.value(scores),
        n=len(scores),
    )


def candidate_accuracy(
    metric: Metric,
    reference: NDArray[np.float64],
    scores: NDArray[np.float64],
    confidence: float,
    basis: Basis | None = "simulation",
) -> CandidateAccuracy:
    """Return the metric of a candidate with its drop against the reference, paired sample by sample.

    Args:
        metric: of the task.
        reference: scores of the reference, shape (n,), or records, shape (n, k).
        scores: those of the candidate, on the same samples in the same order.
        confidence: of the interval of the drop, two-sided, in (0, 1).
        basis: what gave the candidate's scores; None where that is neither a Q/DQ file nor an engine.

    Raises:
        JobError: the two differ in shape.

    Examples:
        >>> reference, candidate = np.ones(200), np.repeat([0.0, 1.0], [6, 194])
        >>> found = candidate_accuracy(Metric("top1", higher_is_better=True, is_rate=True), reference, candidate, 0.95)
        >>> round(found.value, 4), round(found.drop, 4), round(found.ci_low, 4), round(found.ci_high, 4)
        (0.97, 0.03, 0.0106, 0.0639)
    """
    if reference.shape != scores.shape:
        raise JobError(f"{len(reference)} samples of the reference cannot be paired with {len(scores)}")
    interval = drop_interval(metric, reference, scores, confidence)
    summary: dict[str, Any] = accuracy(metric, scores, basis).model_dump()
    return CandidateAccuracy(
        **summary,
        drop=metric.drop(reference, scores),
        ci_low=interval.low,
        ci_high=interval.high,
        confidence=confidence,
        method=interval.method,
        deviation=float(metric.worsening(reference, scores).std()) if metric.is_mean else None,
    )
