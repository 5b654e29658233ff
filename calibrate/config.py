"""The config of a run: a job, and how it is quantized, searched, timed and tracked.

Each section is defined in the room that acts on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from calibrate.cost import TargetConfig
from calibrate.measurement import LatencyConfig
from calibrate.search import FallbackConfig
from calibrate.strategies import QuantizationConfig
from reports.tracking import TrackingConfig
from validate.job import Job
from validate.settings import read_settings

__all__ = ["Config", "load"]


class Config(Job):
    """Config of a run: model, data, task and policy of a job, and how it is quantized, searched, timed and tracked."""

    name: str = Field(default="run", pattern=r"^[\w.-]+$", description="names the output folder and the MLflow run")
    quantization: QuantizationConfig = QuantizationConfig()
    fallback: FallbackConfig = FallbackConfig()
    compare_samples: Annotated[int, Field(ge=1, description="calibration samples of the per-layer comparison")] = 8
    target: TargetConfig = TargetConfig()
    latency: LatencyConfig = LatencyConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _target_has_the_precisions(self) -> Config:
        used = {"quantization.float_precision": self.quantization.float_precision}
        if self.fallback.evaluations:
            used["fallback.precision"] = self.fallback.precision
        gpu = self.target.known_gpu() if self.target.device == "gpu" else None
        for key, precision in used.items():
            if gpu and precision not in gpu.tera:
                raise ValueError(f"{key} is {precision}, in which the target, a {gpu.name}, does not compute; use fp16")
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read the config of a run.

    Args:
        path: of a YAML file. Relative paths in it start at its folder.
        overrides: ``dotted.key=value`` each, in order; the value is YAML.

    Raises:
        UsageError: the file cannot be read, or a key is unknown or wrong; the message has key and line.
    """
    return read_settings(Config, path, overrides)
