"""What a run found of the float model in FP16 or BF16, before anything of it was INT8."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from validate.records import Number, Record

__all__ = ["Fp16Check"]


class Fp16Check(Record):
    """What the float model loses in FP16 or BF16 alone, in simulation on calibration samples."""

    precision: Literal["fp16", "bf16"] = Field(description="type of all that is not INT8")
    metric: str
    drop: Number = Field(description="of the metric, with all nodes in that type that their ranges allow")
    drop_after: Number = Field(description="with `fp32_nodes` in FP32; what INT8 costs comes on top of it")
    samples: int = Field(ge=0, description="calibration samples, with their labels or the float model's answers")
    fp32_nodes: list[str] = Field(description="nodes that went to FP32 so that the target is met; topological order")
    evaluations: int = Field(ge=1, description="plans that were run, most of them on a part of the samples")
    misses: bool = Field(description="the target is missed all the same: nothing was found, or nothing was searched")
    message: str = Field(description="the same as a sentence")
