"""Where there are no labels: how far a model agrees with the reference, which is not how right either of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from validate.data import Batch
from validate.exceptions import JobError
from validate.tasks.base import Answering, Outputs, ReadsInputs, Task

__all__ = ["Agreement", "ReferenceAnswers", "outputs_for"]


class Agreement:
    """A task scored against the reference model's answers. Its metric is called agreement, and not accuracy.

    The reference agrees with itself wholly: its value is 1 for a rate, and 0 for an error. A candidate's drop says how
    often, or how far, it departs; whether for better or worse, no data without labels can tell.

    Raises:
        JobError: the task cannot take answers for labels.
    """

    def __init__(self, task: Task) -> None:
        if not isinstance(task, Answering):
            raise JobError(f"task {task.name} needs labels; set data.label")
        self.name = f"{task.name}, agreement with the float model"
        self.metric = replace(task.metric, name=f"agreement_{task.metric.name}", is_agreement=True)
        self.inputs: tuple[str, ...] = task.inputs if isinstance(task, ReadsInputs) else ()
        self._task: Task = task
        self.answers = task.answers

    def scores(self, outputs: Outputs, labels: Sequence[Any]) -> NDArray[np.float64]:
        """Return the task's scores, where labels are the reference's answers."""
        return self._task.scores(outputs, labels)

    def errors(self, outputs: Outputs, reference: Outputs) -> NDArray[np.float64]:
        """Return the task's errors."""
        return self._task.errors(outputs, reference)


class ReferenceAnswers:
    """The reference model's answers, by the content of a sample, so that it runs over every sample only once.

    Args:
        task: whose answers.
        run: the reference model; called with the inputs of a batch, of samples that were not seen before.
    """

    def __init__(self, task: Answering, run: Callable[[Mapping[str, NDArray[Any]]], Outputs]) -> None:
        self._task, self._run = task, run
        self._known: dict[bytes, Any] = {}

    def __call__(self, batch: Batch) -> list[Any]:
        """Return the answer for each sample of a batch."""
        if not self._known.keys() >= set(batch.contents):
            outputs = outputs_for(self._task, self._run(batch.inputs), batch.inputs)
            self._known.update(zip(batch.contents, self._task.answers(outputs), strict=True))
        return [self._known[content] for content in batch.contents]


def outputs_for(task: object, outputs: Outputs, inputs: Mapping[str, NDArray[Any]]) -> Outputs:
    """Return the outputs, and after them those inputs that the task reads."""
    if not isinstance(task, ReadsInputs):
        return outputs
    return {**outputs, **{name: inputs[name] for name in task.inputs if name in inputs and name not in outputs}}
