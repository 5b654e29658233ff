"""The evaluate command: scores models on the validation samples of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress

from validate.accuracy.report import Evaluation, ModelEvaluation
from validate.accuracy.sanity import sanity_warnings
from validate.accuracy.scoring import accuracy, batch_scores, candidate_accuracy
from validate.backends import (
    Backend,
    OnnxRuntimeBackend,
    OnnxRuntimeModel,
    Options,
    PyTorchBackend,
    Runnable,
    from_reference,
    kind_of,
    open_model,
)
from validate.data import SampleStream
from validate.environment import environment
from validate.exceptions import JobError, UsageError
from validate.job import ModelFacts, ScoredJob
from validate.results import Accuracy
from validate.settings import read_settings
from validate.tasks import Agreement, Answering, Task, with_or_without_labels

__all__ = ["EvaluateRequest", "evaluate_files"]


@dataclass(frozen=True)
class EvaluateRequest:
    """Arguments of the evaluate command; see its options. `models`: files or modules, the reference first."""

    models: Sequence[str]
    config: Path
    samples: int | None = None
    batch_size: int | None = None
    options: Options = field(default_factory=Options)


class _Facts(ModelFacts):
    model_config = ConfigDict(extra="ignore")


class _Confidence(BaseModel):
    model_config = ConfigDict(extra="ignore")

    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class _EvaluateConfig(ScoredJob):
    """A config of which only data, task and a few other keys are of interest."""

    model_config = ConfigDict(extra="ignore")

    model: _Facts = _Facts()
    policy: _Confidence = _Confidence()


@dataclass(frozen=True)
class _Seen:
    """What one model showed on all samples."""

    scores: NDArray[np.float64]
    agreement: float | None
    contents: list[bytes]


def evaluate_files(request: EvaluateRequest, command: str, console: Console) -> Evaluation:
    """Score every model on the validation samples, and compare each with the first, the reference.

    Raises:
        UsageError: a file, a key or a name is wrong.
        JobError: a model cannot be opened or run, or the samples cannot be read or scored.
    """
    job = read_settings(_EvaluateConfig, request.config)
    files = {name: open_model(name, request.options) for name in request.models if kind_of(name) != "pytorch"}
    names = _input_names(job, files)
    stream = _stream(request, job, files, names)
    task = with_or_without_labels(job.task.make(_metadata(request.models, files)), job.data.label is not None)
    if isinstance(task, Agreement) and len(request.models) == 1:
        raise UsageError("there are no labels (data.label is null), so that agreement needs a second model")
    beside = None if isinstance(task, Agreement) or not isinstance(task, Answering) else Agreement(task)
    # Intervals of several candidates, all of which hold together with the confidence of the policy (Bonferroni).
    confidence = 1 - (1 - job.policy.confidence) / max(1, len(request.models) - 1)

    found: list[ModelEvaluation] = []
    first: _Seen | None = None
    warnings: list[str] = []
    for name in request.models:
        model = _opened(name, files.get(name), names, stream, request.options)
        seen = _pass(model, task, beside, stream, first, f"evaluate {name}", console)
        if first is None:
            first, scored = seen, accuracy(task.metric, seen.scores)
            if repeated := job.data.repeats("validation", seen.contents):
                warnings.append(repeated)
            warnings += sanity_warnings(task, seen.scores, job.model.expected_metric, stream)
        else:
            scored = candidate_accuracy(task.metric, first.scores, seen.scores, confidence)
        found.append(_evaluated(name, model, scored, seen))
    assert first is not None  # the command line asks for one model at least
    return Evaluation(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        task=task.name,
        data={
            "source": stream.source.model_dump(exclude_none=True, exclude_defaults=True),
            "preprocessing": stream.preparation.description,
        },
        samples=[content.hex() for content in first.contents],
        models=found,
        warnings=warnings,
        environment=environment(),
    )


def _input_names(job: _EvaluateConfig, files: Mapping[str, Backend]) -> tuple[str, ...]:
    """Return what the preprocessing's arrays are called: the inputs of the first file, or what the config says."""
    for backend in files.values():
        return backend.input_names
    if job.model.inputs is None:
        raise UsageError(
            "no ONNX file or engine among the models says what the inputs are called; give one, or model.inputs in the "
            "config"
        )
    return tuple(job.model.inputs)


def _metadata(models: Sequence[str], files: Mapping[str, Backend]) -> Mapping[str, str]:
    """Return the metadata of the first ONNX file, from which a task may read what its classes are."""
    for name in models:
        if isinstance(files.get(name), OnnxRuntimeBackend):
            return OnnxRuntimeModel(Path(name)).metadata
    return {}


def _stream(
    request: EvaluateRequest, job: _EvaluateConfig, files: Mapping[str, Backend], names: tuple[str, ...]
) -> SampleStream:
    fixed = {file.fixed_batch for file in files.values() if isinstance(file, OnnxRuntimeBackend)}
    sizes = sorted(size for size in fixed if size is not None)
    if len(sizes) > 1:
        raise UsageError(f"the models are fixed to different batch sizes: {', '.join(map(str, sizes))}")
    size = (sizes[0] if sizes else None) or request.batch_size or job.data.batch_size
    stream = job.data.stream("validation", names, size)
    return stream if request.samples is None else stream.limited(request.samples)


def _opened(
    name: str, backend: Backend | None, names: tuple[str, ...], stream: SampleStream, options: Options
) -> Runnable:
    if backend is None:
        example = next(iter(stream.limited(stream.batch_size).batches())).inputs
        backend = PyTorchBackend(from_reference(name), names, example, options.device, options.precision)
    model = backend.load()
    if set(model.input_names) <= set(names):
        return model
    if len(model.input_names) == len(names) == 1:
        return _Renamed(model, names[0])
    raise UsageError(
        f"the inputs of {name} are {', '.join(model.input_names)}, and those of the first file {', '.join(names)}"
    )


class _Renamed:
    """A model with one input, which others know by another name."""

    def __init__(self, model: Runnable, name: str) -> None:
        self.runtime, self.device, self.output_names = model.runtime, model.device, model.output_names
        self.input_names: tuple[str, ...] = (name,)
        self._model = model

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run one batch; see `Runnable`."""
        return self._model.run({self._model.input_names[0]: inputs[self.input_names[0]]})


def _pass(
    model: Runnable,
    task: Task,
    beside: Agreement | None,
    stream: SampleStream,
    first: _Seen | None,
    what: str,
    console: Console,
) -> _Seen:
    """Run a model over all samples; JobError where they are not those that the reference saw."""
    scores, agreements, contents = [], [], []
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task(what, total=None if first is None else len(first.contents))
        for batch in stream.batches():
            contents += batch.contents
            if first is not None and batch.contents != first.contents[batch.first : batch.first + len(batch)]:
                raise JobError(
                    f"samples {batch.first} to {batch.first + len(batch) - 1} are others than on the first pass, so "
                    "that models cannot be compared on them; make the source and the preprocessing give the same every "
                    "time (seed them)"
                )
            outputs = model.run(batch.inputs)
            scores.append(batch_scores(task, batch, outputs, is_reference=first is None))
            if beside is not None:
                agreements.append(batch_scores(beside, batch, outputs, is_reference=first is None))
            progress.advance(bar, len(batch))
    agreement = None if beside is None else beside.metric.value(np.concatenate(agreements))
    return _Seen(np.concatenate(scores), agreement, contents)


def _evaluated(name: str, model: Runnable, scored: Accuracy, seen: _Seen) -> ModelEvaluation:
    return ModelEvaluation(
        model=name,
        runtime=model.runtime,
        device=model.device,
        accuracy=scored,
        agreement=seen.agreement,
        scores=seen.scores.tolist(),
    )
