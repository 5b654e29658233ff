"""The config file: its schema, its overrides, and errors that name the key and the line."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from calibrate.plan import QuantizationRules
from validate.data import DataSource, ImagePreprocessing
from validate.exceptions import UsageError
from validate.gate import Policy
from validate.imports import CallableReference, ExistingPath
from validate.tasks.spec import TaskSpec

__all__ = ["Config", "load"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(_Section):
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

    @model_validator(mode="after")
    def _one_model(self) -> ModelConfig:
        if (self.onnx is None) == (self.torch is None):
            raise ValueError("give exactly one of onnx and torch")
        if (self.inputs is None) != (self.torch is None):
            raise ValueError("inputs belongs to torch: name the module's inputs there, and only there")
        return self


class DataConfig(_Section):
    """Where samples come from and how a row becomes the model's input."""

    calibration: DataSource = Field(description="samples that scales are found and candidates ranked on")
    validation: DataSource = Field(description="labelled samples that the verdict is made on, and nothing else")
    label: str | None = Field(default="label", description="column of the label")
    image: ImagePreprocessing | None = Field(default=None, description="preprocessing of an image column")
    preprocess: CallableReference | None = Field(
        default=None, description="module:name or file.py:name; row -> array, or mapping from input name to array"
    )
    batch_size: int = Field(default=8, ge=1)
    allow_overlap: bool = Field(
        default=False, description="accept samples that are in both sets; the verdict then flatters the candidate"
    )

    @model_validator(mode="after")
    def _one_preprocessing(self) -> DataConfig:
        if self.image is not None and self.preprocess is not None:
            raise ValueError("give image or preprocess, not both")
        return self


class PercentileStrategy(_Section):
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


class FallbackConfig(_Section):
    """The search that puts layers back to FP16 where no candidate meets the policy."""

    max_trials: int = Field(default=5, ge=0, description="mixed candidates to judge at most; 0 turns fallback off")
    samples: int = Field(default=32, ge=1, description="calibration samples that layers are ranked on")


class TargetConfig(_Section):
    """What the model will run on."""

    device: Literal["gpu", "cpu"] = Field(
        default="gpu", description="cpu: judge the CPU's integer kernels too, since they are what will run"
    )
    compute_capability: str = Field(
        default="8.9", pattern=r"^\d+\.\d+$", coerce_numbers_to_str=True,
        description="GPU that TensorRT-RTX builds for, ahead of time",
    )  # fmt: skip


class LatencyConfig(_Section):
    """How candidates are timed."""

    runs: int = Field(default=10, ge=0, description="timed calls per model; 0 measures nothing")
    batch_size: int = Field(default=1, ge=1)


class TrackingConfig(_Section):
    """Where MLflow logs."""

    uri: str | None = Field(
        default=None, description="tracking server; default: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    experiment: str = "calibrate"


class Config(_Section):
    """A job: which model, which data, which task, and what a release must keep to."""

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


def load(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config in `path`, with each override ``dotted.key=value`` (value in YAML) applied.

    Relative paths in it start at the file's folder. Raises UsageError: one sentence with key and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"config {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"config {path} is not YAML: it is not a UTF-8 text") from error
    try:
        data, tree = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, for one
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or tree is None:
        raise UsageError(f"config {path} is empty or not a mapping; examples/quickstart.yaml shows what one holds")
    overridden = [_override(data, override) for override in overrides]
    try:
        return Config.model_validate(data, context={"base": path.resolve().parent})
    except ValidationError as error:
        # A mistyped key comes first: it is why another one is missing.
        errors = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise UsageError("; ".join(_sentence(path, tree, e, overridden) for e in errors[:3])) from error


def _override(data: dict[str, Any], override: str) -> tuple[str, ...]:
    """Put ``dotted.key=value`` into `data`; return the key."""
    dotted, separator, value = override.partition("=")
    if not separator or not all(dotted.split(".")):
        raise UsageError(f"--set {override} should be written dotted.key=value")
    *parents, last = keys = dotted.split(".")
    section: Any = data
    for key in parents:
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(f"--set {override}: {key} is a value in the config, not a section")
    try:
        section[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"--set {override}: the value is not YAML ({' '.join(str(error).split())})") from error
    return tuple(keys)


def _sentence(path: Path, tree: yaml.Node, error: Any, overridden: Sequence[tuple[str, ...]]) -> str:
    """Turn one pydantic error into: file, line, key, what is wrong, what to do."""
    location = _without_branches(error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    message = f": {message[:1].lower()}{message[1:]}"
    if error["type"] == "extra_forbidden":
        message = f" is not a known key{_suggestion(location)}"
    elif error["type"] == "missing":
        message = " is missing"
    elif error["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        message = f" should hold keys of its own, not {error['input']!r}"
    elif error["type"] == "union_tag_not_found":
        location, message = [*location, "type"], " is missing"
    elif error["type"] == "union_tag_invalid":
        location = [*location, "type"]
        message = f" should be one of {error['ctx']['expected_tags']}, not {error['ctx']['tag']!r}"
    key = ".".join(map(str, location))
    return f"{_where(path, tree, location, overridden)}: {key}{message if key else message.removeprefix(': ')}"


def _without_branches(location: Sequence[str | int]) -> list[str | int]:
    """Return the keys of the config in a location, without the branches of unions that pydantic puts between."""
    branch = 1 if location[:1] == ("task",) else 3 if location[:2] == ("quantization", "strategies") else None
    return [part for index, part in enumerate(location) if index != branch]


def _where(path: Path, tree: yaml.Node, location: Sequence[str | int], overridden: Sequence[tuple[str, ...]]) -> str:
    """Return file and line of a key, or of the nearest section around it; ``--set`` where it came from there."""
    keys, (line, in_file) = tuple(map(str, location)), _line(tree, location)
    within = [".".join(set_keys) for set_keys in overridden if set_keys[: len(keys)] == keys]
    if any(keys[: len(set_keys)] == set_keys for set_keys in overridden) or (within and not in_file):
        return "--set"
    return f"{path}, line {line}" + (f", with --set {', '.join(within)}" if within else "")


def _line(tree: yaml.Node, location: Sequence[str | int]) -> tuple[int, bool]:
    """Walk down as far as the file goes; return the line of the last key, from 1, and if it goes all the way."""
    node, line = tree, tree.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == part), None)
            if found is None:
                return line, False
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            return line, False
    return line, True


def _suggestion(location: Sequence[str | int]) -> str:
    """Return what the user may have meant by an unknown key."""
    fields = _fields(Config)
    for part in location[:-1]:
        fields = _fields(fields[str(part)].annotation) if str(part) in fields else {}
    near = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a section, or of all that an optional section or a union of them may be."""
    if hasattr(annotation, "model_fields"):
        return dict(annotation.model_fields)
    found: dict[str, Any] = {}
    for member in typing.get_args(annotation):
        found |= _fields(member)
    return found
