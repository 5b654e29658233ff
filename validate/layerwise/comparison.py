"""The result of a comparison: ``comparison.json``, and a row per layer in ``layers.parquet``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from validate.layerwise.tensor_errors import TensorErrors
from validate.notebook import table
from validate.number_formats import Precision
from validate.records import FileKind, Number, Record, replacing
from validate.results import Histogram

__all__ = [
    "Comparison",
    "Execution",
    "LayerDifference",
    "QuantizedInput",
    "RuntimeDifference",
    "Side",
    "TensorDifference",
    "Unpaired",
]

COMPARISON_VERSION = 1
_SHOWN = 10
"""Layers that a notebook shows."""

Side = Literal["reference", "candidate"]


class Execution(Record):
    """A model, and where it ran."""

    model: str = Field(description="file or module")
    runtime: str = Field(description="library, version and arithmetic")
    device: str


class TensorDifference(Record):
    """How far a tensor is from the reference's, over all samples; defined in `validate.layerwise.tensor_errors`."""

    elements: int = Field(ge=0)
    sqnr_db: Number
    cosine: Number
    relative_l2: Number
    max_abs: Number = Field(description="in the tensor's unit")
    mean_abs: Number = Field(description="in the tensor's unit")
    match_share: Number = Field(description="share of elements that are equal")
    reference_not_finite: int = Field(ge=0, description="NaNs and infinities, but for infinities that match")
    other_not_finite: int = Field(ge=0)
    first_not_finite: tuple[int, int] | None = Field(description="sample, and flat index within it, of the first")
    problem: str | None = Field(default=None, description="why nothing could be computed")

    @classmethod
    def of(
        cls, errors: TensorErrors, problem: str | None = None, names: tuple[str, str] = ("reference", "candidate")
    ) -> TensorDifference:
        """Return the metrics of the errors between two tensors that are called `names`, or why there are none."""
        if problem is None and errors.elements == 0:
            problem = "the tensor has no elements"
        if problem is None and not errors.defined:
            counts = (errors.reference_not_finite, errors.other_not_finite)
            sides = [f"{n} in the {side}" for n, side in zip(counts, names, strict=True) if n]
            assert errors.first_not_finite is not None
            sample, index = errors.first_not_finite
            problem = (
                f"it holds NaN or infinity ({' and '.join(sides)}), first in sample {sample} at flat index {index}"
            )
        return cls(**{name: getattr(errors, name) for name in cls.model_fields if name != "problem"}, problem=problem)


class QuantizedInput(Record):
    """An activation that the candidate quantizes on its way into a layer."""

    tensor: str
    scale: float = Field(description="real value of one step")
    low: float = Field(description="lowest value that is not clipped")
    high: float = Field(description="highest value that is not clipped")
    clipped_share: Number = Field(description="share of the reference's values outside of them")
    amax: Number = Field(description="largest |x| of the reference")
    histogram: Histogram | None = Field(default=None, description="of the reference's |x|; of the worst layers only")


class RuntimeDifference(Record):
    """How far the runtime is from the simulation of the same file, against what rounding alone does.

    Two correct executions of one Q/DQ graph differ, because a sum that is rounded differently may tip a value over
    into the next integer. `floor_db` is what that does, measured by executing the simulation again with every
    quantized tensor changed by less than float32's rounding of a dot product.
    """

    difference: TensorDifference = Field(description="runtime against simulation")
    floor_db: Number = Field(description="SQNR between two simulations that differ in rounding only")
    excess_db: Number = Field(description="mean over samples of noise over the floor's noise, in dB")
    excess_low_db: Number = Field(description="lower confidence bound of it")


class LayerDifference(Record):
    """One pair of tensors, and the node that computes them."""

    tensor: str = Field(description="its name in the reference")
    candidate_tensor: str
    node: str
    op_type: str
    depth: int = Field(ge=0, description="position in topological order")
    precision: Literal[Precision, "other"]
    inputs: list[str] = Field(description="the nearest compared tensors that it is computed from")
    quantized_inputs: list[QuantizedInput]
    accumulated: TensorDifference | None = Field(description="both models run whole: where error is")
    growth_db: Number | None = Field(description="SQNR of the worst input minus its own: where error grows")
    isolated: TensorDifference | None = Field(description="fed the reference's inputs: where error is made")
    runtime: RuntimeDifference | None = None


class Unpaired(Record):
    """A tensor that was compared with nothing."""

    tensor: str
    node: str
    side: Side
    reason: str
    is_output: bool = Field(default=False, description="the model's own output, which a comparison has to cover")


class Comparison(Record):
    """A whole comparison. Thresholds and verdict are apart from it, so that it can be judged again."""

    file_kind: ClassVar[FileKind] = FileKind("comparison", "is not a comparison", name="comparison.json")

    version: int = COMPARISON_VERSION
    created: str = Field(description="ISO 8601, UTC")
    command: str
    reference: Execution
    candidate: Execution
    runtime: Execution | None = Field(default=None, description="what executed the candidate beside the simulation")
    samples: int = Field(ge=0)
    passes: int = Field(ge=0, description="runs of any model over the samples")
    layers: list[LayerDifference]
    unpaired: list[Unpaired]
    isolated_reason: str | None = Field(default=None, description="why there is no isolated view")
    environment: dict[str, str]

    def __repr__(self) -> str:
        models = f"{self.candidate.model} against {self.reference.model}"
        return f"<{type(self).__name__}: {models}, {len(self.layers)} layers, {self.samples} samples>"

    def _repr_html_(self) -> str:
        worst = sorted(self.layers, key=_shown_sqnr)[:_SHOWN]
        rows = [
            (x.node, x.op_type, x.precision, *(f"{v.sqnr_db:.1f}" if v else "" for v in (x.isolated, x.accumulated)))
            for x in worst
        ]
        title = (
            f"{self.candidate.model} against {self.reference.model}, {self.samples} samples: the worst {len(rows)} of "
            f"{len(self.layers)} layers"
        )
        return table(title, ("layer", "op", "precision", "isolated SQNR, dB", "accumulated SQNR, dB"), rows)

    def write(self, path: Path) -> None:
        """Write ``comparison.json``, and ``layers.parquet`` beside it, into a folder."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().write(path / "comparison.json")
        with replacing(path / "layers.parquet") as partial:
            pq.write_table(pa.Table.from_pylist([_flat(layer) for layer in self.layers]), partial)


def _shown_sqnr(layer: LayerDifference) -> float:
    """Return what a notebook sorts layers by, the worst first: what is not defined, then the error that it makes."""
    difference = layer.isolated or layer.accumulated
    return -math.inf if difference is None or math.isnan(difference.sqnr_db) else difference.sqnr_db


def _flat(layer: LayerDifference) -> dict[str, Any]:
    """Return a layer as one row: ``accumulated_sqnr_db`` and so on; lists and histograms stay in the JSON."""
    row = layer.model_dump(include={"tensor", "candidate_tensor", "node", "op_type", "depth", "precision", "growth_db"})
    for view in ("accumulated", "isolated"):
        difference: TensorDifference | None = getattr(layer, view)
        for name in TensorDifference.model_fields:
            if name != "first_not_finite":
                row[f"{view}_{name}"] = None if difference is None else getattr(difference, name)
    worst = max(layer.quantized_inputs, key=lambda q: q.clipped_share, default=None)
    for name in ("tensor", "scale", "low", "high", "clipped_share"):
        row[f"input_{name}"] = None if worst is None else getattr(worst, name)
    row["runtime_sqnr_db"] = layer.runtime.difference.sqnr_db if layer.runtime else None
    row["floor_db"] = layer.runtime.floor_db if layer.runtime else None
    return row
