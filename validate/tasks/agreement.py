"""Agreement with the reference, where there are no labels; it is not accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.tasks.base import Answering, Outputs, ReadsInputs, Task

__all__ = ["Agreement", "outputs_for", "with_or_without_labels"]


class Agreement:
    """A task scored against the reference model's answers. Its metric is called agreement, and not accuracy.

    The reference agrees with itself completely: its value is the metric's best, 1 for a rate, and 0 for an error
    (`sanity_warnings` refuses a task for which it is not). A candidate's drop says how often, or how far, it departs;
    whether for better or worse, no data without labels can tell.

    The label of a sample is the hash of its content, by which the reference's answer is found.

    Args:
        task: one that takes answers as labels, an `Answering`; an attribute too.

    Examples:
        >>> from validate.tasks import Classification
        >>> task = Agreement(Classification())
        >>> task.metric.name
        'agreement_top1'
        >>> contents = [b"first image", b"second image"]
        >>> task.learn({"logits": np.array([[2.0, 1.0], [0.0, 3.0]])}, contents)  # the reference answers 0 and 1
        >>> task.scores({"logits": np.array([[2.0, 1.0], [3.0, 0.0]])}, contents).tolist()  # the candidate 0 and 0
        [1.0, 0.0]
    """

    def __init__(self, task: Task) -> None:
        if not isinstance(task, Answering):
            raise TypeError(f"task {task.name} gives no answers")
        self.name = f"{task.name}, agreement with the float model"
        self.metric = replace(task.metric, name=f"agreement_{task.metric.name}", is_agreement=True)
        self.inputs: tuple[str, ...] = task.inputs if isinstance(task, ReadsInputs) else ()
        self.task: Task = task
        self._answers = task.answers
        self._known: dict[bytes, Any] = {}

    def learn(self, outputs: Outputs, labels: Sequence[bytes]) -> None:
        """Take the reference's answers as the labels that all models are scored against."""
        self._known.update(zip(labels, self._answers(outputs), strict=True))

    def scores(self, outputs: Outputs, labels: Sequence[bytes]) -> NDArray[np.float64]:
        """Return the task's scores, where labels are the reference's answers; KeyError where it gave none."""
        return self.task.scores(outputs, [self._known[label] for label in labels])

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the task's errors."""
        return self.task.errors(outputs, reference)


def outputs_for(task: object, outputs: Outputs, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
    """Return the outputs, and after them those inputs that the task reads.

    Examples:
        >>> from validate.tasks import SentenceEmbedding
        >>> inputs = {"input_ids": np.ones((2, 4)), "attention_mask": np.ones((2, 4))}
        >>> list(outputs_for(SentenceEmbedding(pooling="mean"), {"tokens": np.zeros((2, 4, 8))}, inputs))
        ['tokens', 'attention_mask']
    """
    if not isinstance(task, ReadsInputs):
        return outputs
    return {**outputs, **{name: inputs[name] for name in task.inputs if name in inputs and name not in outputs}}


def with_or_without_labels(task: Task, labelled: bool) -> Task:
    """Return the task, or its agreement where there are no labels and it can take answers as labels.

    Examples:
        >>> from validate.tasks import Classification
        >>> with_or_without_labels(Classification(), labelled=False).metric.name
        'agreement_top1'
    """
    return task if labelled or not isinstance(task, Answering) else Agreement(task)
