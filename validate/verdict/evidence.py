"""Evidence of a verdict, as data: one candidate's measurements and what belongs to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from validate.backends.tensorrt import Fingerprint, sha256
from validate.exceptions import JobError
from validate.results import (
    Accuracy,
    Baseline,
    BuildResult,
    CandidateAccuracy,
    Clipping,
    EngineFile,
    EngineRun,
    Fp16Check,
    IntegerKernels,
    Latency,
    LayerError,
    Results,
    SampleTable,
    Speedup,
)
from validate.tasks import Metric

__all__ = ["Champion", "Engine", "Evidence", "Measured"]


class Measured(Protocol):
    """What rules may ask of a candidate: a `Candidate` of a run, or what an evaluation found of a model."""

    @property
    def name(self) -> str:
        """By which results know it."""
        ...

    @property
    def plan_hash(self) -> str:
        """Of its plan; empty where it names none."""
        ...

    @property
    def accuracy(self) -> CandidateAccuracy:
        """With its drop against the reference."""
        ...

    @property
    def integer_kernels(self) -> IntegerKernels | None:
        """The same with this CPU's integer kernels; None where they are not what will run."""
        ...

    @property
    def engine_file(self) -> EngineFile | None:
        """The TensorRT engine that gave the accuracy; None where none was run."""
        ...

    @property
    def engine(self) -> EngineRun | None:
        """How it compares with its simulation; None where that was not looked at."""
        ...

    @property
    def engine_reason(self) -> str | None:
        """Why no engine was run."""
        ...

    @property
    def latency(self) -> Latency | None:
        """None where it was not timed."""
        ...

    @property
    def latency_reason(self) -> str | None:
        """Why it was not."""
        ...

    @property
    def speedups(self) -> Sequence[Speedup]:
        """Against every baseline that it was held against."""
        ...

    @property
    def size_bytes(self) -> int | None:
        """Of its file; None where that is not known."""
        ...

    @property
    def tensorrt_build(self) -> BuildResult:
        """What a builder said."""
        ...

    @property
    def layers(self) -> Sequence[LayerError]:
        """Error of every layer; empty where layers were not compared."""
        ...

    @property
    def clipping(self) -> Clipping | None:
        """Share of activations that are clipped; None where it was not measured."""
        ...


@dataclass(frozen=True)
class Champion:
    """The model that is live, which the candidate is compared with.

    Attributes:
        name: name and version.
        accuracy: of its run; None where it cannot be compared with.
        scores: its scores, as the reference of a table of its own; None where it cannot be compared with.
        problem: why it cannot; empty where it can.
        is_absent: nothing is live yet, which a policy may allow.
        model_sha256: of the float model that it was made of.
        plan_hash: of its plan.
    """

    name: str
    accuracy: Accuracy | None = None
    scores: SampleTable | None = None
    problem: str = ""
    is_absent: bool = False
    model_sha256: str = ""
    plan_hash: str = ""

    @classmethod
    def of(cls, name: str, results: Results, samples: SampleTable | None, no_samples: str) -> Champion:
        """Return the selected candidate of a run, by what integer kernels scored where they are what runs.

        `no_samples` says why there are no samples.
        """
        selected = results.selected_candidate
        if samples is None:
            return cls(name, problem=f"of its run, {no_samples}")
        if selected is None or selected.name not in samples.candidates:
            return cls(name, problem="the samples.parquet of its run has no scores of it")
        scores = samples.kernels.get(selected.name, samples.candidates[selected.name])
        alone = SampleTable(samples.contents, samples.labels, samples.slices, scores, {})
        return cls(name, selected.accuracy, alone, model_sha256=results.model.sha256, plan_hash=selected.plan_hash)


@dataclass(frozen=True)
class Engine:
    """A TensorRT engine file.

    Attributes:
        path: of the file.
        size_bytes, sha256: of the file.
        fingerprint: what was written when it was built; None where it cannot be had.
        problem: why it cannot, or why the file is not the one that it was written for; empty where nothing is wrong.
    """

    path: Path
    size_bytes: int
    sha256: str
    fingerprint: Fingerprint | None
    problem: str = ""

    @classmethod
    def at(cls, path: Path) -> Engine:
        """Return what is known of an engine file; it is read, not run. Raises JobError where it cannot be read."""
        digest, size = sha256(path), path.stat().st_size
        try:
            fingerprint = Fingerprint.read(path)
        except JobError as error:
            return cls(path, size, digest, None, str(error))
        changed = digest != fingerprint.engine_sha256
        return cls(path, size, digest, fingerprint, "its SHA-256 is not that of its fingerprint" if changed else "")


@dataclass(frozen=True)
class Evidence:
    """The measurements of one candidate that a decision is made on.

    Attributes:
        reference: accuracy of the float model.
        candidate: what was measured of it.
        metric: how the accuracy is made of the samples' scores; None where it is not known.
        model_sha256: of the float model.
        overlap: validation samples that are calibration samples too; None where they were not counted.
        samples: scores of every sample; None where they are missing.
        no_samples: why they are not.
        champion: the live model to compare it with; None where that is not asked for.
        engine: built from the candidate's file; None where none was given.
        baselines: the float model's engines.
        fp16: what the float model loses in FP16 or BF16 alone, by simulation.
    """

    reference: Accuracy
    candidate: Measured
    metric: Metric | None = None
    model_sha256: str = ""
    overlap: int | None = None
    samples: SampleTable | None = None
    no_samples: str = "there is no samples.parquet beside the results"
    champion: Champion | None = None
    engine: Engine | None = None
    baselines: Sequence[Baseline] = ()
    fp16: Fp16Check | None = None
