"""Build options of an engine, as data; they are part of its fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["BuildOptions", "HardwareCompatibility", "Profile", "ShapeRanges", "Shapes"]

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""The smallest, usual and largest shape of an input."""
Profile = Mapping[str, Shapes]
"""Per input the smallest, usual and largest shape that the engine must take."""
HardwareCompatibility = Literal["none", "same_compute_capability", "ampere_plus"]


@dataclass
class ShapeRanges:
    """The smallest and the largest shape of every input over the batches that were seen."""

    smallest: dict[str, tuple[int, ...]] = field(default_factory=dict)
    largest: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, batches: Iterable[Mapping[str, NDArray[Any]]]) -> ShapeRanges:
        """Return the ranges over some batches."""
        ranges = cls()
        for batch in batches:
            ranges.add(batch)
        return ranges

    @classmethod
    def union(cls, ranges: Iterable[ShapeRanges]) -> ShapeRanges:
        """Return the ranges that hold all of these."""
        whole = cls()
        for one in ranges:
            for shapes in (one.smallest, one.largest):
                whole._add(shapes)
        return whole

    def add(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """See one more batch."""
        self._add({name: array.shape for name, array in inputs.items()})

    def _add(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            self.smallest[name] = tuple(map(min, self.smallest.get(name, shape), shape))
            self.largest[name] = tuple(map(max, self.largest.get(name, shape), shape))

    def profile(self, fixed_batch: int | None) -> Profile:
        """Return for every input the smallest (batch 1, or what the model is fixed to), usual and largest shape."""
        shapes = {}
        for name, (most, *inner) in self.largest.items():
            largest = (fixed_batch or most, *inner)
            shapes[name] = ((fixed_batch or 1, *self.smallest[name][1:]), largest, largest)
        return shapes


class BuildOptions(BaseModel):
    """Build options of an engine; the defaults are TensorRT's own.

    Sources: the `IBuilderConfig` page of TensorRT's Python API, and "Engine Compatibility" in the developer guide of
    TensorRT 11 (version_compatible, hardware_compatible) and of TensorRT-RTX (neither exists there).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    compute_capability: str | None = Field(
        default=None,
        description="what TensorRT-RTX builds for, e.g. 8.9; by default an engine for every GPU that it supports "
        "(Ampere and later). `tensorrt` builds for the GPU of the machine, and for no other",
    )
    optimization_level: int = Field(default=3, ge=0, le=5, description="more takes longer to build and may run faster")
    workspace_bytes: int | None = Field(
        default=None, gt=0, description="most GPU memory that a layer may use for itself; by default all there is"
    )
    tf32: bool = Field(
        default=True,
        description="compute float32 convolutions and matrix products in TF32, which rounds to 10 bits. TensorRT-RTX "
        "1.6.1 does so in any case: on an H200, engines built with and without gave the same bits",
    )
    timing_cache: Path | None = Field(
        default=None,
        description="file with what `tensorrt` measured in earlier builds, read and written. TensorRT-RTX has none "
        "(its runtime compiles for the GPU, and caches that): there it is ignored",
    )
    version_compatible: bool = Field(default=False, description="runs with later TensorRT too; not TensorRT-RTX")
    hardware_compatible: HardwareCompatibility = Field(
        default="none",
        description="runs on other GPUs of the same compute capability, or on all from Ampere on; not TensorRT-RTX, "
        "where compute_capability says it",
    )
    debug: Literal["none", "unfused"] | tuple[str, ...] = Field(
        default="none",
        description="inner tensors that can be looked at: `unfused` is all that are left after fusion, by the "
        "engine's own names; or ONNX tensors by name, which breaks the fusion of the layers around them, so that the "
        "engine is another one than without",
    )

    @property
    def breaks_fusion(self) -> bool:
        """Whether inner tensors were named, which TensorRT then keeps out of fused layers."""
        return isinstance(self.debug, tuple) and bool(self.debug)
