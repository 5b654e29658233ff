"""The result of an evaluation: ``evaluation.json``."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from validate.notebook import accuracy_table, paragraphs
from validate.passwords import Published
from validate.records import FileKind, Number, Record
from validate.results.accuracy import Accuracy, CandidateAccuracy
from validate.results.engines import EngineFile
from validate.results.run import BuildResult

__all__ = ["Evaluation", "ModelEvaluation"]

SCHEMA_VERSION = 1


class ModelEvaluation(Record):
    """One model on the validation samples."""

    model: str = Field(description="file or module")
    runtime: str = Field(description="library, version and arithmetic")
    device: str
    accuracy: CandidateAccuracy | Accuracy = Field(description="with drop and interval for all but the reference")
    agreement: Number | None = Field(
        description="the task's metric where the reference's answers are the labels; null where a task gives none"
    )
    scores: list[Number] | list[list[Number]] = Field(
        description="per sample, in order: its score, or the record that the metric is a function of"
    )
    plan_hash: str | None = Field(default=None, description="of the plan that made it; null where it names none")
    size_bytes: int | None = Field(default=None, description="of the ONNX file to deploy; null where it is not known")
    engine: EngineFile | None = Field(default=None, description="the engine that was run; null for other models")
    tensorrt_build: BuildResult | None = Field(default=None, description="null where no build was asked for")


class Evaluation(Record):
    """All models, each on the same samples; the first is the reference."""

    file_kind: ClassVar[FileKind] = FileKind("evaluation", "is not an evaluation")

    schema_version: int = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str = Field(description="the command that made this")
    task: str
    data: Published[dict[str, Any]] = Field(description="source of the samples, and what turned them into inputs")
    samples: list[str] = Field(description="hash of each sample's inputs, in order")
    labels: list[str | None] = Field(default=[], description="of each sample that can name its class, as text")
    slices: list[str | None] = Field(default=[], description="what each sample's slice is called, where there are any")
    models: list[ModelEvaluation]
    warnings: list[str]
    environment: dict[str, str]

    def model(self, name: str) -> ModelEvaluation:
        """Return what was found of one model; `KeyError` where there is none of that name."""
        for model in self.models:
            if model.model == name:
                return model
        raise KeyError(name)

    def __repr__(self) -> str:
        values = ", ".join(f"{model.model} {model.accuracy.value:.4g}" for model in self.models)
        return f"<Evaluation: {self.models[0].accuracy.metric} of {values}, {len(self.samples)} samples>"

    def _repr_html_(self) -> str:
        accuracies = [(model.model, model.accuracy) for model in self.models]
        return accuracy_table(self.task, accuracies) + paragraphs(f"warning: {x}" for x in self.warnings)
