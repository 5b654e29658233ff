"""The `task` section of a config, and the task that it describes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

from validate.exceptions import JobError
from validate.references import CallableReference, config_folder, load_object, resolve_path
from validate.registry import Registry, TypedUnion
from validate.settings import Section
from validate.tasks.agreement import with_or_without_labels
from validate.tasks.base import Metric, Task

__all__ = [
    "TASKS",
    "ClassificationSpec",
    "CustomSpec",
    "DetectionSpec",
    "MaskedLmSpec",
    "RegressionSpec",
    "SegmentationSpec",
    "SentenceEmbeddingSpec",
    "TaskSettings",
    "TaskSpec",
    "TextRecognitionSpec",
    "TokenClassificationSpec",
    "metric_of",
]

_METADATA = "metadata:"


class TaskSettings(Section, ABC):
    """The `task` section of a config: a class of them for every task, with a field `type` of one literal value."""

    type: str

    @property
    def is_rate(self) -> bool:
        """Whether the task's metric is a share in [0, 1]."""
        return True

    def check_without_labels(self) -> None:
        """Raise ValueError where the metric cannot say how far a model agrees with the float model's answers."""

    @abstractmethod
    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task; `metadata` is the ONNX model's. Raises JobError where that lacks what the task needs."""


class ClassificationSpec(TaskSettings):
    """Top-k accuracy; the first output holds logits or probabilities, the label is a class index."""

    type: Literal["classification"]
    top_k: int = Field(default=1, ge=1)

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.classification import Classification

        return Classification(self.top_k)


class TextRecognitionSpec(TaskSettings):
    """CTC text; the first output holds probabilities over the characters and a blank, the label is the text."""

    type: Literal["text_recognition"]
    metric: Literal["exact_match", "character_error_rate"] = "exact_match"
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
            try:  # Windows' editors put a byte order mark before the first character
                text = Path(self.characters).read_text(encoding="utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise JobError(f"task.characters: {self.characters} is no text in UTF-8: {error}") from error
        characters = ["", *text.strip("\n").split("\n")]
        return TextRecognition([*characters, " "] if self.append_space else characters, metric=self.metric)


class DetectionOutputs(BaseModel):
    """Names of the outputs of a detector that has three."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boxes: str = "boxes"
    scores: str = "scores"
    classes: str = "labels"


class DetectionSpec(TaskSettings):
    """COCO mAP; the output holds what is left after non-maximum suppression, the label is {bbox, category}."""

    type: Literal["detection"]
    classes: int = Field(ge=1, description="how many; those of labels and of the model are 0 to classes - 1")
    boxes: Literal["xyxy", "xywh", "cxcywh"] = Field(
        default="xyxy", description="format of the model's boxes; those of labels are COCO's: left, top, width, height"
    )
    outputs: DetectionOutputs = Field(
        default=DetectionOutputs(), description="names of three outputs, where it is not one of shape (batch, n, 6)"
    )
    decode: CallableReference | None = Field(
        default=None, description="module:name or file.py:name; outputs by name -> boxes, scores, classes"
    )
    max_detections: int = Field(default=100, ge=1, description="that count in an image, the surest; COCO's is 100")

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.detection import Detection, OutputNames

        decode = load_object(self.decode, Path()) if self.decode else None
        names = OutputNames(**self.outputs.model_dump())
        return Detection(self.classes, self.boxes, names, decode, self.max_detections)


class SegmentationSpec(TaskSettings):
    """Mean intersection over union; the first output holds logits or classes of pixels, the label is a map of them."""

    type: Literal["segmentation"]
    classes: int = Field(ge=1, description="how many; labels are 0 to classes - 1")
    ignored: int = Field(default=255, description="label of pixels that are not scored")

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.segmentation import Segmentation

        return Segmentation(self.classes, self.ignored)


class SentenceEmbeddingSpec(TaskSettings):
    """Spearman's correlation with human scores; a sample is a pair of sentences, the label is the score."""

    type: Literal["sentence_embedding"]
    pooling: Literal["none", "mean", "cls"] = Field(
        default="none", description="of token vectors; none: the first output holds a vector per sentence"
    )

    @property
    def is_rate(self) -> bool:
        """A correlation is no share."""
        return False

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.embedding import SentenceEmbedding

        return SentenceEmbedding(self.pooling)


class _TokensSpec(TaskSettings):
    metric: Literal["accuracy", "loss", "perplexity"]

    @property
    def is_rate(self) -> bool:
        """Of accuracy only."""
        return self.metric == "accuracy"

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.tokens import TokenAccuracy, TokenLoss

        return TokenAccuracy(self.type) if self.metric == "accuracy" else TokenLoss(self.type, self.metric)

    def check_without_labels(self) -> None:
        """Only of accuracy is the float model's own value the best there is."""
        if self.metric != "accuracy":
            raise ValueError(
                f"task.metric is {self.metric}, which needs labels, and data.label is null: a candidate that is only "
                "surer of itself would score better than the float model; set task.metric: accuracy"
            )


class TokenClassificationSpec(_TokensSpec):
    """A class for each token; the first output holds logits, the label a class per token, -100 where not scored."""

    type: Literal["token_classification"]
    metric: Literal["accuracy", "loss", "perplexity"] = "accuracy"


class MaskedLmSpec(_TokensSpec):
    """Prediction of masked tokens; as token_classification, with the vocabulary as classes."""

    type: Literal["masked_lm"]
    metric: Literal["accuracy", "loss", "perplexity"] = "perplexity"


class RegressionSpec(TaskSettings):
    """Numbers; the label is a number, or as many as the first output has for a sample."""

    type: Literal["regression"]
    metric: Literal["mae", "rmse"] = "mae"

    @property
    def is_rate(self) -> bool:
        """An error has the labels' unit."""
        return False

    def make(self, metadata: Mapping[str, str]) -> Task:
        """Return the task."""
        from validate.tasks.regression import Regression

        return Regression(self.metric)


class CustomSpec(TaskSettings):
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


def _problem(name: str, thing: object) -> str | None:
    if not (isinstance(thing, type) and issubclass(thing, TaskSettings)):
        return "is not a subclass of validate.tasks.TaskSettings"
    if get_args(thing.model_fields["type"].annotation) != (name,):
        return f'needs a field type: Literal["{name}"]'
    missing = sorted(thing.__abstractmethods__)
    return f"has no method {missing[0]}" if missing else None


TASKS: Registry[type[TaskSettings]] = Registry(
    "task",
    "int8_gate.tasks",
    {
        "classification": ClassificationSpec,
        "detection": DetectionSpec,
        "segmentation": SegmentationSpec,
        "text_recognition": TextRecognitionSpec,
        "sentence_embedding": SentenceEmbeddingSpec,
        "token_classification": TokenClassificationSpec,
        "masked_lm": MaskedLmSpec,
        "regression": RegressionSpec,
        "custom": CustomSpec,
    },
    _problem,
)
"""All tasks by `type`. A package of the user's adds its own under the entry points `int8_gate.tasks`."""

TaskSpec = Annotated[TaskSettings, TypedUnion(TASKS)]
"""The `task` section: settings of one of `TASKS`."""


def metric_of(section: Mapping[str, Any], labelled: bool) -> Metric | None:
    """Return the metric of a `task` section alone; None for a task of the user's own.

    Args:
        section: that of a run's config, which may be another machine's: files and code that it names are not opened.
        labelled: whether there were labels.

    Examples:
        >>> metric_of({"type": "classification", "top_k": 5}, labelled=True).name
        'top5'
        >>> metric_of({"type": "custom", "callable": "tasks.py:mine"}, labelled=True) is None
        True
    """
    if section["type"] not in TASKS.own or section["type"] == "custom":
        return None
    described = {key: value for key, value in section.items() if key != "decode"}
    if "characters" in described:
        described["characters"] = _METADATA
    task: Task = TypeAdapter(TaskSpec).validate_python(described).make({"": ""})
    return with_or_without_labels(task, labelled).metric
