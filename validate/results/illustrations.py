"""Illustrations of a run: histograms, convergence, pictures. No decision uses them.

``illustrations.json`` lies beside ``results.json``; a report is as right without it, and says what it cannot show.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from validate.records import FileKind, Number, Record

__all__ = [
    "ILLUSTRATIONS",
    "Convergence",
    "ConvergencePoint",
    "Histogram",
    "Illustrations",
    "TensorHistogram",
    "Threshold",
    "WorstSample",
]

ILLUSTRATIONS = "illustrations.json"
"""Name of the file."""


class Histogram(Record):
    """Counts of |x| in bins of one width from 0."""

    width: float = Field(gt=0, description="of a bin, in the tensor's unit")
    counts: list[int]


class Threshold(Record):
    """Where a candidate clips a tensor."""

    candidate: str
    value: float = Field(gt=0, description="127 times the scale, in the tensor's unit")
    clipped_share: float = Field(ge=0, le=1, description="share of the calibration values that INT8 clips")


class TensorHistogram(Record):
    """An activation on the calibration samples, in few enough bins to be drawn."""

    tensor: str
    layers: list[str] = Field(description="layers that read it, in topological order")
    amax: float = Field(ge=0, description="largest |x|")
    histogram: Histogram
    thresholds: list[Threshold] = Field(description="of each strategy, the lowest first")


class ConvergencePoint(Record):
    """How far the scales of the first samples are from those of all, relative to these."""

    samples: int = Field(ge=1)
    median: Number = Field(description="over the tensors")
    most: Number = Field(description="90th percentile over the tensors")


class Convergence(Record):
    """How a strategy's scales settled as samples came in."""

    strategy: str
    tensors: int = Field(ge=1, description="tensors that were followed")
    settled: float = Field(gt=0, description="change that is too small to matter")
    points: list[ConvergencePoint] = Field(description="at every doubling of the samples, before the last")


class WorstSample(Record):
    """A validation sample whose score the selected candidate lowered."""

    index: int = Field(ge=0, description="position in the validation set")
    label: str | None
    slice: str | None
    reference: Number = Field(description="score of the float model")
    candidate: Number = Field(description="score of the candidate")
    picture: str | None = Field(default=None, pattern=r"^[A-Za-z0-9+/]+=*$", description="a small JPEG, in base64")
    text: str | None = Field(default=None, description="what a text input says, or why there is no picture")


class Illustrations(Record):
    """All illustrations of a run, which are about one candidate."""

    file_kind: ClassVar[FileKind] = FileKind(is_not="holds no illustrations")

    plan_hash: str = Field(description="of the candidate that it is about")
    histograms: list[TensorHistogram] = Field(description="inputs of the layers that INT8 hurts most, worst first")
    convergence: list[Convergence]
    worst_samples: list[WorstSample] = Field(description="the largest loss first")
