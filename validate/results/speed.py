"""Latency, cost and speed-up of a model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from validate.records import Number, Record

__all__ = ["Cost", "Latency", "Speedup"]


class Latency(Record):
    """Wall time of one inference call of `batch_size` samples, in milliseconds."""

    runtime: str = Field(description="library and version that ran it")
    device: str = Field(description="hardware that it ran on; says nothing about any other hardware")
    batch_size: int = Field(ge=1)
    runs: int = Field(ge=1, description="timed calls, warm-up excluded")
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p99_low_ms: Number | None = Field(
        default=None, description="lower 95% confidence bound of p99, of calls that are independent; null if too few"
    )
    p99_high_ms: Number | None = Field(default=None, description="upper bound; it takes 368 calls")


class Cost(Record):
    """The cost of running a model on the target, and its basis; only costs of one basis can be compared."""

    basis: Literal["measured", "estimate", "multiply-accumulates"]
    value: float = Field(ge=0, description="in `unit`; lower is faster")
    unit: str = Field(description="ms, or the equivalent of an INT8 multiply-accumulate")
    source: str = Field(description="what it was measured on or estimated for, and how, e.g. roofline of an NVIDIA L4")


class Speedup(Record):
    """How many times as fast as another model a candidate is; above 1 it is faster."""

    against: str = Field(description="what it is held against, e.g. FP16, or ONNX Runtime FP32")
    value: Number = Field(description="time, or cost, of the other over that of the candidate")
    ci_low: Number | None = Field(default=None, description="lower confidence bound; null for what is no measurement")
    ci_high: Number | None = None
    confidence: float | None = Field(default=None, description="two-sided confidence of the interval")
    basis: Literal["measured", "estimate", "multiply-accumulates"]
    on_target: bool = Field(description="measured on what the model will run on, or estimated for it")
    source: str = Field(description="what it was measured on or estimated for, and how")
