"""Cost models of a plan: roofline estimate, measured layers, or multiply-accumulates.

Three answers, the best first: times that were measured layer by layer on the GPU, an estimate from the GPU's
datasheet, and, where neither GPU nor shapes are known, multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import onnx_ir as ir

from calibrate.cost.gpus import Gpu
from calibrate.cost.kernels import Kernels
from calibrate.cost.shapes import multiply_accumulates_of, tensor_shapes
from calibrate.graph import Placement
from validate.exceptions import JobError
from validate.number_formats import NUMBER_FORMATS, FloatPrecision, Precision
from validate.results import Cost

__all__ = ["LAUNCH_MS", "CostModel", "MacCost", "MeasuredCost", "Roofline", "multiply_accumulates"]

Basis = Literal["measured", "estimate", "multiply-accumulates"]
Shapes = Mapping[str, tuple[int, ...]]

LAUNCH_MS = 0.001
"""Time to launch a kernel, in milliseconds, added to every kernel.

NVIDIA's "Getting Started with CUDA Graphs" (A. Gray, 2019) has 3.8 us for a launch of a kernel of 2.9 us in a stream,
and 3.4 us in a CUDA graph (from memory, not looked up again). It keeps the search from taking tiny reformats for free,
and is no claim about a GPU."""

_WEIGHT = {name: row.bytes for name, row in NUMBER_FORMATS.items()}


class CostModel(Protocol):
    """Cost of plans. Only costs of the same model, on the same basis, compare with each other.

    Attributes:
        basis: how costs are known.
    """

    @property
    def basis(self) -> Basis:
        """How costs are known: measured, estimated, or counted in multiply-accumulates."""
        ...

    def cost(self, precisions: Mapping[str, Precision]) -> Cost:
        """Return the cost of a plan, at least 0.

        Args:
            precisions: of each layer of the placement, by node name; see `layer_precisions`.
        """
        ...

    def layer_ms(self, layer: str, precision: Precision) -> float | None:
        """Return the measured time of a layer in that precision, in milliseconds; None where none was measured."""
        ...


def multiply_accumulates(model: ir.Model, placement: Placement, shapes: Shapes) -> dict[str, int]:
    """Return the multiply-accumulates of every layer of the placement, by node name.

    Args:
        model: prepared; not changed.
        placement: of the model.
        shapes: of the model's inputs, batch included: the counts are those of the whole batch.

    Raises:
        JobError: the shapes do not fit the model.

    Examples:
        >>> import onnx_ir as ir
        >>> from calibrate.graph import place
        >>> model = ir.from_onnx_text('''<ir_version: 10, opset_import: ["" : 19]>
        ...     net (float[N, 2] x) => (float[N, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { [product] y = MatMul(x, w) }''')
        >>> multiply_accumulates(model, place(model), {"x": (4, 2)})
        {'product': 16}
    """
    known = tensor_shapes(model, shapes)
    layers = {layer.node for layer in placement.layers}
    return {str(node.name): multiply_accumulates_of(node, known) for node in model.graph if node.name in layers}


@dataclass(frozen=True)
class MacCost:
    """Multiply-accumulates of the layers, each weighted by the time that a tensor core takes for it.

    INT8 is 1, FP16 and BF16 are 2 and FP32 is 4: the ratio of the dense peak rates of every data-center GPU in
    `calibrate.cost.gpus` since Ampere (A100: INT8 624, FP16 312, TF32 156), where TensorRT computes FP32 in TF32
    unless that is turned off. A T4 has no TF32, and there FP32 would be 16. Memory traffic is not in it, so that it
    overestimates the gain of INT8.

    Attributes:
        macs: by layer; see `multiply_accumulates`.

    Examples:
        >>> cost = MacCost({"first": 100, "second": 50}).cost({"first": "int8", "second": "fp16"})
        >>> cost.value, cost.unit
        (200.0, 'INT8-equivalent MACs')
    """

    macs: Mapping[str, int]
    basis: Literal["multiply-accumulates"] = "multiply-accumulates"

    def cost(self, precisions: Mapping[str, Precision]) -> Cost:
        """See `CostModel`."""
        return Cost(
            basis=self.basis,
            value=sum(macs * _WEIGHT[precisions[layer]] for layer, macs in self.macs.items()),
            unit="INT8-equivalent MACs",
            source="multiply-accumulates of the layers: INT8 1, FP16 and BF16 2, FP32 4",
        )

    def layer_ms(self, layer: str, precision: Precision) -> float | None:
        """See `CostModel`: nothing was measured."""
        return None


@dataclass(frozen=True, eq=False)
class Roofline:
    """An estimate in milliseconds for one GPU, from its datasheet alone.

    Each kernel takes ``max(2 * MACs / peak rate of its precision, bytes moved / memory bandwidth)``, the roofline of
    Williams, Waterman and Patterson ("Roofline: an insightful visual performance model for multicore architectures",
    CACM 52(4), 2009), and `LAUNCH_MS` on top. The kernels run one after the other, and their times add up.

    - A kernel is a node with the pointwise ones that fuse behind it (`calibrate.cost.fusion`): bias, activation,
      residual Add. These cost what else they read, and no time of their own. Views (Reshape) cost nothing. An Add of
      two convolutions belongs to the later one.
    - Bytes are inputs, weights and output, each in the type in which it is in memory. `Kernels` says which that is: an
      int8 layer reads int8, and writes it where all that read it want it; else it writes its float type.
    - Where a reader takes another type than was written, one more kernel reads, converts and writes. So a single int8
      layer among fp16 ones pays for the quantization of its input and writes fp16, and may well cost more than in fp16.
    - All else (Softmax, LayerNormalization, Resize, ...) reads and writes the float type, bound by bandwidth.

    Not in it: caches (a tensor that stays in L2 is not read from memory), tactics that are far from the peak (small
    or odd channel counts; depthwise convolutions, which are bound by memory here anyhow), fusions beyond the
    documented ones (attention in one kernel), layers that run side by side, and that nodes which are no layers may be
    FP32 among FP16 ones. So a real engine takes longer, by a factor that differs from layer to layer: good for telling
    which layers are worth their INT8, and no promise of latency.

    Attributes:
        float_precision: of all that is not a layer, and of the float side of int8 layers.
    """

    kernels: Kernels
    gpu: Gpu
    float_precision: FloatPrecision
    basis: Literal["estimate"] = "estimate"

    def cost(self, precisions: Mapping[str, Precision]) -> Cost:
        """See `CostModel`. Raises JobError where the GPU does not compute in one of the precisions."""
        traffic = self.kernels.traffic(precisions, self.float_precision)
        names = [precisions[layer] for layer in self.kernels.layers]
        pace = {name: self.gpu.seconds_per_operation(name) for name in {*names, self.float_precision}}
        paces = np.array([*(pace[name] for name in names), pace[self.float_precision]])
        seconds_per_byte = 1 / (self.gpu.bandwidth * 1e9)
        busy = np.maximum(2 * self.kernels.macs * paces[self.kernels.layer], traffic.kernels * seconds_per_byte).sum()
        busy += traffic.reformats.sum() * seconds_per_byte
        return Cost(
            basis=self.basis,
            value=float(busy) * 1e3 + LAUNCH_MS * (len(traffic.kernels) + len(traffic.reformats)),
            unit="ms",
            source=f"roofline of an NVIDIA {self.gpu.name} (datasheet: {self.gpu.source})",
        )

    def layer_ms(self, layer: str, precision: Precision) -> float | None:
        """See `CostModel`: nothing was measured."""
        return None


@dataclass(frozen=True, eq=False)
class MeasuredCost:
    """A cost in milliseconds from two engines that were timed layer by layer: one all int8, one all float.

    Each layer's time is taken from the engine that has the layer in the plan's precision. No engine shows the reformats
    between an int8 and a float layer: `Kernels` says which there are, and their bytes give their time. So `rest_ms`
    does not include reformats.

    Attributes:
        kernels: of the same model and shapes.
        int8_ms, float_ms: time of every layer of `kernels.layers`; all float layers of a plan are taken to be of the
            float engine's type. `validate.backends.tensorrt.layer_times` reads them from engines.
        rest_ms: time of all that is neither a layer nor a reformat.
        reformat_ms_per_byte: time for a byte that is read or written; `1e3 / (GB/s * 1e9)` where it was not measured.
        float_precision: of all that is not a layer, and of the float side of int8 layers.
        source: hardware and software that it was measured with.

    Raises:
        JobError: a layer has no time.
    """

    kernels: Kernels
    int8_ms: Mapping[str, float]
    float_ms: Mapping[str, float]
    rest_ms: float
    reformat_ms_per_byte: float
    float_precision: FloatPrecision
    source: str
    basis: Literal["measured"] = "measured"

    def __post_init__(self) -> None:
        for kind, times in (("int8", self.int8_ms), ("float", self.float_ms)):
            if missing := [layer for layer in self.kernels.layers if layer not in times]:
                raise JobError(f"the {kind} engine has no time for layer {', '.join(missing)}")

    def cost(self, precisions: Mapping[str, Precision]) -> Cost:
        """See `CostModel`."""
        times = (
            (self.int8_ms if precisions[layer] == "int8" else self.float_ms)[layer] for layer in self.kernels.layers
        )
        traffic = self.kernels.traffic(precisions, self.float_precision)
        reformats = float(traffic.reformats.sum()) * self.reformat_ms_per_byte
        return Cost(basis=self.basis, value=sum(times) + self.rest_ms + reformats, unit="ms", source=self.source)

    def layer_ms(self, layer: str, precision: Precision) -> float | None:
        """See `CostModel`: the time from the engine that `cost` uses."""
        return (self.int8_ms if precision == "int8" else self.float_ms)[layer]
