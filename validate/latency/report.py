"""The result of a benchmark: ``latency.json``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from validate.exceptions import UsageError
from validate.latency.clocks import Clocks, Machine
from validate.latency.rounds import Timing
from validate.records import FileKind, Number, Record

__all__ = ["BatchTimings", "Conditions", "LatencyReport", "ModelTiming"]

REPORT_VERSION = 1


class ModelTiming(Timing):
    """A model's timing, and how it came about."""

    name: str
    model: str = Field(description="file or module")
    timing: str = Field(description="what is in a time")
    cuda_graph: bool | None = Field(description="calls were replayed as a CUDA graph; null where that does not apply")
    note: str | None = Field(description="why it was no CUDA graph")


class Conditions(Record):
    """Conditions of the machine while the models were timed."""

    before: Clocks = Field(description="when the models were warm")
    after: Clocks = Field(description="when the last call was done")
    others: Number | None = Field(description="share of the CPUs' time that others took in between, in [0, 1]")


class BatchTimings(Record):
    """All models at one batch size, timed in turns."""

    batch_size: int = Field(ge=1)
    batches: int = Field(ge=1, description="different input batches that were cycled through")
    loads: list[Conditions] = Field(description="each time that the models were loaded")
    models: list[ModelTiming] = Field(description="the baseline first")


class LatencyReport(Record):
    """A whole benchmark."""

    file_kind: ClassVar[FileKind] = FileKind(is_not="is not what validate benchmark writes")

    schema_version: int = REPORT_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str
    inputs: str = Field(description="what the models were timed on")
    machine: Machine
    batch_sizes: list[BatchTimings]
    warnings: list[str] = Field(description="what disturbed the measurement")
    notes: list[str] = Field(description="what the numbers are and are not")
    environment: dict[str, str]

    def write(self, path: Path) -> None:
        """Write as JSON, whole or not at all. Raises UsageError where the file cannot be written."""
        try:
            super().write(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
