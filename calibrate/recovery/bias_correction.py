"""Bias correction: the mean error that rounding makes in a channel of a layer's output is taken out of its bias.

Inputs behind a hardswish or a ReLU are one-sided, so that rounded weights shift the mean of the output. The shift is
most of the error that rounding weights makes, and a bias costs nothing. After Nagel et al. 2019, with measured means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrate.graph import apply, edited
from calibrate.plan import QuantizationPlan, WeightEdit, WeightEdits
from calibrate.recovery.relations import is_constant
from calibrate.recovery.samples import some
from calibrate.recovery.segments import segments
from calibrate.recovery.step import RecoveryInputs
from validate.backends import OnnxRuntimeModel, detach, expose
from validate.data import Batch

__all__ = ["correct_bias"]

_SAMPLES = 64
"""How many calibration samples means are taken over. 128 were no better for PP-OCRv4."""

Array = NDArray[np.floating]


@dataclass(frozen=True)
class _Bias:
    """Where the bias of a layer is.

    Attributes:
        node: that reads it: the layer itself, or the Add behind a MatMul.
        input: index of it, or that it would have.
        axis: of the channels in the layer's output.
    """

    node: str
    input: int
    axis: int


def correct_bias(plan: QuantizationPlan, inputs: RecoveryInputs) -> QuantizationPlan:
    """Return a plan whose layers have, on calibration samples, the mean output per channel that they have in float.

    One layer after another, each with all layers before it quantized and corrected, as they will be when the model
    runs. A layer that has no bias gets one; a MatMul's is the constant that is added behind it, if there is one.
    What was added to biases before is taken out first, so that a plan can be corrected again after layers of it went
    back to float.

    Args:
        plan: to improve.
        inputs: model and calibration samples.
    """
    nodes = {str(node.name): node for node in inputs.model.prepared.graph}
    found = {layer: _bias_of(nodes[layer]) for layer in plan.layers}
    plan = _without_corrections(plan, [bias for bias in found.values() if bias is not None])
    biases = {layer: bias for layer, bias in found.items() if bias is not None and layer in plan.int8_layers}
    if not biases:
        return plan
    float_model = edited(inputs.model.prepared, plan)
    quantized = apply(plan, inputs.model.prepared, inputs.model.placement, simulate=True)
    batches = some(inputs.batches(), _SAMPLES)
    outputs = {layer: str(nodes[layer].outputs[0].name) for layer in biases}
    means = _means(float_model, {outputs[layer]: bias.axis for layer, bias in biases.items()}, batches)
    tensors = [dict(batch.inputs) for batch in batches]
    edits = []
    for segment in segments(quantized, list(biases)):
        segment.run(tensors)
        bias = biases[segment.end]
        computed = [each[segment.output] for each in tensors]
        change = (means[outputs[segment.end]] - _mean(computed, bias.axis)).astype(np.float32)
        for each in tensors:
            axis = bias.axis % each[segment.output].ndim
            each[segment.output] = each[segment.output] + change.reshape(
                -1, *[1] * (each[segment.output].ndim - 1 - axis)
            )
        if change.any():
            edits.append(WeightEdit(bias.node, bias.input, "add", change))
    return plan.with_weight_edits(edits)


def _without_corrections(plan: QuantizationPlan, biases: Iterable[_Bias]) -> QuantizationPlan:
    """Return the plan without what it adds to biases."""
    places = {(bias.node, bias.input) for bias in biases}
    kept = [e for e in plan.weight_edits if e.operation != "add" or (e.node, e.input) not in places]
    return plan.model_copy(update={"weight_edits": WeightEdits(tuple(kept))})


def _bias_of(layer: ir.Node) -> _Bias | None:
    """Return where the bias of a layer is; None where it can have none."""
    if layer.op_type in {"Conv", "ConvTranspose"}:
        return _Bias(str(layer.name), 2, 1)
    if layer.op_type == "Gemm":
        scale = layer.attributes.get_float("beta", 1.0)
        held = layer.inputs[2] if len(layer.inputs) > 2 else None
        fits = held is None or (held.shape is not None and len(held.shape) == 1 and held.shape[0] != 1)
        return _Bias(str(layer.name), 2, 1) if scale == 1 and fits else None
    uses = list(layer.outputs[0].uses())
    if len(uses) == 1 and uses[0].node.op_type == "Add" and not layer.outputs[0].is_graph_output():
        other = 1 - uses[0].idx
        if is_constant(uses[0].node.inputs[other]):
            return _Bias(str(uses[0].node.name), other, -1)
    return None


def _means(model: ir.Model, axes: Mapping[str, int], batches: Iterable[Batch]) -> dict[str, Array]:
    """Return the mean of every channel of tensors, float64, by name."""
    runnable = OnnxRuntimeModel(detach(expose(model, list(axes))), outputs=list(axes))
    sums: dict[str, Array] = {}
    counts: dict[str, int] = {}
    for batch in batches:
        for name, values in runnable.run(batch.inputs).items():
            total, count = _sum(values, axes[name])
            sums[name], counts[name] = sums.get(name, 0.0) + total, counts.get(name, 0) + count
    return {name: total / counts[name] for name, total in sums.items()}


def _mean(batches: Iterable[Array], axis: int) -> Array:
    """Return the mean of every channel over all batches, float64."""
    sums = [_sum(values, axis) for values in batches]
    mean: Array = sum((total for total, _ in sums), np.zeros(())) / sum(count for _, count in sums)
    return mean


def _sum(values: Array, axis: int) -> tuple[Array, int]:
    """Return the sum of every channel, float64, and how many values it is of."""
    channels = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    return channels.sum(axis=0, dtype=np.float64), len(channels)
