"""The sections that all configs share: a model, data, a task and a policy."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from validate.data import UNION_BRANCHES, DataConfig
from validate.references import CallableReference, ExistingPath
from validate.settings import Section
from validate.tasks import TaskSpec
from validate.verdict import Policy

__all__ = ["DataFile", "Job", "ModelConfig", "ModelFacts", "ScoredJob"]


class ModelFacts(Section):
    """Facts that a config states about a model, other than where it is."""

    inputs: list[str] | None = Field(
        default=None, min_length=1, description="names of a PyTorch module's inputs, in the order of forward()"
    )
    expected_metric: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="value of the task's metric that the model is known for; a "
        "warning where it is far below on the validation samples, which a wrong preprocessing is the usual cause of",
    )


class ModelConfig(ModelFacts):
    """The float model: an ONNX file, or a PyTorch module that is exported to one."""

    onnx: ExistingPath | None = Field(
        default=None, description="an ONNX file; package:NAME/file for one in a Python package"
    )
    torch: CallableReference | None = Field(
        default=None, description="module:name or file.py:name, called without arguments, returns an nn.Module"
    )

    @model_validator(mode="after")
    def _one_model(self) -> ModelConfig:
        if (self.onnx is None) == (self.torch is None):
            raise ValueError("give exactly one of onnx and torch")
        if (self.inputs is None) != (self.torch is None):
            raise ValueError("inputs belongs to torch: name the module's inputs there, and only there")
        return self


class DataFile(BaseModel):
    """A config file of which only the section `data` is read."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    union_branches: ClassVar = UNION_BRANCHES

    data: DataConfig


class ScoredJob(Section):
    """The sections that scoring a model needs: data and a task."""

    union_branches: ClassVar = {("task",): 1, **UNION_BRANCHES}

    data: DataConfig
    task: TaskSpec

    @model_validator(mode="after")
    def _metric_needs_labels(self) -> ScoredJob:
        if self.data.label is None:
            self.task.check_without_labels()
        return self


class Job(ScoredJob):
    """The sections of a whole job: a model, data, a task, and the policy of a release."""

    model: ModelConfig
    policy: Policy

    @model_validator(mode="after")
    def _margin_is_a_fraction(self) -> Job:
        if self.task.is_rate and self.policy.max_drop >= 1:
            raise ValueError(
                f"policy.max_drop is {self.policy.max_drop:g}, which allows any drop of a rate; "
                f"five percentage points are written 0.05"
            )
        return self

    @model_validator(mode="after")
    def _expectations_need_labels(self) -> Job:
        if self.model.expected_metric is not None and self.data.label is None:
            raise ValueError("model.expected_metric needs labels, and data.label is null")
        if self.task.is_rate and (self.model.expected_metric or 0) > 1:
            raise ValueError(
                f"model.expected_metric is {self.model.expected_metric:g}, which is above 100%; 75 percent are "
                "written 0.75"
            )
        return self
