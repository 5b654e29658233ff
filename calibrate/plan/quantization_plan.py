"""A quantization plan: the unit of experiment. Data only; `calibrate.graph` turns it into an ONNX file."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, field_serializer, field_validator, model_serializer

from calibrate.plan.origin import Origin
from calibrate.plan.weight_edits import WeightEdit, WeightEdits, weights_file
from validate.number_formats import INT8, NUMBER_FORMATS, FloatPrecision, NumberFormat, Precision
from validate.records import FileKind, Record

__all__ = ["Exclusion", "QuantizationPlan", "QuantizationRules"]


class Exclusion(Record):
    """Nodes to keep in float. They read float inputs even where an int8 node reads the same tensors."""

    names: list[str] = Field(default=[], description="node names")
    patterns: list[str] = Field(default=[], description="regular expressions, searched for in node names")
    op_types: list[str] = Field(default=[], description="ONNX operators, e.g. Gemm")

    @field_validator("patterns")
    @classmethod
    def _regular(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


class QuantizationRules(Record):
    """Settings of a plan that the user chooses; the rest follows from the model and the data."""

    float_precision: FloatPrecision = Field(
        default="fp32", description="type of everything that is not int8, and of the float side of int8 layers"
    )
    weights: Literal["per_channel", "per_tensor"] = Field(
        default="per_channel", description="one weight scale per output channel, or one in all"
    )
    attention: bool = Field(
        default=False, description="quantize products of two activations too, as in attention (MatMul)"
    )
    exclude: Exclusion = Field(default=Exclusion(), description="nodes that stay in float")

    @property
    def number_format(self) -> NumberFormat:
        """What layers are quantized to."""
        return INT8


class QuantizationPlan(QuantizationRules):
    """A scale per tensor, a precision per layer, and edits of weights, for one model.

    Symmetric int8, zero point 0: ``q = clip(round_half_even(x / scale), -128, 127)``, ``scale = threshold / 127``.
    Weights have no scales here: they are a function of the weights themselves (their largest |w|).

    Examples:
        >>> plan = QuantizationPlan(
        ...     name="minmax",
        ...     strategy="minmax",
        ...     origin=Origin(model_sha256="0" * 64),
        ...     scales={"x": 0.02, "h": 0.1},
        ...     layers={"first": "int8", "second": "int8"},
        ... )
        >>> plan.with_layers(frozenset({"second"}), "fp16", name="minmax+1fp16").layers
        {'first': 'int8', 'second': 'fp16'}
        >>> sorted(plan.int8_layers)
        ['first', 'second']
    """

    file_kind: ClassVar[FileKind] = FileKind("plan", "is not a plan")

    name: str
    strategy: str = Field(description="what chose the scales")
    origin: Origin = Field(description="what the plan was made from")
    scales: dict[str, float] = Field(description="activation scale by tensor name, per tensor")
    layers: dict[str, Precision] = Field(
        description="precision of every layer that could be int8, by node name, in topological order"
    )
    wide_nodes: frozenset[str] = Field(
        default=frozenset(),
        description="nodes whose values leave FP16's range, that need a constant which FP16 rounds to 0, or that are "
        "inaccurate in FP16, so that they are fp32 where they would be fp16: layers, the float side of int8 layers, "
        "and any other node",
    )
    fp32_scales: frozenset[str] = Field(
        default=frozenset(),
        description="int8 layers, and residual Adds behind them, whose scales are float32 also where the rest is fp16 "
        "or bf16: they compute in fp32, and a Cast follows; of a layer that is not int8 it says nothing",
    )
    weight_edits: WeightEdits = Field(
        default=WeightEdits(), description="SHA-256 of what the plan changes of weights, which is in a file beside it"
    )

    @field_validator("scales")
    @classmethod
    def _positive(cls, scales: dict[str, float]) -> dict[str, float]:
        for tensor, scale in scales.items():
            if not (math.isfinite(scale) and scale > 0):
                raise ValueError(f"the scale of {tensor} is {scale}; it must be positive and finite")
        return scales

    @field_serializer("wide_nodes", "fp32_scales")
    def _in_order(self, names: frozenset[str]) -> list[str]:
        return sorted(names)  # or equal plans would have different hashes

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = dump(self)
        # A plan without them is what it was before plans could have them.
        for name in ("weight_edits", "fp32_scales"):
            if not getattr(self, name):
                content.pop(name, None)
        return content

    @property
    def int8_layers(self) -> frozenset[str]:
        """Names of the layers that are computed in int8."""
        return frozenset(name for name, precision in self.layers.items() if NUMBER_FORMATS[precision].scaled)

    @property
    def hash(self) -> str:
        """SHA-256, in hex, of all that decides the ONNX file of the plan: not of its name, nor of the data's hash."""
        undecided = set() if self.wide_nodes else {"wide_nodes"}  # and plans from before they were there keep theirs
        content = self.model_dump_json(exclude={"name", "origin"} | undecided) + self.origin.model_sha256
        return hashlib.sha256(content.encode()).hexdigest()

    def with_layers(self, names: frozenset[str], precision: Precision, name: str) -> QuantizationPlan:
        """Return the plan called `name` with those layers in another precision."""
        layers = {layer: precision if layer in names else old for layer, old in self.layers.items()}
        return self.model_copy(update={"name": name, "layers": layers})

    def in_float(self, precision: FloatPrecision, name: str) -> QuantizationPlan:
        """Return the plan called `name` with the whole model in one float type, and its weights as they were."""
        of_int8: dict[str, Any] = {"weight_edits": WeightEdits(), "fp32_scales": frozenset()}
        whole = self.with_layers(self.int8_layers, precision, name)
        return whole.model_copy(update={"float_precision": precision, **of_int8})

    def with_weight_edits(self, edits: Iterable[WeightEdit]) -> QuantizationPlan:
        """Return the plan with more edits of weights, which are made after those that it has."""
        return self.model_copy(update={"weight_edits": WeightEdits((*self.weight_edits, *edits))})

    def write(self, path: Path) -> None:
        """Write as JSON, and weight edits beside it: see `weights_file`."""
        if self.weight_edits:
            self.weight_edits.write(weights_file(path))
        super().write(path)

    @classmethod
    def read(cls, path: Path) -> QuantizationPlan:
        """Read what `write` wrote.

        Raises JobError where the file is not a plan, or one of another version, or its weight edits are not beside it.
        """
        plan = super().read(path)
        plan.origin.require_version(f"plan {path}")
        return plan
