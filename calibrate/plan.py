"""A quantization plan: the unit of experiment. Data only; `calibrate.graph` turns it into an ONNX file."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

__all__ = ["FloatPrecision", "Precision", "QuantizationPlan"]

Precision = Literal["int8", "fp16", "fp32"]
FloatPrecision = Literal["fp16", "fp32"]


class QuantizationPlan(BaseModel):
    """A scale per tensor and a precision per layer, for one model.

    Symmetric int8, zero point 0: ``q = clip(round_half_even(x / scale), -128, 127)``, ``scale = threshold / 127``.
    Weights have no scales here: they are a function of the weights themselves (largest |w| per output channel).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str
    strategy: str = Field(description="what chose the scales")
    model_sha256: str = Field(description="hash of the float model that the plan is for")
    scales: dict[str, float] = Field(description="activation scale by tensor name, per tensor")
    layers: dict[str, Precision] = Field(
        description="precision of every layer that could be int8, by node name, in topological order"
    )
    float_precision: FloatPrecision = Field(
        description="precision of all other nodes, and of the float side of int8 layers"
    )

    @field_validator("scales")
    @classmethod
    def _positive(cls, scales: dict[str, float]) -> dict[str, float]:
        for tensor, scale in scales.items():
            if not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"the scale of {tensor} is {scale}; it must be positive and finite")
        return scales

    @property
    def int8_layers(self) -> frozenset[str]:
        """Names of the layers that are computed in int8."""
        return frozenset(name for name, precision in self.layers.items() if precision == "int8")

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides the file that the plan makes; its name does not."""
        return hashlib.sha256(self.model_dump_json(exclude={"name"}).encode()).hexdigest()

    def with_layers(self, names: frozenset[str], precision: Precision, name: str) -> QuantizationPlan:
        """Return the plan called `name` with those layers in another precision."""
        layers = {layer: precision if layer in names else old for layer, old in self.layers.items()}
        return self.model_copy(update={"name": name, "layers": layers})

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
