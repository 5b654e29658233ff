"""Costs of plans, of the float model and of the model in FP16: measured, estimated, or counted in MACs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrate.cost.gpus import GPUS, Gpu
from calibrate.cost.kernels import Kernels, kernels_of
from calibrate.cost.roofline import CostModel, MacCost, MeasuredCost, Roofline, multiply_accumulates
from calibrate.cost.settings import TargetConfig
from calibrate.graph import apply, layer_precisions
from calibrate.journal import Journal
from calibrate.loading import FloatModel, Inputs
from calibrate.plan import QuantizationPlan
from validate.backends import local_gpu, write_onnx
from validate.backends.tensorrt import BuildOptions, TensorRTBackend, build_engine
from validate.engines import NodeTimes, node_times
from validate.exceptions import JobError
from validate.number_formats import FloatPrecision
from validate.results import Cost, Speedup

__all__ = ["Pricing", "price"]

Arrays = Mapping[str, NDArray[Any]]

_PROFILED = 20
"""Inferences by which an engine's layers are timed."""


@dataclass(frozen=True)
class Pricing:
    """Costs of plans and of the float model, all on one basis, so that they compare.

    Attributes:
        model: that the plans are for.
        plans: cost model of plans.
        macs: multiply-accumulates by layer.
        float32: cost of the float model.
        float16: cost of the model in FP16, which INT8 has to beat. Nodes that FP16 cannot hold are FP32 in it.
    """

    model: FloatModel
    plans: CostModel
    macs: Mapping[str, int]
    float32: Cost
    float16: Cost

    def cost(self, plan: QuantizationPlan) -> Cost:
        """Return the cost of a plan."""
        return self.plans.cost(layer_precisions(self.model.prepared, plan))

    def int8_share(self, plan: QuantizationPlan) -> float:
        """Return the share of the layers' multiply-accumulates that are int8, in [0, 1]."""
        total = sum(self.macs.values())
        return sum(self.macs[layer] for layer in plan.int8_layers) / total if total else 0.0

    def speedups(self, cost: Cost) -> list[Speedup]:
        """Return how much faster a plan of that cost is than the model in FP32 and in FP16."""
        return [
            Speedup(
                against=name,
                value=other.value / cost.value if cost.value else 1.0,
                basis=cost.basis,
                on_target=cost.basis != "multiply-accumulates",
                source=cost.source,
            )
            for name, other in (("FP32", self.float32), ("FP16", self.float16))
        ]


def price(
    target: TargetConfig,
    batch_size: int,
    precision: FloatPrecision,
    inputs: Inputs,
    plan: QuantizationPlan,
    folder: Path,
    journal: Journal,
) -> Pricing:
    """Return the costs: measured on this machine's GPU, else estimated for the target's, else multiply-accumulates.

    Args:
        target: device that the model will run on.
        batch_size: samples of a call.
        precision: float type that layers may go back to.
        inputs: the float model, and samples that give the shapes of its inputs.
        plan: with all layers in int8 that can be; its engine is timed where there is a GPU.
        folder: for engines.
        journal: gets a warning where something could not be measured or estimated.
    """
    model, size = inputs.model, inputs.rows_of_a_call(batch_size)
    first = next(iter(inputs.calibration.limited(1).batches()))
    batch = {name: np.resize(array, (size, *array.shape[1:])) for name, array in first.inputs.items()}
    shapes = {name: array.shape for name, array in batch.items()}
    macs = multiply_accumulates(model.prepared, model.placement, shapes)
    if target.device == "gpu" and (gpu := _gpu(target, journal)):
        kernels = kernels_of(model.prepared, model.placement, shapes)
        if (here := local_gpu()) and target.is_gpu(here.name, here.compute_capability):
            try:
                return _measured(model, kernels, macs, batch, plan, gpu, precision, folder)
            except JobError as error:
                journal.warn(f"layers could not be timed on this machine's GPU, so that costs are estimates: {error}")
        return _priced(model, macs, plan, lambda precision: Roofline(kernels, gpu, precision))
    return _priced(model, macs, plan, lambda _: MacCost(macs))


def _priced(
    model: FloatModel, macs: Mapping[str, int], plan: QuantizationPlan, costs: Callable[[FloatPrecision], CostModel]
) -> Pricing:
    """Return the costs of one basis; `costs` makes the cost model for a float type of the nodes that are no layers."""

    def whole(kind: FloatPrecision) -> Cost:
        return costs(kind).cost(layer_precisions(model.prepared, plan.in_float(kind, kind)))

    return Pricing(model, costs(plan.float_precision), macs, whole("fp32"), whole("fp16"))


def _gpu(target: TargetConfig, journal: Journal) -> Gpu | None:
    gpu = target.known_gpu()
    if gpu is None:
        known = ", ".join(sorted({one.compute_capability for one in GPUS}))
        journal.warn(
            f"costs are multiply-accumulates: no GPU of compute capability {target.compute_capability} is known "
            f"by its speed (known are {known})"
        )
    return gpu


def _measured(
    model: FloatModel,
    kernels: Kernels,
    macs: Mapping[str, int],
    batch: Arrays,
    plan: QuantizationPlan,
    gpu: Gpu,
    precision: FloatPrecision,
    folder: Path,
) -> Pricing:
    """Build an engine all in int8 and one in each float type, and time their layers.

    Not tried on a GPU yet. The documents that it follows are named in `validate.backends.tensorrt`.
    """

    def timed(name: str, mixed: QuantizationPlan) -> NodeTimes:
        file = folder / f"{name}.onnx"
        written = apply(mixed, model.prepared, model.placement)
        write_onnx(written, file)
        engine = file.with_suffix(".engine")
        build_engine(file, engine, {k: (v.shape, v.shape, v.shape) for k, v in batch.items()}, BuildOptions())
        loaded = TensorRTBackend(engine).load()
        reformats = [
            str(node.name) for node in written.graph if node.op_type in {"QuantizeLinear", "DequantizeLinear", "Cast"}
        ]
        weights = {layer: max(count, 1) for layer, count in macs.items()}
        return node_times(loaded.layers(), loaded.layer_times(batch, _PROFILED), weights, reformats)

    int8 = timed("int8", plan)
    floats = {kind: timed(kind, plan.in_float(kind, kind)) for kind in dict.fromkeys(("fp32", "fp16", precision))}
    source = f"layers of TensorRT engines on this machine's {local_gpu()}"
    moved = float(kernels.traffic(layer_precisions(model.prepared, plan), plan.float_precision).reformats.sum())
    per_byte = int8.reformat_ms / moved if moved and int8.reformat_ms else 1e3 / (gpu.bandwidth * 1e9)
    plans = MeasuredCost(
        kernels, int8.nodes, floats[precision].nodes, int8.rest_ms, per_byte, plan.float_precision, source
    )

    def total(times: NodeTimes) -> Cost:
        value = float(np.sum([*times.nodes.values(), times.rest_ms, times.reformat_ms]))
        return Cost(basis="measured", value=value, unit="ms", source=source)

    return Pricing(model, plans, macs, total(floats["fp32"]), total(floats["fp16"]))
