"""The evaluate command: scores models on the validation samples of a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.progress import Progress

from validate.accuracy.contestants import Contestants, named_models
from validate.accuracy.evaluation import Question, evaluate_contestants
from validate.backends import OnnxRuntimeBackend, Options
from validate.job import ModelFacts, ScoredJob
from validate.results import Evaluation
from validate.settings import read_settings
from validate.tasks import with_or_without_labels

__all__ = ["EvaluateRequest", "evaluate_files"]


@dataclass(frozen=True)
class EvaluateRequest:
    """Arguments of the evaluate command; see its options. `models`: files or modules, the reference first."""

    models: Sequence[str]
    config: Path
    samples: int | None = None
    batch_size: int | None = None
    options: Options = field(default_factory=Options)


class _ModelSection(ModelFacts):
    model_config = ConfigDict(extra="ignore")


class _Confidence(BaseModel):
    model_config = ConfigDict(extra="ignore")

    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class _EvaluateConfig(ScoredJob):
    """A config of which only data, task and a few other keys are of interest."""

    model_config = ConfigDict(extra="ignore")

    model: _ModelSection = _ModelSection()
    policy: _Confidence = _Confidence()


def evaluate_files(request: EvaluateRequest, command: str, console: Console) -> Evaluation:
    """Score every model on the validation samples, and compare each with the first, the reference.

    Raises:
        UsageError: a file, a key or a name is wrong.
        JobError: a model cannot be opened or run, or the samples cannot be read or scored.
    """
    job = read_settings(_EvaluateConfig, request.config)
    contestants = Contestants.open(named_models(request.models), request.options)
    size = contestants.fixed_batch() or request.batch_size or job.data.batch_size
    stream = job.data.stream("validation", contestants.input_names(job.model.inputs), size)
    question = Question(
        with_or_without_labels(job.task.make(_metadata(contestants)), job.data.label is not None),
        stream if request.samples is None else stream.limited(request.samples),
        job.policy.confidence,
        job.model.expected_metric,
        job.data.allow_repeats,
        command=command,
    )
    with Progress(console=console, transient=True) as bars:
        return evaluate_contestants(contestants, question, bars)


def _metadata(contestants: Contestants) -> Mapping[str, str]:
    """Return the metadata of the first ONNX file, from which a task may read what its classes are."""
    for backend in contestants.backends.values():
        if isinstance(backend, OnnxRuntimeBackend):
            return dict(backend.graph.metadata_props)
    return {}
