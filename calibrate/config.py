"""The config file: its schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from calibrate.gpus import Gpu, gpu_named, gpu_of
from calibrate.plan import FloatPrecision, QuantizationRules
from validate.data import UNION_BRANCHES, DataConfig
from validate.exceptions import JobError
from validate.imports import CallableReference, ExistingPath
from validate.policy import Policy
from validate.settings import Section, read_settings
from validate.tasks.spec import TaskSpec

__all__ = ["Config", "load"]


class ModelConfig(Section):
    """The float model: an ONNX file, or a PyTorch module that is exported to one."""

    onnx: ExistingPath | None = Field(
        default=None, description="an ONNX file; package:NAME/file for one in a Python package"
    )
    torch: CallableReference | None = Field(
        default=None, description="module:name or file.py:name, called without arguments, returns an nn.Module"
    )
    inputs: list[str] | None = Field(
        default=None, min_length=1, description="names of a PyTorch module's inputs, in the order of forward()"
    )
    expected_metric: float | None = Field(
        default=None, allow_inf_nan=False, description="value of the task's metric that the model is known for; a "
        "warning where it is far below on the validation samples, which a wrong preprocessing is the usual cause of"
    )  # fmt: skip

    @model_validator(mode="after")
    def _one_model(self) -> ModelConfig:
        if (self.onnx is None) == (self.torch is None):
            raise ValueError("give exactly one of onnx and torch")
        if (self.inputs is None) != (self.torch is None):
            raise ValueError("inputs belongs to torch: name the module's inputs there, and only there")
        return self


class PercentileStrategy(Section):
    """Clips a fixed share of the values."""

    percentile: float = Field(gt=0, le=100)


def _kind_of_strategy(value: Any) -> str:
    return "percentile" if isinstance(value, dict | PercentileStrategy) else "name"


Strategy = Annotated[
    Annotated[Literal["minmax", "entropy", "mse", "auto"], Tag("name")]
    | Annotated[PercentileStrategy, Tag("percentile")],
    Discriminator(_kind_of_strategy),  # one sentence for one mistake, not one for every branch of the union
]


class QuantizationConfig(QuantizationRules):
    """How candidates are made."""

    # FP16 is what INT8 has to beat, and a rest in FP32 loses to it; nodes that FP16 cannot hold are found and kept out.
    float_precision: FloatPrecision = Field(
        default="fp16", description="type of everything that is not int8, and of the float side of int8 layers"
    )
    strategies: list[Strategy] = Field(
        default=[
            "minmax", PercentileStrategy(percentile=99.9), PercentileStrategy(percentile=99.99),
            PercentileStrategy(percentile=99.999), "entropy", "mse",
        ],
        min_length=1,
        description="each gives one candidate; a percentile is written {percentile: 99.99}",
    )  # fmt: skip

    @field_validator("strategies")
    @classmethod
    def _distinct(cls, strategies: list[Strategy]) -> list[Strategy]:
        seen: list[Strategy] = []
        for strategy in strategies:
            if strategy in seen:
                raise ValueError(f"{strategy} is there twice")
            seen.append(strategy)
        return strategies


class FallbackConfig(Section):
    """The search that puts layers back to float where the selected candidate misses the policy.

    Its target is the policy's margin, unless it has one of its own. Calibration samples rank the layers, others judge
    the trials, and the validation samples see only what the search ends with.
    """

    evaluations: float = Field(
        default=3, ge=0,
        description="runs over the judging samples that all trials may take together, that of the plan all in int8 "
        "with them; one that is stopped early counts as the part that it ran; 0 turns fallback off",
    )  # fmt: skip
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


def _capability(target: dict[str, Any]) -> str:
    return gpu_named(target["gpu"]).compute_capability if target["gpu"] else "8.9"


class TargetConfig(Section):
    """What the model will run on."""

    device: Literal["gpu", "cpu"] = Field(
        default="gpu", description="cpu: judge the CPU's integer kernels too, since they are what will run"
    )
    gpu: str | None = Field(
        default=None,
        description="GPU whose speed is estimated where it is not this machine's: T4, A10, L4, A100, H100 or RTX 4090; "
        "default: any with the compute capability",
    )
    compute_capability: str = Field(
        default_factory=_capability, pattern=r"^\d+\.\d+$", coerce_numbers_to_str=True,
        description="GPU that TensorRT-RTX builds for, ahead of time; default: that of gpu, else 8.9",
    )  # fmt: skip

    @field_validator("gpu")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        try:
            return None if name is None else gpu_named(name).name
        except JobError as error:
            raise ValueError(str(error)) from None

    @field_validator("compute_capability")
    @classmethod
    def _that_of_the_gpu(cls, capability: str, info: ValidationInfo) -> str:
        if (name := info.data.get("gpu")) and (its := gpu_named(name).compute_capability) != capability:
            raise ValueError(f"it is {capability}, and target.gpu, the {name}, has {its}; give one of the two")
        return capability

    def is_gpu(self, name: str, compute_capability: str) -> bool:
        """Tell whether a GPU, by the driver's name, is the target: the `gpu`, or any of the compute capability."""
        if self.gpu is None:
            return compute_capability == self.compute_capability
        try:
            return gpu_named(name).name == self.gpu
        except JobError:  # a GPU whose speed is not known is none of those that `gpu` can be
            return False

    def known_gpu(self) -> Gpu | None:
        """Return the GPU by which the target's speed is estimated; None where none has its compute capability."""
        return gpu_named(self.gpu) if self.gpu else gpu_of(self.compute_capability)


class LatencyConfig(Section):
    """How candidates are timed."""

    runs: int = Field(default=10, ge=0, description="timed calls per model; 0 measures nothing")
    batch_size: int = Field(default=1, ge=1)
    torch_compile: bool = Field(
        default=False, description="time a PyTorch model compiled too, which takes minutes, beside the eager one"
    )


class TrackingConfig(Section):
    """Where MLflow logs."""

    uri: str | None = Field(
        default=None, description="tracking server; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = "calibrate"
    retry_seconds: float = Field(
        default=20, ge=0, description="how long a server that fails is tried again; python -m reports log sends later"
    )


class Config(Section):
    """A job: which model, which data, which task, and what a release must keep to."""

    union_branches: ClassVar = {("task",): 1, ("quantization", "strategies"): 3, **UNION_BRANCHES}

    name: str = Field(default="run", pattern=r"^[\w.-]+$", description="names the output folder and the MLflow run")
    model: ModelConfig
    data: DataConfig
    task: TaskSpec
    policy: Policy
    quantization: QuantizationConfig = QuantizationConfig()
    fallback: FallbackConfig = FallbackConfig()
    compare_samples: Annotated[int, Field(ge=1, description="calibration samples of the per-layer comparison")] = 8
    target: TargetConfig = TargetConfig()
    latency: LatencyConfig = LatencyConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _margin_is_a_fraction(self) -> Config:
        if self.task.is_rate and self.policy.max_drop >= 1:
            raise ValueError(
                f"policy.max_drop is {self.policy.max_drop:g}, which allows any drop of a rate; "
                f"five percentage points are written 0.05"
            )
        return self

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

    @model_validator(mode="after")
    def _expectations_need_labels(self) -> Config:
        if self.model.expected_metric is not None and self.data.label is None:
            raise ValueError("model.expected_metric needs labels, and data.label is null")
        if self.task.is_rate and (self.model.expected_metric or 0) > 1:
            raise ValueError(
                f"model.expected_metric is {self.model.expected_metric:g}, which is above 100%; 75 percent are "
                "written 0.75"
            )
        return self

    @model_validator(mode="after")
    def _metric_needs_labels(self) -> Config:
        if self.data.label is None:
            self.task.check_without_labels()
        return self


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config in `path`; see `read_settings`."""
    return read_settings(Config, path, overrides)
