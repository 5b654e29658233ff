"""Accuracy of a model, and of a candidate paired with the float reference."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from validate.records import Number, Record

__all__ = ["Accuracy", "Basis", "CandidateAccuracy", "IntegerKernels"]

Basis = Literal["engine", "simulation", "kernels"]


class Accuracy(Record):
    """The task's metric over the validation set."""

    metric: str
    higher_is_better: bool
    is_rate: bool = Field(description="the metric is a share in [0, 1], shown to people in percent")
    is_agreement: bool = Field(
        default=False, description="labels were the float model's own answers: agreement with it, and not accuracy"
    )
    basis: Basis | None = Field(
        default=None,
        description="what gave the answers: the TensorRT engine, a float simulation of the file's Q/DQ, or integer "
        "kernels of a CPU; null for the float model, and in results of older versions",
    )
    value: Number
    n: int = Field(ge=0, description="samples scored")


class CandidateAccuracy(Accuracy):
    """Accuracy of a candidate, paired sample by sample with the float reference."""

    drop: Number = Field(description="how much worse than the reference; positive is worse, whatever the metric")
    ci_low: Number = Field(description="lower confidence bound of `drop`")
    ci_high: Number = Field(description="upper confidence bound of `drop`")
    confidence: float = Field(gt=0, lt=1, description="two-sided confidence of the interval")
    method: str = Field(description="how the interval was computed")
    deviation: Number | None = Field(
        default=None, description="standard deviation of the samples' differences; null where the metric is no mean"
    )


class IntegerKernels(Record):
    """The same Q/DQ file with this CPU's integer kernels in place of float simulation."""

    runtime: str
    accuracy: CandidateAccuracy
    difference: Number = Field(
        description="metric with integer kernels minus metric in float simulation; a property of this CPU"
    )
