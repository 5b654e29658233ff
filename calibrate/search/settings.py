"""The `fallback` section of a config."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from validate.number_formats import FloatPrecision
from validate.settings import Section

__all__ = ["FallbackConfig"]


class FallbackConfig(Section):
    """Settings of the search that puts layers back to float where the selected candidate misses the policy.

    The target is the policy's margin, unless one is given here. Some calibration samples rank the layers, the others
    judge the trials, and only the plans that the search ends with are run on validation samples.
    """

    evaluations: float = Field(
        default=3,
        ge=0,
        description="runs over the judging samples that all trials may take together, that of the plan all in int8 "
        "with them; one that is stopped early counts as the part that it ran; 0 turns fallback off",
    )
    minutes: float | None = Field(
        default=None,
        gt=0,
        description="of ranking, screens and trials; then no other begins, and the search ends with the best so far",
    )
    samples: int = Field(default=64, ge=1, description="calibration samples of which some rank the layers")
    precision: FloatPrecision = Field(default="fp16", description="what layers go back to")
    max_drop: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="target in the metric's unit; default: policy.max_drop"
    )
    max_relative_drop: float | None = Field(
        default=None, gt=0, lt=1, description="target as a share of the float model's metric, e.g. 0.01"
    )
    confidence: float | None = Field(
        default=None, gt=0.5, lt=1, description="two-sided; default: that of the verdict on what the search finds"
    )

    @field_validator("evaluations")
    @classmethod
    def _whole_runs(cls, evaluations: float) -> float:
        if 0 < evaluations < 2:
            raise ValueError(
                "the plan all in int8 takes up to one run and a trial another, so that it is 2 or more; 0 turns "
                "fallback off"
            )
        return evaluations

    @model_validator(mode="after")
    def _one_target(self) -> FallbackConfig:
        if self.max_drop is not None and self.max_relative_drop is not None:
            raise ValueError("give max_drop or max_relative_drop, not both")
        return self
