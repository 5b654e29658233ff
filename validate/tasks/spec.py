"""The `task` section of a config, and the task that it describes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from validate.exceptions import JobError
from validate.imports import CallableReference, config_folder, load_object, resolve_path
from validate.tasks.base import Task

__all__ = ["ClassificationSpec", "CustomSpec", "TaskSpec", "TextRecognitionSpec"]

_METADATA = "metadata:"


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def is_rate(self) -> bool:
        """Whether the task's metric is a share in [0, 1]."""
        return True


class ClassificationSpec(_Spec):
    """Top-k accuracy; the first output holds logits or probabilities, the label is a class index."""

    type: Literal["classification"]
    top_k: int = Field(default=1, ge=1)

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task; `metadata` is the ONNX model's."""
        from validate.tasks.classification import Classification

        return Classification(self.top_k)


class TextRecognitionSpec(_Spec):
    """Exact match of CTC text; the first output holds probabilities over the characters and a blank."""

    type: Literal["text_recognition"]
    characters: str = Field(
        description="a text file with one character per line, or metadata:KEY for such a text in the ONNX "
        "file's metadata; the blank is class 0 and comes before them"
    )
    append_space: bool = Field(default=False, description="a space follows as the last class (PaddleOCR)")

    @field_validator("characters")
    @classmethod
    def _exists(cls, value: str, info: ValidationInfo) -> str:
        if value.startswith(_METADATA):
            return value
        return str(resolve_path(value, config_folder(info)))

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task. Raises JobError where the model's metadata lacks the key."""
        from validate.tasks.text_recognition import TextRecognition

        if self.characters.startswith(_METADATA):
            key = self.characters.removeprefix(_METADATA)
            if key not in metadata:
                raise JobError(
                    f"task.characters names the metadata key '{key}', but the model has "
                    f"{', '.join(sorted(metadata)) or 'no metadata'}"
                )
            text = metadata[key]
        else:
            text = Path(self.characters).read_text(encoding="utf-8")
        characters = ["", *text.strip("\n").split("\n")]
        return TextRecognition([*characters, " "] if self.append_space else characters)


class CustomSpec(_Spec):
    """A task of the user's own: a callable without arguments that returns a `validate.tasks.base.Task`."""

    type: Literal["custom"]
    callable: CallableReference = Field(description="module:name or file.py:name")

    @field_validator("callable")
    @classmethod
    def _makes_a_task(cls, value: str) -> str:
        try:
            task = load_object(value, Path())()
        except Exception as error:  # it is the user's code: anything may come out of it
            raise ValueError(f"'{value}' cannot be called without arguments: {error}") from error
        if not isinstance(task, Task):
            raise ValueError(f"'{value}' does not return an object with name, metric, scores and errors")
        return value

    @property
    def is_rate(self) -> bool:
        """Whether the task's metric is a share in [0, 1]."""
        return self.make({}).metric.is_rate

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the user's task."""
        task: Task = load_object(self.callable, Path())()
        return task


TaskSpec = Annotated[ClassificationSpec | TextRecognitionSpec | CustomSpec, Field(discriminator="type")]
