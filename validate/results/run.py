"""The result of a run: ``results.json``. The gate, the report and tracking read only these types.

``results.json`` is `Results` written by pydantic; its JSON Schema is ``validate/results/results.schema.json``.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator

from validate.exceptions import UsageError
from validate.notebook import accuracy_table, paragraphs, table
from validate.number_formats import Precision
from validate.passwords import Published
from validate.records import FileKind, Number, Record
from validate.results.accuracy import Accuracy, Basis, CandidateAccuracy, IntegerKernels
from validate.results.engines import Baseline, EngineFile, EngineRun
from validate.results.fp16 import Fp16Check
from validate.results.speed import Cost, Latency, Speedup

__all__ = [
    "SCHEMA_VERSION",
    "BuildResult",
    "Candidate",
    "Clipping",
    "Decision",
    "ForwardPasses",
    "LayerError",
    "ModelInfo",
    "NodeCounts",
    "ParetoPoint",
    "Reference",
    "Results",
    "Rule",
    "Search",
    "Trial",
    "Verdict",
]

SCHEMA_VERSION: Final = 2


class Decision(StrEnum):
    """The decision on a candidate."""

    GO = "GO"
    NO_GO = "NO_GO"
    INCONCLUSIVE = "INCONCLUSIVE"


class ModelInfo(Record):
    """The float model as the user gave it (a PyTorch model: as it was exported)."""

    path: str
    sha256: str = Field(description="SHA-256 of the ONNX file and of its external data, in that order")
    nodes: int = Field(ge=0, description="nodes of the prepared graph, subgraphs not counted")
    parameters: int = Field(ge=0, description="elements of all float initializers")


class NodeCounts(Record):
    """How many nodes of the prepared graph are computed in which precision."""

    int8: int = Field(ge=0)
    fp16: int = Field(ge=0)
    bf16: int = Field(default=0, ge=0)
    fp32: int = Field(ge=0)


class BuildResult(Record):
    """The answer of a real TensorRT builder to the candidate's file."""

    ok: bool | None = Field(description="null where the check was not made; `message` says why")
    backend: str | None
    version: str | None
    message: str
    seconds: float | None = None


class LayerError(Record):
    """How far one layer's output is from the float reference when both models run whole."""

    node: str
    op_type: str
    tensor: str
    depth: int = Field(ge=0, description="position in topological order")
    precision: Precision
    sqnr_db: Number = Field(
        description="10 log10(sum ref^2 / sum (ref - x)^2); inf where equal, -inf where only the reference is zero"
    )
    isolated_sqnr_db: Number = Field(description="the same where the layer is fed the float model's values")
    clipped_share: Number = Field(description="share of an input's calibration values that INT8 clips; 0 in float")
    scale: float | None = Field(default=None, description="of the input that is clipped most; null in float")
    latency_ms: float | None = Field(default=None, description="measured, of this layer alone; null where it was not")


class Clipping(Record):
    """How much INT8 clips of the activations that a plan quantizes: the share of the worst one."""

    share: Number = Field(description="of its float values; counted in bins, rounded up by at most one bin")
    tensor: str
    split: Literal["validation"]
    samples: int = Field(ge=0)


class Candidate(Record):
    """One plan and all that was measured of it."""

    name: str
    strategy: str
    plan: str = Field(description="path of the plan, relative to results.json")
    plan_hash: str
    float_layers: list[str] = Field(description="layers that fallback put back to float, worst first")
    selection_error: Number | None = Field(
        description="mean task error against the float outputs on the selection samples; picks among strategies, and "
        "is null for what fallback made"
    )
    accuracy: CandidateAccuracy = Field(description="what is judged: of the engine where one was run")
    simulated: CandidateAccuracy | None = Field(
        default=None, description="in float simulation, where `accuracy` is the engine's"
    )
    engine: EngineRun | None = None
    engine_reason: str | None = Field(default=None, description="why no engine was run; null where one was")
    integer_kernels: IntegerKernels | None = None
    latency: Latency | None
    latency_reason: str | None = Field(default=None, description="why `latency` is null")
    cost: Cost
    int8_mac_share: float = Field(ge=0, le=1, description="share of the layers' multiply-accumulates in int8")
    speedups: list[Speedup] = Field(default=[], description="against every baseline that it was held against")
    nodes: NodeCounts
    size_bytes: int = Field(ge=0)
    tensorrt_build: BuildResult
    layers: list[LayerError]
    clipping: Clipping | None = Field(
        default=None, description="on validation samples; null where no policy asked for it"
    )

    @property
    def engine_file(self) -> EngineFile | None:
        """The engine that was run."""
        return None if self.engine is None else self.engine.file

    def with_engine_kept(self, path: str) -> Candidate:
        """Return the candidate with its engine, where it has one, at a path relative to results.json."""
        if self.engine is None:
            return self
        file = self.engine.file.model_copy(update={"path": path})
        return self.model_copy(update={"engine": self.engine.model_copy(update={"file": file})})


class Reference(Record):
    """The float model, as given."""

    accuracy: Accuracy
    latency: Latency | None
    latency_reason: str | None = None


class Trial(Record):
    """A plan that the search for a fallback evaluated."""

    name: str
    plan_hash: str
    float_layers: list[str] = Field(description="layers in float, worst first")
    accuracy: CandidateAccuracy = Field(description="on the samples that were judged")
    stopped_early: bool = Field(
        description="not all samples ran: it was out of reach of the target, or, all in int8, had shown what it changes"
    )
    meets_target: bool
    cost: Cost


class Search(Record):
    """The search of fallback for the fastest plan that meets the target."""

    target: str = Field(description="a sentence")
    precision: str = Field(description="what the layers went back to")
    effects: dict[str, Number] = Field(description="estimated task error of every layer alone in int8, worst first")
    ranking_samples: int = Field(ge=0, description="calibration samples that could rank")
    ranked_on: int = Field(ge=0, description="of these, how many did")
    ranking_passes: float = Field(ge=0, description="runs of any model by ranking, in runs over all ranking samples")
    judging_samples: int = Field(ge=0, description="calibration samples that judged; none of them ranked")
    screened: int = Field(default=0, ge=0, description="plans that were tried on the samples alone that int8 changes")
    judging_passes: float = Field(ge=0, description="runs over all judging samples; one stopped early is a part of one")
    trials: list[Trial]
    ended: str = Field(description="why it ended there, a sentence")


class ParetoPoint(Record):
    """A model in the plane of accuracy and speed."""

    name: str
    value: Number = Field(description="of the metric")
    drop: Number
    ci_low: Number
    ci_high: Number
    cost: Cost
    latency_ms: float | None = Field(description="measured p50 on this machine, where it was")
    size_bytes: int | None
    int8_mac_share: float
    on_front: bool = Field(description="none is both more accurate and faster")


class Rule(Record):
    """One rule of the policy, and its outcome."""

    name: str
    outcome: Literal["pass", "fail", "undecided", "not_measured"]
    message: str
    value: Number | None = Field(default=None, description="what was measured, in `unit`; null where nothing was")
    threshold: Number | None = Field(default=None, description="what the policy asks for, in `unit`")
    unit: str = Field(default="", description="empty for the task's metric, shares and ratios")
    optional: bool = Field(default=False, description="the policy lets it go unmeasured")

    @property
    def blocks_release(self) -> bool:
        """Whether the outcome rules out a GO."""
        return self.outcome != "pass" and not (self.outcome == "not_measured" and self.optional)


class Verdict(Record):
    """The decision, with the reasons that a release engineer reads."""

    decision: Decision
    basis: Basis | None = Field(default=None, description="what the accuracy was judged on; null where it is not known")
    reasons: list[str]
    rules: list[Rule]

    def _repr_html_(self) -> str:
        rows = [(rule.outcome.replace("_", " "), rule.name, rule.message) for rule in self.rules]
        # The first reason is what it was judged on; see `decide`.
        title = ", ".join([self.decision.value, *self.reasons[:1]]) if self.basis else self.decision.value
        return table(title, ("outcome", "rule", "reason"), rows)


class ForwardPasses(Record):
    """How often a stage ran models over samples. Every run over data counts, of any model; timed calls do not."""

    stage: str
    passes: int = Field(ge=0)
    samples: int = Field(ge=0, description="samples over all passes together")


class Results(Record):
    """A whole run: ``results.json``. It is read by its path or its folder's; UsageError where that is none."""

    file_kind: ClassVar[FileKind] = FileKind(
        "results", "is not the results.json of a run", name="results.json", error=UsageError
    )

    schema_version: Literal[2] = SCHEMA_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: Published[str] = Field(description="the command that made this")
    model: ModelInfo
    task: str
    data: Published[dict[str, Any]] = Field(description="per split: source, samples, digest of the contents")
    overlap: int | None = Field(
        default=None, ge=0, description="validation samples that are calibration samples too; null where not counted"
    )
    reference: Reference
    baselines: list[Baseline] = Field(default=[], description="the float model in engines of other types")
    candidates: list[Candidate]
    selected: str | None = Field(description="name of the candidate that the verdict is about")
    search: Search | None = Field(description="null where no layers were put back")
    fp16: Fp16Check | None = Field(default=None, description="FP16 without INT8; null where it was not measured")
    samples_sha256: str | None = Field(
        default=None, description="SHA-256 of the samples.parquet beside it; null in results of older versions"
    )
    pareto: list[ParetoPoint] = Field(description="every model that was judged on all samples, the fastest first")
    verdict: Verdict
    environment: dict[str, str]
    timings: dict[str, float] = Field(description="seconds per stage")
    forward_passes: list[ForwardPasses]
    warnings: list[str] = Field(description="what the run noticed and the user should know")
    config: Published[dict[str, Any]] = Field(
        description="the config as it was used, overrides applied; passwords in URIs are taken out"
    )

    @field_validator("selected")
    @classmethod
    def _is_a_candidate(cls, selected: str | None, info: ValidationInfo) -> str | None:
        names = [candidate.name for candidate in info.data.get("candidates", [])]
        if selected is not None and selected not in names:
            raise ValueError(f"no candidate is called {selected}; there are {', '.join(names) or 'none'}")
        return selected

    @property
    def selected_candidate(self) -> Candidate | None:
        """The candidate that the verdict is about."""
        return None if self.selected is None else self.candidate(self.selected)

    def candidate(self, name: str) -> Candidate:
        """Return the candidate called `name`; `KeyError` where there is none."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)

    def __repr__(self) -> str:
        return f"<Results: {self.verdict.decision.value} for {self.selected}>"

    def _repr_html_(self) -> str:
        models = [("float", self.reference.accuracy), *((c.name, c.accuracy) for c in self.candidates)]
        notes = paragraphs(f"warning: {warning}" for warning in self.warnings)
        return self.verdict._repr_html_() + accuracy_table(f"selected: {self.selected}", models) + notes

    @classmethod
    def _mismatch(cls, path: Path, error: ValidationError) -> str:
        first = error.errors()[0]
        if first["loc"] == ("schema_version",):
            return (
                f"{path} has schema_version {first['input']}, and this version reads {SCHEMA_VERSION}; take the "
                "version that wrote it, or run again"
            )
        return super()._mismatch(path, error)
