"""The result of an evaluation: ``evaluation.json``."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from pydantic import Field

from validate.passwords import Published
from validate.records import FileKind, Number, Record
from validate.results import Accuracy, CandidateAccuracy

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


class Evaluation(Record):
    """All models, each on the same samples; the first is the reference."""

    file_kind: ClassVar[FileKind] = FileKind("evaluation", "is not an evaluation")

    schema_version: int = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str = Field(description="the command that made this")
    task: str
    data: Published[dict[str, Any]] = Field(description="source of the samples, and what turned them into inputs")
    samples: list[str] = Field(description="hash of each sample's inputs, in order")
    models: list[ModelEvaluation]
    warnings: list[str]
    environment: dict[str, str]


if __name__ == "__main__":
    print(json.dumps(Evaluation.model_json_schema(mode="serialization"), indent=1))
