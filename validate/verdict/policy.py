"""The policy of a release: the `policy` section of a config, or a file of its own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from validate.settings import Section

__all__ = [
    "ChampionPolicy",
    "EnginePolicy",
    "GroupPolicy",
    "Int8Policy",
    "LatencyPolicy",
    "Policy",
    "RuleKey",
    "SpeedupPolicy",
]

RuleKey = Literal[
    "classes",
    "slices",
    "champion",
    "speedup",
    "latency",
    "max_model_bytes",
    "min_layer_sqnr_db",
    "max_clipped_share",
    "max_overlap",
    "engine",
    "int8_in_engine",
]
"""What `Policy.optional` may name."""


class GroupPolicy(Section):
    """The largest drop that a class, or a slice of the data, may have."""

    max_drop: float = Field(gt=0, allow_inf_nan=False, description="in the metric's unit, of each group by itself")
    unproven: Literal["undecided", "pass"] = Field(
        default="undecided",
        description="what becomes of a group whose samples show neither that it keeps to max_drop nor that it does "
        "not: undecided (never a GO), or pass, so that only a group that is shown to lose more stops a release",
    )


class SpeedupPolicy(Section):
    """The least speed-up over another model that the candidate must have."""

    at_least: float = Field(gt=0, allow_inf_nan=False)
    estimate: bool = Field(default=False, description="an estimate for the target will do where nothing was measured")


class LatencyPolicy(Section):
    """The longest time that one call may take."""

    p99_ms: float = Field(gt=0, allow_inf_nan=False)
    device: str | None = Field(
        default=None, description="what it must have been timed on, as results.json names it; default: the target"
    )
    batch_size: int | None = Field(default=None, ge=1, description="that it must have been timed with; default: any")


class EnginePolicy(Section):
    """The TensorRT engine that is to be deployed, by its fingerprint; the gate gets it as --engine."""

    gpu: str | None = Field(default=None, description="name of the deployment target's GPU, e.g. NVIDIA L4")
    compute_capability: str | None = Field(
        default=None, pattern=r"^\d+\.\d+$", coerce_numbers_to_str=True, description="of that GPU, e.g. 8.9"
    )
    tensorrt: str | None = Field(default=None, description="version that is installed there, e.g. 11.0.0.114")
    max_bytes: int | None = Field(default=None, ge=1, description="size of the engine file")

    @model_validator(mode="after")
    def _gpu_has_a_compute_capability(self) -> EnginePolicy:
        if self.gpu is not None and self.compute_capability is None:
            raise ValueError(f"give compute_capability too: engines that are built ahead of time do not say {self.gpu}")
        return self


class Int8Policy(Section):
    """How much of what the plan has in INT8 the engine must run in INT8."""

    at_least: float = Field(
        default=0.9, gt=0, le=1, description="share of the planned layers' multiply-accumulates, as a fraction"
    )


class ChampionPolicy(Section):
    """How the candidate must do against the model that is live, which --baseline names."""

    max_drop: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="how much worse it may be; default: policy.max_drop"
    )


class Policy(Section):
    """Conditions of a release. Rates are fractions: 0.01 is one percentage point.

    Everything from `classes` on is a rule only where it is given.
    """

    max_drop: float = Field(
        gt=0, allow_inf_nan=False, description="margin: how much worse than the float model is acceptable"
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1,
        description="two-sided; shared by all looks at the validation samples: at the selected candidate, and at most "
        "two at plans that fallback found. Trials of fallback see calibration samples only",
    )
    require_tensorrt_build: bool = Field(
        default=True, description="no GO where no TensorRT builder has accepted the file"
    )
    classes: GroupPolicy | None = Field(default=None, description="groups of samples with the same label")
    slices: GroupPolicy | None = Field(default=None, description="groups by the column that data.slice names")
    champion: ChampionPolicy | None = Field(default=None, description="against the model that --baseline names")
    speedup: dict[Literal["FP16", "FP32"], SpeedupPolicy] = Field(default={}, description="by what it is held against")
    latency: LatencyPolicy | None = None
    max_model_bytes: int | None = Field(default=None, ge=1, description="of the ONNX file and its external data")
    min_layer_sqnr_db: float | None = Field(
        default=None, allow_inf_nan=False, description="of the worst layer's output, both models run whole"
    )
    max_clipped_share: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of a quantized activation's values that INT8 clips, of the worst one, on validation "
        "samples; a run measures it where its config's policy asks for it",
    )
    max_overlap: int | None = Field(
        default=None, ge=0, description="validation samples that scales were found on too (data.allow_overlap)"
    )
    engine: EnginePolicy | None = None
    int8_in_engine: Int8Policy | None = Field(
        default=None, description="what of the planned INT8 layers the engine that was run computes in INT8"
    )
    optional: list[RuleKey] = Field(
        default=[],
        description="rules that may go unmeasured; one that was measured holds in any case. engine: no engine has to "
        "have been run, and the verdict is by simulation",
    )

    @model_validator(mode="after")
    def _optional_rules_are_rules(self) -> Policy:
        for key in self.optional:
            # With --baseline there is a champion in any case, and an engine that has to be run always.
            if key not in {"champion", "engine"} and getattr(self, key) in (None, {}):
                raise ValueError(f"optional names {key}, but the policy has no such rule")
        return self

    def of_a_run(self) -> Policy:
        """Return the policy without its rule on the champion: only the gate is told which model is live."""
        return self.model_copy(update={"champion": None})

    def without_named_rules(self) -> Policy:
        """Return the policy without the rules that hold only where a policy names them."""
        return Policy(
            max_drop=self.max_drop,
            confidence=self.confidence,
            require_tensorrt_build=self.require_tensorrt_build,
            optional=["engine"],
        )
