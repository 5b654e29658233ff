"""What a run found of a TensorRT engine: the file, how far it is from its simulation, and what of it ran in INT8."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from validate.records import Number, Record
from validate.results.accuracy import CandidateAccuracy
from validate.results.speed import Latency

__all__ = ["Baseline", "Departure", "EngineFile", "EngineRun", "Int8InEngine", "OutputDistance"]


class EngineFile(Record):
    """The engine that was run."""

    path: str | None = Field(description="relative to results.json; null where it was not kept")
    sha256: str = Field(description="of the file")
    library: str = Field(description="that built and ran it, with its version, e.g. tensorrt_rtx 1.6.1.120")
    gpu: str = Field(description="that ran it, e.g. NVIDIA H200 (compute capability 9.0)")
    driver: str | None
    size_bytes: int = Field(ge=0)


class OutputDistance(Record):
    """How far one output of an engine is from the float model and from its simulation; SQNR over all samples, in dB."""

    tensor: str
    to_float_db: Number = Field(description="engine against the float model; NaN where either is not finite")
    simulation_to_float_db: Number = Field(description="simulation against the float model")
    to_simulation_db: Number = Field(
        description="engine against its simulation; of labels and other integers, elements over those that differ"
    )
    floor_db: Number = Field(description="two legitimate executions of that graph against each other; inf if equal")
    excess_db: Number = Field(description="the engine's noise over the floor's, each summed over samples, in dB")
    excess_low_db: Number = Field(description="lower confidence bound of it; NaN of one sample")
    not_finite: int = Field(ge=0, description="values of the engine that are NaN or infinite, and finite in simulation")


class Departure(Record):
    """The first place, in topological order, where an engine is not its simulation; as text, a sentence of it."""

    node: str = Field(description="ONNX node whose output it is")
    op_type: str
    tensor: str
    kind: Literal["not finite", "beyond the floor"]
    before: list[str] = Field(description="the nodes that the tensor is computed from, nearest first")
    detail: str = Field(description="what was found there, a sentence")

    def __str__(self) -> str:
        after = f", after {', '.join(self.before[:3])}" if self.before else ""
        return f"{self.detail}, first at {self.node} ({self.op_type}){after}"


class Int8InEngine(Record):
    """Which of the layers that a plan has in INT8 did the engine run in INT8."""

    planned: int = Field(ge=0, description="layers that the plan has in INT8")
    ran: int = Field(ge=0, description="of these, how many ran with INT8 inputs")
    share: float = Field(ge=0, le=1, description="the same by multiply-accumulates")
    not_run: list[str] = Field(description="nodes of the other layers, the largest first")
    stray_kernels: int = Field(ge=0, description="kernels that only quantize, dequantize, cast or reformat")
    stray_ms: float | None = Field(default=None, description="time of these, profiled; null where it was not measured")
    total_ms: float | None = Field(default=None, description="time of all kernels, profiled")


class EngineRun(Record):
    """One engine over the validation samples, held against its simulation."""

    file: EngineFile
    agreement: Number | None = Field(
        description="share of samples with the answer of the simulation, or the task's metric with these answers as "
        "labels; null where the task gives no answers"
    )
    not_finite_samples: int = Field(
        default=0,
        ge=0,
        description="validation samples with a value that is not finite, unlike in simulation",
    )
    compared: int = Field(ge=0, description="calibration samples on which outputs and inner tensors were compared")
    outputs: list[OutputDistance]
    departure: Departure | None = Field(description="null where the engine is its simulation, as far as was looked")
    inner_tensors: int = Field(ge=0, description="inner tensors that the engine showed and that were compared")
    int8: Int8InEngine | None = Field(default=None, description="null for an engine without INT8 layers")


class Baseline(Record):
    """The float model as an engine, which a candidate has to beat: in FP32 with and without TF32, FP16 and BF16."""

    name: str = Field(description="e.g. TensorRT FP16")
    engine: EngineRun | None
    reason: str | None = Field(default=None, description="why there is no engine, or why it was not timed")
    accuracy: CandidateAccuracy | None = Field(default=None, description="of the engine, against the float model")
    simulated: CandidateAccuracy | None = Field(default=None, description="of its simulation")
    latency: Latency | None = None
